"""Vocoders: waveforms from mel spectrograms.

Sources: Vocos, Siuzdak 2023; HiFi-GAN, Kong et al. 2020; Griffin and Lim 1984.

    log-mels (B, T, F) --> generator --> wave (B, N) <--> recording: mels, magnitudes          (`Vocoder.loss`)
                                              |
                                              '--> discriminators: periods, scales, spectra    (`training.gan_module.GanModule`)

`griffin_lim` needs no training and is the vocoder until a better one is given; `model.Vocoder` trains one of the generators,
`vocos.VocosGenerator` (all at the rate of frames, an inverse Fourier transform at the end) or `hifigan.HifiGanGenerator`
(transposed convolutions), with or without `discriminators`. Weights of the public packages come in through `convert`.

Every vocoder holds the `speechkit.audio.spectrogram.MelSpectrogram` that it is made for as `mel`, and turns mels into
waveforms by `vocode(mel_BTF, mel_lens_B) -> (wave_BN, wave_lens_B)`; T frames make `mel.num_samples(T)` samples. Before a
vocoder is given an acoustic model's mels, `vocoder.mel.check_same(...)` makes sure that both mean the same.

Differences from the papers: rows of a batch have lengths, and nothing past them is read, judged or compared; the mels of a
stretch are those of its utterance, not of the stretch alone; schedules count steps, not epochs; what the discriminator sees in
the generator's step is recomputed after its own.
"""
