"""FastSpeech 2: all mel frames at once, from phones whose duration, pitch and energy are predicted first.

Sources: Ren et al. 2019, "FastSpeech" (length regulator); Ren et al. 2021, "FastSpeech 2" (variance adaptor); Lancucki 2021,
"FastPitch" (pitch and energy by phone); Badlani et al. 2022, "One TTS Alignment To Rule Them All" (durations without a teacher).

    phones (B, P)
      | embedding + sinusoids
      | encoder: feed-forward Transformer blocks
      | + speaker, + language
      |--> duration predictor --> log(d + 1)
      |--> pitch predictor    --> + embedding of the pitch bin
      |--> energy predictor   --> + embedding of the energy bin
      | length regulator: each phone for as many frames as it lasts      <-- known durations, or those of the aligner
      | + sinusoids
      | decoder: feed-forward Transformer blocks --> linear --> mel (B, T, F)
      '--> + PostNet ------------------------------------------> mel

    aligner (training alone): phones, mel --> soft attention --> forward-sum --> monotonic alignment search --> durations

Differences from the papers: pitch is log F0, interpolated through unvoiced frames and averaged by phone, as in FastPitch, not
a wavelet spectrogram; mels are normalised by mean and deviation of the corpus; blocks normalise before attention and
convolution, which trains at higher rates; PostNet's batch norm sees no padding. FastSpeech 1's distillation goes through
files, for which `recipes/synthesize.py` writes speech with its durations, and a student is trained on that; or through
`teacher=`, a trained model whose mels the student learns as it trains.
"""
