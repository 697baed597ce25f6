"""Every reader from tiny data made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechkit.audio.io import audio_info, load_audio
from speechkit.data.manifest import ManifestError
from speechkit.data.readers import (
    READERS,
    read_any,
    read_csv,
    read_folder,
    read_huggingface,
    read_kaldi,
    read_lhotse,
    read_ljspeech,
    read_nemo,
)
from speechkit.data.rejects import Rejects

RATE = 8000


def save(path: Path, seconds: float = 1.0, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (round(seconds * RATE), channels) if channels > 1 else round(seconds * RATE)
    soundfile.write(path, 0.1 * np.random.default_rng(len(path.name)).standard_normal(shape), RATE)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def brief(utterances: Any) -> list[tuple[Any, ...]]:
    return [(row.id, row.audio_path.name, row.start, row.duration, row.text, row.speaker, row.lang) for row in utterances]


# ---- NeMo ----


def test_nemo_fills_in_durations(tmp_path: Path) -> None:
    save(tmp_path / "audio" / "a.wav", 1.5)
    rows = [
        {"id": "a", "audio_filepath": "audio/a.wav", "text": "hi", "pred_text": "kept"},
        {"id": "b", "audio_filepath": "audio/a.wav", "offset": 1.0},
        {"id": "c", "audio_filepath": "nowhere.wav", "duration": 9},  # as told: the audio is not looked at
    ]
    path = write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, rows)))
    found = list(read_nemo(path))
    assert [(row.id, row.start, row.duration) for row in found] == [("a", 0, 1.5), ("b", 1, 0.5), ("c", 0, 9)]
    assert found[0].extra == {"pred_text": "kept"}
    moved = write(tmp_path / "else" / "m.jsonl", path.read_text())
    assert list(read_nemo(moved, audio_root=tmp_path)) == found


def test_bad_rows_raise_or_are_collected(tmp_path: Path) -> None:
    save(tmp_path / "a.wav", 1.0)
    lines = ['{"id": "a", "audio_filepath": "a.wav"}', "{", '{"id": "x", "audio_filepath": "gone.wav"}']
    lines += ['{"id": "late", "audio_filepath": "a.wav", "offset": 5}']
    path = write(tmp_path / "m.jsonl", "\n".join(lines))
    with pytest.raises(ManifestError, match=r"m\.jsonl:2: not valid JSON"):
        list(read_nemo(path))
    rejects = Rejects()
    assert [row.id for row in read_nemo(path, rejects=rejects)] == ["a"]
    assert [entry.where.rsplit(":", 1)[-1] for entry in rejects.entries] == ["2", "3", "4"]
    assert "no such file" in rejects.entries[1].reason
    assert "ends at 1.00 s, before the start at 5.00 s" in rejects.entries[2].reason
    assert rejects.summary().startswith("left out 3 rows:\n  ")
    path = write(tmp_path / "m2.jsonl", lines[2])
    with pytest.raises(ManifestError, match=r"m2\.jsonl:1: .*gone\.wav: no such file"):
        list(read_nemo(path))


# ---- Kaldi ----


def kaldi(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        write(tmp_path / "kaldi" / name.replace("wav_scp", "wav.scp"), text)
    return tmp_path / "kaldi"


def test_kaldi_recordings(tmp_path: Path) -> None:
    save(tmp_path / "a file.wav", 1.0)
    save(tmp_path / "kaldi" / "b.flac", 2.0)
    directory = kaldi(
        tmp_path,
        wav_scp=f"u1 {tmp_path}/a file.wav\nu2\tb.flac\n",
        text="u1 Hello  World\nu2 \n",
        utt2spk="u1 s1\nu2 s2\n",
        utt2lang="u1 en\n",
        utt2dur="u2 1.75\n",
        spk2gender="s1 f\n",
    )
    found = list(read_kaldi(directory, lang="de"))
    assert brief(found) == [
        ("u1", "a file.wav", 0.0, 1.0, "Hello  World", "s1", "en"),
        ("u2", "b.flac", 0.0, 1.75, "", "s2", "de"),
    ]
    assert found[0].extra == {"gender": "f"}
    assert found[1].audio_path == directory / "b.flac"


def test_kaldi_segments(tmp_path: Path) -> None:
    save(tmp_path / "kaldi" / "r.wav", 3.0)
    directory = kaldi(
        tmp_path,
        wav_scp="r r.wav\nlong l.wav",
        segments="u1 r 0.5 1.25\nu2 r 2 -1\nu3 long 1 -1",
        text="u1 one\nu2 two\nu3 three",
        reco2dur="long 60",
    )
    assert brief(read_kaldi(directory)) == [
        ("u1", "r.wav", 0.5, 0.75, "one", "", ""),
        ("u2", "r.wav", 2.0, 1.0, "two", "", ""),
        ("u3", "l.wav", 1.0, 59.0, "three", "", ""),
    ]


def test_kaldi_paths_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "corpus" / "a.wav")
    directory = kaldi(tmp_path, wav_scp="u corpus/a.wav")
    with pytest.raises(ManifestError, match=r"wav\.scp:1: .*kaldi/corpus/a\.wav: no such file"):
        list(read_kaldi(directory))
    assert next(read_kaldi(directory, audio_root=tmp_path)).audio_path == tmp_path / "corpus" / "a.wav"
    monkeypatch.chdir(tmp_path)
    assert next(read_kaldi(directory)).audio_path == tmp_path / "corpus" / "a.wav"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"wav_scp": "u sph2pipe -f wav x.sph |"}, r"wav\.scp:1: .* is a command, and commands are not run; write its"),
        ({"wav_scp": "u cat a.wav |"}, "is a command"),
        ({"wav_scp": "u data.ark:15"}, "is no audio file"),
        ({"wav_scp": "u"}, r"wav\.scp:1: only one field"),
        ({"wav_scp": "u a.wav\nu b.wav"}, r"wav\.scp:2: key u was given before \(.*wav\.scp:1\)"),
        ({"wav_scp": "u a.wav", "text": "v hello"}, r"wav\.scp:1: utterance u is not in the file text"),
        ({"wav_scp": "r a.wav", "segments": "u other 0 1"}, r"segments:1: recording other is not in wav\.scp"),
        ({"wav_scp": "r a.wav", "segments": "u r 2 1"}, r"segments:1: start 2 and end 1 are no stretch"),
        ({"wav_scp": "r a.wav", "segments": "u r nan 1"}, r"segments:1: start nan"),
        ({"wav_scp": "r a.wav", "segments": "u r 1"}, r"segments:1: must be 'utterance recording start end'"),
        ({"wav_scp": "u a.wav", "utt2dur": "u long"}, r"utt2dur:1: 'long' is no time"),
    ],
)
def test_kaldi_errors_name_file_line_and_remedy(tmp_path: Path, files: dict[str, str], message: str) -> None:
    save(tmp_path / "kaldi" / "a.wav")
    directory = kaldi(tmp_path, **files)
    with pytest.raises(ManifestError, match=message):
        list(read_kaldi(directory))
    rejects = Rejects()
    list(read_kaldi(directory, rejects=rejects))
    assert len(rejects) >= 1


def test_kaldi_text_without_audio_is_told(tmp_path: Path) -> None:
    save(tmp_path / "kaldi" / "a.wav")
    rejects = Rejects()
    directory = kaldi(tmp_path, wav_scp="u a.wav", text="u hi\nv more")
    assert len(list(read_kaldi(directory, rejects=rejects))) == 1
    assert [(entry.id, entry.where.rsplit("/", 1)[1]) for entry in rejects.entries] == [("v", "text:2")]
    with pytest.raises(ManifestError, match=r"wav\.scp: no such file"):
        read_kaldi(tmp_path)


# ---- CSV ----


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_csv_columns_and_delimiters(tmp_path: Path, delimiter: str) -> None:
    save(tmp_path / "a.wav", 1.0)
    header = ["Audio_File", "Transcript", "speaker_id", "start", "end", "age", "duration_note"]
    rows = [["a.wav", "hello", "s", "", "", "30", ""], ["a.wav", "again", "s", "0.25", "0.75", "", "x"]]
    text = "\n".join(delimiter.join(row) for row in [header, *rows])
    found = list(read_csv(write(tmp_path / "t.csv", text), lang="en"))
    assert [row[1:] for row in brief(found)] == [
        ("a.wav", 0.0, 1.0, "hello", "s", "en"),
        ("a.wav", 0.25, 0.5, "again", "s", "en"),
    ]
    assert [row.extra for row in found] == [{"age": "30"}, {"duration_note": "x"}]
    assert len({row.id for row in found}) == 2


def test_csv_quotes_newlines_and_own_names(tmp_path: Path) -> None:
    save(tmp_path / "a.wav")
    text = 'file,said,text,duration\n"a.wav","one, ""two""\nthree",other,1.0\n'
    (row,) = read_csv(write(tmp_path / "t.csv", text), columns={"text": "said"})
    assert (row.text, row.extra) == ('one, "two"\nthree', {"source_text": "other"})
    with pytest.raises(ManifestError, match=r"t\.csv:1: no column \['typo'\]; the header has"):
        list(read_csv(tmp_path / "t.csv", columns={"text": "typo"}))
    with pytest.raises(ManifestError, match="columns="):
        list(read_csv(tmp_path / "t.csv", columns={"typo": "said"}))


def test_csv_common_voice(tmp_path: Path) -> None:
    save(tmp_path / "clips" / "common_voice_en_1.mp3", 2.0)
    header = "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\taccents\tvariant"
    row = 'abc\tcommon_voice_en_1.mp3\tf00\t"Quoted" at the start.\t\t2\t0\t\t\t\t'
    (found,) = read_csv(write(tmp_path / "train.tsv", f"{header}\tlocale\tsegment\n{row}\ten\t\n"))
    assert found.text == '"Quoted" at the start.'
    assert (found.speaker, found.lang, found.audio_path) == ("abc", "en", tmp_path / "clips" / "common_voice_en_1.mp3")
    assert found.duration == pytest.approx(2.0, abs=0.1)
    assert found.extra == {"sentence_id": "f00", "up_votes": "2", "down_votes": "0"}


def test_csv_errors_carry_line_numbers(tmp_path: Path) -> None:
    save(tmp_path / "a.wav")
    path = tmp_path / "t.csv"
    path.write_bytes(b'path,text\na.wav,ok\n\na.wav\n,x\na.wav,"bad"quote\na.wav,\xff\na.wav,fine\ngone.wav,x\n')
    rejects = Rejects()
    assert [row.text for row in read_csv(path, rejects=rejects)] == ["ok", "fine"]
    assert [entry.where.rsplit(":", 1)[1] for entry in rejects.entries] == ["4", "5", "6", "7", "9"]
    with pytest.raises(ManifestError, match=r"t\.csv:4: 1 fields, the header has 2"):
        list(read_csv(path))
    with pytest.raises(ManifestError, match="no column of audio among"):
        list(read_csv(write(tmp_path / "u.csv", "x,y\n1,2\n")))
    with pytest.raises(ManifestError, match="no column of audio"):
        list(read_csv(write(tmp_path / "v.csv", "")))
    with pytest.raises(ManifestError, match="no such file"):
        read_csv(tmp_path / "w.csv")


# ---- LJSpeech, folders ----


def test_ljspeech(tmp_path: Path) -> None:
    save(tmp_path / "wavs" / "LJ001-0001.wav", 1.0)
    save(tmp_path / "wavs" / "LJ001-0002.flac", 2.0)
    write(tmp_path / "metadata.csv", 'LJ001-0001|In 1455,|In fourteen fifty-five,\nLJ001-0002|"Only one.\n')
    found = list(read_ljspeech(tmp_path))
    assert brief(found) == [
        ("LJ001-0001", "LJ001-0001.wav", 0.0, 1.0, "In fourteen fifty-five,", "lj", "en"),
        ("LJ001-0002", "LJ001-0002.flac", 0.0, 2.0, '"Only one.', "lj", "en"),
    ]
    assert found[0].extra == {"text_raw": "In 1455,"}
    assert next(read_ljspeech(tmp_path / "metadata.csv", normalized=False)).text == "In 1455,"
    write(tmp_path / "metadata.csv", "LJ001-0001|ok|ok\n../x|a|b\nno bars\nLJ9|a|b\n")
    rejects = Rejects()
    assert len(list(read_ljspeech(tmp_path, rejects=rejects))) == 1
    assert [entry.where.rsplit(":", 1)[1] for entry in rejects.entries] == ["2", "3", "4"]
    with pytest.raises(ManifestError, match=r"metadata\.csv: no such file"):
        read_ljspeech(tmp_path / "wavs")


def test_folder_of_pairs(tmp_path: Path) -> None:
    save(tmp_path / "f" / "anna" / "1.wav", 1.0)
    save(tmp_path / "f" / "bob" / "1.flac", 2.0)
    write(tmp_path / "f" / "anna" / "1.txt", "\ufeffHello\n there \n")
    write(tmp_path / "f" / "bob" / "1.txt", "Bye")
    write(tmp_path / "f" / "bob" / "README.txt", "about")
    write(tmp_path / "f" / "bob" / ".hidden.wav", "no")
    (tmp_path / "f" / "loop").symlink_to(tmp_path / "f")
    assert brief(read_folder(tmp_path / "f", speaker_from_folder=True, lang="en")) == [
        ("anna-1", "1.wav", 0.0, 1.0, "Hello there", "anna", "en"),
        ("bob-1", "1.flac", 0.0, 2.0, "Bye", "bob", "en"),
    ]
    save(tmp_path / "f" / "bob" / "2.wav")
    write(tmp_path / "f" / "bob" / "3.txt", "audio is lost")
    rejects = Rejects()
    assert len(list(read_folder(tmp_path / "f", rejects=rejects))) == 2
    assert [Path(entry.where).name for entry in rejects.entries] == ["2.wav", "3.txt"]
    with pytest.raises(ManifestError, match=r"2\.wav: has no transcript 2\.txt"):
        list(read_folder(tmp_path / "f"))
    assert [row.text for row in read_folder(tmp_path / "f", need_text=False, rejects=Rejects())] == ["Hello there", "Bye", ""]


def test_folder_like_librispeech(tmp_path: Path) -> None:
    for name in ("84-121123-0000", "84-121123-0001"):
        save(tmp_path / "84" / "121123" / f"{name}.flac")
    lines = "84-121123-0000 GO DO YOU HEAR\n84-121123-0001 BUT IN LESS\n84-121123-0002 LOST\n../evil X\n"
    write(tmp_path / "84" / "121123" / "84-121123.trans.txt", lines)
    rejects = Rejects()
    assert [(row.id, row.text, row.speaker) for row in read_folder(tmp_path, rejects=rejects)] == [
        ("84-121123-0000", "GO DO YOU HEAR", "84"),
        ("84-121123-0001", "BUT IN LESS", "84"),
    ]
    assert [entry.id for entry in rejects.entries] == ["84-121123-0002", "../evil"]


def test_folder_without_audio(tmp_path: Path) -> None:
    write(tmp_path / "f" / "a.txt", "x")
    with pytest.raises(ManifestError, match="holds no audio files"):
        list(read_folder(tmp_path / "f", rejects=Rejects()))
    with pytest.raises(ManifestError, match="no such directory"):
        read_folder(tmp_path / "none")


# ---- lhotse ----


def lhotse_cut(path: Path, **fields: Any) -> dict[str, Any]:
    recording = {
        "id": "r",
        "sources": [{"type": "file", "channels": [0], "source": str(path)}],
        "sampling_rate": RATE,
        "num_samples": 3 * RATE,
        "duration": 3.0,
        "channel_ids": [0],
    }
    supervision = {"id": "s1", "recording_id": "r", "start": 0.25, "duration": 1.0, "channel": 0, "text": "hi"}
    cut = {"id": "c", "start": 0.5, "duration": 2.0, "channel": 0, "supervisions": [supervision], "recording": recording}
    return {**cut, "type": "MonoCut", **fields}


def test_lhotse_cuts_without_lhotse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lhotse", None)
    path = save(tmp_path / "a.wav", 3.0)
    one = lhotse_cut(Path("a.wav"), custom={"snr": 5, "text": "clash"})
    two = lhotse_cut(path)
    second = {**two["supervisions"][0], "id": "s2", "start": 1.5, "duration": 9.0, "speaker": "x", "language": "en"}
    two["supervisions"] = [{**two["supervisions"][0], "start": -0.25}, second]
    bare = lhotse_cut(path, id="bare", supervisions=[])
    write(tmp_path / "cuts.jsonl", "\n".join(map(json.dumps, [one, two, bare])))
    found = list(read_lhotse(tmp_path / "cuts.jsonl", lang="de"))
    assert brief(found) == [
        ("c", "a.wav", 0.5, 2.0, "hi", "", "de"),
        ("s1", "a.wav", 0.5, 0.75, "hi", "", "de"),
        ("s2", "a.wav", 2.0, 0.5, "hi", "x", "en"),
        ("bare", "a.wav", 0.5, 2.0, "", "", "de"),
    ]
    assert found[0].audio_path == path
    assert found[0].extra == {"snr": 5, "source_text": "clash"}
    mixed = {"id": "m", "tracks": [], "type": "MixedCut"}
    write(tmp_path / "cuts.jsonl", json.dumps(mixed))
    with pytest.raises(ManifestError, match=r"cuts\.jsonl:1: MixedCut m is no stretch of a one-channel file; give audio_dir"):
        list(read_lhotse(tmp_path / "cuts.jsonl"))
    with pytest.raises(ImportError, match=r'pip install "speechkit\[data\]"'):
        list(read_lhotse(tmp_path / "cuts.jsonl", audio_dir=tmp_path / "out"))
    write(tmp_path / "cuts.jsonl", '{"id": "x", "type": "MonoCut", "recording": {}}\n{')
    rejects = Rejects()
    assert list(read_lhotse(tmp_path / "cuts.jsonl", rejects=rejects)) == []
    assert "not a lhotse cut" in rejects.entries[0].reason
    assert len(rejects) == 2


def test_lhotse_objects_and_made_audio(tmp_path: Path) -> None:
    lhotse = pytest.importorskip("lhotse")
    path = save(tmp_path / "a.wav", 3.0)
    cut = lhotse.MonoCut.from_dict({k: v for k, v in lhotse_cut(path).items() if k != "type"})
    cuts = lhotse.CutSet.from_cuts([cut, cut.pad(2.5).with_id("padded"), cut.perturb_speed(1.1), cut.move_to_memory()])
    made = list(read_lhotse(cuts, audio_dir=tmp_path / "made"))
    assert [row.id for row in made] == ["c", "padded", "c_sp1.1", "c"]
    assert made[0].audio_path == path
    assert (made[0].start, made[1].start) == (0.5, 0.0)
    for row, expected in zip(made[1:], list(cuts)[1:], strict=True):
        assert row.audio_path.parent == tmp_path / "made"
        assert row.duration == pytest.approx(expected.duration, abs=1e-3)
        assert row.text == "hi"
        np.testing.assert_allclose(load_audio(row.audio_path)[0], expected.load_audio()[0], atol=2**-15)
    lhotse.CutSet.from_cuts(list(cuts)[:3]).to_file(tmp_path / "cuts.jsonl.gz")
    rejects = Rejects()
    assert [row.id for row in read_lhotse(tmp_path / "cuts.jsonl.gz", rejects=rejects)] == ["c"]
    assert len(rejects) == 2
    (tmp_path / "shar").mkdir()
    lhotse.CutSet.from_cuts([cut]).to_shar(tmp_path / "shar", {"recording": "flac"})
    (row,) = read_lhotse(tmp_path / "shar", audio_dir=tmp_path / "unpacked")
    assert (row.id, row.duration, row.text) == ("c", 2.0, "hi")
    np.testing.assert_allclose(load_audio(row.audio_path)[0], cut.load_audio()[0], atol=2**-15)


# ---- Hugging Face ----


def hf_rows(tmp_path: Path) -> list[dict[str, Any]]:
    path = save(tmp_path / "a.wav", 1.0)
    return [
        {"audio": {"bytes": path.read_bytes(), "path": "x.wav"}, "sentence": "bytes", "speaker_id": 7, "n": 1},
        {"audio": {"bytes": None, "path": str(path)}, "sentence": "path", "speaker_id": 8, "n": 2},
        {"audio": {"array": np.zeros(RATE // 2), "sampling_rate": RATE}, "sentence": "array", "speaker_id": 9, "n": {1}},
    ]


def test_huggingface_rows_of_every_kind(tmp_path: Path) -> None:
    rows = hf_rows(tmp_path)
    with pytest.warns(UserWarning, match=r"columns \['n'\] hold what JSON cannot"):
        found = list(read_huggingface(rows, audio_dir=tmp_path / "made", lang="en"))
    assert [(row.text, row.speaker, row.duration, row.lang) for row in found] == [
        ("bytes", "7", 1.0, "en"),
        ("path", "8", 1.0, "en"),
        ("array", "9", 0.5, "en"),
    ]
    assert [row.extra for row in found] == [{"n": 1}, {"n": 2}, {}]
    assert [row.audio_path.parent.name for row in found] == ["made", tmp_path.name, "made"]
    assert found[0].audio_path.read_bytes() == (tmp_path / "a.wav").read_bytes()
    rows[1]["audio"] = {"bytes": None, "path": "gone.wav"}
    rejects = Rejects()
    assert len(list(read_huggingface(rows[:2], audio_dir=tmp_path / "made", rejects=rejects))) == 1
    assert "row 1: audio has neither bytes nor a file" in rejects.entries[0].reason
    with pytest.raises(ManifestError, match="no column of audio among"):
        list(read_huggingface([{"x": 1}], audio_dir=tmp_path))


def test_huggingface_dataset_and_saved_directory(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = save(tmp_path / "a.wav", 1.0)
    columns = {"audio": [str(path)] * 2, "text": ["one", "two"], "id": ["x", "y"], "label": [0, 1]}
    plain = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio())
    found = list(read_huggingface(plain, audio_dir=tmp_path / "made"))
    assert [(row.id, row.text, row.duration, row.extra) for row in found] == [
        ("x", "one", 1.0, {"label": 0}),
        ("y", "two", 1.0, {"label": 1}),
    ]
    datasets.DatasetDict({"train": plain, "test": plain.select([1])}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ManifestError, match="split=None; choose one of train, test"):
        read_huggingface(tmp_path / "saved", audio_dir=tmp_path / "made")
    (row,) = read_huggingface(tmp_path / "saved", audio_dir=tmp_path / "made", split="test")
    assert (row.id, row.text) == ("y", "two")
    assert audio_info(row.audio_path).duration == 1.0


# ---- by name ----


def test_read_any(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", '{"audio_filepath": "a.wav", "duration": 1}')
    assert len(list(read_any("nemo", tmp_path / "m.jsonl"))) == 1
    with pytest.raises(ValueError, match="reader 'nemmo' is not known; choose one of nemo, kaldi, csv"):
        read_any("nemmo", tmp_path)
    with pytest.raises(ValueError, match="reader 'kaldi' takes no option columns; it takes audio_root, lang"):
        read_any("kaldi", tmp_path, columns={})
    assert set(READERS) == {"nemo", "kaldi", "csv", "ljspeech_metadata", "audio_folder", "lhotse", "huggingface"}
