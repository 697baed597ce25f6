from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechkit.audio.features import LogMel
from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.models.codec.kmeans import KMeansQuantizer
from speechkit.models.codec.model import CodecModel
from speechkit.models.codec.semantic import SemanticTokenizer
from speechkit.models.maskgct import infer as module
from speechkit.models.maskgct.infer import MaskGctOptions, infer
from speechkit.nn.conformer import ConformerEncoder
from speechkit.nn.istft_head import IstftHead
from speechkit.nn.quantizers import ResidualVectorQuantizer
from speechkit.types import TtsInputs, TtsOutput
from tests.models.maskgct_parts import (
    CODES,
    MEL,
    MELS,
    RATIO,
    SEMANTIC,
    STRIDE,
    build,
    inputs_of,
    select,
    token_batch,
    wave_batch,
)

TOKEN = RATIO * STRIDE  # mel frames of a semantic token
FAST: dict[str, Any] = {"num_steps": 4, "acoustic_steps": (3, 2, 1), "top_share": 1.0}
NEVER_NONE = ("guidance", "rescale", "temperature", "acoustic_temperature", "choice_noise", "top_share", "speed")
MODELS: list[dict[str, Any]] = [
    {"num_speakers": 2, "num_languages": 2},
    {"alignment": "even", "span": 3},
    {"alignment": "durations", "coarse": True, "num_speakers": 2, "finish_weight": 0.1},
]


def speak(model: Any, inputs: TtsInputs, mel_lens: torch.Tensor | None = None, **options: Any) -> TtsOutput:
    return infer(model, inputs, mel=MEL, options=MaskGctOptions(**{**FAST, **options}), mel_lens_B=mel_lens)


def rows_of(output: TtsOutput) -> list[torch.Tensor]:
    return [mel[:length] for mel, length in zip(output.mel_BTF, output.mel_lens_B.tolist())]


@pytest.mark.parametrize("settings", MODELS)
@pytest.mark.parametrize("prompted", ["none", "waves", "waves and phones"])
def test_an_utterance_is_the_same_alone_in_any_batch_and_padded(settings: dict[str, Any], prompted: str) -> None:
    model = build(**settings).eval()
    prompts = None if prompted == "none" else [30, 0, 17, 9]
    inputs = inputs_of([9, 4, 1, 6], prompts=prompts, prompt_phones=prompted == "waves and phones")
    options: dict[str, Any] = {"finish_threshold": 0.2} if "finish_weight" in settings else {"final_guidance": 0.5}
    together = rows_of(speak(model, inputs, **options))
    alone = [rows_of(speak(model, select(inputs, [row], trim=True), **options))[0] for row in range(4)]
    mixed = rows_of(speak(model, select(inputs, [2, 0, 3, 1], extra=4), **options))
    for row in range(4):
        assert torch.equal(alone[row], together[row])
        assert torch.equal(mixed[(1, 3, 0, 2)[row]], together[row])


def test_lengths() -> None:
    model = build().eval()
    inputs = inputs_of([9, 4, 0, 1], prompts=[40, 24, 16, 0])
    assert inputs.prompt_phone_lens_B is not None
    assert inputs.prompt_phone_lens_B.tolist() == [4, 3, 2, 0]
    log_durations = model.durations(inputs.phones_BP, inputs.phone_lens_B, inputs.speakers_B, inputs.languages_B)
    predicted = log_durations.double().expm1().sum(1)
    by_rate = torch.tensor([10 / 4 * 9, 6 / 3 * 4])
    mixed = torch.cat((by_rate, predicted[2:])).round().clamp(min=1) * torch.tensor([1, 1, 0, 1])
    assert speak(model, inputs).mel_lens_B.tolist() == (mixed * TOKEN).tolist()
    assert speak(model, inputs, length="predicted").mel_lens_B[:2].tolist() == (predicted[:2].round() * TOKEN).tolist()
    half = (by_rate / 2).round() * TOKEN
    assert speak(model, inputs, speed=2.0).mel_lens_B[:2].tolist() == half.tolist()
    given = torch.tensor([33, 2, 50, 1])
    out = speak(model, inputs, given)
    assert out.mel_lens_B.tolist() == [33, 2, 0, 1]
    assert out.mel_BTF.shape == (4, 33, MELS)
    with pytest.raises(ValueError, match=r"length='prompt', but rows \[3\] have no prompt"):
        speak(model, inputs, length="prompt")
    assert out.durations_BP is None


