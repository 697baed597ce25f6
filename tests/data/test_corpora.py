"""Corpora: from tiny archives in each one's official layout, served locally, to manifests; and from manifests."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import socketserver
import tarfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.data.corpora import corpus_names, download_corpus, librispeech, prepare_corpus
from speechkit.data.manifest import read_manifest, write_manifest
from speechkit.data.rejects import Rejects
from speechkit.data.splits import split_by_group, write_splits
from speechkit.types import Utterance


def wav(seconds: float = 0.5, rate: int = 16000, kind: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(round(seconds * rate), np.float32), rate, format=kind)
    return buffer.getvalue()


def archive(files: Mapping[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def unpack(files: Mapping[str, bytes | str], root: Path) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without looking up the host's name


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory and the address where it is served."""
    root = tmp_path / "web"
    root.mkdir()
    with _Server(("127.0.0.1", 0), functools.partial(_QuietHandler, directory=str(root))) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield root, f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def rows(out: Path, split: str) -> list[Utterance]:
    return read_manifest(out / f"{split}.jsonl")


# ---- by name ----


def test_names() -> None:
    assert corpus_names() == [
        "aishell1", "common_voice", "demo", "folder", "fsdd", "librispeech", "ljspeech", "speechocean762",
    ]  # fmt: skip


