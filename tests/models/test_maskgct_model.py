from __future__ import annotations

from typing import Any

import pytest
import torch

from speechkit.losses.masked import MaskDraw
from speechkit.models.maskgct.durations import DurationPredictor, duration_loss, even_places, places_in_text
from speechkit.models.maskgct.layers import UNKNOWN, FinishFilter, MaskedTransformer
from speechkit.models.maskgct.rows import join_rows, take_rows
from speechkit.models.maskgct.semantic_to_acoustic import SemanticToAcoustic, unknown_tokens
from speechkit.models.maskgct.text_to_semantic import Text, TextToSemantic
from speechkit.training.optim import parameter_groups
from tests.models.maskgct_parts import (
    CODEBOOKS,
    CODES,
    MEL,
    RATIO,
    SEMANTIC,
    VOCAB,
    BandCodec,
    backbone,
    build,
    select,
    token_batch,
    wave_batch,
)

SETTINGS: list[dict[str, Any]] = [
    {},
    {"alignment": "even", "num_speakers": 3, "num_languages": 2, "span": 3, "finish_weight": 0.5, "label_smoothing": 0.1},
    {"alignment": "durations", "coarse": True, "num_speakers": 3},
]


def test_rows_are_joined_without_padding_between() -> None:
    first, second = torch.arange(6).view(2, 3), torch.arange(10, 18).view(2, 4)
    joined, lens = join_rows(first, torch.tensor([1, 3]), second, torch.tensor([4, 0]))
    assert lens.tolist() == [5, 3]
    assert joined[0].tolist() == [0, 10, 11, 12, 13]
    assert joined[1, :3].tolist() == [3, 4, 5]
    assert take_rows(joined, torch.tensor([1, 0]), 3)[:, :3].tolist() == [[10, 11, 12], [3, 4, 5]]
    nothing, lens = join_rows(first[:, :0, None], torch.tensor([0, 0]), second[:, :0, None], torch.tensor([0, 0]))
    assert (nothing.shape, lens.tolist()) == ((2, 0, 1), [0, 0])
    assert take_rows(nothing, torch.tensor([0, 0]), 2).shape == (2, 2, 1)


def test_places_in_the_text() -> None:
    durations, lens = torch.tensor([[2.0, 0.0, 1.0], [1.5, 0.5, 9.0]]), torch.tensor([3, 2])
    places = places_in_text(durations, lens, 4)
    torch.testing.assert_close(places, torch.tensor([[0.25, 0.75, 2.5, 3.0], [1 / 3, 1.0, 2.0, 2.0]]))
    even = even_places(torch.tensor([4, 0]), torch.tensor([2, 5]), 4)
    torch.testing.assert_close(even[0], torch.tensor([0.25, 0.75, 1.25, 1.75]))
    assert even[1].max() <= 5
    assert places_in_text(durations[:, :0], torch.tensor([0, 0]), 3).tolist() == [[0.0] * 3] * 2


def test_what_is_unknown_of_the_codebooks() -> None:
    masked, opened = torch.tensor([[False, True, False, True]]), torch.tensor([[False, True, True, True]])
    unknown = unknown_tokens(masked, opened, torch.tensor([1]), 3)[0].int().T.tolist()
    assert unknown == [[0, 0, 0, 0], [0, 1, 0, 1], [0, 1, 1, 1]]


@pytest.mark.parametrize("settings", SETTINGS)
def test_evaluation_does_not_depend_on_padding_or_mates(settings: dict[str, Any]) -> None:
    model = build(**settings).eval()
    batch = token_batch([9, 1, 14, 0], durations=True)
    for network in [model.text_to_semantic, model.semantic_to_acoustic, *([model.coarse] if model.coarse else [])]:
        whole = network.loss(batch)
        padded = network.loss(select(batch, [3, 2, 0, 1], extra=5))
        torch.testing.assert_close(whole.loss, padded.loss, atol=1e-5, rtol=1e-5)
        total = count = torch.tensor(0.0)
        for row in range(4):
            alone = network.loss(select(batch, [row], trim=True))
            total, count = total + alone.loss * alone.num_targets, count + alone.num_targets
        assert count == whole.num_targets
        torch.testing.assert_close(whole.loss, total / count, atol=1e-5, rtol=1e-5)
    whole = model.token_loss(batch)
    padded = model.token_loss(select(batch, [3, 2, 0, 1], extra=5))
    torch.testing.assert_close(whole.loss, padded.loss, atol=1e-5, rtol=1e-5)
    assert whole.num_targets == 24


