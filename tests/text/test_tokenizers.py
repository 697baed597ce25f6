"""Every tokenizer keeps the interface's promises: ids, round trips, tags, words, files."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speechkit.text.token_table import group_words, join_texts
from speechkit.text.tokenizers import (
    SPECIALS,
    ByteTokenizer,
    CharTokenizer,
    PhonemeTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
)

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "she sells sea shells on the sea shore",
    "it's a grüße naïve café zwölf boxkämpfer",
    "pack my box with five dozen liquor jugs",
    "你好 世界 今天 天气 很 好",
] * 2
PHONEMES = ["h ə l oʊ | w ɜː l d", "ð ə | k æ t"]


def make(kind: str, tags: tuple[str, ...] = ("en", "translate")) -> Tokenizer:
    if kind == "char":
        return CharTokenizer.train(TEXTS, tags=tags)
    if kind == "byte":
        return ByteTokenizer.train(TEXTS, tags=tags)
    if kind == "phoneme":
        return PhonemeTokenizer.train(PHONEMES, tags=tags)
    model_type, _, fallback = kind.partition("+")
    size = 320 if fallback else 64
    return SentencePieceTokenizer.train(TEXTS, vocab_size=size, model_type=model_type, byte_fallback=bool(fallback), tags=tags)


KINDS = ("char", "byte", "phoneme", "bpe", "unigram", "bpe+bytes", "unigram+bytes")
SPELL_ALL = ("byte", "bpe+bytes", "unigram+bytes")
CACHE = {kind: make(kind) for kind in KINDS}


def clean(text: str) -> str:
    return " ".join(text.replace("\u2581", " ").split())


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return CACHE[request.param]


def test_specials_and_tags_come_first(tokenizer: Tokenizer) -> None:
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.blank_id, tokenizer.unk_id, tokenizer.sos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    assert tokenizer.pieces(range(6)) == [*SPECIALS, "<en>", "<translate>"]
    assert [tokenizer.tag_id(tag) for tag in tokenizer.tags] == [4, 5]
    assert len(set(tokenizer.pieces(range(tokenizer.vocab_size)))) == tokenizer.vocab_size
    with pytest.raises(ValueError, match=r"'fr' is not in this tokenizer \(it has: en, translate\)"):
        tokenizer.tag_id("fr")


@pytest.mark.parametrize("tags", [("en", "en"), ("<en>",), ("",), ("a b",), ("blank",)])
def test_bad_tags_are_refused(tags: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="tags"):
        ByteTokenizer(tags=tags)


def test_text_that_looks_like_a_special_is_ordinary_text() -> None:
    for kind in SPELL_ALL:
        ids = CACHE[kind].encode("<eos> <en> <0x41> <unk>")
        assert min(ids) >= 6
        assert CACHE[kind].decode(ids) == "<eos> <en> <0x41> <unk>"


def test_decode_leaves_out_specials_and_tags(tokenizer: Tokenizer) -> None:
    text = PHONEMES[0] if isinstance(tokenizer, PhonemeTokenizer) else TEXTS[0]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([2, 4, *ids, 1, 3, 0, 0]) == text
    assert tokenizer.decode(np.array(ids)) == text
    assert tokenizer.decode([]) == ""
    assert tokenizer.encode(" \t\n") == []
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match="outside 0"):
            tokenizer.decode([wrong])


@pytest.mark.parametrize("kind", SPELL_ALL)
@settings(max_examples=60, deadline=None)
@example(text="😀 \U0001f469\u200d\U0001f680 a\u0301\ud800 \x00")
@example(text="a\u2581b \u3000 c")
@given(text=st.text())
def test_byte_level_round_trip_of_any_text(kind: str, text: str) -> None:
    tokenizer = CACHE[kind]
    ids = tokenizer.encode(text)
    assert all(6 <= i < tokenizer.vocab_size for i in ids)
    wanted = " ".join(text.split()) if kind == "byte" else clean(text)
    assert tokenizer.decode(ids) == wanted.encode("utf-8", "replace").decode()


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="".join(sorted(set("".join(TEXTS)))) + " "))
def test_known_characters_round_trip(text: str) -> None:
    for kind in ("char", "bpe", "unigram"):
        ids = CACHE[kind].encode(text)
        assert 1 not in ids
        assert CACHE[kind].decode(ids) == clean(text)


@settings(max_examples=60, deadline=None)
@example(text="😀 x")
@given(text=st.text())
def test_unknown_characters_become_unk_and_nothing_crashes(text: str) -> None:
    for kind in ("char", "phoneme", "bpe", "unigram"):
        tokenizer = CACHE[kind]
        ids = tokenizer.encode(text)
        assert all(i == 1 or 6 <= i < tokenizer.vocab_size for i in ids)
        tokenizer.decode(ids)
        tokenizer.split_words(ids)
    assert CACHE["char"].encode("a😀b").count(1) == 1
    assert CACHE["bpe"].encode("😀").count(1) == 1


@settings(max_examples=80, deadline=None)
@given(words=st.lists(st.text(alphabet="abcdefgüß'", min_size=1), max_size=6), seed=st.integers(0, 2**16))
def test_split_words_covers_the_text(words: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for kind in ("char", "byte", "bpe+bytes", "unigram+bytes"):
        tokenizer = CACHE[kind]
        ids = tokenizer.encode(" ".join(words))
        for _ in range(3):  # specials and tags anywhere change no word
            ids.insert(int(rng.integers(0, len(ids) + 1)), int(rng.integers(0, 6)))
        groups = tokenizer.split_words(ids)
        assert [word for word, _ in groups] == words
        ends = [0, *(s.stop for _, s in groups)]
        for (word, part), before in zip(groups, ends):
            assert before <= part.start < part.stop <= len(ids)
            assert tokenizer.decode(ids[part]) == word
            assert ids[part.start] >= 6


@settings(max_examples=60, deadline=None)
@example(ids=[200, 231, 134, 134])  # a character cut off by another
@given(ids=st.lists(st.integers(0, 261), max_size=40))
def test_split_words_never_fails_on_broken_bytes(ids: list[int]) -> None:
    tokenizer = CACHE["byte"]
    groups = tokenizer.split_words(ids)
    joined = "".join(word for word, _ in groups)
    assert joined.replace(" ", "") == tokenizer.decode(ids).replace(" ", "")
    assert all(a.stop <= b.start for (_, a), (_, b) in pairwise(groups))


def test_characters_of_scripts_without_spaces_are_words() -> None:
    text = "你好，ok 世界 abc中文。ไทย"
    wanted = ["你", "好，", "ok", "世", "界", "abc", "中", "文。", "ไ", "ท", "ย"]
    char = CharTokenizer.train([text])
    for tokenizer in (char, CACHE["byte"], CACHE["bpe+bytes"]):
        assert [word for word, _ in tokenizer.split_words(tokenizer.encode(text))] == wanted
    assert group_words(["中文".encode(), b"ab"]) == [("中文", slice(0, 1)), ("ab", slice(1, 2))]


def test_starts_word() -> None:
    char = CharTokenizer.train(["ab 中"])
    assert [char.starts_word(i) for i in char.encode("a 中")] == [False, True, True]
    assert not any(char.starts_word(i) for i in range(4))
    bpe = CACHE["bpe"]
    ids = bpe.encode("the sea")
    assert [bpe.starts_word(i) for i in ids] == [piece.startswith("\u2581") for piece in bpe.pieces(ids)]


def test_phoneme_words_and_unknown_symbols() -> None:
    tokenizer = CACHE["phoneme"]
    ids = tokenizer.encode("h ə l oʊ |  w X l d")
    assert ids.count(1) == 1
    assert tokenizer.split_words(ids) == [("h ə l oʊ", slice(0, 4)), ("w l d", slice(5, 9))]
    assert tokenizer.split_words(tokenizer.encode("| | h |")) == [("h", slice(2, 3))]
    assert tokenizer.starts_word(ids[4])
    assert not tokenizer.starts_word(ids[0])


def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "new" / "dir")
    loaded = load_tokenizer(tmp_path / "new" / "dir")
    assert type(loaded) is type(tokenizer)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    every = range(tokenizer.vocab_size)
    assert loaded.pieces(every) == tokenizer.pieces(every)
    assert loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    files = {path.name for path in (tmp_path / "new" / "dir").iterdir()}
    assert files <= {"tokenizer.json", "tokenizer.model"}


def test_pickles_into_data_workers(tokenizer: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy == tokenizer
    assert copy.encode(TEXTS[2]) == tokenizer.encode(TEXTS[2])


def test_fingerprint_tells_tokenizers_apart() -> None:
    prints = [CACHE[kind].fingerprint() for kind in KINDS]
    prints += [make("char", tags=("de",)).fingerprint(), make("byte", tags=()).fingerprint()]
    assert len(set(prints)) == len(prints)
    assert make("char").fingerprint() == CACHE["char"].fingerprint()
    assert CharTokenizer.train(reversed(TEXTS), tags=("en", "translate")) == CACHE["char"]


def test_training_is_deterministic() -> None:
    for kind in ("bpe", "unigram"):
        assert make(kind).fingerprint() == CACHE[kind].fingerprint()


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_vocab_size_is_the_whole_vocabulary_and_bounded(model_type: str) -> None:
    train = SentencePieceTokenizer.train
    assert train(TEXTS, vocab_size=64, model_type=model_type, tags=("en", "de")).vocab_size == 64
    with pytest.warns(UserWarning, match=r"vocab_size: 5000 is more .* reduced to the largest size, (\d+)") as caught:
        reduced = train(TEXTS, vocab_size=5000, model_type=model_type, tags=("en",))
    assert str(caught[0].message).endswith(f" {reduced.vocab_size}")
    with pytest.raises(ValueError, match=r"vocab_size: 8 cannot hold .* use at least (\d+)") as info:
        train(TEXTS, vocab_size=8, model_type=model_type)
    least = int(str(info.value).split("use at least ")[1].split(",")[0])
    assert train(TEXTS, vocab_size=least, model_type=model_type).vocab_size == least


def test_long_transcripts_take_part_in_training() -> None:
    long = "zebra " * 3000 + "qqq"
    tokenizer = SentencePieceTokenizer.train([long, "abc"], vocab_size=18)
    assert 1 not in tokenizer.encode("q zebra")


def test_training_errors() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        SentencePieceTokenizer.train(["", "  "], vocab_size=50)
    with pytest.raises(ValueError, match="model_type: 'word'"):
        SentencePieceTokenizer.train(TEXTS, vocab_size=50, model_type="word")
    with pytest.raises(ValueError, match="no character"):
        CharTokenizer.train([""])
    with pytest.raises(ValueError, match="no phoneme"):
        PhonemeTokenizer.train(["|"])
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        SentencePieceTokenizer(model_proto=b"rubbish")
    with pytest.raises(ValueError, match="symbols"):
        CharTokenizer(symbols=["a", "bc"])
    with pytest.raises(ValueError, match="repeated"):
        PhonemeTokenizer(symbols=["a", "|"])
    assert "b" not in CharTokenizer.train(["aab"], min_count=2).pieces(range(5))


def test_load_errors_name_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer here; expected tokenizer\.json"):
        load_tokenizer(tmp_path)
    CACHE["bpe"].save(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.model is missing"):
        load_tokenizer(tmp_path)
    config = tmp_path / "tokenizer.json"
    for text, message in (
        ("{", "not a tokenizer file"),
        ("[]", "not a tokenizer file"),
        ("{}", "not a tokenizer file"),
        (json.dumps({"kind": "byte", "format": 99, "tags": []}), "format 99 is unknown"),
        (json.dumps({"kind": "word", "format": 1, "tags": []}), "kind 'word' is unknown"),
        (json.dumps({"kind": "byte", "format": 1, "tags": [], "x": 1}), "wrong fields for a 'byte' tokenizer"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_tokenizer(tmp_path)


def test_foreign_sentencepiece_model(tmp_path: Path) -> None:
    """A model with control pieces of its own (sos, eos, pad) keeps the ids of ours."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(tmp_path / "m"), vocab_size=62, pad_id=3, minloglevel=2
    )
    tokenizer = SentencePieceTokenizer.from_model_file(tmp_path / "m.model", tags=("en",))
    assert tokenizer.vocab_size == 62 - 4 + 5
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]
    with pytest.raises(ValueError, match="no such SentencePiece model"):
        SentencePieceTokenizer.from_model_file(tmp_path / "other.model")


def test_import_loads_neither_torch_nor_sentencepiece(repo_root: Path) -> None:
    code = "import sys, speechkit.text.tokenizers; print({'torch', 'sentencepiece'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("texts", "joined"),
    [
        ([], ""),
        (["one", "", "two"], "one two"),
        (["你好", "世界"], "你好世界"),
        (["你好。", "世界", "「はい」", "カタ"], "你好。世界「はい」カタ"),
        (["我用", "Python", "写"], "我用 Python 写"),
        (["안녕", "하세요"], "안녕 하세요"),
        (["สวัสดี", "ครับ"], "สวัสดี ครับ"),
        (["2026", "年"], "2026 年"),
        (["well,", "你好"], "well, 你好"),
    ],
)
def test_pieces_of_a_transcript_are_joined_as_the_script_is_written(texts: list[str], joined: str) -> None:
    assert join_texts(texts) == joined
