"""Objective measures of synthetic speech against recordings: MCD, F0, voicing and duration errors, likeness of voices, quality.

    python scripts/score_tts.py pairs.jsonl
    python scripts/score_tts.py pairs.jsonl --sample-rate 16000 --rows rows.jsonl --json tts.json --worst 5
    python scripts/score_tts.py pairs.jsonl --speaker-model exp/demo_speaker/pretrained
    python scripts/score_tts.py copies.jsonl --copy --mos dnsmos --plot tts.png
    python scripts/score_tts.py pairs.jsonl --mos utmos --mos-weights utmos_state_dict.pt

Each row of pairs.jsonl has `id`, `ref_audio` and `audio`: the files of the recording and of the synthesis, relative to
pairs.jsonl. Where one holds no samples the row counts in durations alone, and the report says how many there are. Both are
brought to one rate, and mel-cepstra are taken from the mel spectrogram for synthesis at that rate: compare figures of one rate
only. Definitions are in speechkit/metrics/tts.py; sums over all utterances are divided once. With a speaker encoder
(`speechkit train experiment=<corpus>_speaker`) SECS is the cosine of its embeddings of both files, averaged over utterances;
compare figures of one encoder only. --copy is for what a vocoder or codec made of the recordings themselves, with the same
times: it adds STOI, and wide-band PESQ where the package pesq is installed. --mos adds the opinion score that a model of
listeners gives to the synthesis, and to the recording for comparison (extra `mos`; speechkit/metrics/quality.py). Where rows
have `audio_s` and `decode_s`, scripts/rtfx.py reports the speed. The report is printed before files are written. Exit status:
0, or 2 for input that cannot be used.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import speechkit
from speechkit.audio.io import audio_info, load_audio
from speechkit.audio.pitch import f0
from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.metrics.hyps import read_hyps
from speechkit.metrics.quality import RATE, load_opinion_score, pesq
from speechkit.metrics.tts import SynthesisSums, measure_synthesis, speaker_similarity, stoi, sum_measures
from speechkit.plots import plot_distributions
from speechkit.pretrained import load_speaker_encoder
from speechkit.speaker_encoder import SpeakerEncoder

COPY_SECONDS = 0.1  # by so much a copy may be longer or shorter at its end

_COLUMNS = {  # name in JSON -> heading and format of the table
    "mcd": ("MCD dB", "{:.2f}"),
    "log_f0_rmse": ("log F0 RMSE", "{:.3f}"),
    "f0_rmse_cents": ("cents", "{:.0f}"),
    "voicing_error_rate": ("V/UV error %", "{:.2%}"),
    "duration_error_s": ("duration error s", "{:.3f}"),
    "relative_duration": ("relative %", "{:+.2%}"),
    "speaker_similarity": ("SECS", "{:.3f}"),
    "stoi": ("STOI", "{:.3f}"),
    "pesq": ("PESQ", "{:.2f}"),
    "mos": ("MOS", "{:.2f}"),
    "ref_mos": ("of recordings", "{:.2f}"),
}
_AVERAGED = ("speaker_similarity", "stoi", "pesq", "mos", "ref_mos")  # over utterances


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        if args.worst < 0:
            raise ValueError(f"--worst {args.worst}: must not be negative")
        check_writable({"--plot": args.plot, "--rows": args.rows, "--json": args.json})
        mel = MelSpectrogram.preset(args.sample_rate)
        path = Path(args.pairs)
        pairs = read_hyps(path, texts=("ref_audio", "audio"))
        total, rows = measure_all(pairs, path.parent, mel, args)
        everything = {"id": "all", **figures(total, mel)}
        everything |= {name: _mean([row[name] for row in rows]) for name in _AVERAGED if name in rows[0]}
        worst = sorted(rows, key=lambda row: (-math.inf if row["mcd"] is None else -row["mcd"], row["id"]))[: args.worst]
        _print_report(path, total, [everything, *worst], args)  # first: files may fail
        if args.rows:
            Path(args.rows).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        if args.json:
            report = {
                "path": str(path),
                **{name: value for name, value in everything.items() if name != "id"},
                "sums": asdict(total),
                "order": args.order,
                "mel": mel.settings(),
                **({} if args.mos is None else {"mos_predictor": args.mos}),
                "versions": {"speechkit": speechkit.__version__},
            }
            Path(args.json).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if args.plot:
            columns = {"mcd": ("MCD, dB", 1), "relative_duration": ("length against the recording, %", 100)}
            values = {title: [row[name] * by for row in rows if row[name] is not None] for name, (title, by) in columns.items()}
            plot_distributions(values, args.plot)
    except (ValueError, OSError, ImportError) as error:
        print(f"score_tts: {error}", file=sys.stderr)
        return 2
    return 0


def check_writable(paths: Mapping[str, str | None]) -> None:
    """Refuses files that cannot be written, by option, before anything is measured.

    Raises:
        ValueError: a folder is not there or closed, or the file is a folder.
    """
    for option, path in paths.items():
        if path is None:
            continue
        parent = Path(path).parent
        if Path(path).is_dir() or not (parent.is_dir() and os.access(parent, os.W_OK)):
            raise ValueError(f"{option} {path} cannot be written: give a file in a folder that is there")


def measure_all(
    pairs: Sequence[Mapping[str, Any]], folder: Path, mel: MelSpectrogram, args: argparse.Namespace
) -> tuple[SynthesisSums, list[dict[str, Any]]]:
    """Sums over all rows, and the figures of each.

    Raises:
        ImportError: a package that a figure needs is not installed.
        ValueError: a file, a model or an option cannot be used.
    """
    encoder = None if args.speaker_model is None else load_speaker_encoder(args.speaker_model)
    if args.mos is None and args.mos_weights is not None:
        raise ValueError(f"--mos-weights {args.mos_weights}: say by --mos what they are for")
    predict = None if args.mos is None else load_opinion_score(args.mos, weights=args.mos_weights)
    if args.copy and importlib.util.find_spec("pesq") is None:
        print('score_tts: no PESQ without pesq; pip install "speechkit[mos]"', file=sys.stderr)
    measures: list[SynthesisSums] = []
    rows: list[dict[str, Any]] = []
    for pair in tqdm(pairs, unit="utt", disable=None, leave=False):
        measures.append(measure_pair(pair, folder, mel, order=args.order))
        rows.append({"id": pair["id"], **figures(measures[-1], mel)})
        is_empty = bool(measures[-1].unaligned)
        if encoder is not None:
            rows[-1]["speaker_similarity"] = None if is_empty else measure_voice(pair, folder, encoder)
        if args.copy:
            rows[-1] |= _no_copy() if is_empty else measure_copy(pair, folder)
    if predict is not None:
        heard = [i for i, each in enumerate(measures) if not each.unaligned]
        for name, field in (("mos", "audio"), ("ref_mos", "ref_audio")):
            scores = dict(zip(heard, predict([folder / pairs[i][field] for i in heard]), strict=True)) if heard else {}
            for i, row in enumerate(rows):
                row[name] = float(scores[i]) if i in scores else None
    return sum_measures(measures), rows


def measure_pair(pair: Mapping[str, Any], folder: Path, mel: MelSpectrogram, *, order: int) -> SynthesisSums:
    """Measures of one row; one file without samples makes it count as unaligned.

    Raises:
        ValueError: a file cannot be read as audio, or the order is out of range; the message names the row.
    """
    try:
        ref_N, syn_N = (samples(folder / pair[name], mel.sample_rate) for name in ("ref_audio", "audio"))
        return measure_waves(ref_N, syn_N, mel, order=order)
    except (ValueError, OSError) as error:
        raise ValueError(f"{pair['id']}: {error}") from error


def samples(path: Path, sample_rate: int) -> np.ndarray:
    """Samples of a file, float32, shape (N,), N = 0 allowed.

    Raises:
        ValueError: it cannot be read as audio.
    """
    return load_audio(path, sample_rate=sample_rate)[0] if audio_info(path).num_samples else np.zeros(0, np.float32)


def measure_waves(ref_N: np.ndarray, syn_N: np.ndarray, mel: MelSpectrogram, *, order: int) -> SynthesisSums:
    """Measures of a recording and its synthesis, both at the rate of the mel spectrogram, shape (N,), N = 0 allowed.

    Raises:
        ValueError: the order is out of range.
    """
    return measure_synthesis(*_frames(ref_N, mel), *_frames(syn_N, mel), order=order)


def measure_voice(pair: Mapping[str, Any], folder: Path, encoder: SpeakerEncoder) -> float:
    """Cosine of the speaker embeddings of recording and synthesis.

    Raises:
        ValueError: a file cannot be read as audio; the message names the row.
    """
    try:
        return speaker_similarity(*encoder.embed([folder / pair[name] for name in ("ref_audio", "audio")]))
    except (ValueError, OSError) as error:
        raise ValueError(f"{pair['id']}: {error}") from error


def measure_copy(pair: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """STOI of a copy, and PESQ where its package is installed; both at 16 kHz.

    Raises:
        ImportError: pystoi is not installed.
        ValueError: a file cannot be read as audio or holds too little speech, or the lengths differ; the message names the row.
    """
    try:
        ref_N, syn_N = (load_audio(folder / pair[name], sample_rate=RATE)[0] for name in ("ref_audio", "audio"))
        if abs(len(ref_N) - len(syn_N)) > COPY_SECONDS * RATE:
            seconds = f"{len(ref_N) / RATE:.2f} s and the synthesis {len(syn_N) / RATE:.2f} s"
            raise ValueError(f"the recording lasts {seconds}: --copy is for speech with the same times")
        shorter = min(len(ref_N), len(syn_N))
        ref_N, syn_N = ref_N[:shorter], syn_N[:shorter]
        found = {"stoi": stoi(ref_N, syn_N, RATE)}
        return found if importlib.util.find_spec("pesq") is None else {**found, "pesq": pesq(ref_N, syn_N)}
    except (ValueError, OSError) as error:
        raise ValueError(f"{pair['id']}: {error}") from error


def _no_copy() -> dict[str, None]:
    """What `measure_copy` gives for speech that is not there."""
    return {"stoi": None} if importlib.util.find_spec("pesq") is None else {"stoi": None, "pesq": None}


def figures(found: SynthesisSums, mel: MelSpectrogram) -> dict[str, Any]:
    """Figures of an utterance or of many, by name; None where there is nothing to divide by."""
    values = {
        "mcd": found.cepstra.mcd,
        "log_f0_rmse": found.pitch.log_f0_rmse,
        "f0_rmse_cents": found.pitch.f0_rmse_cents,
        "voicing_error_rate": found.pitch.voicing_error_rate,
        "duration_error_s": found.duration.mean_absolute * mel.frame_shift,
        "relative_duration": found.duration.relative_total,
        "ref_s": found.duration.ref * mel.frame_shift,
        "syn_s": found.duration.syn * mel.frame_shift,
    }
    return {"num_utterances": found.utterances, "num_unaligned": found.unaligned} | {
        name: value if math.isfinite(value) else None for name, value in values.items()
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Over the rows that have one."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _frames(wave_N: np.ndarray, mel: MelSpectrogram) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel power and pitch of a waveform."""
    mel_BTF, _ = mel(torch.from_numpy(wave_N)[None], torch.tensor([len(wave_N)]))
    f0_T = f0(wave_N, mel.sample_rate, hop_length=mel.hop_length, padding=mel.padding).f0_T
    return 2 / mel.power * np.log(mel.undo_log(mel_BTF)[0].double().numpy()), f0_T


