"""Training of the flow-matching synthesisers: losses, alignment, independence of batch mates and padding, edges, learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from speechkit.kernels.mas import mas
from speechkit.losses.flow_matching import conditional_flow, flow_matching_loss
from speechkit.models.flow.alignment import gaussian_log_likelihood, prior_loss
from speechkit.models.flow.draws import cut_segments, draw, draw_spans
from speechkit.models.flow.model import F5Model, MatchaModel
from speechkit.nn.masks import valid_mask
from speechkit.types import LossOutput, TtsBatch
from tests.models.flow_parts import scalar_codec

MELS, VOCAB = 6, 9
FlowModel = MatchaModel | F5Model


def matcha(**settings: Any) -> MatchaModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "encoder_dim": 16, "encoder_layers": 1, "encoder_heads": 2, "encoder_ff_dim": 32, "duration_dim": 16,
        "decoder_dims": (16, 24, 24), "decoder_condition_dim": 32, "decoder_mid": 1,
    }  # fmt: skip
    return MatchaModel(vocab_size=VOCAB, num_mels=MELS, **(sizes | settings))


def f5(**settings: Any) -> F5Model:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"dim": 32, "num_layers": 2, "num_heads": 2, "text_dim": 16, "text_layers": 2, "ctc_dim": 16}
    model = F5Model(vocab_size=VOCAB, num_mels=MELS, **(sizes | settings))
    with torch.no_grad():  # what begins as 0 would hide what it multiplies
        for name, parameter in model.named_parameters():
            if "gate" in name or "modulation" in name or "decoder.out" in name or name == "filler_E":
                parameter.normal_(std=0.3)
    return model


MODELS = {
    "matcha": matcha,
    "matcha, given durations, segments": lambda: matcha(use_given_durations=True, segment_frames=5, condition_drop=0.3),
    "matcha, voices": lambda: matcha(num_speakers=3, num_languages=2, condition_drop=0.3),
    "f5, filler": lambda: f5(num_speakers=3),
    "f5, average, CTC": lambda: f5(text_upsampling="average", ctc_weight=0.1),
    "f5, durations": lambda: f5(text_upsampling="durations", num_languages=2),
    "latent, filler": lambda: f5(codec=scalar_codec(stride=3)),
    "latent, durations, CTC": lambda: f5(text_upsampling="durations", ctc_weight=0.1, codec=scalar_codec()),
}


def example(name: str, frames: int, phones: int) -> dict[str, Any]:
    """An utterance that is a function of its name and lengths."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)) + 97 * frames + phones)
    cuts = torch.randint(0, frames + 1, (max(phones - 1, 0),), generator=generator).sort().values.tolist()
    ends = [*cuts, frames] if phones else []
    return {
        "id": name,
        "mel": torch.randn(frames, MELS, generator=generator),
        "phones": torch.randint(1, VOCAB, (phones,), generator=generator),
        "durations": torch.tensor([end - start for start, end in zip([0, *ends], ends)], dtype=torch.int64),
        "speaker": int(torch.randint(0, 3, (), generator=generator)),
        "language": int(torch.randint(0, 2, (), generator=generator)),
    }


def padded(rows: Sequence[Tensor], extra: int, value: float) -> Tensor:
    size = max(map(len, rows)) + extra
    out = torch.full((len(rows), size, *rows[0].shape[1:]), value, dtype=rows[0].dtype)
    for row, own in enumerate(rows):
        out[row, : len(own)] = own
    return out


def collate(examples: Sequence[dict[str, Any]], extra: int = 0) -> tuple[Tensor, Tensor, TtsBatch]:
    names, empty = tuple(each["id"] for each in examples), ("",) * len(examples)
    batch = TtsBatch(
        wave_BN=torch.zeros(len(examples), 0),
        wave_lens_B=torch.zeros(len(examples), dtype=torch.int64),
        phones_BP=padded([each["phones"] for each in examples], extra, 1 if extra else 0),
        phone_lens_B=torch.tensor([len(each["phones"]) for each in examples]),
        speakers_B=torch.tensor([each["speaker"] for each in examples]),
        languages_B=torch.tensor([each["language"] for each in examples]),
        ids=names,
        texts=empty,
        langs=empty,
        durations_BP=padded([each["durations"] for each in examples], extra, 0),
    )
    mel_BTF = padded([each["mel"] for each in examples], extra, 7.0 if extra else 0.0)
    return mel_BTF, torch.tensor([len(each["mel"]) for each in examples]), batch


