"""The hybrid loss against torch's own losses, one utterance at a time; masking, prompts, invariance, learning by heart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.losses import ctc
from speechkit.models.aed.model import MASK, AedModel
from speechkit.nn.conformer import ConformerEncoder
from speechkit.search.attention import TokenRules, attention_greedy
from speechkit.text.tokenizers import EOS, SOS
from speechkit.types import AsrBatch

VOCAB = 9
FEATS, LENS = torch.randn(3, 80, 12, generator=torch.Generator().manual_seed(1)), torch.tensor([80, 55, 61])


def build(*, layers: int = 2, encoder: dict[str, Any] | None = None, **settings: Any) -> AedModel:
    torch.manual_seed(0)
    sizes = {"input_dim": 12, "dim": 16, "num_heads": 2, "ff_dim": 32, "kernel_size": 5, "dropout": 0.0}
    stack = ConformerEncoder(num_layers=layers, **{**sizes, **(encoder or {})})
    values = {"decoder_layers": 2, "decoder_heads": 2, "decoder_ff_dim": 32, "dropout": 0.0, **settings}
    return AedModel(encoder=stack, vocab_size=VOCAB, **values)


def make_batch(token_lens: list[int], langs: tuple[str, ...] | None = None) -> AsrBatch:
    size = len(token_lens)
    tokens = torch.zeros(size, max(token_lens), dtype=torch.long)
    for row, length in enumerate(token_lens):
        tokens[row, :length] = torch.randint(4, VOCAB, (length,))
    empty, ids = torch.zeros(size, 0), tuple(map(str, range(size)))
    return AsrBatch(empty, torch.zeros(size), tokens, torch.tensor(token_lens), ids, ids, langs or ("",) * size)


def reference_ce(model: AedModel, x: Tensor, lens: Tensor, batch: AsrBatch, prompts: list[list[int]], smoothing: float) -> Tensor:
    """Summed over utterances, each decoded alone without padding, divided by tokens and ends."""
    total, count = torch.tensor(0.0), 0
    for row, prompt in enumerate(prompts):
        tokens = batch.tokens_BU[row, : batch.token_lens_B[row]].tolist()
        source = model.decoder.read(x[row : row + 1, : lens[row]], lens[row : row + 1])
        logits = model.decoder(torch.tensor([[SOS, *prompt, *tokens]]), source)[0, len(prompt) :]
        targets = torch.tensor([*tokens, EOS])
        total = total + F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
        count += len(targets)
    return total / count


@pytest.mark.parametrize("token_lens", [[5, 3, 4], [0, 1, 2], [0, 0, 0]])
def test_loss_is_the_weighted_sum_of_both(token_lens: list[int]) -> None:
    model, batch = build(ctc_weight=0.3), make_batch(token_lens)
    out = model.loss(FEATS, LENS, batch)
    x, lens = model.encode(FEATS, LENS)
    ce = reference_ce(model, x, lens, batch, [[], [], []], 0.1)
    log_probs = model.ctc_log_probs(x).transpose(0, 1)
    tokens = F.pad(batch.tokens_BU, (0, 1))
    ctc = F.ctc_loss(log_probs, tokens, lens, batch.token_lens_B, reduction="sum") / max(sum(token_lens), 1)
    torch.testing.assert_close(out.parts["ce"], ce.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.parts["ctc"], ctc.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.loss, 0.3 * ctc + 0.7 * ce, atol=1e-5, rtol=1e-5)
    assert out.num_targets == sum(token_lens) + 3
    assert set(out.parts) == {"ce", "accuracy", "ctc", "infeasible"}
    assert 0.0 <= out.parts["accuracy"] <= 1.0


def test_without_ctc() -> None:
    model, batch = build(ctc_weight=0.0), make_batch([5, 3, 4])
    out = model.loss(FEATS, LENS, batch)
    assert set(out.parts) == {"ce", "accuracy"}
    assert out.loss == out.parts["ce"]
    assert not [name for name in model.state_dict() if name.startswith("head")]
    with pytest.raises(ValueError, match="no CTC head"):
        model.ctc_log_probs(FEATS)


def test_prompts_stand_before_the_transcript() -> None:
    model, batch = build(prompt_tokens=[5], language_tokens={"en": 4, "zh": 6}), make_batch([5, 3, 4], ("en", "zh", "en"))
    out = model.loss(FEATS, LENS, batch)
    x, lens = model.encode(FEATS, LENS)
    ce = reference_ce(model, x, lens, batch, [[4, 5], [6, 5], [4, 5]], 0.1)
    torch.testing.assert_close(out.parts["ce"], ce.detach(), atol=1e-5, rtol=1e-5)
    assert model.prompts(["zh"]).tolist() == [[SOS, 6, 5]]
    with pytest.raises(ValueError, match="language '' has no token in this model; give one that has: en, zh"):
        model.prompts(["en", ""])


def test_the_decoder_says_what_the_task_asks_for_and_ctc_the_transcript() -> None:
    model = build(language_tokens={"en": 4}, task_tokens={"transcribe": 5, "translate": 6})
    batch, other = make_batch([5, 0, 4]), make_batch([2, 6, 1])
    tasks = ("", "translate", "translate")
    both = batch._replace(tasks=tasks, task_tokens_BU=other.tokens_BU, task_token_lens_B=other.token_lens_B)
    out = model.loss(FEATS, LENS, both)
    x, lens = model.encode(FEATS, LENS)
    ce = reference_ce(model, x, lens, other, [[4, 5], [4, 6], [4, 6]], 0.1)
    log_probs = model.ctc_log_probs(x).transpose(0, 1)
    nll = F.ctc_loss(log_probs, batch.tokens_BU, lens, batch.token_lens_B, reduction="none")
    torch.testing.assert_close(out.parts["ce"], ce.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.parts["ctc"], (nll[0] + nll[2]).detach() / 9, atol=1e-5, rtol=1e-5)  # row 1 has no transcript
    with pytest.raises(ValueError, match="task 'sing' has no token in this model; give one that has: transcribe, translate"):
        model.prompts(["en"], ["sing"])


def test_masking_hides_what_the_decoder_reads_in_training() -> None:
    model, batch = build(decoder_mask_prob=0.5, ctc_weight=0.0, label_smoothing=0.0, prompt_tokens=[5]), make_batch([5, 3, 4])
    seen: list[Tensor] = []
    model.decoder.embedding.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    torch.manual_seed(3)
    masked = model.loss(FEATS, LENS, batch)
    plain = torch.cat((torch.tensor([[SOS, 5]] * 3), batch.tokens_BU), dim=1)
    changed = seen[0] != plain
    assert changed.any()
    assert not changed[:, :2].any()
    assert (seen[0][changed] == MASK).all()
    unmasked = model.eval().loss(FEATS, LENS, batch)
    assert seen[1].equal(plain)
    assert masked.num_targets == unmasked.num_targets == 15
    assert masked.loss != unmasked.loss


FULL = {"inter_layers": [1], "self_condition": True, "decoder_dim": 24, "tie_embeddings": True}


@pytest.mark.parametrize("settings", [{}, FULL])
def test_loss_of_an_utterance_does_not_depend_on_padding_or_mates(settings: dict[str, Any]) -> None:
    model, batch = build(**settings).eval(), make_batch([4, 2, 3])
    together = model.loss(FEATS, LENS, batch)
    sums = dict.fromkeys(("ce", "ctc"), 0.0)
    for row in range(3):
        own = batch._replace(
            tokens_BU=batch.tokens_BU[row : row + 1], token_lens_B=batch.token_lens_B[row : row + 1], langs=("",)
        )
        alone = model.loss(FEATS[row : row + 1, : LENS[row]], LENS[row : row + 1], own)
        length = int(batch.token_lens_B[row])
        sums["ce"] += float(alone.parts["ce"]) * (length + 1) / 12
        sums["ctc"] += float(alone.parts["ctc"]) * length / 9
    for name, value in sums.items():
        assert float(together.parts[name]) == pytest.approx(value, abs=1e-4, rel=1e-4)


def test_gradients_reach_every_parameter() -> None:
    model, batch = build(inter_layers=[1], self_condition=True, decoder_mask_prob=0.2), make_batch([5, 3, 4])
    model.loss(FEATS, LENS, batch).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_scores_of_a_large_vocabulary_are_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for least in (VOCAB + 1, VOCAB):
        monkeypatch.setattr(ctc, "LARGE_VOCAB", least)
        model, batch = build(ctc_weight=0.3, inter_layers=[1]), make_batch([5, 3, 4])
        out = model.loss(FEATS, LENS, batch)
        out.loss.backward()
        found.append((out.loss, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(found[1], found[0])


def test_bfloat16_autocast_is_finite() -> None:
    model, batch = build(inter_layers=[1]), make_batch([5, 3, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model.loss(FEATS, LENS, batch)
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, model.loss(FEATS, LENS, batch).loss, atol=0.2, rtol=0.05)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_encoder_and_head_are_named_as_in_a_ctc_model() -> None:
    names = {name.split(".")[0] for name in build(inter_layers=[1], self_condition=True).state_dict()}
    assert names == {"encoder", "head", "condition", "decoder"}


def test_learns_four_utterances_by_heart() -> None:
    model = build(layers=1, encoder={"dim": 32, "subsampling": "dw4"}, decoder_layers=1, label_smoothing=0.0)
    generator = torch.Generator().manual_seed(2)
    batch = make_batch([4, 3, 5, 2])
    lens = batch.token_lens_B * 8
    feats = torch.randn(VOCAB, 12, generator=generator)[batch.tokens_BU].repeat_interleave(8, dim=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        out = model.loss(feats, lens, batch)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert out.parts["accuracy"] == 1.0
    model.eval()
    with torch.no_grad():
        source = model.decoder.read(*model.encode(feats, lens))
    limits = torch.full((4,), 20)
    results = attention_greedy(model.decoder, source, model.prompts([""] * 4), limits, rules=TokenRules(eos=EOS))
    assert [r.tokens for r in results] == [tuple(row[:n].tolist()) for row, n in zip(batch.tokens_BU, batch.token_lens_B)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ctc_weight": 1.0}, "ctc_weight=1.0 must be at least 0 and below 1"),
        ({"decoder_mask_prob": -0.1}, "decoder_mask_prob=-0.1"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"inter_layers": [2]}, r"choose layers from 1 to 1"),
        ({"inter_layers": [1], "ctc_weight": 0.0}, "needs ctc_weight above 0"),
        ({"prompt_tokens": [2]}, "hold 2; give ids above 3 and below 9"),
        ({"language_tokens": {"en": 9}}, "hold 9; give ids above 3 and below 9"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**settings)
