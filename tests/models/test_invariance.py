"""No transcript depends on its batch: every family in every decoding mode of conf/decode, on rows of any length.

Each row decoded alone is the reference; the same rows in batches of 4 and of 16, shuffled, and before extra frames of
padding that hold anything, must give the same tokens, times and confidences. New configurations are tested as they are
added.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from speechkit.families import decode_config, decode_names
from speechkit.models.aed.ranker import AedRanker
from speechkit.nn.conformer import ConformerEncoder
from speechkit.nn.decoder import CrossAttention
from speechkit.nn.masks import valid_mask
from speechkit.pretrained import instantiate
from speechkit.search.lm import estimate_arpa
from speechkit.text.tokenizers import CharTokenizer
from speechkit.types import AsrBatch, Hypothesis

TOKENIZER = CharTokenizer.train(["ab ba cab"], tags=["en", "transcribe"])
INPUT_DIM, LONGEST = 12, 72
SIZES: dict[str, Any] = {  # of whichever of these a family takes
    "decoder_layers": 1,
    "decoder_heads": 2,
    "decoder_ff_dim": 32,
    "sad_layers": 1,
    "mad_layers": 1,
    "language_tokens": {"en": TOKENIZER.tag_id("en")},
    "task_tokens": {"transcribe": TOKENIZER.tag_id("transcribe")},
    "asr_layers": [1],
    "task_layers": [],
}


# What the configurations leave to the command line: mode, and options beside those of the configuration.
MODES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in decode_names()} | {
    "AED, its CTC head": ("aed_greedy", {"method": "ctc", "beam_size": 1}),
    "AED, its CTC head, beam": ("aed_beam", {"method": "ctc", "beam_size": 4}),
    "AED, bonuses": ("aed_joint", {"beam_size": 3, "length_bonus": 0.2, "coverage_bonus": 0.1}),
    "CASS-NAT, language model": ("cassnat_esa", {"rank_by": "lm", "lm": "???"}),
    "Paraformer, CTC path": ("paraformer", {}),
    "OWSM-CTC, beam": ("owsm_ctc", {"method": "beam", "beam_size": 4}),
}


VARIANTS: dict[str, dict[str, Any]] = {"Paraformer, CTC path": {"token_source": "ctc"}}  # modes of models with other settings


def build(family: str, **settings: Any) -> nn.Module:
    """A narrow model of random weights whose choices are far from ties."""
    module = importlib.import_module(f"speechkit.models.{family}.model")
    classes = [each for each in vars(module).values() if inspect.isclass(each) and issubclass(each, nn.Module)]
    [model_class] = [each for each in classes if hasattr(each, "loss")]
    torch.manual_seed(3)
    encoder = ConformerEncoder(input_dim=INPUT_DIM, dim=16, num_layers=2, num_heads=2, ff_dim=32, kernel_size=5)
    known = inspect.signature(model_class).parameters
    sizes = {name: value for name, value in SIZES.items() if name in known} | settings
    model = model_class(encoder=encoder, vocab_size=TOKENIZER.vocab_size, **sizes).eval()
    for attention in (each for each in model.modules() if isinstance(each, CrossAttention)):
        for layer in (attention.query, attention.out):  # what is said depends on the frames more than on the place
            layer.weight.detach().mul_(4)
    spread_choices(model)
    return model


@torch.no_grad()
def spread_choices(model: Any) -> None:
    """Centres and scales the outputs over the vocabulary on some batch, so that they vary and are far from ties."""
    heads = [each for each in model.modules() if isinstance(each, nn.Linear) and each.out_features == TOKENIZER.vocab_size]
    seen: dict[nn.Linear, list[Tensor]] = {head: [] for head in heads}
    hooks = [head.register_forward_pre_hook(lambda layer, inputs: seen[layer].append(inputs[0].flatten(0, -2))) for head in heads]
    lens = list(range(LONGEST - 16, LONGEST))
    tokens_BU = torch.randint(6, TOKENIZER.vocab_size, (len(lens), 6), generator=torch.Generator().manual_seed(0))
    texts = ("",) * len(lens)
    batch = AsrBatch(
        torch.zeros(len(lens), 0), torch.zeros(len(lens)), tokens_BU, torch.full((len(lens),), 6), texts, texts, texts
    )
    model.loss(*features(lens), batch._replace(langs=("en",) * len(lens)))
    for head, hook in zip(heads, hooks):
        hook.remove()
        inputs_ND = torch.cat(seen[head])
        head.weight.mul_(4.0 / (inputs_ND @ head.weight.T).std(dim=0, keepdim=True).T)
        head.bias.copy_(-head.weight @ inputs_ND.mean(dim=0))
        head.bias[1:6] -= 20  # no specials but blank
    if hasattr(model.decoder if hasattr(model, "decoder") else None, "extend"):
        model.decoder.head.bias[TOKENIZER.eos_id] += 18  # an end, but not at once


def features(lens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Random features of rows of these lengths, each row the same whatever the others; zero past its end."""
    feats_BTF = torch.zeros(len(lens), max(lens, default=0), INPUT_DIM)
    for row, length in enumerate(lens):
        feats_BTF[row, :length] = torch.randn(length, INPUT_DIM, generator=torch.Generator().manual_seed(1000 + length))
    return feats_BTF, torch.tensor(lens)