EXAMPLES = [example("a", 13, 4), example("b", 6, 6), example("c", 22, 9), example("d", 9, 1), example("e", 1, 1)]


def gradients(model: FlowModel, out: LossOutput) -> dict[str, Tensor]:
    model.zero_grad()
    out.loss.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_losses_depend_on_neither_padding_nor_order(name: str) -> None:
    model = MODELS[name]().eval()
    expected = model.loss(*collate(EXAMPLES))
    wanted = gradients(model, expected)
    for order, extra in (([3, 1, 4, 0, 2], 0), ([0, 1, 2, 3, 4], 3), ([4, 3, 2, 1, 0], 6)):
        found = model.loss(*collate([EXAMPLES[i] for i in order], extra))
        assert found.num_targets == expected.num_targets
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-5)
        for part, value in expected.parts.items():
            torch.testing.assert_close(found.parts[part], value, rtol=1e-5, atol=1e-5, msg=part)
        for parameter, gradient in gradients(model, found).items():
            torch.testing.assert_close(gradient, wanted[parameter], rtol=1e-3, atol=2e-5, msg=parameter)


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_means_over_utterances_alone(name: str) -> None:
    model = MODELS[name]().eval()
    together = model.loss(*collate(EXAMPLES))
    alone = [model.loss(*collate([each])) for each in EXAMPLES]
    if "segments" not in name:
        frames = torch.stack([each.num_targets for each in alone])
        flows = torch.stack([each.parts["flow"] for each in alone])
        torch.testing.assert_close(together.parts["flow"], (flows * frames).sum() / frames.sum(), rtol=1e-5, atol=1e-5)
    phones = torch.tensor([len(each["phones"]) for each in EXAMPLES])
    for part, weights in (("duration", phones), ("length", torch.ones(len(alone)))):
        if part in together.parts:
            values = torch.stack([each.parts[part] for each in alone])
            expected = (values * weights).sum() / weights.sum()
            torch.testing.assert_close(together.parts[part], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sizes", [[(0, 0)], [(1, 1)], [(0, 0), (5, 2)], [(0, 3), (4, 0), (3, 7)], [(1, 0), (0, 1)]])
def test_any_lengths_have_finite_losses_and_gradients(name: str, sizes: list[tuple[int, int]]) -> None:
    model = MODELS[name]().train()
    out = model.loss(*collate([example(str(i), *size) for i, size in enumerate(sizes)]))
    assert out.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(model, out).values())


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_learns(name: str) -> None:
    model = MODELS[name]().train()
    found = gradients(model, model.loss(*collate(EXAMPLES)))
    missing = [name for name, parameter in model.named_parameters() if parameter.requires_grad and name not in found]
    assert not missing, "every rank must have a gradient for every weight"
    assert not any(name.startswith("codec.") for name in found)


@pytest.mark.parametrize("name", MODELS)
def test_autocast_changes_losses_by_rounding_alone(name: str) -> None:
    model = MODELS[name]().eval()
    expected = model.loss(*collate(EXAMPLES))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.loss(*collate(EXAMPLES))
    assert found.loss.dtype == torch.float32
    torch.testing.assert_close(found.loss, expected.loss, rtol=0.1, atol=0.05)


def test_training_draws_anew_and_evaluation_does_not() -> None:
    model = f5().train()
    inputs = collate(EXAMPLES)
    assert model.loss(*inputs).loss != model.loss(*inputs).loss
    model.eval()
    assert model.loss(*inputs).loss == model.loss(*inputs).loss


