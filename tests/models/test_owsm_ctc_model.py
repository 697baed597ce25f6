from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from speechkit.kernels.attention import Visibility
from speechkit.losses import ctc
from speechkit.models.owsm_ctc.model import OwsmCtcModel
from speechkit.nn.conformer import ConformerEncoder
from speechkit.nn.masks import valid_mask
from speechkit.types import AsrBatch

VOCAB, FIRST = 16, 8
LANGUAGES, TASKS = {"en": 4, "de": 5}, {"transcribe": 6, "translate_de": 7}
FEATS, LENS = torch.randn(3, 80, 12, generator=torch.Generator().manual_seed(1)), torch.tensor([80, 55, 61])


def build(*, layers: int = 4, encoder: dict[str, Any] | None = None, **values: Any) -> OwsmCtcModel:
    torch.manual_seed(0)
    sizes = {"input_dim": 12, "dim": 16, "num_heads": 2, "ff_dim": 32, "kernel_size": 5, "dropout": 0.0}
    stack = ConformerEncoder(num_layers=layers, **{**sizes, **(encoder or {})})
    given_values = {"asr_layers": [1, 2], "task_layers": [3], "language_tokens": LANGUAGES, "task_tokens": TASKS, "dropout": 0.0}
    if values.get("prompt_layers"):
        given_values |= {"prompt_heads": 2, "prompt_ff_dim": 24, "prompt_dim": 8}
    return OwsmCtcModel(encoder=stack, vocab_size=VOCAB, **{**given_values, **values})


