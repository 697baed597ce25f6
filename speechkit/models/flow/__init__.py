"""Synthesis by flow matching: one objective, two models, from noise to speech in a few steps.

Sources: the objective, Lipman et al. 2023, "Flow Matching for Generative Modeling" (`speechkit.losses.flow_matching`);
Matcha-TTS, Mehta et al. 2024; F5-TTS, Chen et al. 2024; text spread over the frames, ZipVoice, Zhu et al. 2025; lengths of
sentences and latents instead of mels, SimpleSpeech 2, Yang et al. 2024; CTC on what is generated, LEMAS-TTS.

`MatchaModel` knows which frame belongs to which phone::

    phones --> Transformer --> expected mel of each phone --+--> repeated by durations ----------.
                     |                                      |        ^                           v
                     '--> durations of phones  <--trained-- alignment search        noise --> U-Net, step by step --> mel

`F5Model` fills in what is missing, from what is there::

    phones --> ConvNeXt --> placed over frames (filler | average | durations) --.
    prompt's mel, zeros behind it ----------------------------------------------+--> DiT, step by step --> mel
    noise ----------------------------------------------------------------------'
                 '--> total length (by the prompt's rate | sum of durations | as a whole)

and, given a trained codec with a scalar quantiser, does so in the codec's latent, as SimpleSpeech 2 (`spaces`)::

    prompt's mel --> codec's encoder, tanh --> latent --+--> DiT, step by step --> latent --> rounded --> codec's decoder --> mel
                                                noise --'                                                       (or waveform)

Differences from the public code. Both: no row depends on its batch mates or on padding, since padding is masked in attention and
in convolutions and norms are taken frame by frame (group norms and global response norms are not there); noise of a synthesis
belongs to the id of the utterance; speaker and language are added to the time of the flow. Matcha: GELU for snake activations;
four heads of 64 in the U-Net for two; durations are log(d + 1); any number of frames; guidance. F5: spans, times and what is left
out are drawn for each utterance; text is encoded before it is placed over the frames, so that the encoder reads no filler; a
network for the total length; without a prompt it speaks as well. SimpleSpeech 2: infilling, with prompts in the latent, by the
network of F5 rather than its own; phones rather than letters; durations of phones, where they are known, as a further way to the
length; the codec reads mels.
"""
