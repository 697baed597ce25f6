"""Speaker encoder: who speaks, as a vector that points the same way for all utterances of one voice.

Sources: Wan et al. 2018, "Generalized End-to-End Loss for Speaker Verification"; Jia et al. 2018, "Transfer Learning from Speaker
Verification to Multispeaker Text-To-Speech Synthesis" (SV2TTS), section 2.1.

    log-mels (B, T, 40)
      | stretches of 1.6 s: one drawn of each utterance (`loss`); every 0.8 s (`embed`)
      | normalised by mean and deviation of the corpus
      | LSTM layer 1 .. N --> output at the last frame --> linear --> length 1       (B, D)
                                                                       |
            N speakers x M utterances: generalised end-to-end loss  <--'-->  mean over the stretches, length 1
                                           (`losses.ge2e`)                            (`infer.embed`)

Differences from the papers: stretches have the same length in all batches (Wan et al. draw one of 1.4 to 1.8 s for each batch);
speakers of a batch may have different numbers of utterances, and those with one have no part in the loss, which is a mean over
utterances; gradients of the scale, the bias and the last layer are not made smaller, which Adam would undo; stretches of an
utterance for its embedding begin every 0.8 s, and the last one ends where the utterance does.
"""
