"""Language models: a Transformer decoder that attends to nothing but the text before, token by token.

Sources: Vaswani et al. 2017, section 3; for recognition, Irie et al. 2019, "Language modeling with deep Transformers".

    <sos> w1 w2 .. wU          (B, U + 1)
      | embedding + sinusoids
      | layer 1 .. N: causal self-attention, feed-forward (pre-norm)
      | layer norm --> head (may share the embedding's weights) --> log-softmax
    w1 w2 .. wU <eos>          what each place predicts

Its tokens are those of the recogniser that it helps: one tokenizer for both. `speechkit.search.neural_lm` fuses it into
every search.

Differences from the papers: sentences stand alone, each between <sos> and <eos>, for that is what a search scores.
"""
