"""CASS-NAT: all tokens in one pass, from the frames where CTC says that they lie.

Sources: Fan et al. 2021, "CASS-NAT: CTC alignment-based single step non-autoregressive transformer for speech
recognition"; Fan et al. 2023, "A CTC alignment-based non-autoregressive transformer for end-to-end automatic speech
recognition".

    feats (B, T, F)
      | encoder              --> CTC and InterCTC losses
      | CTC path             training: best path of the transcript (Viterbi); inference: best path, or samples of paths
      | trigger masks        frames of each token, and of the end of sentence
      | extractor            one attention layer: an embedding per token from its frames
      | SAD: Conformer blocks over tokens
      | MAD: tokens see each other and all frames  --> intermediate cross-entropy after the first of them
      | head                 --> cross-entropy; inference: the best token of each place
                                 (and the path that a ranker likes best)

Differences from the papers: an end of sentence to which no frame is left shares the last one instead of taking it away from
the last token; distances within SAD are rotary or relative as in `speechkit.nn.attention`, not clipped; MAD layers are
Transformer layers without a convolution; the intermediate cross-entropy goes through the same head; all losses are summed
and divided by their number of targets (the end of sentence is one for cross-entropy, none for CTC).
"""
