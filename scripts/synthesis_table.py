"""One table of trained synthesisers: error rates of readers, distance from recordings and speed, measured alike in one run.

    python scripts/synthesis_table.py --manifest test.jsonl --output table.md --threads 2 --reader demo-ctc \\
        "recordings=recordings" \\
        "FastSpeech 2=exp/demo_fastspeech/pretrained" \\
        "Matcha, 4 steps=exp/demo_matcha/pretrained:flow_matcha:num_steps=4" \\
        "Vocos, copy=exp/demo_vocos/pretrained" \\
        "codec, copy=exp/demo_codec/pretrained"

A row is NAME=FOLDER[:DECODE[:OPTION=VALUE...]]. FOLDER is the pretrained folder or shipped name of a synthesiser; of a vocoder
or a codec, which then copies the recordings of the manifest; or `recordings`, which are read as they are. DECODE is a
configuration of conf/decode, the model's own when it is left out, and options of it follow with values as in YAML. Mels become
waveforms by --vocoder FOLDER, or by Griffin-Lim. A row's audio stays beside the table, in TABLE/<row>/<id>.wav.

What the columns say. WER and CER: what each --reader (several may be given: speechkit/readers.py) reads of the speech against the
manifest's texts, counts summed, divided once, with bootstrap intervals. MCD, log F0 RMSE, V/UV error, duration: against the
recordings, by scripts/score_tts.py; speech without samples counts in the last alone. STOI: of copies alone, which agree with the
recordings in time, where they hold enough speech. What is left out is told on standard error. Real-time factor: seconds taken for
a second of speech, from text to waveform, after a warm-up, for batches of 8 over the whole manifest, and one by one over --timed
sentences spread evenly over all lengths; of copies, from mels to waveform. First audio: the median wait for the first piece of
`Synthesizer.stream` over the same sentences. Steps and CPU minutes: of training, as the folder says.

Rows of the manifest are spoken by their own speaker and in their own language where the model knows them; batches are of one
language each. Writes the table as Markdown and, beside it, all figures as JSON. Rows of an earlier run that are in that JSON
stay in the table, unless their name is given again; they must be of the same manifest, number of utterances, normaliser and
number of sentences spoken one by one. Exit status: 0, or 2 for input that cannot be used.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from result_table import (
    ROW,
    Row,
    comparable_rows,
    configured,
    earlier_rows,
    error_rate,
    markdown,
    parse_row,
    with_interval,
    write_table,
)
from score_tts import figures as measures
from score_tts import measure_waves, samples
from tqdm import tqdm

from speechkit.audio.io import load_audio
from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.codec import Codec
from speechkit.data.dataset import field_text
from speechkit.data.manifest import read_manifest
from speechkit.data.to_speak import known_languages, output_paths, plan_batches
from speechkit.metrics.tts import stoi, sum_measures
from speechkit.metrics.wer import UNITS, count_errors_batch
from speechkit.pretrained import find_folder, load_codec, load_synthesizer, load_vocoder, read_config
from speechkit.readers import Reader, load_reader
from speechkit.text.normalize import NORMALIZER_NAMES, get_normalizer
from speechkit.types import Utterance

RECORDINGS = "recordings"
BATCH_SIZE = 8
WARMUP_BATCHES = 2
_MEASURES = {  # name in JSON -> heading and format of the table
    "mcd": ("MCD dB", "{:.2f}"),
    "log_f0_rmse": ("log F0 RMSE", "{:.3f}"),
    "voicing_error_rate": ("V/UV error %", "{:.1%}"),
    "relative_duration": ("duration %", "{:+.1%}"),
}


class System(NamedTuple):
    """What makes the speech of a row.

    Attributes:
        speak: utterances to waveforms.
        mel: whose rate the waveforms have; distances are measured on it.
        first: utterance to the first piece of its speech; None for what does not stream.
        copies: whether the speech agrees with the recordings in time.
        facts: figures of the model for the table.
        languages: of each utterance, "" for the model's own; those that are spoken together have the same.
    """

    speak: Callable[[Sequence[Utterance]], list[np.ndarray]]
    mel: MelSpectrogram
    first: Callable[[Utterance], object] | None
    copies: bool
    facts: dict[str, Any]
    languages: list[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = _parser().parse_args(argv)
    command = shlex.join(["python", "scripts/synthesis_table.py", *(sys.argv[1:] if argv is None else argv)])
    try:
        rows = [parse_row(text) for text in args.rows]
        utterances = checked_utterances(args)
        output = Path(args.output)
        if output.suffix in ("", ".json"):
            raise ValueError(f"--output {output}: name a file that ends in .md; figures and audio take the other names")
        folders = {row.name: output.with_suffix("") / re.sub(r"\W+", "_", row.name).strip("_") for row in rows}
        if len({*folders.values()}) < len(rows):
            raise ValueError(f"rows {', '.join(repr(row.name) for row in rows)} share a folder of audio: give them other names")
        files = {
            name: output_paths(utterances, folder, suffix=".wav", manifest=args.manifest) for name, folder in folders.items()
        }
        kept = output.with_suffix(".json")
        figures = comparable_rows(earlier_rows(kept), kept, again=files.keys(), conditions=conditions(utterances, args))
        output.parent.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(args.threads)
        readers = {name: load_reader(name, device="cpu") for name in args.reader}
        for row in rows:
            system = prepare(row, utterances, args)
            figures[row.name] = measure(row, system, utterances, files[row.name], readers, args) | {"command": command}
            # row by row: a run that breaks off keeps what it measured
            write_table(output, figures, table(figures), manifest=args.manifest)
    except (ValueError, ImportError, OSError) as error:
        print(f"synthesis_table: {error}", file=sys.stderr)
        return 2
    print(table(figures))
    return 0


def checked_utterances(args: argparse.Namespace) -> list[Utterance]:
    """What is to be spoken, with recordings that are there.

    Raises:
        ValueError: there is nothing, a recording is missing, or an option is out of range.
    """
    if args.timed < 1:
        raise ValueError(f"--timed {args.timed}: must be at least 1")
    utterances = read_manifest(args.manifest)[: args.limit]
    if not utterances:
        raise ValueError(f"{args.manifest} holds no utterance")
    for number, each in enumerate(utterances, start=1):
        if not each.audio_path.is_file():
            raise ValueError(f"{args.manifest}, row {number}: {each.id}: {each.audio_path} is missing: distances need recordings")
    return utterances


def conditions(utterances: Sequence[Utterance], args: argparse.Namespace) -> dict[str, Any]:
    """What all rows of a table must have in common, for JSON."""
    return {
        "manifest": args.manifest,
        "num_utterances": len(utterances),
        "normalizer": args.normalizer,
        "num_timed_alone": min(args.timed, len(utterances)),
    }


def prepare(row: Row, utterances: Sequence[Utterance], args: argparse.Namespace) -> System:
    """The row's system.

    Raises:
        FileNotFoundError: there is no such folder.
        ImportError: a package that its figures need is not installed.
        ValueError: it holds none of what speaks, or a decode configuration is not the model's.
    """
    own = [""] * len(utterances)
    if row.folder == RECORDINGS:
        mel = MelSpectrogram.preset(16000)
        return System(lambda chosen: [_recording(each, mel.sample_rate) for each in chosen], mel, None, False, {}, own)
    directory = find_folder(row.folder)
    config = read_config(directory)
    kind = config["kind"]
    facts = dict(config.get("training", {}))
    if kind == "synthesizer":
        return _synthesizer(row, utterances, args, facts)
    if row.decode:
        raise ValueError(f"row {row.name!r}: a {kind} takes no decode={row.decode}")
    if kind not in ("vocoder", "codec"):
        raise ValueError(f"row {row.name!r}: {directory} holds a {kind}, which makes no speech")
    if importlib.util.find_spec("pystoi") is None:
        raise ImportError(f'row {row.name!r}: STOI of copies needs pystoi; pip install "speechkit[tts]"')
    if kind == "vocoder":
        vocoder = load_vocoder(row.folder, device="cpu")
        facts["num_parameters"] = sum(parameter.numel() for parameter in vocoder.parameters())
        return System(partial(_vocoded, vocoder), vocoder.mel, None, True, facts, own)
    codec = load_codec(row.folder, device="cpu", vocoder=args.vocoder)
    facts["num_parameters"] = codec.num_parameters()
    return System(partial(_coded, codec), codec.mel, None, True, facts, own)


def _synthesizer(row: Row, utterances: Sequence[Utterance], args: argparse.Namespace, facts: dict[str, Any]) -> System:
    synthesizer = load_synthesizer(row.folder, device="cpu", vocoder=args.vocoder)
    synthesizer.options = configured(row, infer=synthesizer.infer, options=synthesizer.options)
    languages = known_languages(utterances, synthesizer.languages)
    language_of = {each.id: language or None for each, language in zip(utterances, languages, strict=True)}

    def speaker(utterance: Utterance) -> str | None:
        return utterance.speaker if utterance.speaker in synthesizer.speakers else None

    def text(utterance: Utterance) -> str:
        return utterance.text if args.text_field == "text" else field_text(utterance, args.text_field)

    def speak(chosen: Sequence[Utterance]) -> list[np.ndarray]:
        [language] = {language_of[each.id] for each in chosen}
        made = synthesizer.synthesize(
            [text(each) for each in chosen],
            speaker=[speaker(each) for each in chosen],
            language=language,
            batch_size=BATCH_SIZE,
        )
        return [each.wave for each in made]

    def first(utterance: Utterance) -> object:
        language = language_of[utterance.id]
        return next(synthesizer.stream(text(utterance), speaker=speaker(utterance), language=language))

    facts["num_parameters"] = synthesizer.num_parameters()
    return System(speak, synthesizer.mel, first, False, facts, languages)


def measure(
    row: Row,
    system: System,
    utterances: Sequence[Utterance],
    paths: Sequence[Path],
    readers: dict[str, Reader],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """All figures of a row, ready for JSON, its audio in the files given; rates are fractions."""
    texts = [each.text for each in utterances]
    batches = plan_batches(texts, system.languages, batch_size=BATCH_SIZE)
    together, together_factor = _timed(system, utterances, batches, title=f"{row.name}, batches of {BATCH_SIZE}")
    singles = [[i] for i in spread(texts, args.timed)]
    alone, alone_factor = _timed(system, utterances, singles, title=f"{row.name}, one by one")
    firsts = [] if system.first is None else [_seconds(system.first, utterances[i]) for [i] in singles]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, together[i], system.mel.sample_rate, subtype="PCM_16")
    is_speech = row.folder != RECORDINGS
    return {
        "name": row.name,
        "folder": row.folder,
        "decode": row.decode,
        "options": row.options,
        "vocoder": args.vocoder,
        **conditions(utterances, args),
        **system.facts,
        "readers": {name: _score(utterances, reader(paths), args.normalizer) for name, reader in readers.items()},
        "measures": _measure(row, utterances, paths, system.mel) if is_speech else None,
        **(_stoi(row, utterances, together, system.mel.sample_rate) if system.copies else {"stoi": None, "num_stoi": None}),
        "real_time_factor": {"1": alone_factor, str(BATCH_SIZE): together_factor} if is_speech else None,
        "first_audio_s": statistics.median(firsts) if firsts else None,
        "largest_difference": max(_difference(alone[i], together[i]) for i in alone),
        "threads": torch.get_num_threads(),
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def spread(texts: Sequence[str], most: int) -> list[int]:
    """Numbers of at most so many texts, spread evenly over all when these are in order of length."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    num = min(most, len(order))
    return [order[(2 * k + 1) * len(order) // (2 * num)] for k in range(num)]


def _timed(
    system: System, utterances: Sequence[Utterance], batches: Sequence[Sequence[int]], *, title: str
) -> tuple[dict[int, np.ndarray], float]:
    """Waveforms by utterance, and seconds taken for a second of them; the warm-up does not count."""
    made: dict[int, np.ndarray] = {}
    audio_s = taken_s = 0.0
    for number, indices in enumerate(tqdm(batches, desc=title, disable=not sys.stderr.isatty(), leave=False)):
        chosen = [utterances[i] for i in indices]
        if number < WARMUP_BATCHES:
            system.speak(chosen)
        begin = time.perf_counter()
        waves = system.speak(chosen)
        taken_s += time.perf_counter() - begin
        audio_s += sum(map(len, waves)) / system.mel.sample_rate
        made |= zip(indices, waves)
    return made, taken_s / audio_s if audio_s else float("inf")


@torch.inference_mode()
def _vocoded(model: Any, chosen: Sequence[Utterance]) -> list[np.ndarray]:
    waves = [torch.from_numpy(_recording(each, model.mel.sample_rate)) for each in chosen]
    lens_B = torch.tensor([len(wave_N) for wave_N in waves])
    mel_BTF, mel_lens_B = model.mel(torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), lens_B)
    wave_BN, lens_B = model.vocode(mel_BTF, mel_lens_B)
    return [wave_N[:num].numpy() for wave_N, num in zip(wave_BN, lens_B.tolist(), strict=True)]


def _coded(codec: Codec, chosen: Sequence[Utterance]) -> list[np.ndarray]:
    return codec.copy([_recording(each, codec.sample_rate) for each in chosen], batch_size=BATCH_SIZE)


def _recording(utterance: Utterance, sample_rate: int) -> np.ndarray:
    wave_N, _ = load_audio(utterance.audio_path, sample_rate=sample_rate, start=utterance.start, duration=utterance.duration)
    return wave_N


def _seconds(function: Callable[[Utterance], object], utterance: Utterance) -> float:
    begin = time.perf_counter()
    function(utterance)
    return time.perf_counter() - begin


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    if len(one) != len(other):
        return float("inf")
    return float(np.abs(one - other).max(initial=0.0))


def _score(utterances: Sequence[Utterance], heard: Sequence[str], normalizer: str) -> dict[str, Any]:
    """Error rates of a reader with intervals."""
    normalize = get_normalizer(normalizer)
    refs, hyps = [normalize(each.text) for each in utterances], [normalize(text) for text in heard]
    return {unit: error_rate(count_errors_batch(refs, hyps, unit)) for unit in UNITS}


def _measure(row: Row, utterances: Sequence[Utterance], paths: Sequence[Path], mel: MelSpectrogram) -> dict[str, Any]:
    """Distance from the recordings."""
    found = []
    for each, path in zip(utterances, paths, strict=True):
        try:
            found.append(measure_waves(_recording(each, mel.sample_rate), samples(path, mel.sample_rate), mel, order=24))
        except ValueError as error:
            raise ValueError(f"{each.id}: {error}") from error
    total = sum_measures(found)
    if total.unaligned:
        print(f"{row.name}: {total.unaligned} of {total.utterances} have no samples and count in duration alone", file=sys.stderr)
    return measures(total, mel)


def _stoi(row: Row, utterances: Sequence[Utterance], made: dict[int, np.ndarray], sample_rate: int) -> dict[str, Any]:
    """Mean STOI of copies, and of how many: those that it is not defined for are left out."""
    values, left_out = [], []
    for i, utterance in enumerate(utterances):
        wave_N = _recording(utterance, sample_rate)
        num = min(len(wave_N), len(made[i]))
        try:
            values.append(stoi(wave_N[:num], made[i][:num], sample_rate))
        except ValueError as error:
            left_out.append(f"{utterance.id}: {error}")
    if left_out:
        message = f"STOI leaves out {len(left_out)} of {len(utterances)}, first {left_out[0]}"
        print(f"{row.name}: {message}", file=sys.stderr)
    return {"stoi": statistics.fmean(values) if values else None, "num_stoi": len(values)}


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown."""
    readers = list(dict.fromkeys(name for row in figures.values() for name in row["readers"]))
    head = ["row", "parameters", "steps", "CPU minutes", *(f"WER / CER % by {name} (95 %)" for name in readers)]
    head += [*(heading for heading, _ in _MEASURES.values()), "STOI"]
    head += ["real-time factor, batch 1", f"batch {BATCH_SIZE}", "first audio, s"]
    lines = [head]
    for row in figures.values():
        lines.append(
            [
                row["name"],
                f"{row['num_parameters'] / 1e6:.2f}M" if "num_parameters" in row else "",
                f"{row['steps']:,}" if "steps" in row else "",
                f"{row['cpu_minutes']:.0f}" if "cpu_minutes" in row else "",
                *(_rates(row["readers"].get(name)) for name in readers),
                *(_measure_cell(row["measures"], name, form) for name, (_, form) in _MEASURES.items()),
                "" if row["stoi"] is None else f"{row['stoi']:.3f}",
                *(_factor(row["real_time_factor"], size) for size in ("1", str(BATCH_SIZE))),
                "" if row["first_audio_s"] is None else f"{row['first_audio_s']:.3f}",
            ]
        )
    return markdown(lines)


def _rates(found: dict[str, dict[str, float | None]] | None) -> str:
    return "" if found is None else f"{with_interval(found['word'])} / {with_interval(found['char'])}"


def _factor(factors: dict[str, float] | None, size: str) -> str:
    return "" if factors is None else f"{factors[size]:.4f}"


def _measure_cell(found: dict[str, Any] | None, name: str, form: str) -> str:
    value = None if found is None else found[name]
    return "" if value is None else form.format(value).rstrip("%")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="synthesis_table.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="+", metavar=ROW)
    parser.add_argument("--manifest", required=True, help="texts to speak, with their recordings")
    parser.add_argument("--output", required=True, metavar="TABLE.md", help="Markdown table; TABLE.json and TABLE/ beside it")
    parser.add_argument("--text-field", default="text", help="field of the manifest that is spoken (default: text)")
    parser.add_argument("--reader", action="append", required=True, help="recogniser that reads the speech; repeat for several")
    parser.add_argument("--vocoder", metavar="FOLDER", help="makes waveforms of mels (default: Griffin-Lim)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch (default: 2)")
    parser.add_argument("--timed", type=int, default=20, help="sentences spoken one by one (default: 20)")
    parser.add_argument("--limit", type=int, help="speak the first so many sentences only, to try things out")
    parser.add_argument(
        "--normalizer", default="basic", choices=NORMALIZER_NAMES, help="applied to references and hypotheses (default: basic)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
