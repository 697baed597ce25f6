"""CTC recognisers: an encoder, one linear layer, and a search over frame labels.

Sources: CTC, Graves et al. 2006; Conformer, Gulati et al. 2020; InterCTC, Lee and Watanabe 2021; self-conditioned CTC,
Nozaki and Komatsu 2021; CR-CTC, Yao et al. 2024.

    feats (B, T, F)
      | subsampling by 4 or 8
      | layer 1 .. i        --> head --> softmax --> InterCTC loss
      |   + condition(softmax)   <--------'          (self-conditioning, also at test time)
      | layer i + 1 .. N
      | dropout --> head --> log-softmax --> CTC loss
                                 |
                                 '--> CR-CTC: divergence between two augmented views

Differences from the papers: the divergence of CR-CTC and the CTC losses of its two views are averaged over the views,
so that switching it on does not change the scale of the loss; losses are divided by the number of target tokens.
"""