def test_durations_add_up() -> None:
    model = build(alignment="durations").eval()
    inputs = inputs_of([9, 4, 1, 0], prompts=[40, 0, 12, 12])
    for given in (None, torch.tensor([37, 20, 3, 5])):
        out = speak(model, inputs, given)
        assert out.durations_BP is not None
        assert (out.durations_BP >= 0).all()
        assert out.durations_BP.shape == inputs.phones_BP.shape
        assert torch.equal(out.durations_BP.sum(1), out.mel_lens_B)
        valid = torch.arange(9) < inputs.phone_lens_B[:, None]
        assert out.durations_BP[~valid].sum() == 0


def test_nothing_to_say() -> None:
    for settings in MODELS:
        model = build(**settings).eval()
        out = speak(model, inputs_of([0, 0]))
        assert out.mel_BTF.shape == (2, 0, MELS)
        assert out.mel_lens_B.tolist() == [0, 0]
        assert speak(model, inputs_of([0, 1])).mel_lens_B[1] >= TOKEN
    none = inputs_of([3])
    empty = TtsInputs(none.phones_BP[:0], none.phone_lens_B[:0], none.speakers_B[:0], none.languages_B[:0], ())
    assert len(speak(build().eval(), empty).mel_BTF) == 0


def test_seed_voice_prompt_and_guidance_all_matter() -> None:
    model = build(num_speakers=2).eval()
    inputs = inputs_of([20, 20], prompts=[60, 60])
    base = speak(model, inputs).mel_BTF

    def differs(inputs: TtsInputs, **options: Any) -> bool:
        return not torch.equal(speak(model, inputs, **{"length": "auto", **options}).mel_BTF, base)

    assert not differs(inputs)
    lens = torch.tensor([80, 80])
    assert differs(inputs, seed=1)
    assert differs(inputs, guidance=0.0)
    assert differs(inputs, final_guidance=0.0)
    assert differs(inputs, rescale=0.0)
    assert differs(inputs, temperature=0.0)
    assert differs(inputs, choice_noise=0.0)
    assert not differs(inputs._replace(speakers_B=1 - inputs.speakers_B)), "a prompt takes the place of the speaker"
    assert inputs.prompt_wave_BN is not None
    assert differs(inputs._replace(prompt_wave_BN=0.1 * inputs.prompt_wave_BN))
    assert differs(inputs._replace(ids=("other", "names")))
    mute = inputs_of([20, 20], prompts=[60, 60], prompt_phones=False)
    plain = inputs_of([20, 20])
    other = plain._replace(speakers_B=1 - plain.speakers_B)
    assert not torch.equal(speak(model, plain, lens).mel_BTF, speak(model, other, lens).mel_BTF)
    assert not torch.equal(speak(model, mute, lens).mel_BTF, speak(model, plain, lens).mel_BTF)


def test_steps_are_as_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    true_mask_predict = module.mask_predict

    def watch(*args: Any, **kwargs: Any) -> Any:
        seen.append((kwargs["num_steps"], kwargs["temperature"], kwargs["span"]))
        return true_mask_predict(*args, **kwargs)

    monkeypatch.setattr(module, "mask_predict", watch)
    speak(build(span=3).eval(), inputs_of([9]), num_steps=6, acoustic_steps=[4, 2])
    assert seen == [(6, 0.9, 3), (4, 1.5, 3), (2, 1.5, 3), (2, 1.5, 3)]


