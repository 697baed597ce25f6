from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.kernels.attention import Visibility
from speechkit.losses import ctc
from speechkit.models.ctc.model import CtcModel
from speechkit.nn.conformer import ConformerEncoder
from speechkit.search.ctc_greedy import ctc_greedy
from speechkit.types import AsrBatch

VOCAB = 9


def build(*, layers: int = 3, encoder: dict[str, Any] | None = None, **settings: Any) -> CtcModel:
    torch.manual_seed(0)
    sizes = {"input_dim": 12, "dim": 16, "num_heads": 2, "ff_dim": 32, "kernel_size": 5, "dropout": 0.0}
    stack = ConformerEncoder(num_layers=layers, **{**sizes, **(encoder or {})})
    return CtcModel(encoder=stack, vocab_size=VOCAB, **{"dropout": 0.0, **settings})


def make_batch(token_lens: list[int]) -> AsrBatch:
    size = len(token_lens)
    tokens = torch.zeros(size, max(token_lens), dtype=torch.long)
    for row, length in enumerate(token_lens):
        tokens[row, :length] = torch.randint(1, VOCAB, (length,))
    empty = torch.zeros(size, 0)
    ids = tuple(map(str, range(size)))
    return AsrBatch(empty, torch.zeros(size), tokens, torch.tensor(token_lens), ids, ids, ids)


def reference_ctc(logits: Tensor, lens: Tensor, batch: AsrBatch) -> Tensor:
    """Summed over utterances, divided by target tokens, through torch and one utterance at a time."""
    total = torch.tensor(0.0)
    for row in range(len(batch.tokens_BU)):
        log_probs, tokens = logits[row, : lens[row]].log_softmax(-1), batch.tokens_BU[row, : batch.token_lens_B[row]]
        total = total + F.ctc_loss(log_probs, tokens, lens[row], batch.token_lens_B[row], reduction="sum")
    return total / batch.token_lens_B.sum()


FEATS, LENS = torch.randn(3, 80, 12, generator=torch.Generator().manual_seed(1)), torch.tensor([80, 55, 61])


def test_loss_is_summed_and_divided_by_tokens() -> None:
    model, batch = build(), make_batch([5, 3, 4])
    x, lens = model.encoder(FEATS, LENS)
    out = model.loss(FEATS, LENS, batch)
    torch.testing.assert_close(out.loss, reference_ctc(model.head(x), lens, batch))
    assert out.num_targets == 12
    assert set(out.parts) == {"ctc", "infeasible"}
    assert out.parts["infeasible"] == 0


def test_infeasible_utterances_are_counted_and_left_out() -> None:
    model, batch = build(), make_batch([5, 30, 4])
    out = model.loss(FEATS, LENS, batch)
    assert out.parts["infeasible"] == 1
    assert out.num_targets == 9
    rows = torch.tensor([0, 2])
    sound = batch._replace(tokens_BU=batch.tokens_BU[rows], token_lens_B=batch.token_lens_B[rows])
    torch.testing.assert_close(out.loss, model.loss(FEATS[rows], LENS[rows], sound).loss, atol=1e-5, rtol=1e-5)
    nothing = model.loss(FEATS[1:2], LENS[1:2], batch._replace(tokens_BU=batch.tokens_BU[1:2], token_lens_B=torch.tensor([30])))
    assert nothing.loss == 0
    nothing.loss.backward()
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in model.parameters())


@pytest.mark.parametrize("self_condition", [False, True])
def test_intermediate_losses_and_conditioning(self_condition: bool) -> None:
    model, batch = build(inter_layers=[1, 2], inter_weight=0.3, self_condition=self_condition), make_batch([5, 3, 4])
    x, lens = model.encoder.subsampling(FEATS, LENS)
    valid = torch.arange(x.shape[1]) < lens[:, None]
    visible = Visibility(lens_B=lens)
    table = _table(x.shape[1])
    inter = []
    for i, layer in enumerate(model.encoder.layers, start=1):
        x = layer(x, valid, visible, table)
        if i in (1, 2):
            logits = model.head(x)
            inter.append(reference_ctc(logits, lens, batch))
            if self_condition:
                assert model.condition is not None
                x = x + model.condition(logits.softmax(-1))
    final = reference_ctc(model.head(x), lens, batch)
    for training in (True, False):
        out = model.train(training).loss(FEATS, LENS, batch)
        torch.testing.assert_close(out.parts["ctc"], final.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.parts["inter_ctc"], sum(inter).detach() / 2, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.loss, 0.7 * final + 0.3 * sum(inter) / 2, atol=1e-5, rtol=1e-5)
    log_probs, _ = model.frame_log_probs(FEATS, LENS)
    torch.testing.assert_close(log_probs[valid], model.head(x).log_softmax(-1)[valid], atol=1e-5, rtol=1e-5)


def _table(frames: int) -> Any:
    from speechkit.nn.attention import position_table

    return position_table("rope", frames, dim=16, num_heads=2, device=torch.device("cpu"))


