"""Codecs: speech as a few codes for each frame, and back; and tokens of what is said.

Sources: Zeghidour et al. 2022, "SoundStream" (residual quantiser, quantiser dropout); Kumar et al. 2023, "High-Fidelity Audio
Compression with Improved RVQGAN" (codes of few dimensions, dropout per sample); Mentzer et al. 2024, "Finite Scalar
Quantization"; Yang et al. 2024, "SimpleSpeech" (scalar latent); Siuzdak 2023, "Vocos" (ConvNeXt, inverse Fourier transform).

    log-mels (B, T, F)
      | normalise by the corpus; `stride` frames at a time
    (B, S, stride * F)                                      S = ceil(T / stride)
      | ConvNeXt blocks, linear
      | quantiser: RVQ, FSQ or scalar                       --> codes (B, S, Q), or the latent (B, S, D) in [-1, 1]
      | linear, `stride` frames of each
    (B, S * stride, C)
      | ConvNeXt blocks
      |-- linear, denormalise, cut to T                     --> log-mels (B, T, F)
      '-- inverse STFT head, if there is one                --> wave (B, N)

`semantic` makes tokens of what is said rather than of how it sounds, from a recogniser; `kmeans` is a codebook for it.

Differences from the papers: the codec reads mels rather than waveforms, so that it says what the vocoders here understand and
trains on a CPU (phases, which a code would have to spend most of its bits on, are left to the inverse STFT head or to a
vocoder); it trains without discriminators, by spectra alone, or with them (`speechkit.training.gan_module`); dead codes are moved
to frames of the batch every so many batches.
"""
