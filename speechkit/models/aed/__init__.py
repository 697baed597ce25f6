"""Attention encoder-decoder recognisers: an encoder, a CTC head, and a Transformer that writes the transcript token by token.

Sources: hybrid CTC/attention, Watanabe et al. 2017; Transformer, Vaswani et al. 2017; Conformer, Gulati et al. 2020.

    feats (B, T, F)
      | encoder ----------------------------> head --> CTC loss
      |   layers in between ----------------> head --> InterCTC loss
      | keys and values of every decoder layer, once per utterance
      v
    decoder: <sos> [language] [task] a b c ... --> cross-entropy with label smoothing against a b c ... <eos>

    loss = w CTC + (1 - w) cross-entropy, each per target token

Decoding: greedy; beam search, with CTC prefix scores and a language model in the same pass if asked for; rescoring of
CTC's N best transcripts; CTC alone.

Differences from the papers: positions, chunks and subsampling of the encoder are those of `speechkit.nn.conformer`; both
losses are divided by the number of target tokens, so that w means the same for short and long utterances.
"""
