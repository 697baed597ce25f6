"""The `speechkit` command. Every command imports what it needs when it runs: `--help` never loads torch."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speechkit import __version__

if TYPE_CHECKING:
    from speechkit.types import Hypothesis

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".mp4", ".webm", ".aif", ".aiff", ".aac", ".wma"}
FORMATS = ("txt", "json", "srt", "vtt", "tsv", "all")
PASS_ON: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="speechkit")
def main() -> None:
    """Speech recognition, synthesis and translation: trained by recipe, used from Python or the shell."""


def _fail(message: object) -> None:
    """One line on standard error and exit code 1."""
    raise click.ClickException(str(message))


def _run_file(folder: str, name: str, arguments: Sequence[str]) -> None:
    """Runs recipes/<name> or scripts/<name>, from the installed package or from the checkout, as `python <file>` would."""
    package = Path(__file__).parent
    path = next((root / folder / name for root in (package, package.parent) if (root / folder / name).is_file()), None)
    if path is None:
        _fail(f"{folder}/{name} is neither in the installed package nor in the checkout: install speechkit again")
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


def _recipe_command(name: str, needs: str, short: str, text: str) -> None:
    """Adds a command that hands its arguments (Hydra overrides) to a recipe."""

    @main.command(name, help=text, context_settings=PASS_ON, short_help=short)
    @click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]...")
    def run(overrides: tuple[str, ...]) -> None:
        try:
            import hydra  # noqa: F401
        except ImportError:
            _fail(f'`speechkit {name}` needs the training extra: pip install "speechkit[train]"')
        _run_file("recipes", needs, overrides)


_recipe_command(
    "train",
    "train.py",
    "Train a model by recipe.",
    """Train a model: speechkit train experiment=<name> [key=value ...].

    \b
    speechkit train experiment=fsdd_ctc                       train a recipe
    speechkit train experiment=fsdd_ctc resume=true           go on after an interruption, exactly
    speechkit train -m experiment=fsdd_ctc optim.lr=1e-3,3e-3 sweep
    speechkit train experiment=fsdd_ctc --cfg job             print the composed configuration
    """,
)
_recipe_command(
    "decode",
    "decode.py",
    "Decode a manifest into hyps.jsonl.",
    """Decode a manifest: speechkit decode checkpoint=<folder> manifest=<jsonl> output=<jsonl> [key=value ...].

    Writes one row per utterance: id, ref, hyp, score, audio_s, decode_s, speaker, lang.
    """,
)
_recipe_command(
    "batch-size",
    "batch_size.py",
    "Find the largest batch per bucket.",
    """Find the largest batch per bucket: speechkit batch-size experiment=<name> output=<yaml> [key=value ...].

    Runs real training steps of the real model and optimiser on synthetic audio, longest bucket first, until memory is
    full, and writes a table that `data.batch_sizes=<yaml>` takes.
    """,
)


@main.command(
    context_settings={**PASS_ON, "help_option_names": []},
    short_help="Score hyps.jsonl: word and character error rates.",
)
@click.argument("hyps", nargs=-1, type=click.UNPROCESSED)
def score(hyps: tuple[str, ...]) -> None:
    """Score hyps.jsonl: word and character error rates; takes all options of scripts/score_wer.py."""
    _run_file("scripts", "score_wer.py", hyps)


@main.command()
def doctor() -> None:
    """Versions, devices, and which optional parts are present or missing."""
    from speechkit.doctor import report

    text, healthy = report()
    click.echo(text)
    if not healthy:
        raise SystemExit(1)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def models(as_json: bool) -> None:
    """The models that ship with the package and load by name."""
    import dataclasses

    from speechkit.pretrained import list_models

    found = list_models()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(info) for info in found], indent=2))
        return
    for info in found:
        click.echo(
            f"{info.name:<14} {info.family:<10} {','.join(info.languages):<8} {info.num_bytes / 1e6:5.1f} MB  {info.description}"
        )
    if not found:
        click.echo("no model ships with this build; train one: speechkit train experiment=fsdd_ctc")


@main.command()
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

    from speechkit.pretrained import load
    from speechkit.transcripts import FORMATS as WRITERS
    from speechkit.transcripts import NEEDS_WORDS

    chosen = [name for name in WRITERS if name in formats or "all" in formats] or ["txt"]
    if output is None and len(chosen) > 1:
        _fail("several formats need a directory to write to: add -o DIR")
    if any(name in NEEDS_WORDS for name in chosen) and timestamps is None:
        timestamps = "word"
    sources = list(_find_audio(audio))
    try:
        recognizer = load(model, device=device, dtype=dtype)
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
        _fail(error)
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
                _fail(f"directory {argument} holds no audio file ({', '.join(sorted(AUDIO_SUFFIXES))})")
            found += [(str(file), file.relative_to(path)) for file in files]
        else:
            found.append((argument, Path("stdin.raw" if argument == "-" else path.name)))
    stems = [relative.with_suffix("") for _, relative in found]
    return [(name, stem if stems.count(stem) == 1 else relative) for (name, relative), stem in zip(found, stems)]


def _write(
    hypothesis: Hypothesis, name: str, stem: Path, formats: Sequence[str], output: Path | None, *, many: bool
) -> None:
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