def test_a_model_that_knows_its_text_by_heart_says_it() -> None:
    model = build(alignment="even", prompt_prob=0.0, drop_prob=0.1, dim=48, awake=False).train()
    batch = token_batch([6, 4])
    batch = batch._replace(
        acoustic_BAQ=(batch.semantic_BT[:, :, None].repeat_interleave(RATIO, 1) + torch.arange(3)) % CODES,
        acoustic_lens_B=batch.semantic_lens_B * RATIO,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(80):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / 80)
        optimizer.zero_grad()
        model.token_loss(select(batch, [0, 1] * 4)).loss.backward()
        optimizer.step()
    inputs = TtsInputs(batch.phones_BP, batch.phone_lens_B, batch.speakers_B, batch.languages_B, ("x", "y"))
    out = infer(model.eval(), inputs, mel=MEL, options=MaskGctOptions(top_share=1.0))
    assert out.mel_lens_B.tolist() == [6 * TOKEN, 4 * TOKEN]
    expected = model.codec.decode(batch.acoustic_BAQ, batch.acoustic_lens_B)
    assert torch.equal(out.mel_BTF, expected.mel_BTF)


@pytest.mark.parametrize("head", [False, True])
def test_our_own_tokenisers_fit(head: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    features = LogMel(sample_rate=16000, num_mels=MELS)
    encoder = ConformerEncoder(input_dim=MELS, dim=16, num_layers=2, num_heads=2, ff_dim=32, kernel_size=5, conv_norm="layer")
    means = KMeansQuantizer(dim=16, num_codes=SEMANTIC)
    semantic = SemanticTokenizer(features=features, encoder=encoder, layer=1, quantizer=means)
    codec = CodecModel(
        num_mels=MELS,
        quantizer=ResidualVectorQuantizer(dim=8, num_codebooks=3, num_codes=5, code_dim=4),
        wave_head=IstftHead(dim=24, mel=MEL) if head else None,
        dim=24,
        intermediate_dim=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
        stride=STRIDE,
    )
    batch = wave_batch([83, 40, 7])
    semantic.fit([(batch.wave_BN, batch.wave_lens_B)])
    tokenisers = {"semantic": semantic, "codec": codec}
    model = build(tokenisers=tokenisers, alignment="durations")
    out = model.loss(*MEL(batch.wave_BN, batch.wave_lens_B), batch)
    out.loss.backward()
    assert out.loss.isfinite()
    inputs = inputs_of([5, 3], prompts=[60, 0])
    said = speak(model.eval(), inputs)
    assert (said.wave_BN is not None) == head
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other = build(seed=1, tokenisers=copy.deepcopy(tokenisers), alignment="durations").eval()
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(speak(other, inputs).mel_BTF, said.mel_BTF), "all travels in the weights"


def test_misuse_is_refused() -> None:
    model, inputs = build().eval(), inputs_of([3])
    with pytest.raises(ValueError, match="num_mels=80, but this model 16000 and 8"):
        infer(model, inputs, mel=MelSpectrogram.preset(16000))
    with pytest.raises(ValueError, match=r"finish_threshold=0\.9 needs a network with a filter"):
        speak(model, inputs, finish_threshold=0.9)
    for options, message in (
        ({"num_steps": 0}, "num_steps=0"),
        ({"acoustic_steps": ()}, r"acoustic_steps=\(\)"),
        ({"acoustic_steps": "12"}, r"acoustic_steps=\('1', '2'\)"),
        ({"guidance": math.nan}, "guidance=nan"),
        ({"final_guidance": -1.0}, r"final_guidance=-1\.0"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"acoustic_temperature": math.nan}, "acoustic_temperature=nan"),
        ({"choice_noise": math.nan}, "choice_noise=nan"),
        ({"rescale": 2.0}, r"rescale=2\.0"),
        ({"top_share": math.nan}, "top_share=nan"),
        ({"top_share": 0.0}, r"top_share=0\.0 must be above 0"),
        *(({name: None}, f"{name}=None must be a number") for name in NEVER_NONE),
        ({"speed": 0.0}, r"speed=0\.0 must be"),
        ({"length": "long"}, "length='long' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            MaskGctOptions(**options)  # type: ignore[arg-type]
    MaskGctOptions(final_guidance=None, finish_threshold=None)
