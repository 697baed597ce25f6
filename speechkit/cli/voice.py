"""The command that speaks."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speechkit.cli.run import fail

if TYPE_CHECKING:
    from speechkit.types import Synthesis, TimedPhone


OUTPUT = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Speak a text, a file or standard input.")
@click.argument("text", nargs=-1)
@click.option("-i", "--input", "source", type=click.File("r", encoding="utf-8"), help="Text file to speak; - for standard input.")
@click.option("-o", "--output", type=OUTPUT, help="Sound file: .wav, .flac or .ogg; - for WAV on standard output.  [default: -]")
@click.option(
    "-m",
    "--model",
    default="demo-fastspeech",
    show_default=True,
    envvar="SPEECHKIT_VOICE",
    help="Shipped name, folder, or hub name.",
)
@click.option("--vocoder", help="Folder of a trained vocoder.  [default: Griffin-Lim]")
@click.option("--speaker", help="Name of the voice, for models of several.")
@click.option("--language", help="Language code of the text, for models of several.")
@click.option("--speed", type=float, help="2.0 speaks twice as fast.")
@click.option("--pitch", type=float, help="Semitones up.")
@click.option("--seed", default=0, show_default=True, help="Of all random numbers.")
@click.option("--pauses", default=1.0, show_default=True, help="Length of pauses between sentences; 0 for none.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the model's family, such as energy=1.0 or num_steps=16; repeatable.",
)
@click.option("--prompt", type=click.Path(exists=True, dir_okay=False), help="Speech of the voice to imitate.")
@click.option("--prompt-text", help="What is said in it.")
@click.option("--alignment", type=OUTPUT, help="JSON file for the phones and their times.")
@click.option("--plot", type=OUTPUT, help="Picture of the spectrogram, phones and pitch.")
@click.option("--batch-size", default=8, show_default=True, help="Pieces of text spoken together; it changes the speed alone.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: torch's choice]")
@click.option("--device", help="cpu, cuda, cuda:1, ...  [default: the GPU when there is one]")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16", "float16"]))
def synthesize(
    text: tuple[str, ...],
    source: Any,
    output: Path | None,
    model: str,
    vocoder: str | None,
    alignment: Path | None,
    plot: Path | None,
    options: tuple[str, ...],
    threads: int | None,
    device: str | None,
    dtype: str,
    **asked: Any,
) -> None:
    """Speak TEXT, or what a file or a pipe holds.

    \b
    speechkit synthesize "The bottle costs two euros." -o a.wav
    speechkit synthesize -i chapter.txt -o chapter.flac --speed 1.1
    echo "Good morning." | speechkit synthesize -i - | aplay

    A text is written piece by piece, as it is spoken. On standard output the first piece is short, so that it comes early.
    """
    if bool(text) == (source is not None):
        fail("give a TEXT, or a file by -i (- for standard input)")
    output = None if output == Path("-") else output
    if output is None and sys.stdout.isatty():
        fail("standard output is a terminal: add -o a.wav, or pipe the sound into a player")
    try:
        asked.update(_options(options, taken={*asked, "first_chars"}))
        _check_outputs(output, alignment, plot)
        import torch

        from speechkit.pretrained import load_synthesizer

        if threads is not None:
            torch.set_num_threads(threads)
        synthesizer = load_synthesizer(model, device=device, dtype=dtype, vocoder=vocoder)
        if output is not None:
            asked["first_chars"] = None  # nobody waits for the first piece: it need not be short
        pieces = synthesizer.stream(" ".join(text) if text else source.read(), **asked)
        phones: list[TimedPhone] = []
        kept: list[Synthesis] = []
        for piece in _written(pieces, output, synthesizer.sample_rate):
            phones += piece.alignment if alignment is not None else ()
            kept += [piece] if plot is not None else []
        if alignment is not None:
            rows = [{"phone": phone.symbol, "start": phone.start, "end": phone.end} for phone in phones]
            alignment.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        if plot is not None:
            from speechkit.audio.joining import joined
            from speechkit.plots import plot_synthesis

            plot_synthesis(joined(kept, text=" ".join(piece.text for piece in kept), mel=synthesizer.mel), synthesizer.mel, plot)
    except (ValueError, OSError, ImportError) as error:
        fail(error)


def _options(given: Iterable[str], *, taken: set[str]) -> dict[str, Any]:
    """Options of the form key=value, their values as JSON or else as text."""
    found: dict[str, Any] = {}
    for each in given:
        name, sign, value = each.partition("=")
        if not sign or not name.isidentifier():
            raise ValueError(f"--option {each}: give it as KEY=VALUE, such as energy=1.0")
        if name in taken:
            raise ValueError(f"--option {each}: this is an option of the command itself; give --{name.replace('_', '-')}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _check_outputs(output: Path | None, *others: Path | None) -> None:
    """Refuses what cannot be written, before anything is spoken."""
    from speechkit.audio.io import speech_subtype

    if output is not None:
        speech_subtype(output, 16000)
    for path in (output, *others):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}; make it first, or give another")


def _written(pieces: Iterator[Synthesis], output: Path | None, sample_rate: int) -> Iterator[Synthesis]:
    """Writes pieces as they come, hands them on, and says at the end how long they are."""
    from speechkit.audio.speech_file import part_of, speech_file, wav_stream

    started, latency, num_samples = time.perf_counter(), 0.0, 0
    file = wav_stream(sys.stdout.buffer, sample_rate) if output is None else speech_file(output, sample_rate)
    with file as write:
        try:
            for piece in pieces:
                latency = latency or time.perf_counter() - started
                write(piece.wave)
                num_samples += len(piece.wave)
                yield piece
        except KeyboardInterrupt:
            if output is not None and num_samples:
                click.echo(f"{part_of(output)}: {num_samples / sample_rate:.2f} s, spoken until the interruption", err=True)
            raise
        if not num_samples:
            raise ValueError("there is nothing to say in this text")
    seconds = f"first audio after {latency:.2f} s, {num_samples / sample_rate:.2f} s at {sample_rate} Hz"
    click.echo(seconds if output is None else f"{output}: {seconds}", err=True)
