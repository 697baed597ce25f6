"""How probable texts are: whole sentences in one pass, for ranking and for perplexities.

Inside a search the model advances token by token instead: see `speechkit.search.neural_lm`.

Shape legend: B batch, U tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from speechkit.models.lm.model import LmModel


@torch.inference_mode()
def infer(model: LmModel, sequences: Sequence[Sequence[int]], *, max_batch_tokens: int = 8192) -> list[float]:
    """Natural log-probability of each token sequence, its end included.

    Args:
        model: put in eval mode by the caller.
        sequences: token ids without start and end, of any lengths, 0 included.
        max_batch_tokens: padded tokens and ends of a batch; a longer sequence is alone. Changes the speed, not the result.

    Returns:
        one sum per sequence, in their order.

    Raises:
        ValueError: `max_batch_tokens` is below 1.
    """
    if max_batch_tokens < 1:
        raise ValueError(f"max_batch_tokens={max_batch_tokens} must be at least 1")
    device = model.decoder.head.weight.device
    longest_first = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    totals = [0.0] * len(sequences)
    while longest_first:
        size = max(1, max_batch_tokens // (len(sequences[longest_first[0]]) + 1))
        rows, longest_first = longest_first[:size], longest_first[size:]
        lens_B = torch.tensor([len(sequences[i]) for i in rows])
        tokens_BU = torch.zeros(len(rows), int(lens_B.max()), dtype=torch.long)
        for row, i in zip(tokens_BU, rows):
            row[: len(sequences[i])] = torch.tensor(sequences[i], dtype=torch.long)
        sums_B = model.token_log_probs(tokens_BU.to(device), lens_B.to(device)).double().sum(dim=1)
        for i, total in zip(rows, sums_B.tolist()):
            totals[i] = total
    return totals