def test_consistency_between_two_views() -> None:
    model, batch = build(cr_weight=0.2), make_batch([5, 3, 4])
    assert model.num_views == 2
    views = torch.cat([FEATS, FEATS + torch.randn_like(FEATS)])
    out = model.loss(views, LENS.repeat(2), batch)
    x, lens = model.encoder(views, LENS.repeat(2))
    logits = model.head(x)
    ctc = (reference_ctc(logits[:3], lens, batch) + reference_ctc(logits[3:], lens[3:], batch)) / 2
    kl = torch.tensor(0.0)
    for row in range(3):
        p, q = logits[row, : lens[row]].softmax(-1), logits[3 + row, : lens[row]].softmax(-1)
        kl = kl + 0.5 * ((p - q) * (p / q).log()).sum()
    torch.testing.assert_close(out.parts["cr"], kl.detach() / 12, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.loss, ctc + 0.2 * kl / 12, atol=1e-5, rtol=1e-5)
    assert out.num_targets == 12
    assert model.eval().num_views == 1
    assert "cr" not in model.loss(FEATS, LENS, batch).parts
    with pytest.raises(ValueError, match=r"feats has 3 rows; expected 2 view\(s\) of 3 utterances"):
        model.train().loss(FEATS, LENS, batch)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"inter_layers": [1, 2], "self_condition": True},
        {"encoder": {"conv_norm": "batch", "position": "relative", "subsampling": "dw8"}},
    ],
)
def test_loss_of_an_utterance_does_not_depend_on_padding_or_mates(settings: dict[str, Any]) -> None:
    model, batch = build(**settings).eval(), make_batch([4, 2, 3])
    log_probs, lens = model.frame_log_probs(FEATS, LENS)
    total = torch.tensor(0.0)
    for row in range(3):
        own = batch._replace(tokens_BU=batch.tokens_BU[row : row + 1], token_lens_B=batch.token_lens_B[row : row + 1])
        feats, feat_lens = FEATS[row : row + 1, : LENS[row]], LENS[row : row + 1]
        total = total + model.loss(feats, feat_lens, own).loss * batch.token_lens_B[row]
        alone, _ = model.frame_log_probs(feats, feat_lens)
        torch.testing.assert_close(log_probs[row, : lens[row]], alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.loss(FEATS, LENS, batch).loss * 9, total, atol=1e-4, rtol=1e-5)


def test_gradients_reach_every_parameter() -> None:
    model, batch = build(inter_layers=[1], self_condition=True, cr_weight=0.1), make_batch([5, 3, 4])
    views = torch.cat([FEATS, FEATS + torch.randn_like(FEATS)])
    model.loss(views, LENS.repeat(2), batch).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


@pytest.mark.parametrize("settings", [{"inter_layers": [1]}, {"inter_layers": [1], "self_condition": True}])
def test_scores_of_a_large_vocabulary_are_never_made(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for least in (VOCAB + 1, VOCAB):
        monkeypatch.setattr(ctc, "LARGE_VOCAB", least)
        model, batch = build(**settings), make_batch([5, 3, 4])
        out = model.loss(FEATS, LENS, batch)
        out.loss.backward()
        found.append((out.loss, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(found[1], found[0])


def test_bfloat16_autocast_is_finite() -> None:
    model, batch = build(inter_layers=[1], self_condition=True), make_batch([5, 3, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model.loss(FEATS, LENS, batch)
        log_probs, _ = model.frame_log_probs(FEATS, LENS)
    assert out.loss.dtype == log_probs.dtype == torch.float32
    torch.testing.assert_close(out.loss, model.loss(FEATS, LENS, batch).loss, atol=0.3, rtol=0.05)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("settings", [{}, {"inter_layers": [1], "self_condition": True}, {"encoder": {"position": "relative"}}])
def test_learns_four_utterances_by_heart(settings: dict[str, Any]) -> None:
    model = build(layers=2, **{**settings, "encoder": {"dim": 32, "ff_dim": 64, **settings.get("encoder", {})}})
    generator = torch.Generator().manual_seed(2)
    sounds = torch.randn(VOCAB, 12, generator=generator)
    batch = make_batch([6, 4, 8, 3])
    lens = batch.token_lens_B * 12
    feats = sounds[batch.tokens_BU].repeat_interleave(12, dim=1)
    feats[:, torch.arange(feats.shape[1]) % 12 >= 8] = 0.0  # a pause after each sound
    feats = feats + 0.1 * torch.randn(feats.shape, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(59):
        optimizer.zero_grad()
        model.loss(feats, lens, batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        paths = ctc_greedy(*model.eval().frame_log_probs(feats, lens))
    expected = [tuple(row[:n].tolist()) for row, n in zip(batch.tokens_BU, batch.token_lens_B.tolist())]
    assert [path.tokens for path in paths] == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inter_layers": [3]}, r"inter_layers=\[3\] has \[3\]; choose layers from 1 to 2"),
        ({"inter_layers": [0, 1]}, r"has \[0\]"),
        ({"self_condition": True}, "needs inter_layers"),
        ({"inter_layers": [1], "inter_weight": 1.5}, "inter_weight=1.5 must be in"),
        ({"cr_weight": -0.1}, "cr_weight=-0.1 must not be negative"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**settings)