def _print_report(path: Path, total: SynthesisSums, rows: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> None:
    print(f"{path}: {total.utterances} utterances at {args.sample_rate} Hz, mel-cepstra 1 to {args.order}")
    if total.unaligned:
        print(f"  {total.unaligned} of them without samples on one side: these count in durations alone")
    columns = {name: column for name, column in _COLUMNS.items() if name in rows[0]}
    table = [["", *(heading for heading, _ in columns.values())]]
    for row in rows:
        cells = ["-" if row[name] is None else form.format(row[name]).rstrip("%") for name, (_, form) in columns.items()]
        table.append([row["id"], *cells])
    widths = [max(len(line[k]) for line in table) for k in range(len(table[0]))]
    for line in table:
        print("  " + "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))]).rstrip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="score_tts.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", help="JSONL with id, ref_audio and audio in each row")
    parser.add_argument("--sample-rate", type=int, default=22050, help="Hz: 16000, 22050 (default) or 24000")
    parser.add_argument("--order", type=int, default=24, help="number of mel-cepstra (default 24)")
    parser.add_argument("--speaker-model", metavar="FOLDER", help="speaker encoder, for the likeness of voices")
    parser.add_argument("--copy", action="store_true", help="copy synthesis, with the same times: STOI and PESQ too")
    parser.add_argument("--mos", metavar="NAME", help="opinion scores by dnsmos, utmos or module:function")
    parser.add_argument("--mos-weights", metavar="FILE", help="weights of utmos")
    parser.add_argument("--plot", metavar="FILE", help="picture of how MCD and length are distributed over utterances")
    parser.add_argument("--worst", type=int, default=0, metavar="N", help="show the N utterances of the highest MCD")
    parser.add_argument("--rows", metavar="FILE", help="write the figures of each utterance as JSONL")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