def tokens_of(lens: list[int], seed: int = 3) -> tuple[Tensor, Tensor]:
    tokens = torch.zeros(len(lens), max(lens), dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    for row, length in enumerate(lens):
        tokens[row, :length] = torch.randint(FIRST, VOCAB, (length,), generator=generator)
    return tokens, torch.tensor(lens)


def make_batch(lens: list[int], langs: tuple[str, ...] | None = None, **more: Any) -> AsrBatch:
    ids = tuple(map(str, range(len(lens))))
    langs = langs or ("en", "de", "en")
    return AsrBatch(torch.zeros(len(lens), 0), torch.zeros(len(lens)), *tokens_of(lens), ids, ids, langs, **more)


def reference_ctc(logits: Tensor, lens: Tensor, rows: list[list[int] | None]) -> Tensor:
    """Summed over utterances that have a target, divided by their tokens, through torch and one utterance at a time."""
    total, count = torch.tensor(0.0), 0
    for scores, length, row in zip(logits, lens, rows):
        if row is None:
            continue
        log_probs = scores[:length].log_softmax(-1)
        total = total + F.ctc_loss(log_probs, torch.tensor(row), length, torch.tensor(len(row)), reduction="sum")
        count += len(row)
    return total / count


def layers_by_hand(model: OwsmCtcModel, *, languages: list[int], tasks: list[int]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Scores after layers 1, 2, 3 and the last, by running subsampling and blocks one after the other, without positions."""
    x, lens = model.encoder.subsampling(FEATS, LENS)
    prefix = torch.stack([model.language_embedding.weight[languages], model.task_embedding.weight[tasks]], dim=1)
    x, lens = torch.cat([prefix, x], dim=1), lens + 2
    valid = valid_mask(lens, x.shape[1])
    scores = []
    for layer in model.encoder.layers:
        x = layer(x, valid, Visibility(lens_B=lens), None)
        scores.append(model.head(x))
        if len(scores) < 4 and model.condition is not None:
            x = x + model.condition(scores[-1].softmax(-1))
    return scores, lens, valid


def tagged(tags: list[tuple[int, int]], tokens: Tensor, lens: Tensor) -> list[list[int]]:
    return [[*tag, *row[:n].tolist()] for tag, row, n in zip(tags, tokens, lens)]


@pytest.mark.parametrize("self_condition", [False, True])
def test_transcript_below_and_task_above(self_condition: bool) -> None:
    model = build(self_condition=self_condition, encoder={"position": "none"}).eval()
    wanted, wanted_lens = tokens_of([4, 6, 2], seed=9)
    more = {"task_tokens_BU": wanted, "task_token_lens_B": wanted_lens, "tasks": ("translate_de", "transcribe", "translate_de")}
    batch = make_batch([5, 3, 0], **more)
    out = model.loss(FEATS, LENS, batch)
    scores, lens, _ = layers_by_hand(model, languages=[0, 0, 0], tasks=[1, 0, 1])
    tags = [(4, 7), (5, 6), (4, 7)]
    high = tagged(tags, wanted, wanted_lens)
    low: list[Any] = tagged(tags, batch.tokens_BU, batch.token_lens_B)
    low[2] = None  # nobody wrote down what is said in the third
    losses = [reference_ctc(x, lens, rows) for x, rows in zip(scores, [low, low, high, high])]
    torch.testing.assert_close(out.parts["ctc"], losses[3].detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.parts["inter_ctc"], sum(losses[:3]).detach() / 3, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.loss, 0.2 * losses[3] + 0.8 * sum(losses[:3]) / 3, atol=1e-5, rtol=1e-5)
    assert out.num_targets == 4 + 6 + 2 + 6


def test_without_a_second_stream_every_layer_learns_the_transcript() -> None:
    model, batch = build(encoder={"position": "none"}).eval(), make_batch([5, 3, 0])
    out = model.loss(FEATS, LENS, batch)
    scores, lens, _ = layers_by_hand(model, languages=[0, 0, 0], tasks=[0, 0, 0])
    rows = tagged([(4, 6), (5, 6), (4, 6)], batch.tokens_BU, batch.token_lens_B)
    losses = [reference_ctc(x, lens, rows) for x in scores]
    torch.testing.assert_close(out.loss, 0.2 * losses[3] + 0.8 * sum(losses[:3]) / 3, atol=1e-5, rtol=1e-5)
    assert set(out.parts) == {"ctc", "inter_ctc", "infeasible", "language_accuracy"}


def test_languages_are_told_by_chance_in_training_and_not_in_evaluation() -> None:
    batch = make_batch([5, 3, 4])
    told = build(no_language_prob=0.0, encoder={"position": "none"})
    scores, lens, _ = layers_by_hand(told, languages=[1, 2, 1], tasks=[0, 0, 0])
    rows = tagged([(4, 6), (5, 6), (4, 6)], batch.tokens_BU, batch.token_lens_B)
    torch.testing.assert_close(told.loss(FEATS, LENS, batch).parts["ctc"], reference_ctc(scores[3], lens, rows).detach())
    never = build(no_language_prob=1.0)
    torch.testing.assert_close(never.loss(FEATS, LENS, batch).loss, never.eval().loss(FEATS, LENS, batch).loss)


def test_frames_of_language_task_and_audio() -> None:
    model = build(encoder={"position": "none"}).eval()
    log_probs, lens = model.frame_log_probs(FEATS, LENS, language="de", task="translate_de")
    scores, expected_lens, valid = layers_by_hand(model, languages=[2, 2, 2], tasks=[1, 1, 1])
    assert lens.tolist() == expected_lens.tolist() == [22, 16, 18]
    probs, raw = log_probs.exp(), scores[3].softmax(-1)
    torch.testing.assert_close(probs[valid].sum(-1), torch.ones(int(lens.sum())))
    for place, ids in enumerate([[4, 5], [6, 7]]):
        best = raw[:, :2, ids].amax(1)
        torch.testing.assert_close(probs[:, place, ids], best / best.sum(-1, keepdim=True))
        assert probs[:, place].sum(-1).tolist() == pytest.approx(probs[:, place, ids].sum(-1).tolist())
    audio = raw[:, 2:][valid[:, 2:]]
    torch.testing.assert_close(probs[:, 2:][valid[:, 2:]][:, 1:4], audio[:, 1:4])
    torch.testing.assert_close(probs[:, 2:][valid[:, 2:]][:, 8:], audio[:, 8:])
    torch.testing.assert_close(probs[:, 2:][valid[:, 2:]][:, 0], audio[:, [0, 4, 5, 6, 7]].sum(-1))
    assert not probs[:, 2:, 4:8].any()


KINDS = [{}, {"self_condition": False}, {"prompt_layers": 1, "prompt_every": 2}, {"encoder": {"position": "absolute"}}]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=4, deadline=None)
@given(lens=st.lists(st.integers(0, 60), min_size=1, max_size=4))
def test_frames_do_not_depend_on_padding_or_mates(kind: dict[str, Any], lens: list[int]) -> None:
    model = build(layers=4, **kind).eval()
    feats = torch.randn(len(lens), max(lens) + 7, 12, generator=torch.Generator().manual_seed(2))
    prompt = [9, 10] if "prompt_layers" in kind else []
    with torch.no_grad():
        together, out_lens = model.frame_log_probs(feats, torch.tensor(lens), prompt=prompt)
        for row, length in enumerate(lens):
            alone, _ = model.frame_log_probs(feats[row : row + 1, :length], torch.tensor([length]), prompt=prompt)
            assert out_lens[row] == 2 + -(-length // 4)
            frames = int(out_lens[row])
            torch.testing.assert_close(together[row, :frames], alone[0, :frames], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_of_an_utterance_does_not_depend_on_padding_or_mates(kind: dict[str, Any]) -> None:
    wanted, wanted_lens = tokens_of([2, 5, 3], seed=9)
    prompts, prompt_lens = tokens_of([3, 0, 1], seed=4)
    more = {"task_tokens_BU": wanted, "task_token_lens_B": wanted_lens}
    more |= {"prompt_tokens_BU": prompts, "prompt_token_lens_B": prompt_lens}
    model, batch = build(**kind).eval(), make_batch([4, 2, 3], **more)
    model.asr_layers, model.inter_weight = frozenset(), 0.5  # one stream for all: losses then add up over utterances
    total = torch.tensor(0.0)
    for row in range(3):
        own = {name: value[row : row + 1] for name, value in batch._asdict().items() if name not in ("num_skipped", "tasks")}
        alone = model.loss(FEATS[row : row + 1, : LENS[row]], LENS[row : row + 1], AsrBatch(**own))
        total = total + alone.loss * alone.num_targets
    whole = model.loss(FEATS, LENS, batch)
    torch.testing.assert_close(whole.loss * whole.num_targets, total, atol=1e-4, rtol=1e-4)


def test_prompts_are_read_where_they_are_given() -> None:
    model = build(prompt_layers=2, prompt_every=2).eval()
    plain, _ = model.frame_log_probs(FEATS, LENS)
    prompted, _ = model.frame_log_probs(FEATS, LENS, prompt=[9, 10, 11])
    other, _ = model.frame_log_probs(FEATS, LENS, prompt=[11, 10, 9])
    assert (plain - prompted)[:, 2:, 8:].abs().max() > 1e-4
    assert (other - prompted)[:, 2:, 8:].abs().max() > 1e-4, "the order of the prompt counts"
    batch = make_batch([4, 2, 3])
    tokens, lens = tokens_of([3, 2, 4], seed=4)
    prompted_batch = batch._replace(prompt_tokens_BU=tokens, prompt_token_lens_B=lens)
    without, with_prompt = model.loss(FEATS, LENS, batch).loss, model.loss(FEATS, LENS, prompted_batch).loss
    assert without != with_prompt
    model = build(prompt_layers=2, prompt_every=2, no_prompt_prob=1.0, no_language_prob=1.0)
    torch.testing.assert_close(model.train().loss(FEATS, LENS, prompted_batch).loss, model.loss(FEATS, LENS, batch).loss)
    with pytest.raises(ValueError, match="trained without prompts"):
        build().frame_log_probs(FEATS, LENS, prompt=[9])


def test_gradients_reach_every_parameter() -> None:
    model, batch = build(prompt_layers=1, prompt_every=2, no_language_prob=0.0), make_batch([5, 3, 4], ("en", "de", "en"))
    model.loss(FEATS, LENS, batch._replace(tasks=("transcribe", "translate_de", "transcribe"))).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []
    assert model.language_embedding.weight.grad is not None
    assert model.language_embedding.weight.grad[0].abs().sum() == 0, "all languages were told"


def test_scores_of_a_large_vocabulary_are_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for least in (VOCAB + 1, VOCAB):
        monkeypatch.setattr(ctc, "LARGE_VOCAB", least)
        model, batch = build(no_language_prob=0.0), make_batch([5, 3, 4])
        out = model.loss(FEATS, LENS, batch)
        out.loss.backward()
        found.append((out.loss, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(found[1], found[0])


def test_bfloat16_autocast_is_finite() -> None:
    model, batch = build(prompt_layers=1, no_language_prob=1.0), make_batch([5, 3, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model.loss(FEATS, LENS, batch)
        log_probs, _ = model.frame_log_probs(FEATS, LENS)
    assert out.loss.dtype == log_probs.dtype == torch.float32
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_one_language_needs_no_name() -> None:
    model = build(language_tokens={"en": 4})
    out = model.loss(FEATS, LENS, make_batch([5, 3, 4], ("", "en", "")))
    assert out.loss.isfinite()
    assert "language_accuracy" not in out.parts
    with pytest.raises(ValueError, match="language '' has no token in this model; give one that has: en, de"):
        build().loss(FEATS, LENS, make_batch([5, 3, 4], ("", "en", "de")))
    with pytest.raises(ValueError, match="task 'sing' has no token"):
        build().frame_log_probs(FEATS, LENS, task="sing")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"asr_layers": [3], "task_layers": [2]}, r"asr_layers=\[3\] must all lie below task_layers=\[2\]"),
        ({"task_layers": [4]}, r"has \[4\]; choose layers from 1 to 3"),
        ({"asr_layers": [], "task_layers": []}, "needs inter_layers"),
        ({"inter_weight": 1.5}, "inter_weight=1.5"),
        ({"no_language_prob": 1.5}, "no_language_prob=1.5 must be in"),
        ({"no_prompt_prob": -1.0}, "no_prompt_prob=-1.0 must be in"),
        ({"prompt_layers": 1, "prompt_every": 9}, "prompt_every=9 must be between 1 and the 4 layers"),
        ({"language_tokens": {}}, "language_tokens is empty"),
        ({"task_tokens": {"transcribe": 3}}, "task_tokens holds 3; give ids above 3 and below 16"),
        ({"language_tokens": {"en": 6}}, "use an id twice"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**values)