def test_log_likelihood_is_that_of_the_normal_distribution() -> None:
    torch.manual_seed(0)
    x_BTF, mean_BPF = torch.randn(2, 7, MELS), torch.randn(2, 4, MELS)
    normal = torch.distributions.Normal(mean_BPF[:, None], 1.0)
    torch.testing.assert_close(gaussian_log_likelihood(x_BTF, mean_BPF), normal.log_prob(x_BTF[:, :, None]).sum(3))
    per_channel = -torch.distributions.Normal(mean_BPF, 1.0).log_prob(x_BTF[:, :4]).mean()
    torch.testing.assert_close(prior_loss(x_BTF[:, :4], mean_BPF, torch.ones(2, 4, dtype=torch.bool)), per_channel)


def test_alignment_is_the_kernels_path() -> None:
    model = matcha().eval()
    mel_BTF, lens_B, batch = collate(EXAMPLES)
    encoded = model.encode(batch.phones_BP, batch.phone_lens_B, batch.speakers_B, batch.languages_B)
    durations_BP, feasible_B = model.align(mel_BTF, lens_B, encoded.mean_BPF, batch)
    normal = torch.distributions.Normal(encoded.mean_BPF[:, None], 1.0)
    path = mas(normal.log_prob(mel_BTF[:, :, None]).sum(3).detach(), lens_B, batch.phone_lens_B)
    assert torch.equal(durations_BP, path.durations_BP)
    assert feasible_B.all()
    given, _ = matcha(use_given_durations=True).align(mel_BTF, lens_B, encoded.mean_BPF, batch)
    assert torch.equal(given, batch.durations_BP)


def test_infeasible_rows_are_counted_and_left_out() -> None:
    model = matcha().eval()
    expected = model.loss(*collate(EXAMPLES))
    found = model.loss(*collate([*EXAMPLES, example("short", 3, 5)]))
    assert (expected.parts["infeasible"], found.parts["infeasible"]) == (0, 1)
    torch.testing.assert_close(found.loss, expected.loss)
    assert found.num_targets == expected.num_targets


def test_spans_have_their_share_and_every_place() -> None:
    torch.manual_seed(0)
    lens_B = torch.tensor([0, 1, 10, 17]).repeat(500)
    share_B, start_B = 0.3 + 0.7 * torch.rand(len(lens_B)), torch.rand(len(lens_B))
    spans_BT = draw_spans(lens_B, 20, share_B, start_B)
    sizes_B = spans_BT.sum(1)
    assert torch.equal(sizes_B, torch.maximum((share_B * lens_B).ceil().long(), (lens_B > 0).long()))
    assert not spans_BT[~valid_mask(lens_B, 20)].any()
    edges = (spans_BT[:, 1:] != spans_BT[:, :-1]).sum(1) + spans_BT[:, 0]
    assert (edges[lens_B > 0] <= 2).all(), "one piece"
    rows = spans_BT[(lens_B == 10) & (sizes_B == 4)]
    assert {int(row.long().argmax()) for row in rows} == set(range(7))


def test_segments_hold_the_same_frames_of_all_tensors() -> None:
    lens_B = torch.tensor([12, 3, 5, 0])
    x_BTF = torch.arange(12.0)[None, :, None].expand(4, -1, 2)
    (first, second), cut_B = cut_segments((x_BTF, 10 * x_BTF), lens_B, 5, torch.tensor([0.99, 0.99, 0.99, 0.5]))
    assert cut_B.tolist() == [5, 3, 5, 0]
    assert first[0, :, 0].tolist() == [7, 8, 9, 10, 11]
    assert first[1, :3, 0].tolist() == [0, 1, 2]
    assert torch.equal(second, 10 * first)
    whole = cut_segments((x_BTF,), lens_B, 50, torch.rand(4))
    assert torch.equal(whole.pieces[0], x_BTF)
    assert torch.equal(whole.lens_B, lens_B)


