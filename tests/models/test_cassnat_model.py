from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.kernels.ctc_align import ctc_viterbi
from speechkit.models.cassnat.infer import CassNatDecodeOptions, infer
from speechkit.models.cassnat.model import CassNatModel
from speechkit.nn.conformer import ConformerEncoder
from speechkit.nn.token_acoustic import trigger_mask
from speechkit.search.alignment_sampling import sample_alignments
from speechkit.text.tokenizers import EOS, CharTokenizer
from speechkit.types import AsrBatch

VOCAB = 12


def build(*, encoder: dict[str, Any] | None = None, **settings: Any) -> CassNatModel:
    torch.manual_seed(0)
    sizes = {"input_dim": 12, "dim": 16, "num_layers": 2, "num_heads": 2, "ff_dim": 32, "kernel_size": 5, "dropout": 0.0}
    defaults = {"sad_layers": 1, "mad_layers": 1, "decoder_heads": 2, "decoder_ff_dim": 32, "dropout": 0.0}
    return CassNatModel(encoder=ConformerEncoder(**{**sizes, **(encoder or {})}), vocab_size=VOCAB, **{**defaults, **settings})


def make_batch(token_lens: list[int]) -> AsrBatch:
    size = len(token_lens)
    tokens = torch.zeros(size, max(token_lens), dtype=torch.long)
    generator = torch.Generator().manual_seed(3)
    for row, length in enumerate(token_lens):
        tokens[row, :length] = torch.randint(EOS + 1, VOCAB, (length,), generator=generator)
    empty = torch.zeros(size, 0)
    ids = tuple(map(str, range(size)))
    return AsrBatch(empty, torch.zeros(size), tokens, torch.tensor(token_lens), ids, ids, ids)


def rows_of(batch: AsrBatch, rows: list[int]) -> AsrBatch:
    return batch._replace(tokens_BU=batch.tokens_BU[rows], token_lens_B=batch.token_lens_B[rows])


FEATS, LENS = torch.randn(3, 80, 12, generator=torch.Generator().manual_seed(1)), torch.tensor([80, 55, 61])
FULL: dict[str, Any] = {"inter_layers": [1], "inter_ce_layer": 1, "inter_ce_weight": 0.5}


def slow_cross_entropy(model: CassNatModel, batch: AsrBatch) -> Tensor:
    """Smoothed cross-entropy of tokens and ends, one utterance at a time, divided by their number."""
    total, count = torch.tensor(0.0), 0
    for row, length in enumerate(batch.token_lens_B.tolist()):
        x, lens = model.encoder(FEATS[row : row + 1, : LENS[row]], LENS[row : row + 1])
        tokens, token_lens = batch.tokens_BU[row : row + 1, :length], torch.tensor([length])
        path = ctc_viterbi(model.head(x).log_softmax(-1), lens, tokens, token_lens)
        triggers = trigger_mask(path.spikes_BU, token_lens, lens, x.shape[1], left=1, right=1)
        hidden, _ = model.decoder(model.decoder.read(x, lens), triggers, token_lens)
        log_probs = model.token_head(hidden)[0].log_softmax(-1)
        for place, target in enumerate([*tokens[0].tolist(), EOS]):
            total = total - 0.9 * log_probs[place, target] - 0.1 * log_probs[place].mean()
            count += 1
    return total / count


def test_loss_is_the_weighted_sum_of_its_parts() -> None:
    model, batch = build(**FULL, ctc_weight=0.8, inter_weight=0.3), make_batch([5, 3, 4])
    out = model.loss(FEATS, LENS, batch)
    torch.testing.assert_close(out.parts["ce"], slow_cross_entropy(model, batch).detach(), atol=1e-5, rtol=1e-5)
    x, lens = model.encoder(FEATS, LENS)
    log_probs = model.head(x).log_softmax(-1).transpose(0, 1)
    nll = F.ctc_loss(log_probs, batch.tokens_BU, lens, batch.token_lens_B, reduction="sum")
    torch.testing.assert_close(out.parts["ctc"], nll.detach() / 12, atol=1e-5, rtol=1e-5)
    ctc = 0.7 * out.parts["ctc"] + 0.3 * out.parts["inter_ctc"]
    torch.testing.assert_close(out.loss.detach(), 0.8 * ctc + out.parts["ce"] + 0.5 * out.parts["inter_ce"])
    assert out.num_targets == 15
    assert out.parts["infeasible"] == 0
    names = {"ctc", "inter_ctc", "infeasible", "ce", "inter_ce", "accuracy", "length_accuracy"}
    assert set(out.parts) == names
    assert set(build().loss(FEATS, LENS, batch).parts) == names - {"inter_ctc", "inter_ce"}


def test_infeasible_utterances_are_counted_and_left_out() -> None:
    model, batch = build(**FULL), make_batch([5, 30, 4])
    out = model.loss(FEATS, LENS, batch)
    assert out.parts["infeasible"] == 1
    assert out.num_targets == 11
    sound = model.loss(FEATS[[0, 2]], LENS[[0, 2]], rows_of(batch, [0, 2]))
    torch.testing.assert_close(out.loss, sound.loss, atol=1e-5, rtol=1e-5)
    nothing = model.loss(FEATS[1:2], LENS[1:2], rows_of(batch, [1]))
    assert nothing.loss == 0
    nothing.loss.backward()
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in model.parameters())


