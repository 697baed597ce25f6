"""MaskGCT: speech as two kinds of tokens, each filled in by a masked Transformer in a few steps.

Source: Wang et al. 2024, "MaskGCT: Zero-Shot Text-to-Speech with Masked Generative Codec Transformer". Options from Ziv et al.
2024, "Masked Audio Generation using a Single Non-Autoregressive Transformer" (MAGNeT), and Bao et al. 2025, "Learning to
Parallel" (Learn2PD); small networks and one for all codebooks as in Budzianowski et al. 2024, "Pheme".

    phones          --> [phones | prompt | hidden tokens] --> Transformer --> semantic tokens     `text_to_semantic`, 20 steps
      |                                        ^
      '--> durations, or the prompt's rate: how many
                                                              semantic tokens
                                                                     |
    prompt and codebooks so far, [prompt | hidden tokens] -------->  +  --> Transformer --> next codebook
                                                                                   `semantic_to_acoustic`, 12 + 4 + 1 + 1 steps
    acoustic tokens --> codec --> wave

What is hidden in training is drawn in `speechkit.losses.masked`; steps of decoding are in `speechkit.search.mask_predict`. The
two tokenisers are given: `tokens` tells what they have to be.

Differences from the paper and its code:
- counts of hidden tokens, rescaled guidance and noise are each row's own: results do not depend on batch mates;
- phones are dropped in training, by a draw of their own: guidance of the text has a model without text to move away from;
- one network for all codebooks is the usual; `coarse_backbone` gives the first one a network of its own, as there;
- the text may be aligned to the tokens, evenly or by durations, which small corpora need;
- layer norms that are scaled and shifted by the time take the place of scaled root-mean-square norms.
"""
