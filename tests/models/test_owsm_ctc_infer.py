"""OWSM-CTC decoding: languages from the prefix frames, times, windows of long recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from speechkit.models.owsm_ctc.infer import OwsmCtcDecodeOptions, decode_log_probs, frame_log_probs, infer
from speechkit.models.owsm_ctc.model import OwsmCtcModel
from speechkit.nn.conformer import ConformerEncoder
from speechkit.recognizer import Recognizer
from speechkit.search.longform import Window, plan_windows, stitch
from speechkit.text.tokenizers import CharTokenizer
from speechkit.types import AsrBatch

STEPS = 60
CONF = Path(__file__).resolve().parents[2] / "conf"
TOKENIZER = CharTokenizer.train(["ab cd"], tags=["en", "de", "transcribe"])
A, B, C, D = TOKENIZER.encode("abcd")
LANGUAGES, TASKS = {"en": 4, "de": 5}, {"transcribe": 6}


def build(**values: Any) -> OwsmCtcModel:
    torch.manual_seed(0)
    encoder = ConformerEncoder(input_dim=12, dim=32, num_layers=3, num_heads=2, ff_dim=64, kernel_size=5, dropout=0.0)
    settings = {"asr_layers": [1], "task_layers": [2], "language_tokens": LANGUAGES, "task_tokens": TASKS, "dropout": 0.0}
    return OwsmCtcModel(encoder=encoder, vocab_size=TOKENIZER.vocab_size, **{**settings, **values})


def sounds_of(rows: list[list[int]], seed: int, accents: list[int]) -> tuple[Tensor, Tensor]:
    """A sound of 8 frames and a pause of 4 for every token; a constant tells the languages apart."""
    generator = torch.Generator().manual_seed(seed)
    sounds = torch.randn(TOKENIZER.vocab_size, 12, generator=torch.Generator().manual_seed(2))
    lens = torch.tensor([12 * len(row) for row in rows])
    feats = 0.1 * torch.randn(len(rows), int(lens.max()), 12, generator=generator)
    for row, (tokens, accent) in enumerate(zip(rows, accents)):
        for place, token in enumerate(tokens):
            feats[row, 12 * place : 12 * place + 8] += sounds[token]
        feats[row, :, :4] += 1.5 * (2 * accent - 1)
    return feats, lens


def make_batch(rows: list[list[int]], langs: list[str]) -> AsrBatch:
    tokens = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    ids = tuple(map(str, range(len(rows))))
    lens = torch.tensor([len(row) for row in rows])
    return AsrBatch(torch.zeros(len(rows), 0), torch.zeros(len(rows)), tokens, lens, ids, ids, tuple(langs))


def random_rows(number: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lens = torch.randint(2, 7, (number,), generator=generator).tolist()
    return [[A + int(i) for i in torch.randint(0, 4, (n,), generator=generator)] for n in lens]


ROWS, ACCENTS = random_rows(8, seed=0), [0, 1] * 4


@pytest.fixture(scope="module")
def trained() -> OwsmCtcModel:
    """Knows eight utterances in two accents by heart; was never told which is which."""
    model = build(no_language_prob=1.0)
    batch = make_batch(ROWS, ["de" if accent else "en" for accent in ACCENTS])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(STEPS):
        feats, lens = sounds_of(ROWS, seed=step, accents=ACCENTS)
        optimizer.zero_grad()
        model.loss(feats, lens, batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def test_learns_sounds_and_languages(trained: OwsmCtcModel) -> None:
    feats, lens = sounds_of(ROWS, seed=999, accents=ACCENTS)
    for method in ("greedy", "beam"):
        hyps = infer(trained, feats, lens, tokenizer=TOKENIZER, options=OwsmCtcDecodeOptions(method=method))
        assert [hyp.tokens for hyp in hyps] == [tuple(row) for row in ROWS]
        assert [hyp.language for hyp in hyps] == ["de" if accent else "en" for accent in ACCENTS]
    told = infer(trained, feats, lens, tokenizer=TOKENIZER, options=OwsmCtcDecodeOptions(language="de"))
    assert {hyp.language for hyp in told} == {"de"}
    with pytest.raises(ValueError, match="language 'fr' has no token"):
        infer(trained, feats, lens, tokenizer=TOKENIZER, options=OwsmCtcDecodeOptions(language="fr"))


def test_the_prefix_does_not_shift_times(trained: OwsmCtcModel) -> None:
    feats, lens = sounds_of(ROWS, seed=7, accents=ACCENTS)
    hyps = infer(trained, feats, lens, tokenizer=TOKENIZER, options=OwsmCtcDecodeOptions(timestamps="token"))
    for hyp, length in zip(hyps, lens.tolist()):
        for place, token in enumerate(hyp.token_times):
            assert 0.12 * place - 0.05 <= token.start <= 0.12 * place + 0.12
            assert token.end <= 0.01 * length + 1e-6


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_prefix_frames_and_labels_are_read_apart(method: Any) -> None:
    labels = [A, A, 0, B, 0]
    probs = torch.full((1, 2 + len(labels), TOKENIZER.vocab_size), 0.01)
    probs[0, 0, LANGUAGES["de"]] = 0.9
    probs[0, 1, TASKS["transcribe"]] = 0.9
    probs[0, range(2, 7), labels] = 0.9
    options = OwsmCtcDecodeOptions(method=method, timestamps="word")
    [hyp] = decode_log_probs(probs.log(), torch.tensor([7]), tokenizer=TOKENIZER, options=options, frame_shift=0.04)
    assert (hyp.text, hyp.language) == ("ab", "de")
    assert (hyp.words[0].start, hyp.words[0].end) == pytest.approx((0.0, 4 * 0.04))
    [none] = decode_log_probs(probs[:, :2].log(), torch.tensor([2]), tokenizer=TOKENIZER, options=options, frame_shift=0.04)
    assert (none.text, none.language) == ("", "de")


def test_windows_of_a_long_recording_are_joined_behind_one_prefix() -> None:
    model = build().eval()
    row = ROWS[1] * 4
    feats, lens = sounds_of([row], seed=4, accents=[1])
    windows = plan_windows(int(lens[0]), window=96, context=24, stride=4)
    assert len(windows) > 2
    outputs = []
    for place in windows:
        own, own_lens = frame_log_probs(
            model, feats[:, place.start : place.end], torch.tensor([place.end - place.start]), tokenizer=TOKENIZER
        )
        outputs.append(own[0, : own_lens[0]])
    joined = stitch(outputs, windows, prefix=2)
    assert len(joined) == 2 + -(-int(lens[0]) // 4)
    torch.testing.assert_close(joined[0, [4, 5]], torch.stack([x[0, [4, 5]] for x in outputs]).mean(0))
    for output, place in zip(outputs, windows):
        torch.testing.assert_close(joined[2 + place.keep_start], output[2 + place.keep_start - place.first_frame])
    [hyp] = decode_log_probs(joined[None], torch.tensor([len(joined)]), tokenizer=TOKENIZER, frame_shift=0.04)
    assert hyp.language == ("en" if joined[0, 4] > joined[0, 5] else "de")


def test_stitch_without_prefix_is_unchanged() -> None:
    window = Window(start=0, end=8, first_frame=0, keep_start=0, keep_end=None)
    assert stitch([torch.arange(8)], [window]).tolist() == list(range(8))
    output = torch.arange(12.0).view(6, 2)
    assert torch.equal(stitch([output], [window], prefix=2), output)


class _Features(nn.Module):
    """Cuts the wave into frames of 160 samples, each seen as twelve means."""

    sample_rate, frame_shift, output_dim = 16000, 0.01, 12

    def forward(self, wave_BN: Tensor, wave_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        frames = wave_BN.shape[1] // 160
        frames_BT = wave_BN[:, : frames * 160].unflatten(1, (frames, 160))
        return frames_BT[..., :156].unflatten(2, (12, 13)).mean(-1), wave_lens_B // 160


def test_recognizer_passes_the_language_on_and_reports_it() -> None:
    model = build()
    recognizer = Recognizer(
        features=_Features(),
        model=model,
        tokenizer=TOKENIZER,
        infer=infer,
        options=OwsmCtcDecodeOptions(),
        languages=("en", "de"),
        window_seconds=1.0,
    )
    time = torch.arange(16000 * 3) / 16000
    wave = 0.2 * sum(torch.sin(2 * torch.pi * 120 * k * time) / k for k in range(1, 12)) * (1 + torch.sin(9 * time))
    seen: list[Any] = []
    inner = model.frame_log_probs

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["language"])
        return inner(*args, **kwargs)

    model.frame_log_probs = spy  # type: ignore[method-assign]
    [found] = recognizer.transcribe(wave.numpy())
    [told] = recognizer.transcribe(wave.numpy(), language="de")
    assert set(seen) == {None, "de"}
    assert found.language in LANGUAGES
    assert told.language == "de"
    single = [recognizer.transcribe(wave.numpy(), batch_size=size)[0].tokens for size in (1, 4)]
    assert single[0] == single[1]


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("experiment/*_owsm_ctc.yaml")))
def test_tags_of_configurations_are_those_of_their_tokenizers(name: str) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("train", overrides=[f"experiment={name}", "job_dir=/tmp/job"])
    tokenizer = CharTokenizer(symbols="ab", tags=list(cfg.tokenizer.tags))
    for tag, token in (*cfg.model.language_tokens.items(), *cfg.model.task_tokens.items()):
        assert tokenizer.tag_id(tag) == token
    assert set(cfg.languages) == set(cfg.model.language_tokens)
