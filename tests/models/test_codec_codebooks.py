"""Care for codebooks: counting, figures, several ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from speechkit.models.codec.codebooks import CodebookCare
from speechkit.nn.quantizers import ResidualVectorQuantizer


def test_figures_by_hand() -> None:
    care = CodebookCare(num_codebooks=2, num_codes=4, every=0)
    care.count(torch.tensor([[[0, 3], [0, -1]], [[2, -1], [2, -1]]]))
    assert care.counts_QK.tolist() == [[2, 0, 2, 0], [0, 0, 0, 1]]
    parts = {name: round(float(value), 5) for name, value in care.parts().items()}
    assert parts == {"usage_1": 0.5, "usage_2": 0.25, "perplexity_1": 2.0, "perplexity_2": 1.0}


def _train_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        care, quantizer = _parts()
        for z_BTD, lens_B in _steps():
            own = slice(rank, rank + 1)
            z_BTD, lens_B = z_BTD[own, : int(lens_B[rank])], lens_B[own]
            care.revive(quantizer, z_BTD, lens_B)
            care.count(quantizer(z_BTD, lens_B).indices_BTQ)
        torch.save((care.counts_QK, care.before_QK, quantizer.state_dict()), f"{folder}/rank{rank}")
    finally:
        dist.destroy_process_group()


def _parts() -> tuple[CodebookCare, ResidualVectorQuantizer]:
    torch.manual_seed(0)
    quantizer = ResidualVectorQuantizer(dim=4, num_codebooks=2, num_codes=32, code_dim=3)
    return CodebookCare(num_codebooks=2, num_codes=32, every=2), quantizer


def _steps() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(2, 9, 4, generator=generator), torch.tensor([9, 5])) for _ in range(4)]


@pytest.mark.slow
def test_ranks_count_together_and_keep_the_same_codebooks(tmp_path: Path) -> None:
    other = torch.multiprocessing.get_context("spawn").Process(target=_train_rank, args=(1, str(tmp_path)))
    other.start()
    _train_rank(0, str(tmp_path))
    other.join()
    (counts, before, weights), (counts_1, before_1, weights_1) = (torch.load(tmp_path / f"rank{rank}") for rank in (0, 1))
    assert torch.equal(counts, counts_1)
    assert torch.equal(before, before_1)
    assert (counts.sum(1) == 2 * 14).all()
    assert all(torch.equal(value, weights_1[name]) for name, value in weights.items())
    _, fresh = _parts()
    assert not torch.equal(fresh.layers[0].codebook.weight, weights["layers.0.codebook.weight"])  # type: ignore[union-attr, arg-type]