def test_unknown_names_and_options(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'timit' is no known corpus: choose one of aishell1, .*fsdd"):
        prepare_corpus("timit", tmp_path, tmp_path)
    with pytest.raises(ValueError, match=r"colour='red': fsdd has no such option; it takes num_workers"):
        prepare_corpus("fsdd", tmp_path, tmp_path, colour="red")
    with pytest.raises(ValueError, match="src=None: fsdd needs"):
        prepare_corpus("fsdd", None, tmp_path)
    with pytest.raises(ValueError, match="demo is generated"):
        prepare_corpus("demo", tmp_path, tmp_path)
    with pytest.raises(ValueError, match="nothing to download"):
        download_corpus("demo", tmp_path)


@pytest.mark.parametrize("name", ["librispeech", "ljspeech", "aishell1", "common_voice", "fsdd", "speechocean762"])
@pytest.mark.parametrize("exists", [True, False])
def test_wrong_source_is_named(tmp_path: Path, name: str, exists: bool) -> None:
    src = tmp_path / "wrong"
    if exists:
        src.mkdir()
    with pytest.raises(FileNotFoundError, match="wrong"):
        prepare_corpus(name, src, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- LibriSpeech ----

LIBRISPEECH = {
    "LibriSpeech/SPEAKERS.TXT": ";ID  |SEX| SUBSET\n14   | F | dev-clean | 25.03 | A\n26 | M | dev-clean | 1 | B\n",
    "LibriSpeech/dev-clean/14/208/14-208.trans.txt": "14-208-0000 HELLO THERE\n14-208-0001 IT'S LATE\n14-208-0002 LOST\n",
    "LibriSpeech/dev-clean/14/208/14-208-0000.flac": wav(0.5, kind="FLAC"),
    "LibriSpeech/dev-clean/14/208/14-208-0001.flac": wav(0.25, kind="FLAC"),
    "LibriSpeech/dev-clean/26/1/26-1.trans.txt": "26-1-0000 GOOD BYE\n",
    "LibriSpeech/dev-clean/26/1/26-1-0000.flac": wav(0.5, kind="FLAC"),
}


def test_librispeech(web: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = archive(LIBRISPEECH)
    (web[0] / "dev-clean.tar.gz").write_bytes(packed)
    monkeypatch.setitem(librispeech.MD5, "dev-clean", hashlib.md5(packed).hexdigest())
    src = download_corpus("librispeech", tmp_path / "get", subsets=["dev-clean"], url=web[1])
    report = prepare_corpus("librispeech", src, tmp_path / "out")
    made = rows(tmp_path / "out", "dev-clean")
    assert [(row.id, row.text, row.speaker, row.duration) for row in made] == [
        ("14-208-0000", "hello there", "14", 0.5),
        ("14-208-0001", "it's late", "14", 0.25),
        ("26-1-0000", "good bye", "26", 0.5),
    ]
    assert [row.extra["gender"] for row in made] == ["f", "f", "m"]
    assert all(row.lang == "en" and row.audio_path.is_file() for row in made)
    assert report.splits["dev-clean"].utterances == 3
    assert report.splits["dev-clean"].seconds == 1.25
    assert [reject.id for reject in report.rejects.entries] == ["14-208-0002"]
    assert "14-208-0002" in (tmp_path / "out" / "rejects.jsonl").read_text()
    assert "left out 1 rows" in str(report)


def test_librispeech_subsets(tmp_path: Path) -> None:
    unpack(LIBRISPEECH, tmp_path)
    prepare_corpus("librispeech", tmp_path, tmp_path / "out", subsets=["dev-clean"], lowercase=False)
    assert rows(tmp_path / "out", "dev-clean")[0].text == "HELLO THERE"
    with pytest.raises(FileNotFoundError, match="test-other"):
        prepare_corpus("librispeech", tmp_path, tmp_path / "out", subsets=["test-other"])
    with pytest.raises(ValueError, match="'dev' is not among"):
        prepare_corpus("librispeech", tmp_path, tmp_path / "out", subsets=["dev"])


def test_damaged_download_is_refused(web: tuple[Path, str], tmp_path: Path) -> None:
    (web[0] / "dev-clean.tar.gz").write_bytes(archive(LIBRISPEECH))
    with pytest.raises(OSError, match="md5 is"):
        download_corpus("librispeech", tmp_path / "get", subsets=["dev-clean"], url=web[1])


# ---- LJSpeech ----


def ljspeech(count: int = 10) -> dict[str, bytes | str]:
    lines = "".join(f"LJ001-{n:04d}|Dr. No. {n}|Doctor Number {n}\n" for n in reversed(range(count)))
    clips = {f"LJSpeech-1.1/wavs/LJ001-{n:04d}.wav": wav(0.1) for n in range(count)}
    return {"LJSpeech-1.1/metadata.csv": lines, **clips}


def test_ljspeech(web: tuple[Path, str], tmp_path: Path) -> None:
    (web[0] / "lj.tar.bz2").write_bytes(archive(ljspeech()))
    src = download_corpus("ljspeech", tmp_path / "get", url=f"{web[1]}/lj.tar.bz2", sha256=None)
    report = prepare_corpus("ljspeech", src, tmp_path / "out", num_dev=2, num_test=3)
    ids = {split: [row.id[-1] for row in rows(tmp_path / "out", split)] for split in ("train", "dev", "test")}
    assert ids == {"train": list("01234"), "dev": list("56"), "test": list("789")}
    first = rows(tmp_path / "out", "train")[0]
    assert (first.text, first.extra["text_raw"], first.speaker) == ("Doctor Number 0", "Dr. No. 0", "lj")
    assert not report.rejects


def test_ljspeech_needs_enough_clips(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="10 clips must leave some for train"):
        prepare_corpus("ljspeech", unpack(ljspeech(), tmp_path), tmp_path / "out", num_dev=5, num_test=5)


# ---- AISHELL-1 ----


def aishell(prefix: str) -> dict[str, bytes | str]:
    names = {"S0002": ("train", "W0001"), "S0724": ("dev", "W0002"), "S0764": ("test", "W0003")}
    clips = {f"wav/{split}/{speaker}/BAC009{speaker}{name}.wav": wav() for speaker, (split, name) in names.items()}
    transcript = "BAC009S0002W0001 而 对 楼市\nBAC009S0724W0002 广州 市\nBAC009S0764W0003 甚至\nBAC009S0999W0009 没有\n"
    clips["wav/train/S0002/BAC009S0002W0777.wav"] = wav()
    inner = {
        f"wav/{speaker}.tar.gz": archive({name.removeprefix("wav/"): clip for name, clip in clips.items() if speaker in name})
        for speaker in names
    }
    files = {"transcript/aishell_transcript_v0.8.txt": transcript, **inner}
    return {f"{prefix}{name}": content for name, content in files.items()}


def test_aishell1(web: tuple[Path, str], tmp_path: Path) -> None:
    packed = archive(aishell("data_aishell/"))
    (web[0] / "data_aishell.tgz").write_bytes(packed)
    md5 = hashlib.md5(packed).hexdigest()
    src = download_corpus("aishell1", tmp_path / "get", url=f"{web[1]}/data_aishell.tgz", md5=md5)
    assert not list(src.glob("wav/*.tar.gz"))
    report = prepare_corpus("aishell1", src, tmp_path / "out")
    made = {split: [(row.id, row.text, row.speaker, row.lang) for row in rows(tmp_path / "out", split)]
            for split in ("train", "dev", "test")}  # fmt: skip
    assert made == {
        "train": [("BAC009S0002W0001", "而对楼市", "S0002", "zh")],
        "dev": [("BAC009S0724W0002", "广州市", "S0724", "zh")],
        "test": [("BAC009S0764W0003", "甚至", "S0764", "zh")],
    }
    assert {reject.id for reject in report.rejects.entries} == {"BAC009S0002W0777", "BAC009S0999W0009"}
    prepare_corpus("aishell1", tmp_path / "get", tmp_path / "out", keep_spaces=True)
    assert rows(tmp_path / "out", "train")[0].text == "而 对 楼市"


# ---- Common Voice ----


def test_common_voice(tmp_path: Path) -> None:
    header = "client_id\tpath\tsentence\tup_votes\tage\tgender\tlocale\n"
    table = header + 'a1\tcommon_voice_de_1.wav\tEr sagt: "Nein\t2\ttwenties\tmale\tde\n'
    files = {
        **{f"de/{split}.tsv": table.replace("_1", f"_{n}") for n, split in enumerate(("train", "dev", "test"), 1)},
        **{f"de/clips/common_voice_de_{n}.wav": wav(0.2) for n in (1, 2)},
    }
    report = prepare_corpus("common_voice", unpack(files, tmp_path / "cv"), tmp_path / "out")
    row = rows(tmp_path / "out", "train")[0]
    assert (row.id, row.text, row.speaker, row.lang) == ("common_voice_de_1", 'Er sagt: "Nein', "a1", "de")
    assert row.duration == 0.2
    assert row.extra["age"] == "twenties"
    assert report.splits["test"].utterances == 0, "its clip is missing, and told"
    assert "common_voice_de_3" in str(report)
    with pytest.raises(FileNotFoundError, match=r"validated\.tsv"):
        prepare_corpus("common_voice", tmp_path / "cv", tmp_path / "out", splits=["train", "validated"])


def test_common_voice_download_explains(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"accept its terms at https.*speechkit prepare common_voice"):
        download_corpus("common_voice", tmp_path)


# ---- FSDD ----


def test_fsdd(web: tuple[Path, str], tmp_path: Path) -> None:
    names = [f"{digit}_{speaker}_{n}" for digit in (0, 7) for speaker in ("theo", "lucas") for n in range(50)]
    clips = {f"fsdd-1.0/recordings/{name}.wav": wav(0.05, 8000) for name in [*names, "noise"]}
    (web[0] / "v1.tar.gz").write_bytes(archive(clips))
    src = download_corpus("fsdd", tmp_path / "get", url=f"{web[1]}/v1.tar.gz")
    report = prepare_corpus("fsdd", src, tmp_path / "out")
    numbers = {split: {int(row.id.split("_")[2]) for row in rows(tmp_path / "out", split)} for split in ("train", "dev", "test")}
    assert numbers == {"test": set(range(5)), "dev": set(range(45, 50)), "train": set(range(5, 45))}
    assert [report.splits[split].utterances for split in ("train", "dev", "test")] == [160, 20, 20]
    assert {(row.text, row.speaker) for row in rows(tmp_path / "out", "dev")} == {
        (text, speaker) for text in ("zero", "seven") for speaker in ("theo", "lucas")
    }
    assert [reject.id for reject in report.rejects.entries] == ["noise"]


# ---- speechocean762 ----


def speechocean() -> dict[str, bytes | str]:
    files: dict[str, bytes | str] = {}
    for split, speakers in (("train", range(1, 11)), ("test", range(11, 13))):
        names = [(f"{speaker:04d}", f"{speaker:05d}{n:04d}") for speaker in speakers for n in range(3)]
        files[f"{split}/wav.scp"] = "".join(f"{name}\tWAVE/SPEAKER{spk}/{name}.WAV\n" for spk, name in names)
        files[f"{split}/text"] = "".join(f"{name}\tWE CALL IT BEAR\n" for _, name in names)
        files[f"{split}/utt2spk"] = "".join(f"{name}\t{spk}\n" for spk, name in names)
        files[f"{split}/spk2gender"] = "".join(f"{speaker:04d}\tf\n" for speaker in speakers)
        files[f"{split}/spk2age"] = "".join(f"{speaker:04d}\t{speaker + 5}\n" for speaker in speakers) + "0099 old\n"
        files.update({f"WAVE/SPEAKER{spk}/{name}.WAV": wav(0.1) for spk, name in names})
    return {f"speechocean762/{name}": content for name, content in files.items()}


def test_speechocean762(web: tuple[Path, str], tmp_path: Path) -> None:
    (web[0] / "so.tar.gz").write_bytes(archive(speechocean()))
    src = download_corpus("speechocean762", tmp_path / "get", url=f"{web[1]}/so.tar.gz")
    report = prepare_corpus("speechocean762", src, tmp_path / "out", dev_fraction=0.2)
    made = {split: rows(tmp_path / "out", split) for split in ("train", "dev", "test")}
    assert [len(made[split]) for split in ("train", "dev", "test")] == [24, 6, 6]
    speakers = {split: {row.speaker for row in made[split]} for split in made}
    assert not speakers["train"] & speakers["dev"]
    assert speakers["test"] == {"0011", "0012"}
    row = made["test"][0]
    assert (row.text, row.lang, row.extra) == ("we call it bear", "en", {"gender": "f", "l1": "zh", "age": 16})
    assert len(report.rejects) == 2, "the two lines without an age"
    again = prepare_corpus("speechocean762", src, tmp_path / "again", dev_fraction=0.2)
    assert again.splits == report.splits
    assert (tmp_path / "again" / "dev.jsonl").read_text() == (tmp_path / "out" / "dev.jsonl").read_text()


# ---- corpora that are in manifests already ----


@pytest.mark.parametrize("name", ["fsdd", "ljspeech", "speechocean762"])
@pytest.mark.parametrize("layout", ["{split}/manifest.jsonl", "{split}.jsonl"])
def test_manifest_directory(tmp_path: Path, name: str, layout: str) -> None:
    clip = unpack({"audio/a.wav": wav()}, tmp_path / "src") / "audio" / "a.wav"
    for split in ("train", "dev", "test"):
        path = tmp_path / "src" / layout.format(split=split)
        path.parent.mkdir(exist_ok=True)
        write_manifest(path, [Utterance(f"{split}-1", clip, 0.5, text="zero", extra={"age": 6})])
    report = prepare_corpus(name, tmp_path / "src", tmp_path / "out")
    assert list(report.splits) == ["train", "dev", "test"]
    for split in report.splits:
        (row,) = rows(tmp_path / "out", split)
        assert (row.id, row.audio_path, row.extra) == (f"{split}-1", clip, {"age": 6})


@pytest.mark.parametrize(("name", "counts"), [("fsdd", (2000, 250, 250)), ("speechocean762", (3230, 396, 653)),
                                              ("ljspeech", (286, 19, 35))])  # fmt: skip
def test_real_speech(data_root: Path, tmp_path: Path, name: str, counts: tuple[int, int, int]) -> None:
    report = prepare_corpus(name, data_root / name, tmp_path)
    assert tuple(report.splits[split].utterances for split in ("train", "dev", "test")) == counts
    assert all(row.audio_path.is_file() for row in rows(tmp_path, "test"))


# ---- a folder of one's own, and splitting ----


def folder(speakers: int, clips: int, seconds: float = 0.1) -> dict[str, bytes | str]:
    names = [f"spk{s:02d}/clip{n}" for s in range(speakers) for n in range(clips)]
    return {name + suffix: content for name in names for suffix, content in ((".wav", wav(seconds)), (".txt", f"text {name}"))}


def test_folder_by_speaker(tmp_path: Path) -> None:
    src = unpack({**folder(10, 4), "spk03/alone.wav": wav()}, tmp_path / "src")
    report = prepare_corpus("folder", src, tmp_path / "out", lang="en")
    speakers = {split: {row.speaker for row in rows(tmp_path / "out", split)} for split in ("train", "dev", "test")}
    assert [len(speakers[split]) for split in ("train", "dev", "test")] == [8, 1, 1]
    assert len(set.union(*speakers.values())) == 10
    assert [Path(reject.where).name for reject in report.rejects.entries] == ["alone.wav"]


def test_folder_by_utterance(tmp_path: Path) -> None:
    src = unpack(folder(2, 20), tmp_path / "src")
    report = prepare_corpus("folder", src, tmp_path / "out", test_fraction=0.0, dev_fraction=0.25)
    assert {split: size.utterances for split, size in report.splits.items()} == {"train": 30, "dev": 10}
    prepare_corpus("folder", src, tmp_path / "other", test_fraction=0.0, dev_fraction=0.25, seed=1)
    assert rows(tmp_path / "other", "dev") != rows(tmp_path / "out", "dev")


def test_folder_options(tmp_path: Path) -> None:
    src = unpack(folder(1, 5), tmp_path / "src")
    with pytest.raises(ValueError, match="by='word'"):
        prepare_corpus("folder", src, tmp_path / "out", by="word")
    with pytest.raises(ValueError, match="1 groups cannot fill 3 splits"):
        prepare_corpus("folder", src, tmp_path / "out", by="speaker")
    with pytest.raises(ValueError, match="fractions="):
        prepare_corpus("folder", src, tmp_path / "out", dev_fraction=0.7, test_fraction=0.3)
    unpack({"top.wav": wav(), "top.txt": "top"}, src)
    with pytest.raises(ValueError, match=r"top\.wav is in no folder"):
        prepare_corpus("folder", src, tmp_path / "out", by="speaker")


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.floats(0.1, 30.0), min_size=4, max_size=40),
    dev=st.floats(0.0, 0.4),
    test=st.floats(0.0, 0.4),
    seed=st.integers(0, 3),
)
def test_split_by_group_parts_the_groups(sizes: list[float], dev: float, test: float, seed: int) -> None:
    utterances = [Utterance(f"{g}-{n}", Path("/a.wav"), size, speaker=str(g)) for g, size in enumerate(sizes) for n in (0, 1)]
    splits = split_by_group(utterances, group=lambda row: row.speaker, fractions={"dev": dev, "test": test}, seed=seed)
    assert splits.keys() == {"train"} | ({"dev"} if dev else set()) | ({"test"} if test else set())
    assert sorted(row.id for rows in splits.values() for row in rows) == sorted(row.id for row in utterances)
    speakers = [{row.speaker for row in rows} for rows in splits.values()]
    assert sum(map(len, speakers)) == len(sizes)
    assert all(speakers)
    total, largest = 2 * sum(sizes), 2 * max(sizes)
    for name, share in (("dev", dev), ("test", test)):
        if share:
            assert sum(row.duration for row in splits[name]) <= share * total + largest


def test_write_splits_tells_repeated_ids_and_nothing_at_all(tmp_path: Path) -> None:
    row = Utterance("a", tmp_path / "a.wav", 1.0)
    rejects = Rejects()
    report = write_splits("corpus", tmp_path, {"train": [row, row], "dev": [row]}, rejects=rejects)
    assert report.splits["train"].utterances == 1
    assert "ids unique" in rejects.entries[0].reason
    with pytest.raises(ValueError, match="its id was there before"):
        write_splits("corpus", tmp_path, {"train": [row, row]})
    with pytest.raises(ValueError, match="corpus: there is nothing to write"):
        write_splits("corpus", tmp_path / "none", {"train": []})
    write_splits("corpus", tmp_path, {"train": [row]})
    assert not (tmp_path / "rejects.jsonl").exists(), "an earlier run's are gone"


def test_modules_offer_what_their_name_says() -> None:
    import importlib

    for name in corpus_names():
        module: ModuleType = importlib.import_module(f"speechkit.data.corpora.{name}")
        assert callable(getattr(module, f"prepare_{name}"))
        assert (module.__doc__ or "").strip()
