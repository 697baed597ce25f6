"""Transcripts of every decoding mode: independence of the batch, drafts, times, languages, language models, long recordings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechkit.audio.features import LogMel
from speechkit.models.aed.infer import AedDecodeOptions, infer
from speechkit.models.aed.model import AedModel
from speechkit.nn.conformer import ConformerEncoder
from speechkit.recognizer import Recognizer
from speechkit.search.attention_align import attention_spans
from speechkit.search.ctc_greedy import ctc_greedy
from speechkit.search.decoder_calls import count_calls
from speechkit.search.lm import estimate_arpa
from speechkit.search.speculative import HypothesisDraft, SpeculativeStats
from speechkit.text.tokenizers import CharTokenizer

TOKENIZER = CharTokenizer.train(["ab ba cab"], tags=["en", "zh"])
FEATS, LENS = torch.randn(5, 120, 12, generator=torch.Generator().manual_seed(1)), torch.tensor([120, 3, 77, 0, 118])
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"draft": "none"},
    "speculative": {},
    "ctc draft": {"draft": "ctc", "num_draft": 5},
    "ngram draft": {"draft": "ngram"},
    "prompt draft": {"draft": "prompt"},
    "by attention": {"align_by": "attention"},
    "by some heads": {"align_by": "attention", "align_heads": [(1, 1), (0, 0)]},
    "beam": {"method": "beam", "beam_size": 3},
    "joint": {"method": "beam", "beam_size": 3, "ctc_weight": 0.4, "length_bonus": 0.2, "coverage_bonus": 0.1},
    "rescore": {"method": "rescore", "beam_size": 4, "ctc_weight": 0.5},
    "ctc": {"method": "ctc", "beam_size": 1},
    "ctc_beam": {"method": "ctc", "beam_size": 4},
}


def build(seed: int = 0, input_dim: int = 12, **settings: Any) -> AedModel:
    torch.manual_seed(seed)
    encoder = ConformerEncoder(input_dim=input_dim, dim=16, num_layers=2, num_heads=2, ff_dim=32, kernel_size=5)
    sizes = {"decoder_layers": 2, "decoder_heads": 2, "decoder_ff_dim": 32}
    model = AedModel(encoder=encoder, vocab_size=TOKENIZER.vocab_size, **{**sizes, **settings}).eval()
    for head in (model.head, model.decoder.head):
        if head is not None:
            head.requires_grad_(False).weight.mul_(6)  # far from ties
    return model


@pytest.mark.parametrize("mode", MODES)
def test_transcripts_do_not_depend_on_the_batch(mode: str) -> None:
    model, feats, lens = build(), FEATS, LENS
    options = AedDecodeOptions(timestamps="token", max_tokens_per_second=15.0, **MODES[mode])

    def run(rows: list[int]) -> list[tuple[Any, ...]]:
        longest = max(1, int(lens[rows].max()))
        hyps = infer(model, feats[rows, :longest], lens[rows], tokenizer=TOKENIZER, options=options, frame_shift=0.01)
        assert all(len(hyp.token_times) == len(hyp.tokens) for hyp in hyps)
        assert all(0.0 <= time.confidence <= 1.0 for hyp in hyps for time in hyp.token_times)
        return [(hyp.text, hyp.tokens, [(t.start, t.end) for t in hyp.token_times]) for hyp in hyps]

    together = run([0, 1, 2, 3, 4])
    assert any(tokens for _, tokens, _ in together)
    assert together[3] == ("", (), [])
    for row in range(5):
        assert run([row]) == [together[row]]
    assert run([4, 2]) == [together[4], together[2]]
    assert all(start <= end <= 1.2 for _, _, times in together for start, end in times)


def run_greedy(model: AedModel, **settings: Any) -> tuple[list[tuple[int, ...]], int, list[SpeculativeStats]]:
    """Tokens, decoder calls and what drafts cost."""
    options, stats = AedDecodeOptions(max_tokens_per_second=15.0, **settings), list[SpeculativeStats]()
    with count_calls(model.decoder) as calls:
        hyps = infer(model, FEATS, LENS, tokenizer=TOKENIZER, options=options, speculation=stats)
    return [hyp.tokens for hyp in hyps], calls.num_calls, stats


@pytest.mark.parametrize("seed", range(4))
def test_drafts_never_change_the_transcript(seed: int) -> None:
    model = build(seed)
    plain, num_calls, stats = run_greedy(model, draft="none")
    assert num_calls == max(map(len, plain)) + 1
    assert not stats
    rng = np.random.default_rng(seed)
    others = [HypothesisDraft(plain, end=3), HypothesisDraft([rng.integers(1, 9, 30).tolist() for _ in plain])]
    for draft in ("auto", "ctc", "ngram", "prompt", *others):
        tokens, num_calls, [cost] = run_greedy(model, draft=draft)
        assert tokens == plain, draft
        assert cost.num_calls == num_calls
        assert cost.num_tokens == sum(map(len, plain)) + 4  # four rows are long enough to be decoded
        assert num_calls <= max(map(len, plain)) + 1


def test_the_transcript_as_its_own_draft_takes_few_calls() -> None:
    model = build()
    plain, num_calls, _ = run_greedy(model, draft="none")
    options = {"draft": HypothesisDraft(plain, end=3), "num_draft": 30}
    for _ in range(2):  # a draft may be used again for the same rows
        tokens, fewer_calls, [cost] = run_greedy(model, **options)
        assert tokens == plain
        assert 2 * fewer_calls < num_calls
        assert cost.tokens_per_call > 2


def test_ngrams_learn_from_all_that_is_decoded_with_the_same_options() -> None:
    model, options = build(), AedDecodeOptions(draft="ngram", max_tokens_per_second=15.0)
    stats = list[SpeculativeStats]()
    for _ in range(2):
        options = dataclasses.replace(options, timestamps=None)
        infer(model, FEATS, LENS, tokenizer=TOKENIZER, options=options, speculation=stats)
    assert stats[0].num_tokens == stats[1].num_tokens
    assert stats[1].num_calls < stats[0].num_calls


def test_a_beam_of_one_is_greedy_search() -> None:
    model = build()
    options = AedDecodeOptions(method="beam", beam_size=1, max_tokens_per_second=15.0)
    hyps = infer(model, FEATS, LENS, tokenizer=TOKENIZER, options=options)
    assert [hyp.tokens for hyp in hyps] == run_greedy(model)[0]


def test_the_decoder_tells_times_where_it_looks() -> None:
    model = build(3)
    options = AedDecodeOptions(timestamps="token", align_by="attention", align_heads=[(0, 1)], max_tokens_per_second=8.0)
    hyps = infer(model, FEATS, LENS, tokenizer=TOKENIZER, options=options)
    for hyp, num_frames in zip(hyps, LENS.tolist()):
        spans = [(time.start, time.end) for time in hyp.token_times]
        assert all(start < end or num_frames < 4 for start, end in spans)  # one frame has no room for a token and the end
        assert [start for start, _ in spans[1:]] == [end for _, end in spans[:-1]]
        assert not spans or spans[-1][1] <= num_frames / 100 + 0.04
    with torch.no_grad():  # by hand, for the first row
        x, lens = model.encode(FEATS, LENS)
        keys: list[torch.Tensor] = []
        attention = model.decoder.layers[0].cross_attention
        attention.register_forward_pre_hook(lambda module, args: keys.append(args[0]))
        tokens = torch.tensor([[2, *hyps[0].tokens]])
        source = model.decoder.read(x[:1], lens[:1])
        model.decoder(tokens, source)
        query, key = (y.unflatten(-1, (2, 8))[0, :, 1] for y in (attention.query(keys[0]), attention.key_value(x[:1])[..., :16]))
        weights = (query @ key.T / 8**0.5).softmax(-1)
    [spans] = attention_spans(weights[None, None], [len(hyps[0].tokens)], [len(key)])
    assert [time.start for time in hyps[0].token_times] == pytest.approx([start * 0.04 for start, _ in spans])
    assert [time.end for time in hyps[0].token_times] == pytest.approx([end * 0.04 for _, end in spans])
    with pytest.raises(ValueError, match=r"align_heads holds \(2, 0\); the decoder has 2 layers of 2 heads"):
        infer(model, FEATS, LENS, tokenizer=TOKENIZER, options=dataclasses.replace(options, align_heads=[(2, 0)]))


def test_ctc_alone_is_the_ctc_head() -> None:
    model, feats, lens = build(), torch.randn(2, 90, 12), torch.tensor([90, 41])
    options = AedDecodeOptions(method="ctc", beam_size=1)
    hyps = infer(model, feats, lens, tokenizer=TOKENIZER, options=options)
    with torch.no_grad():
        x, out_lens = model.encode(feats, lens)
        paths = ctc_greedy(model.ctc_log_probs(x), out_lens)
    assert [hyp.tokens for hyp in hyps] == [path.tokens for path in paths]


def test_words_have_times_and_the_confidence_of_the_decoder() -> None:
    model, feats, lens = build(2), torch.randn(3, 120, 12), torch.tensor([120, 80, 100])
    options = AedDecodeOptions(timestamps="word", max_tokens_per_second=10.0)
    for hyp in infer(model, feats, lens, tokenizer=TOKENIZER, options=options):
        assert [word.text for word in hyp.words] == [text for text, _ in TOKENIZER.split_words(hyp.tokens)]
        starts = [time.start for time in hyp.token_times]
        assert starts == sorted(starts)
        if hyp.tokens:
            assert hyp.confidence == pytest.approx(np.mean([time.confidence for time in hyp.token_times]))
    plain = infer(model, feats, lens, tokenizer=TOKENIZER, options=dataclasses.replace(options, timestamps=None))
    timed = infer(model, feats, lens, tokenizer=TOKENIZER, options=options)
    assert [hyp.text for hyp in plain] == [hyp.text for hyp in timed]
    assert [hyp.confidence for hyp in plain] == pytest.approx([hyp.confidence for hyp in timed])
    assert all(not hyp.words and not hyp.token_times for hyp in plain)


def test_transcripts_longer_than_their_frames_get_even_times() -> None:
    model = build()
    with torch.no_grad():
        model.decoder.head.bias[3] = -100.0  # it never ends
    options = AedDecodeOptions(timestamps="token", max_tokens_per_second=100.0, max_repeats=None)
    with pytest.warns(UserWarning, match="too many tokens to be aligned"):
        [hyp] = infer(model, torch.randn(1, 40, 12), torch.tensor([40]), tokenizer=TOKENIZER, options=options)
    assert len(hyp.tokens) == 40
    assert hyp.token_times[-1].end == pytest.approx(0.4)


def test_no_tag_is_ever_said_and_loops_are_cut() -> None:
    model = build()
    with torch.no_grad():
        model.decoder.head.bias[[0, 2, 4, 5]] = 100.0
        model.decoder.head.bias[7] = 50.0
        model.decoder.head.bias[3] = -100.0
    options = AedDecodeOptions(max_tokens_per_second=40.0, max_repeats=2)
    [hyp] = infer(model, torch.randn(1, 60, 12), torch.tensor([60]), tokenizer=TOKENIZER, options=options)
    assert set(hyp.tokens).isdisjoint({0, 2, 3, 4, 5})
    assert len(hyp.tokens) == 24
    assert all(hyp.tokens[i : i + 3] != (7, 7, 7) for i in range(22))


def test_languages() -> None:
    model = build(language_tokens={"en": TOKENIZER.tag_id("en"), "zh": TOKENIZER.tag_id("zh")})
    feats, lens = torch.randn(2, 100, 12), torch.tensor([100, 90])

    def run(language: str | None) -> list[Any]:
        options = AedDecodeOptions(language=language, max_tokens_per_second=10.0)
        return infer(model, feats, lens, tokenizer=TOKENIZER, options=options)

    english, chinese = run("en"), run("zh")
    assert [hyp.language for hyp in english] == ["en", "en"]
    assert [hyp.tokens for hyp in english] != [hyp.tokens for hyp in chinese]
    with pytest.warns(UserWarning, match="no language given to a model of en, zh: taking 'en'"):
        assert run(None) == english
    with pytest.raises(ValueError, match="language 'fr' has no token"):
        run("fr")


def test_tasks_have_prompts_of_their_own_and_nothing_from_ctc_but_transcripts() -> None:
    model = build(task_tokens={"transcribe": TOKENIZER.tag_id("en"), "translate": TOKENIZER.tag_id("zh")})
    feats, lens = torch.randn(2, 100, 12), torch.tensor([100, 90])

    def run(**options: Any) -> list[Any]:
        settings = AedDecodeOptions(max_tokens_per_second=10.0, **options)
        return infer(model, feats, lens, tokenizer=TOKENIZER, options=settings)

    assert run() == run(task="transcribe")
    other = run(task="translate", timestamps="token")
    assert [hyp.tokens for hyp in other] != [hyp.tokens for hyp in run()]
    by_attention = run(task="translate", timestamps="token", align_by="attention", draft="none")
    assert [hyp.token_times for hyp in other] == [hyp.token_times for hyp in by_attention]
    for options in ({"method": "ctc"}, {"method": "beam", "ctc_weight": 0.3}, {"draft": "ctc"}, {"align_by": "ctc"}):
        with pytest.raises(ValueError, match="task='translate': CTC spells transcripts and nothing else"):
            run(task="translate", **options)
    with pytest.raises(ValueError, match="task 'sing' has no token"):
        run(task="sing")


@pytest.mark.parametrize("mode", ["beam", "joint", "rescore", "ctc_beam"])
def test_language_models_and_hotwords_steer(mode: str, tmp_path: Path) -> None:
    model, feats, lens = build(4), torch.randn(2, 120, 12), torch.tensor([120, 60])
    path = tmp_path / "words.arpa"
    estimate_arpa(["ab ba", "cab ab"], order=2).save(path)

    def run(**settings: Any) -> list[Any]:
        options = AedDecodeOptions(max_tokens_per_second=10.0, **{**MODES[mode], **settings})
        return infer(model, feats, lens, tokenizer=TOKENIZER, options=options)

    plain = run()
    assert [hyp.score for hyp in run(lm=str(path), lm_weight=0.0)] == pytest.approx([hyp.score for hyp in plain], abs=1e-4)
    assert [hyp.score for hyp in run(lm=str(path), lm_weight=1.0)] != pytest.approx([hyp.score for hyp in plain], abs=1e-4)
    if MODES[mode]["method"] == "beam":
        assert "cab" not in plain[0].text.split()
        assert "cab" in run(hotwords={"cab": 20.0}, beam_size=8, end_margin=20.0)[0].text.split()


def test_without_a_ctc_head() -> None:
    model = build(ctc_weight=0.0)
    tokens, _, stats = run_greedy(model)
    assert not stats
    for timestamps in ("word", "token"):
        options = AedDecodeOptions(timestamps=timestamps, max_tokens_per_second=15.0)
        hyps = infer(model, FEATS, LENS, tokenizer=TOKENIZER, options=options)
        assert [len(hyp.token_times) for hyp in hyps] == [len(own) for own in tokens]
    for settings in (
        {"timestamps": "word", "align_by": "ctc"},
        {"draft": "ctc"},
        {"method": "ctc"},
        {"method": "rescore"},
        {"method": "beam", "ctc_weight": 0.3},
    ):
        with pytest.raises(ValueError, match="no CTC head"):
            infer(model, FEATS, LENS, tokenizer=TOKENIZER, options=AedDecodeOptions(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "viterbi"}, "method='viterbi' is unknown"),
        ({"timestamps": "char"}, "timestamps='char' is unknown"),
        ({"lm": "x.arpa"}, "lm and hotwords need a beam; method=greedy"),
        ({"method": "ctc", "beam_size": 1, "hotwords": ["a"]}, "lm and hotwords need a beam; method=ctc"),
        ({"method": "beam", "hotwords": "abc"}, "hotwords='abc' is one string"),
        ({"method": "beam", "word_bonus": 1.0}, "word_bonus=1.0 needs lm"),
        ({"max_tokens_per_second": 0.0}, "max_tokens_per_second=0.0"),
        ({"max_repeats": 0}, "max_repeats=0"),
        ({"ctc_weight": 2.0}, "ctc_weight=2.0"),
        ({"beam_size": 0}, "beam_size=0"),
        ({"draft": "medusa"}, "draft='medusa' is unknown"),
        ({"draft": "ctc", "method": "beam"}, "draft='ctc' is only for method=greedy"),
        ({"num_draft": 0}, "num_draft=0"),
        ({"align_by": "eye"}, "align_by='eye' is unknown"),
    ],
)
def test_impossible_options_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AedDecodeOptions(**settings)


def recognizer(**settings: Any) -> Recognizer:
    options = AedDecodeOptions(max_tokens_per_second=6.0)
    features = LogMel(num_mels=20)
    model = build(5, input_dim=20)
    return Recognizer(features=features, model=model, tokenizer=TOKENIZER, infer=infer, options=options, **settings)


def _speechlike(seconds: float) -> np.ndarray:
    """A buzz that goes up and down without a pause."""
    time = np.arange(int(seconds * 16000)) / 16000
    wave = sum(np.sin(2 * np.pi * 130 * k * time + 5 * np.sin(2 * np.pi * 0.7 * k * time)) / k for k in range(1, 12))
    return (0.1 * wave * (1.2 + np.sin(2 * np.pi * 2.3 * time))).astype(np.float32)


def test_long_recordings_are_stitched_from_the_words_of_windows() -> None:
    long, short = _speechlike(11.0), _speechlike(2.0)
    parts = recognizer(window_seconds=3.0)
    timed, alone = parts.transcribe([long, short], timestamps="word", batch_size=3)
    assert timed.audio_s == pytest.approx(11.0)
    assert len(timed.words) > 3
    starts = [word.start for word in timed.words]
    assert starts == sorted(starts)
    assert timed.words[-1].end > 6.0
    assert timed.text == " ".join(word.text for word in timed.words)
    for batch_size in (1, 8):
        plain = parts.transcribe([long, short], batch_size=batch_size)
        assert [hyp.text for hyp in plain] == [timed.text, alone.text]
        assert not plain[0].words
        assert not plain[0].token_times
    token_times = parts.transcribe(long, timestamps="token")[0]
    assert (token_times.words, len(token_times.token_times)) == ((), len(timed.tokens))
    assert recognizer(window_seconds=30.0).transcribe(short)[0].text == alone.text


def test_the_language_goes_to_the_model() -> None:
    model = build(5, input_dim=20, language_tokens={"en": TOKENIZER.tag_id("en"), "zh": TOKENIZER.tag_id("zh")})
    options, languages = AedDecodeOptions(), ["en", "zh"]
    features = LogMel(num_mels=20)
    own = Recognizer(features=features, model=model, tokenizer=TOKENIZER, infer=infer, options=options, languages=languages)
    assert own.transcribe(_speechlike(1.0), language="zh")[0].language == "zh"
