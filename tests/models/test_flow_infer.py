"""Synthesis by flow matching: independence of batch mates and padding, prompts, guidance, lengths, edges, what comes out."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.losses.flow_matching import utterance_noise
from speechkit.models.flow.duration import frames_by_rate, spread, total_frames
from speechkit.models.flow.infer import FlowOptions, infer
from speechkit.models.flow.model import F5Model, MatchaModel
from speechkit.nn.masks import valid_mask
from speechkit.types import TtsInputs, TtsOutput
from tests.models.flow_parts import MEL, scalar_codec

VOCAB = 9
FlowModel = MatchaModel | F5Model


def lively(model: FlowModel) -> FlowModel:
    """Weights that begin as 0 would hide what they multiply; durations of a few frames."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name or "modulation" in name or "decoder.out" in name or name == "filler_E":
                parameter.normal_(std=0.3, generator=generator)
            if name == "durations.out.bias":
                parameter.fill_(math.log(4.0))
            if name == "total_length.layers.3.bias":
                parameter.fill_(math.log(3.0))
        if model.mel_norm is not None:
            model.mel_norm.mean.fill_(-3.0)
            model.mel_norm.std.fill_(2.0)
    return model.eval()


def matcha(**settings: Any) -> FlowModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "encoder_dim": 16, "encoder_layers": 1, "encoder_heads": 2, "encoder_ff_dim": 32, "duration_dim": 16,
        "decoder_dims": (16, 24), "decoder_condition_dim": 32, "decoder_mid": 1,
    }  # fmt: skip
    return lively(MatchaModel(vocab_size=VOCAB, num_mels=6, **(sizes | settings)))


def f5(**settings: Any) -> FlowModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"dim": 32, "num_layers": 2, "num_heads": 2, "text_dim": 16, "text_layers": 2}
    return lively(F5Model(vocab_size=VOCAB, num_mels=6, **(sizes | settings)))


CASES: dict[str, tuple[FlowModel, FlowOptions, bool]] = {
    "matcha": (matcha(), FlowOptions(num_steps=2), False),
    "matcha, guided voices": (
        matcha(num_speakers=3, num_languages=2, condition_drop=0.2), FlowOptions(num_steps=2, guidance=1.5), False
    ),
    "f5, filler": (f5(), FlowOptions(num_steps=3, sway=-1.0), False),
    "f5, filler, guided prompts": (f5(num_speakers=3), FlowOptions(num_steps=2, guidance=2.0, solver="midpoint"), True),
    "f5, average, prompts": (f5(text_upsampling="average"), FlowOptions(num_steps=2, length="total", speed=0.8), True),
    "f5, durations": (f5(text_upsampling="durations"), FlowOptions(num_steps=5, grid="epss"), False),
    "f5, durations, prompts": (f5(text_upsampling="durations"), FlowOptions(num_steps=2, length="rate", seed=4), True),
    "latent, durations": (f5(text_upsampling="durations", codec=scalar_codec()), FlowOptions(num_steps=3, sway=-1.0), False),
    "latent, filler, guided prompts": (
        f5(num_speakers=3, codec=scalar_codec(stride=3)), FlowOptions(num_steps=2, guidance=2.0, speed=0.9), True
    ),
    "latent, durations, prompts": (
        f5(text_upsampling="durations", codec=scalar_codec()), FlowOptions(num_steps=2, length="phones"), True
    ),
}  # fmt: skip
SIZES = [(5, 300), (1, 40), (0, 90), (8, 0), (13, 500), (2, 1)]  # phones; samples of the prompt


