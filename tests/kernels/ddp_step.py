"""Two ranks train a tiny Conformer-CTC over gloo with each backend. Run as a script by test_training_with_kernels.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from speechkit.kernels import backend
from speechkit.models.ctc.model import CtcModel
from speechkit.nn.conformer import ConformerEncoder
from speechkit.types import AsrBatch

VOCAB = 9


class Loss(nn.Module):
    """A model whose forward is its loss on tensors alone."""

    def __init__(self, position: str = "relative") -> None:
        super().__init__()
        torch.manual_seed(0)
        encoder = ConformerEncoder(
            input_dim=8, dim=16, num_layers=1, num_heads=2, ff_dim=16, kernel_size=5, subsampling="dw4", dropout=0.0,
            position=position,  # type: ignore[arg-type]
        )  # fmt: skip
        self.model = CtcModel(encoder=encoder, vocab_size=VOCAB, dropout=0.0)

    def forward(self, feats_BTF: Tensor, feat_lens_B: Tensor, tokens_BU: Tensor, token_lens_B: Tensor) -> Tensor:
        names = ("",) * len(feats_BTF)
        batch = AsrBatch(feats_BTF[..., 0], feat_lens_B, tokens_BU, token_lens_B, names, names, names)
        return self.model.loss(feats_BTF, feat_lens_B, batch).loss


def draw(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Arguments of `Loss.forward`: two utterances of unequal length."""
    generator = torch.Generator().manual_seed(seed)
    feats = torch.randn(2, 40, 8, generator=generator)
    return feats, torch.tensor([40, 26]), torch.randint(1, VOCAB, (2, 4), generator=generator), torch.tensor([4, 2])


def train(module: nn.Module, rank: int, steps: int = 2) -> list[float]:
    """Losses of a few steps."""
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)  # Adam would blow up what rounding leaves of gradients of 0
    losses = []
    for step in range(steps):
        loss = module(*draw(10 * step + rank))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, own_rank = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=own_rank, world_size=2)
    found = {}
    for name in ("auto", "triton"):
        with backend(name):
            wrapped = DistributedDataParallel(Loss())
            found[name] = {"losses": train(wrapped, own_rank)}
            found[name]["weights"] = [parameter.double().sum().item() for parameter in wrapped.parameters()]
    (folder / f"rank{own_rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
