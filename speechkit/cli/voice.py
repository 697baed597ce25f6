"""The command that speaks."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speechkit.cli.run import fail

if TYPE_CHECKING:
    from speechkit.types import Synthesis


@click.command(short_help="Speak a text, a file or standard input.")
@click.argument("text", nargs=-1)
@click.option("-i", "--input", "source", type=click.File("r", encoding="utf-8"), help="Text file to speak; - for standard input.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Sound file: .wav, .flac or .ogg.")
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
@click.option("--prompt", type=click.Path(exists=True, dir_okay=False), help="Speech of the voice to imitate.")
@click.option("--prompt-text", help="What is said in it.")
@click.option("--alignment", type=click.Path(dir_okay=False, path_type=Path), help="JSON file for the phones and their times.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Picture of the spectrogram, phones and pitch.")
@click.option("--device", help="cpu, cuda, cuda:1, ...  [default: the GPU when there is one]")
def synthesize(
    text: tuple[str, ...],
    source: Any,
    output: Path | None,
    model: str,
    vocoder: str | None,
    alignment: Path | None,
    plot: Path | None,
    device: str | None,
    **asked: Any,
) -> None:
    """Speak TEXT, or what a file or a pipe holds.

    \b
    speechkit synthesize "The bottle costs two euros." -o a.wav
    speechkit synthesize -i chapter.txt -o chapter.flac --speed 1.1
    echo "Good morning." | speechkit synthesize -i - | aplay

    Without -o the sound goes to standard output as WAV.
    """
    if bool(text) == (source is not None):
        fail("give a TEXT, or a file by -i (- for standard input)")
    if output is None and sys.stdout.isatty():
        fail("standard output is a terminal: add -o a.wav, or pipe the sound into a player")
    from speechkit.pretrained import load_synthesizer

    try:
        synthesizer = load_synthesizer(model, device=device, vocoder=vocoder)
        made = synthesizer.synthesize(" ".join(text) if text else source.read(), **asked)
        if not len(made.wave):
            fail("there is nothing to say in this text")
        _write_audio(made, output)
        if alignment is not None:
            phones = [{"phone": phone.symbol, "start": phone.start, "end": phone.end} for phone in made.alignment]
            alignment.write_text(json.dumps(phones, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        if plot is not None:
            from speechkit.plots import plot_synthesis

            plot_synthesis(made, synthesizer.mel, plot)
    except (ValueError, OSError, ImportError) as error:
        fail(error)


def _write_audio(made: Synthesis, output: Path | None) -> None:
    """A sound file, by its suffix, or WAV on standard output."""
    if output is None:
        import soundfile

        coded = io.BytesIO()
        soundfile.write(coded, made.wave, made.sample_rate, format="WAV", subtype="PCM_16")
        sys.stdout.buffer.write(coded.getvalue())
        sys.stdout.buffer.flush()
    else:
        from speechkit.audio.io import save_audio, speech_subtype

        save_audio(output, made.wave, made.sample_rate, subtype=speech_subtype(output, made.sample_rate))
        click.echo(f"{output}: {len(made.wave) / made.sample_rate:.2f} s at {made.sample_rate} Hz", err=True)
