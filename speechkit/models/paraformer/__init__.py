"""Paraformer: all tokens in one pass, as many as the frames say.

Source: Gao et al. 2022, "Paraformer: Fast and Accurate Parallel Transformer for Non-autoregressive End-to-End Speech
Recognition".

    feats (B, T, F)
      | encoder              --> CTC loss (optional)
      | predictor: weight of each frame in (0, 1) --> their sum against the number of tokens: quantity loss
      | integrate and fire   --> one embedding per token
      |   + in training, target embeddings in place of some, the more the worse a first pass was (glancing)
      | decoder: tokens attend to each other and to the encoder --> cross-entropy, MWER

Differences from the paper: integrate-and-fire in matrix form, which keeps the last token and lets one frame complete several;
the number of tokens is the sum of weights, rounded; sinusoids tell the decoder the order of the tokens; all losses are summed
and divided by the number of target tokens.
"""