def decoder_of(mode: str, arpa: str = "") -> tuple[str, Any]:
    """Family of a decoding mode, and its `infer` with the options of the configuration and times."""
    config_name, more = MODES[mode]
    config = decode_config(config_name)
    options = {**config["options"], "timestamps": "word", **more}
    missing = {"lm": arpa, "ranker": AedRanker(model=build("aed"))}
    options = {name: missing[name] if value == "???" else value for name, value in options.items()}
    infer = instantiate({**config, "options": options}, where=mode)
    return config["_target_"].split(".")[2], infer


@pytest.fixture(scope="module", params=MODES)
def decode(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(feats_BTF, lens_B) to hypotheses, in one of the modes."""
    arpa = tmp_path_factory.mktemp("lm") / "words.arpa"
    estimate_arpa(["ab ba", "cab ab"], order=2).save(arpa)
    family, infer = decoder_of(request.param, str(arpa))
    return partial(infer, build(family, **VARIANTS.get(request.param, {})), tokenizer=TOKENIZER, frame_shift=0.01)


def facts(hypotheses: Sequence[Hypothesis]) -> list[dict[str, Any]]:
    """What must not change; floats rounded by far more than fp32 errs."""
    exact = ("text", "tokens", "language")
    return [
        {name: getattr(each, name) for name in exact}
        | {"words": [(w.text, round(w.start, 3), round(w.end, 3)) for w in each.words]}
        | {"tokens_at": [(t.text, round(t.start, 3), round(t.end, 3)) for t in each.token_times]}
        for each in hypotheses
    ]


def numbers(hypotheses: Sequence[Hypothesis]) -> list[float]:
    return [x for each in hypotheses for x in (each.score, each.confidence, *(t.confidence for t in each.token_times))]


lengths = st.lists(st.one_of(st.integers(0, 9), st.integers(10, LONGEST)), min_size=16, max_size=16)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lens=lengths, order=st.permutations(range(16)), padding=st.integers(1, 40))
def test_transcripts_depend_on_nothing_but_their_row(decode: Any, lens: list[int], order: list[int], padding: int) -> None:
    lens = [0, 1, LONGEST, *lens[3:]]
    alone = [decode(*features([length]))[0] for length in lens]
    expected, expected_numbers = facts(alone), [numbers([each]) for each in alone]
    assert expected[0]["text"] == ""
    assert expected[2]["tokens"], "the longest row has a transcript"
    for each, length in zip(alone, lens):
        times = [x for token in each.token_times for x in (token.start, token.end)]
        assert len(each.token_times) == len(each.tokens)
        assert all(-1e-6 <= x <= 0.01 * length + 0.04 for x in times), "times lie in the audio, to a frame of the encoder"
    shuffled = [lens[i] for i in order]
    batches = [order[i : i + 4] for i in range(0, 16, 4)] + [order, order[:1]]
    for rows, extra in [*((batch, 0) for batch in batches), (order[:4], padding), ([2], padding)]:
        feats_BTF, lens_B = features([lens[i] for i in rows])
        if extra:
            feats_BTF = nn.functional.pad(feats_BTF, (0, 0, 0, extra))
            feats_BTF[~valid_mask(lens_B, feats_BTF.shape[1])] = 9.0  # whatever stands there
        found = decode(feats_BTF, lens_B)
        assert facts(found) == [expected[i] for i in rows], (rows, extra, shuffled)
        assert numbers(found) == pytest.approx([x for i in rows for x in expected_numbers[i]], rel=1e-3, abs=1e-3)


def test_every_family_is_tested() -> None:
    root = Path(inspect.getfile(importlib.import_module("speechkit.models"))).parent
    families = {path.parent.name for path in root.glob("*/infer.py") if "DecodeOptions" in path.read_text()}
    assert families == {decode_config(mode)["_target_"].split(".")[2] for mode in decode_names()}
    assert len(families) >= 5


def test_the_rows_are_no_trivial_ones() -> None:
    """Modes that search find something else than those that do not, on some row."""
    lens = list(range(60, LONGEST, 4))
    texts = {}
    for mode in ("aed_greedy", "aed_joint", "cassnat_best_path", "cassnat_esa"):
        family, infer = decoder_of(mode)
        found = infer(build(family), *features(lens), tokenizer=TOKENIZER)
        texts[mode] = [each.text for each in found]
        assert len(set(texts[mode])) > len(lens) / 3
    assert texts["aed_greedy"] != texts["aed_joint"]
    assert texts["cassnat_best_path"] != texts["cassnat_esa"]