def test_loss_of_the_whole_is_the_sum_of_the_parts() -> None:
    model, batch = build(coarse=True, finish_weight=0.5).eval(), token_batch([9, 4, 14], durations=True)
    out = model.token_loss(batch)
    names = ["semantic", "acoustic", "coarse_acoustic"]
    expected = sum(out.parts[name] + 0.5 * out.parts[f"{name}_finish"] for name in names) + out.parts["duration"]
    torch.testing.assert_close(out.loss.detach(), expected)
    assert out.num_targets == 27
    bands = {f"{name}_accuracy" for name in names}
    assert bands <= set(out.parts)
    assert all(not value.requires_grad and value.ndim == 0 for value in out.parts.values())
    assert any(name.startswith("semantic_accuracy_") for name in out.parts)


def test_hidden_tokens_are_not_seen_and_known_ones_are() -> None:
    model, batch = build(), token_batch([8, 8])
    network = model.text_to_semantic.eval()
    masked = torch.zeros(2, 8, dtype=torch.bool)
    masked[:, 3:6] = True
    text = Text(batch.phones_BP, batch.phone_lens_B, batch.speakers_B, batch.languages_B)
    time = torch.tensor([0.3, 0.9])

    def scores(tokens: torch.Tensor, text: Text = text, time: torch.Tensor = time) -> torch.Tensor:
        return network.head(network.hidden(tokens, masked, batch.semantic_lens_B, time, text))

    base = scores(batch.semantic_BT)
    hidden, known = batch.semantic_BT.clone(), batch.semantic_BT.clone()
    hidden[:, 4] = (hidden[:, 4] + 1) % SEMANTIC
    known[:, 0] = (known[:, 0] + 1) % SEMANTIC
    assert torch.equal(scores(hidden), base)
    assert not torch.allclose(scores(known), base)
    assert not torch.allclose(scores(batch.semantic_BT, time=1 - time), base)
    phones = batch.phones_BP.clone()
    phones[:, 0] = phones[:, 0] % (VOCAB - 1) + 1
    assert not torch.allclose(scores(batch.semantic_BT, text._replace(phones_BP=phones)), base)
    freely = text.without(torch.tensor([True, False]))
    assert freely.phone_lens_B.tolist() == [0, 4]
    assert freely.speakers_B[0] == UNKNOWN
    other = scores(batch.semantic_BT, freely._replace(phones_BP=phones))
    torch.testing.assert_close(other[0], scores(batch.semantic_BT, freely)[0])


def test_codebooks_see_the_coarser_ones_alone() -> None:
    network, batch = build().semantic_to_acoustic.eval(), token_batch([6, 6])
    lens = batch.acoustic_lens_B
    masked = torch.arange(12) >= 4
    draw = MaskDraw(torch.full((2,), 0.5), torch.full((2,), 0.7), masked.expand(2, 12), torch.tensor([2, 0]), torch.zeros(2) > 0)
    draw = draw._replace(masked_BT=draw.masked_BT & (torch.arange(12) < lens[:, None]))

    def loss_of(codes: torch.Tensor) -> torch.Tensor:
        return network.loss(batch._replace(acoustic_BAQ=codes), draw, torch.tensor([1, 1])).loss

    base = loss_of(batch.acoustic_BAQ)
    for frame, codebook, matters in ((5, 0, True), (5, 2, False), (3, 1, True), (3, 2, False), (11, 1, False)):
        codes = batch.acoustic_BAQ.clone()
        codes[:, frame, codebook] = (codes[:, frame, codebook] + 1) % CODES
        assert (loss_of(codes) != base) == matters, (frame, codebook)
    codes = batch.acoustic_BAQ.clone()
    codes[0, 1, 2] = (codes[0, 1, 2] + 1) % CODES
    assert loss_of(codes) != base, "a prompt has all its codebooks"
    with pytest.raises(ValueError, match="codebooks_B=None: give draw and codebooks_B together"):
        network.loss(batch, draw)
    with pytest.raises(ValueError, match="draw=None: give draw and codebooks_B together"):
        network.loss(batch, codebooks_B=torch.tensor([1, 1]))