def row(number: int, extra: int = 0) -> dict[str, Any]:
    """One thing to say; a function of its number."""
    phones, samples = SIZES[number]
    generator = torch.Generator().manual_seed(number)
    return {
        "id": f"utt-{number}",
        "phones": torch.randint(1, VOCAB, (phones,), generator=generator),
        "speaker": number % 3,
        "language": number % 2,
        "wave": 0.3 * torch.randn(samples, generator=generator),
        "prompt": torch.randint(1, VOCAB, (-(-samples // 60),), generator=generator),
    }


def padded(rows: Sequence[Tensor], extra: int, value: float) -> Tensor:
    out = torch.full((len(rows), max(map(len, rows)) + extra), value, dtype=rows[0].dtype)
    for place, own in enumerate(rows):
        out[place, : len(own)] = own
    return out


def collate(rows: Sequence[dict[str, Any]], *, prompts: bool, extra: int = 0) -> TtsInputs:
    def lens(name: str) -> Tensor:
        return torch.tensor([len(each[name]) for each in rows])

    inputs = TtsInputs(
        padded([each["phones"] for each in rows], extra, min(extra, 1)),
        lens("phones"),
        torch.tensor([each["speaker"] for each in rows]),
        torch.tensor([each["language"] for each in rows]),
        tuple(each["id"] for each in rows),
    )
    if not prompts:
        return inputs
    return inputs._replace(
        prompt_wave_BN=padded([each["wave"] for each in rows], 32 * extra, 0.0),
        prompt_wave_lens_B=lens("wave"),
        prompt_phones_BP=padded([each["prompt"] for each in rows], extra, min(extra, 1)),
        prompt_phone_lens_B=lens("prompt"),
    )


def check(found: TtsOutput, expected: Sequence[TtsOutput]) -> None:
    """Every row as it came out alone, and zeros behind it."""
    assert found.mel_lens_B.tolist() == [int(each.mel_lens_B[0]) for each in expected]
    assert found.mel_BTF.shape[1] == max(found.mel_lens_B.tolist())
    for place, each in enumerate(expected):
        length = int(each.mel_lens_B[0])
        torch.testing.assert_close(found.mel_BTF[place, :length], each.mel_BTF[0], rtol=1e-3, atol=1e-3)
        assert found.mel_BTF[place, length:].abs().sum() == 0
        if each.durations_BP is not None and found.durations_BP is not None:
            phones = each.durations_BP.shape[1]
            assert torch.equal(found.durations_BP[place, :phones], each.durations_BP[0])
            assert found.durations_BP[place].sum() == length


@pytest.mark.parametrize("name", CASES)
def test_rows_depend_on_neither_mates_nor_padding_nor_order(name: str) -> None:
    model, options, prompts = CASES[name]
    rows = [row(number) for number in range(len(SIZES))]
    alone = [infer(model, collate([each], prompts=prompts), mel=MEL, options=options) for each in rows]
    assert [int(each.mel_lens_B[0]) > 0 for each in alone] == [phones > 0 for phones, _ in SIZES]
    for order, extra in (([0, 1, 2, 3, 4, 5], 0), ([4, 2, 0], 3), ([5, 3, 1, 4], 7)):
        inputs = collate([rows[i] for i in order], prompts=prompts, extra=extra)
        check(infer(model, inputs, mel=MEL, options=options), [alone[i] for i in order])


@pytest.mark.parametrize("name", CASES)
def test_nothing_to_say_is_no_frames(name: str) -> None:
    model, options, prompts = CASES[name]
    out = infer(model, collate([row(2), row(2)], prompts=prompts), mel=MEL, options=options)
    assert out.mel_BTF.shape == (2, 0, 6)
    assert out.mel_lens_B.tolist() == [0, 0]
    assert out.durations_BP is None or out.durations_BP.shape == (2, 0)


def test_seeds_ids_and_temperature_matter_and_nothing_else_is_drawn() -> None:
    model, _, _ = CASES["matcha"]
    inputs = collate([row(0)], prompts=False)

    def speak(inputs: TtsInputs = inputs, **options: Any) -> Tensor:
        return infer(model, inputs, mel=MEL, options=FlowOptions(**options)).mel_BTF

    assert torch.equal(speak(), speak())
    assert not torch.equal(speak(), speak(seed=1))
    assert not torch.equal(speak(), speak(inputs._replace(ids=("other",))))
    assert torch.equal(speak(), speak(temperature=0.667))
    assert torch.equal(speak(temperature=0.0), speak(temperature=0.0, seed=1))


def test_speed_changes_lengths() -> None:
    for name in ("matcha", "f5, filler", "f5, durations", "latent, durations"):
        model, _, _ = CASES[name]
        lens = [
            int(infer(model, collate([row(4)], prompts=False), mel=MEL, options=FlowOptions(num_steps=1, speed=speed)).mel_lens_B)
            for speed in (0.5, 1.0, 2.0)
        ]
        assert lens[0] > 1.5 * lens[1] > 2 * lens[2], (name, lens)


def test_the_right_velocity_leads_to_the_data_in_one_step() -> None:
    """Data of one point: the velocity to it is (x1 - x) / (1 - t), and one step of Euler's method arrives."""
    model, _, _ = CASES["f5, filler"]
    inputs = collate([row(4), row(0)], prompts=False)
    lens_B = infer(model, inputs, mel=MEL, options=FlowOptions(num_steps=1)).mel_lens_B
    x1_BTF = torch.randn(2, int(lens_B.max()), 6)
    exact = f5()
    exact.decoder.forward = lambda x_BTF, t_B, condition: (x1_BTF - x_BTF) / (1 - t_B)[:, None, None]
    for steps in (1, 4):
        out = infer(exact, inputs, mel=MEL, options=FlowOptions(num_steps=steps))
        valid_BT = valid_mask(lens_B, x1_BTF.shape[1])
        torch.testing.assert_close(out.mel_BTF[valid_BT], exact.mel_norm.denormalize(x1_BTF)[valid_BT])


def test_guidance_moves_away_from_the_velocity_without_the_condition() -> None:
    for name in ("matcha, guided voices", "f5, filler, guided prompts"):
        model, _, prompts = CASES[name]
        inputs = collate([row(4)], prompts=prompts)
        seen: list[tuple[Tensor, Tensor]] = []
        hook = model.decoder.register_forward_hook(lambda _, args, output, to=seen: to.append((args[0], output)))
        out = infer(model, inputs, mel=MEL, options=FlowOptions(num_steps=1, guidance=2.0, temperature=1.0))
        hook.remove()
        [(x_BTF, v_BTF)] = seen
        assert torch.equal(x_BTF[0], x_BTF[1])
        noise = utterance_noise(inputs.ids, torch.tensor([x_BTF.shape[1]]), num_channels=6, num_frames=x_BTF.shape[1], seed=0)
        end_TF = (noise[0] + v_BTF[0] + 2.0 * (v_BTF[0] - v_BTF[1]))[-out.mel_BTF.shape[1] :]
        torch.testing.assert_close(out.mel_BTF[0], model.mel_norm.denormalize(end_TF))
        assert (v_BTF[0] - v_BTF[1]).abs().max() > 0.01
        plain = infer(model, inputs, mel=MEL, options=FlowOptions(num_steps=1, temperature=1.0))
        again = plain.mel_BTF[0] - model.mel_norm.denormalize((noise[0] + v_BTF[0])[-out.mel_BTF.shape[1] :])
        assert again.abs().max() < 1e-4


def test_prompts_are_heard() -> None:
    inputs = collate([row(0)], prompts=True)
    assert inputs.prompt_wave_BN is not None
    for name in ("f5, durations, prompts", "latent, durations, prompts"):
        model, options, _ = CASES[name]
        first = infer(model, inputs, mel=MEL, options=options)
        second = infer(model, inputs._replace(prompt_wave_BN=inputs.prompt_wave_BN * 0.01), mel=MEL, options=options)
        assert first.mel_BTF.shape == second.mel_BTF.shape
        assert (first.mel_BTF - second.mel_BTF).abs().max() > 0.05


def test_prompts_set_the_rate() -> None:
    inputs = collate([row(0)], prompts=True)  # 10 frames and 5 phones, then 5 phones to say
    for name in ("f5, average, prompts", "latent, durations, prompts"):
        model, _, _ = CASES[name]
        assert int(infer(model, inputs, mel=MEL, options=FlowOptions(num_steps=1, length="rate")).mel_lens_B) == 10
        assert int(infer(model, inputs, mel=MEL, options=FlowOptions(num_steps=1, speed=2.0)).mel_lens_B) == 5


@pytest.mark.parametrize("name", CASES)
def test_half_precision_speaks_alike(name: str) -> None:
    model, options, prompts = CASES[name]
    inputs = collate([row(0), row(3)], prompts=prompts)
    expected = infer(model, inputs, mel=MEL, options=options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = infer(model, inputs, mel=MEL, options=options)
    assert found.mel_BTF.dtype == torch.float32
    assert (found.mel_lens_B - expected.mel_lens_B).abs().max() <= 2
    halved = copy.deepcopy(model).bfloat16()
    assert infer(halved, inputs, mel=MEL, options=options).mel_BTF.isfinite().all()


def test_spread_shares_out_every_frame() -> None:
    ones_BP, lens_B = torch.ones(4, 5), torch.tensor([5, 3, 0, 2])
    found = spread(ones_BP, lens_B, torch.tensor([10, 7, 4, 1]))
    assert found.tolist() == [[2, 2, 2, 2, 2], [2, 3, 2, 0, 0], [0] * 5, [1, 0, 0, 0, 0]]
    weights_BP = torch.tensor([[3.0, 0.0, 1.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    assert spread(weights_BP, torch.tensor([3, 2]), torch.tensor([8, 4])).tolist() == [[6, 0, 2, 0], [2, 2, 0, 0]]
    torch.manual_seed(0)
    durations_BP = torch.randint(0, 9, (50, 12))
    whole = spread(durations_BP, torch.full((50,), 12), durations_BP.sum(1))
    assert torch.equal(whole, durations_BP), "shares that fit stay as they are"


def test_lengths_of_texts() -> None:
    log_rate_B, lens_B = torch.tensor([math.log(5.0), 99.0, -99.0, 0.0]), torch.tensor([4, 1, 2, 0])
    assert total_frames(log_rate_B, lens_B, speed=2.0).tolist() == [10, 500, 1, 0]
    frames = frames_by_rate(torch.tensor([30, 1, 8]), torch.tensor([10, 9, 0]), torch.tensor([5, 2, 0]), speed=1.0)
    assert frames.tolist() == [15, 1, 0]


def test_misuse_is_refused() -> None:
    model, _, _ = CASES["f5, filler"]
    inputs = collate([row(0)], prompts=True)
    for settings, message in (
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_steps": 4, "grid": "epss"}, "no EPSS table"),
        ({"solver": "heun"}, "solver='heun' is unknown"),
        ({"guidance": -1.0}, "guidance=-1"),
        ({"guidance": math.nan}, "guidance=nan"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"sway": math.nan}, "sway=nan"),
        ({"length": "long"}, "length='long' is unknown"),
        ({"speed": 0.0}, "speed=0"),
    ):
        with pytest.raises(ValueError, match=message):
            FlowOptions(**settings)
    with pytest.raises(ValueError, match="mel has 80 bands and the model 6"):
        infer(model, inputs, mel=MelSpectrogram.preset(16000))
    with pytest.raises(ValueError, match="MatchaModel has only the voices"):
        infer(CASES["matcha"][0], inputs, mel=MEL)
    with pytest.raises(ValueError, match="prompt_phones_BP is None"):
        infer(model, inputs._replace(prompt_phones_BP=None), mel=MEL)
    with pytest.raises(ValueError, match=r"prompts of rows \[0\] have speech without text"):
        infer(model, inputs._replace(prompt_phone_lens_B=torch.tensor([0])), mel=MEL)
    with pytest.raises(ValueError, match="never trained without its condition"):
        infer(CASES["matcha"][0], collate([row(0)], prompts=False), mel=MEL, options=FlowOptions(guidance=1.0))
    with pytest.raises(ValueError, match="predicts no durations"):
        infer(model, collate([row(0)], prompts=False), mel=MEL, options=FlowOptions(length="phones"))
