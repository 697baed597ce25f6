"""Vocoders: waveforms from mel spectrograms.

`griffin_lim` needs no training and is the vocoder until a better one is given.

Every vocoder holds the `speechkit.audio.spectrogram.MelSpectrogram` that it is made for as `mel`, and turns mels into
waveforms by `vocode(mel_BTF, mel_lens_B) -> (wave_BN, wave_lens_B)`; T frames make `mel.num_samples(T)` samples. Before a
vocoder is given an acoustic model's mels, `vocoder.mel.check_same(...)` makes sure that both mean the same.
"""