@pytest.mark.parametrize("settings", SETTINGS)
def test_gradients_reach_all_but_the_tokenisers(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, batch = build(**settings), token_batch([14] * 40, durations=True)
    assert not model.codec.training
    assert not model.semantic.training
    assert model.text_to_semantic.training
    model.token_loss(batch).loss.backward()
    lost = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert lost == ["semantic.scale", "codec.step"]
    trained = {id(p) for group in parameter_groups(model) for p in group["params"]}
    assert not trained & {id(p) for part in (model.semantic, model.codec) for p in part.parameters()}
    assert {"semantic.scale", "codec.step"} <= set(model.state_dict()), "they travel with the weights"


def test_speech_is_made_into_tokens_on_the_way() -> None:
    model, batch = build(alignment="durations").eval(), wave_batch([40, 33, 7])
    mel, lens = MEL(batch.wave_BN, batch.wave_lens_B)
    spoken = model.tokenize(batch.wave_BN, batch.wave_lens_B, mel, lens)
    assert spoken.semantic_lens_B.tolist() == [10, 9, 2]
    assert spoken.acoustic_lens_B.tolist() == [20, 17, 4]
    assert spoken.acoustic_BAQ.shape[2] == CODEBOOKS
    assert spoken.semantic_BT.min() >= 0
    assert spoken.acoustic_BAQ.min() >= 0
    out = model.loss(mel, lens, batch)
    assert out.num_targets == 21
    rows = [select(batch, [row], trim=True) for row in range(3)]
    total = sum(model.text_to_semantic.loss(_tokens(model, row)).loss * _hidden(model, row) for row in rows)
    torch.testing.assert_close(out.parts["semantic"], total / sum(_hidden(model, row) for row in rows), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="durations_BP=None, but alignment='durations'"):
        model.loss(mel, lens, batch._replace(durations_BP=None))


def _tokens(model: Any, batch: Any) -> Any:
    mel, lens = MEL(batch.wave_BN, batch.wave_lens_B)
    spoken = model.tokenize(batch.wave_BN, batch.wave_lens_B, mel, lens)
    durations = batch.durations_BP * (spoken.semantic_lens_B / lens)[:, None]
    empty = token_batch([1])
    fields = {name: getattr(batch, name) for name in ("phones_BP", "phone_lens_B", "speakers_B", "languages_B", "ids")}
    return empty._replace(**fields, **spoken._asdict(), durations_BP=durations)


def _hidden(model: Any, batch: Any) -> torch.Tensor:
    return model.text_to_semantic.draw(_tokens(model, batch)).masked_BT.sum()


def test_training_draws_by_the_global_generator() -> None:
    model, batch = build(), token_batch([9, 4, 14])

    def losses(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return [model.token_loss(batch).loss.detach() for _ in range(2)]

    first = losses(1)
    assert torch.equal(torch.stack(losses(1)), torch.stack(first))
    assert first[0] != first[1]


def test_durations_are_learned_from_phones_or_from_the_total() -> None:
    torch.manual_seed(0)
    phones = torch.randint(1, VOCAB, (24, 9))
    lens = torch.randint(3, 10, (24,))
    valid = torch.arange(9) < lens[:, None]
    durations = (phones % 4).float() * valid + 0.5 * valid
    totals = durations.sum(1)
    zeros = torch.zeros(24, dtype=torch.long)
    for known in (durations, None):
        torch.manual_seed(1)
        model = DurationPredictor(vocab_size=VOCAB, dim=32, kernel_size=3, dropout=0.0)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(120):
            loss = duration_loss(model(phones, lens, zeros, zeros), lens, totals, known)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        said = model(phones, lens, zeros, zeros)
        assert (said[~valid] == 0).all()
        assert (said >= 0).all()
        assert ((said.expm1().sum(1) - totals).abs() / totals).max() < 0.1
        alone = model(phones[:1, : lens[0]], lens[:1], zeros[:1], zeros[:1])
        torch.testing.assert_close(alone, said[:1, : lens[0]], atol=1e-5, rtol=1e-5)
    assert duration_loss(said, torch.zeros(24, dtype=torch.long), totals, None) == 0
    assert model(phones[:, :0], zeros, zeros, zeros).shape == (24, 0)


@pytest.mark.parametrize("lens", [[0], [1], [0, 1]])
def test_shortest_rows(lens: list[int]) -> None:
    for settings in SETTINGS:
        out = build(**settings).token_loss(token_batch(lens, durations=True))
        out.loss.backward()
        assert out.loss.isfinite()
        assert out.num_targets == sum(lens)


def test_bfloat16_autocast_is_finite() -> None:
    model, batch = build(alignment="even", finish_weight=0.1, num_speakers=3).eval(), token_batch([9, 4, 14])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model.token_loss(batch)
    torch.testing.assert_close(out.loss, model.token_loss(batch).loss, atol=0.1, rtol=0.05)
    out.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_filter_looks_on_without_a_gradient() -> None:
    x, logits = torch.randn(1, 4, 8, requires_grad=True), torch.randn(1, 4, 5, requires_grad=True)
    FinishFilter(dim=8)(x, logits).sum().backward()
    assert x.grad is None
    assert logits.grad is None


def test_learns_ten_utterances_by_heart() -> None:
    batch = token_batch([12, 9, 14, 11, 8, 10, 13, 12, 7, 9])
    torch.manual_seed(0)
    sizes = {"dim": 64, "ff_dim": 128, "num_heads": 2, "num_layers": 2}
    shared: dict[str, Any] = {"drop_prob": 0.0, "prompt_prob": 0.5}
    semantic = TextToSemantic(backbone=backbone(**sizes), vocab_size=VOCAB, num_codes=SEMANTIC, **shared)
    acoustic = SemanticToAcoustic(
        backbone=backbone(**sizes), num_semantic=SEMANTIC, num_codebooks=CODEBOOKS, num_codes=CODES, ratio=RATIO, **shared
    )
    for name, network, steps in (("semantic", semantic, 130), ("acoustic", acoustic, 280)):
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 20) * (1 - step / steps)
            optimizer.zero_grad()
            network.loss(batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        assert network.eval().loss(batch).parts[f"{name}_accuracy"] > 0.95


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alignment": "diagonal"}, "alignment='diagonal' is unknown"),
        ({"span": 0}, "span=0 must be at least 1"),
        ({"drop_prob": -0.1}, r"drop_prob=-0\.1 must be in"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1\.0 must be"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_one_codebook_takes_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BandCodec, "num_codebooks", 1)
    assert build().coarse is None
    with pytest.raises(ValueError, match="the codec has one codebook; set coarse_backbone=null"):
        build(coarse=True)


def test_impossible_parts_are_refused() -> None:
    sizes: dict[str, Any] = {"num_semantic": 3, "num_codebooks": 2, "num_codes": 4}
    with pytest.raises(ValueError, match="ratio=0 must be"):
        SemanticToAcoustic(backbone=backbone(), ratio=0, **sizes)
    with pytest.raises(ValueError, match="first_codebook=2 must be one of the 2"):
        SemanticToAcoustic(backbone=backbone(), first_codebook=2, **sizes)
    with pytest.raises(ValueError, match="num_heads=3 must divide"):
        MaskedTransformer(dim=32, num_layers=1, num_heads=3, ff_dim=8)