def test_draws_of_evaluation_belong_to_the_utterance() -> None:
    first = draw(torch.zeros(2, 5, 3), torch.tensor([5, 2]), ["a", "b"], num_uniforms=4, training=False)
    second = draw(torch.zeros(1, 9, 3), torch.tensor([2]), ["b"], num_uniforms=4, training=False)
    assert torch.equal(first.uniforms_BK[1], second.uniforms_BK[0])
    assert torch.equal(first.noise_BTF[1, :2], second.noise_BTF[0, :2])
    assert len(first.uniforms_BK.unique()) == 8


@pytest.mark.parametrize("name", ["matcha", "f5, filler"])
def test_flow_loss_is_that_of_the_objective(name: str) -> None:
    """The same draws through conditional_flow and the network alone."""
    model = MODELS[name]().eval()
    mel_BTF, lens_B, batch = collate(EXAMPLES[2:3])
    seen: list[tuple[Tensor, ...]] = []
    model.decoder.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], inputs[1], output)))
    flow = model.loss(mel_BTF, lens_B, batch).parts["flow"]
    [(x_t_BTF, t_B, velocity_BTF)] = seen
    noise_BTF = draw(mel_BTF, lens_B, batch.ids, num_uniforms=1, training=False).noise_BTF
    sample = conditional_flow(mel_BTF, noise_BTF, t_B, model.sigma if isinstance(model, MatchaModel) else 0.0)
    torch.testing.assert_close(x_t_BTF, sample.x_t_BTD)
    whole = flow_matching_loss(velocity_BTF, sample.target_BTD, valid_mask(lens_B, 22))
    if isinstance(model, MatchaModel):
        torch.testing.assert_close(flow, whole.loss)
    else:
        assert 0 < flow < 1.5 * whole.sums_B.sum() / (0.7 * 22)


TOY = {
    "matcha": lambda: matcha(encoder_dropout=0.0, decoder_dropout=0.0, decoder_dims=(32,)),
    "f5, average": lambda: f5(text_upsampling="average", dropout=0.0, drop_all=0.0, ctc_weight=0.1),
    "f5, durations": lambda: f5(text_upsampling="durations", dropout=0.0, drop_all=0.0),
}


@pytest.mark.parametrize("name", TOY)
def test_losses_fall_on_a_toy_set(name: str) -> None:
    """Speech whose frames are functions of their phones."""
    voices = torch.randn(VOCAB, MELS, generator=torch.Generator().manual_seed(5))
    examples = []
    for row in range(6):
        phones = torch.randint(1, VOCAB, (5,), generator=torch.Generator().manual_seed(row))
        durations = 1 + phones % 3
        mel = voices[phones.repeat_interleave(durations)]
        examples.append(example(str(row), 0, 0) | {"phones": phones, "durations": durations, "mel": 2.0 * mel})
    model, inputs = TOY[name](), collate(examples)
    model.mel_norm.fit([inputs[:2]])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    before = model.eval().loss(*inputs)
    model.train()
    for _ in range(50):
        optimizer.zero_grad()
        model.loss(*inputs).loss.backward()
        optimizer.step()
    after = model.eval().loss(*inputs)
    for part in set(before.parts) - {"infeasible", "prior"}:
        assert after.parts[part] < 0.5 * before.parts[part], (part, before.parts, after.parts)
    assert after.parts["flow"] < 1.0, "no velocity at all errs by 2"
    if "prior" in before.parts:
        assert after.parts["prior"] < before.parts["prior"] - 0.3


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match=r"condition_drop=1\.0 must be"):
        matcha(condition_drop=1.0)
    with pytest.raises(ValueError, match="segment_frames=0 must be"):
        matcha(segment_frames=0)
    with pytest.raises(ValueError, match=r"dims=\[\] has no stage"):
        matcha(decoder_dims=())
    with pytest.raises(ValueError, match="text_upsampling='even' is unknown"):
        f5(text_upsampling="even")
    with pytest.raises(ValueError, match=r"min_span=0\.9 and max_span=0\.5"):
        f5(min_span=0.9, max_span=0.5)
    mel_BTF, lens_B, batch = collate(EXAMPLES)
    with pytest.raises(ValueError, match="durations_BP is None, but durations"):
        f5(duration_predictor=True).loss(mel_BTF, lens_B, batch._replace(durations_BP=None))
