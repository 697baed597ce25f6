"""Commands that use a trained model on audio."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from speechkit.cli.run import fail

if TYPE_CHECKING:
    from speechkit.types import Hypothesis

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".mp4", ".webm", ".aif", ".aiff", ".aac", ".wma"}
FORMATS = ("txt", "json", "srt", "vtt", "tsv", "all")


@click.command()
@click.argument("audio", nargs=-1, required=True)
@click.option(
    "-m",
    "--model",
    default="demo-ctc",
    show_default=True,
    envvar="SPEECHKIT_MODEL",
    help="Shipped name, folder, or hub name.",
)
@click.option(
    "-f",
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(FORMATS),
    help="Output format; repeatable.  [default: txt]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Directory for one file per recording; default: standard output.",
)
@click.option("--batch-size", default=8, show_default=True, help="Windows decoded together; never changes the text.")
@click.option("--timestamps", type=click.Choice(["word", "token"]), help="Times in json; subtitles have them anyway.")
@click.option("--language", help="Language code, for models that know several.")
@click.option("--device", help="cpu, cuda, cuda:1, ...  [default: the GPU when there is one]")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16", "float16"]))
def transcribe(
    audio: tuple[str, ...],
    model: str,
    formats: tuple[str, ...],
    output: Path | None,
    batch_size: int,
    timestamps: str | None,
    language: str | None,
    device: str | None,
    dtype: str,
) -> None:
    """Transcribe audio files, directories of them, or standard input (-).

    Any format, sample rate, channel count and length. An unreadable file costs one line on standard error and the exit
    code 1; the others are transcribed all the same.
    """
    from tqdm import tqdm

    from speechkit.pretrained import load_recognizer
    from speechkit.transcripts import FORMATS as WRITERS
    from speechkit.transcripts import NEEDS_WORDS

    chosen = [name for name in WRITERS if name in formats or "all" in formats] or ["txt"]
    if output is None and len(chosen) > 1:
        fail("several formats need a directory to write to: add -o DIR")
    if any(name in NEEDS_WORDS for name in chosen) and timestamps is None:
        timestamps = "word"
    sources = list(_find_audio(audio))
    try:
        recognizer = load_recognizer(model, device=device, dtype=dtype)
        results = recognizer.transcribe_iter(
            (sys.stdin.buffer.read() if name == "-" else name for name, _ in sources),
            batch_size=batch_size,
            timestamps=timestamps,
            language=language,
            on_error="return",
        )
        failed = 0
        bar = tqdm(results, total=len(sources), unit="file", disable=not sys.stderr.isatty() or len(sources) < 2)
        for index, hypothesis in bar:
            name, stem = sources[index]
            if hypothesis.error:
                failed += 1
                click.echo(f"error: {hypothesis.error}", err=True)
                continue
            _write(hypothesis, name, stem, chosen, output, many=len(sources) > 1)
    except (ValueError, OSError) as error:
        fail(error)
    if failed:
        raise SystemExit(1)


def _find_audio(arguments: Iterable[str]) -> Iterable[tuple[str, Path]]:
    """Each recording with the relative path, less the suffix, that its transcript is named after.

    Two recordings of one folder that differ only in the suffix keep it, so that no transcript overwrites another.
    """
    found: list[tuple[str, Path]] = []
    for argument in arguments:
        path = Path(argument)
        if argument != "-" and path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in AUDIO_SUFFIXES)
            if not files:
                fail(f"directory {argument} holds no audio file ({', '.join(sorted(AUDIO_SUFFIXES))})")
            found += [(str(file), file.relative_to(path)) for file in files]
        else:
            found.append((argument, Path("stdin.raw" if argument == "-" else path.name)))
    stems = [relative.with_suffix("") for _, relative in found]
    return [(name, stem if stems.count(stem) == 1 else relative) for (name, relative), stem in zip(found, stems)]


def _write(hypothesis: Hypothesis, name: str, stem: Path, formats: Sequence[str], output: Path | None, *, many: bool) -> None:
    """Writes one transcript: to files below `output`, or to standard output (with the file's name when there are many)."""
    from speechkit.transcripts import FORMATS as WRITERS

    for chosen in formats:
        text = WRITERS[chosen](hypothesis)
        if output is not None:
            path = output / stem.parent / f"{stem.name}.{chosen}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not many:
            click.echo(text, nl=False)
        elif chosen == "json":
            click.echo(json.dumps({"audio_filepath": name, **json.loads(text)}, ensure_ascii=False))
        elif chosen == "txt":
            click.echo(f"{name}\t{hypothesis.text}")
        else:
            click.echo(f"# {name}\n{text}")