@pytest.mark.parametrize(
    "settings",
    [FULL, {"decoder_position": "rope", "left_trigger": 0, "encoder": {"conv_norm": "batch", "position": "relative"}}],
)
def test_loss_of_an_utterance_does_not_depend_on_padding_or_mates(settings: dict[str, Any]) -> None:
    model, batch = build(**settings).eval(), make_batch([4, 0, 7])
    total, ctc = torch.tensor(0.0), torch.tensor(0.0)
    for row in range(3):
        out = model.loss(FEATS[row : row + 1, : LENS[row]], LENS[row : row + 1], rows_of(batch, [row]))
        total = total + out.parts["ce"] * (batch.token_lens_B[row] + 1)
        ctc = ctc + out.parts["ctc"] * batch.token_lens_B[row].clamp(min=1)
    together = model.loss(FEATS, LENS, batch)
    torch.testing.assert_close(together.parts["ce"] * 14, total, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(together.parts["ctc"] * 11, ctc, atol=1e-4, rtol=1e-5)


def test_no_tokens_at_all() -> None:
    batch = make_batch([0, 0, 0])
    out = build().loss(FEATS, LENS, batch)
    assert out.num_targets == 3
    assert out.loss.isfinite()


def test_length_accuracy_counts_the_tokens_of_best_paths() -> None:
    model = build().eval()
    lens = sample_alignments(*_log_probs(model), num_samples=1).token_lens_R
    assert lens.min() > 0
    batch = make_batch([int(lens[0]), int(lens[1]) - 1, int(lens[2])])
    torch.testing.assert_close(model.loss(FEATS, LENS, batch).parts["length_accuracy"], torch.tensor(2 / 3))


def _log_probs(model: CassNatModel) -> tuple[Tensor, Tensor]:
    encoding = model.encode(FEATS, LENS)
    return encoding.log_probs_BTV, encoding.lens_B


@torch.no_grad()
def test_prediction_scores_its_tokens_and_the_end() -> None:
    model = build().eval()
    encoding = model.encode(FEATS, LENS)
    alignments = sample_alignments(encoding.log_probs_BTV, encoding.lens_B, num_samples=3, threshold=1.0)
    prediction = model.predict(encoding, alignments)
    for r, (row, length) in enumerate(zip(alignments.rows_R.tolist(), alignments.token_lens_R.tolist())):
        x, lens = encoding.x_BTD[row : row + 1], encoding.lens_B[row : row + 1]
        token_lens = torch.tensor([length])
        triggers = trigger_mask(alignments.starts_RU[r : r + 1, :length], token_lens, lens, x.shape[1], left=1, right=1)
        log_probs = model.token_head(model.decoder(model.decoder.read(x, lens), triggers, token_lens)[0])[0].log_softmax(-1)
        assert torch.equal(prediction.tokens_RU[r, :length], log_probs[:length].argmax(-1))
        expected = [*log_probs[:length].amax(-1).tolist(), log_probs[length, EOS].item()]
        assert prediction.log_probs_RQ[r, : length + 1].tolist() == pytest.approx(expected, abs=1e-5)
        assert (prediction.log_probs_RQ[r, length + 1 :] == 0).all()


def test_gradients_reach_every_parameter() -> None:
    model = build(**FULL)
    model.loss(FEATS, LENS, make_batch([5, 3, 4])).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_bfloat16_autocast_is_finite() -> None:
    model, batch = build(**FULL), make_batch([5, 3, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model.loss(FEATS, LENS, batch)
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, model.loss(FEATS, LENS, batch).loss, atol=0.3, rtol=0.05)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_learns_four_utterances_by_heart() -> None:
    model = build(encoder={"dim": 32, "ff_dim": 64}, decoder_ff_dim=64, inter_layers=[1], inter_ce_layer=1, label_smoothing=0.0)
    generator = torch.Generator().manual_seed(2)
    sounds = torch.randn(VOCAB, 12, generator=generator)
    batch = make_batch([6, 4, 8, 3])
    lens = batch.token_lens_B * 12
    feats = sounds[batch.tokens_BU].repeat_interleave(12, dim=1)
    feats[:, torch.arange(feats.shape[1]) % 12 >= 8] = 0.0  # a pause after each sound
    feats = feats + 0.1 * torch.randn(feats.shape, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(70):
        optimizer.zero_grad()
        out = model.loss(feats, lens, batch)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert out.parts["length_accuracy"] == 1
    tokenizer = CharTokenizer.train(["abcdefgh"])
    assert tokenizer.vocab_size == VOCAB
    expected = [tuple(row[:n].tolist()) for row, n in zip(batch.tokens_BU, batch.token_lens_B.tolist())]
    for num_samples in (1, 8):
        options = CassNatDecodeOptions(num_samples=num_samples)
        hyps = infer(model.eval(), feats, lens, tokenizer=tokenizer, options=options)
        assert [hyp.tokens for hyp in hyps] == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ctc_weight": 0.0}, "ctc_weight=0.0 must be above 0"),
        ({"inter_layers": [2]}, r"inter_layers=\[2\]"),
        ({"inter_ce_layer": 2}, "inter_ce_layer=2 must be from 1 to 1"),
        ({"right_trigger": -1}, "right_trigger=-1"),
        ({"inter_ce_weight": -0.1}, "inter_ce_weight=-0.1"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"decoder_kernel": 4}, "kernel_size=4 must be odd"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**settings)
