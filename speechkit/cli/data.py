"""Commands that prepare and inspect data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from speechkit.cli.run import fail

OPTION = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Further argument of the reader or corpus function; repeatable."
)


@click.command(short_help="Make manifests from a corpus, or from data of your own.")
@click.argument("kind")
@click.argument("paths", nargs=-1, required=True, metavar="[SRC] OUT")
@click.option("--audio-format", type=click.Choice(["wav", "flac"]), help="Rewrite the audio in this format beside the manifest.")
@click.option("--sample-rate", type=int, help="Sample rate of the rewritten audio in Hz.")
@OPTION
def prepare(
    kind: str, paths: tuple[str, ...], audio_format: str | None, sample_rate: int | None, settings: tuple[str, ...]
) -> None:
    """Make JSONL manifests.

    \b
    speechkit prepare librispeech /corpora/LibriSpeech data/librispeech     a corpus: <split>.jsonl in a directory
    speechkit prepare demo data/demo                                        the embedded demo corpus, nothing to download
    speechkit prepare kaldi exp/data/train train.jsonl                      a reader: one manifest
    speechkit prepare csv clips.tsv train.jsonl --set "columns={text: sentence}"

    Corpora: librispeech ljspeech aishell1 common_voice fsdd speechocean762 folder demo.
    Readers: nemo kaldi csv ljspeech_metadata audio_folder lhotse huggingface.
    """
    from speechkit.data.corpora import corpus_names, prepare_corpus
    from speechkit.data.readers import READERS
    from speechkit.data.readers import prepare as prepare_with

    options = _parse(settings)
    if len(paths) > 2 or (len(paths) == 1 and kind != "demo"):
        fail(f"`speechkit prepare {kind}` takes the source and where to write: SRC OUT")
    try:
        if kind in corpus_names():
            click.echo(prepare_corpus(kind, paths[0] if len(paths) == 2 else None, paths[-1], **options))
        elif kind in READERS:
            rewriting: dict[str, Any] = {"sample_rate": sample_rate, "audio_format": audio_format}
            click.echo(prepare_with(kind, paths[0], paths[1], **rewriting, **options))
        else:
            fail(f"{kind!r} is neither a corpus ({', '.join(corpus_names())}) nor a reader ({', '.join(READERS)})")
    except (ValueError, OSError, ImportError, TypeError) as error:
        fail(error)


@click.command(short_help="Download a corpus: resumed, checked, unpacked.")
@click.argument("corpus")
@click.argument("dest", type=click.Path(path_type=Path))
@OPTION
def download(corpus: str, dest: Path, settings: tuple[str, ...]) -> None:
    """Download and unpack a corpus into DEST; an interrupted download goes on where it stopped."""
    from speechkit.data.corpora import download_corpus

    try:
        click.echo(download_corpus(corpus, dest, **_parse(settings)))
    except (ValueError, OSError, TypeError) as error:
        fail(error)


@click.command(short_help="Check every row of a manifest and its audio.")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--fix", type=click.Path(path_type=Path), help="Write the sound rows here, the others to <name>.rejects.jsonl.")
@click.option("--ignore", multiple=True, help="A kind of problem to let pass; repeatable.")
@click.option("--no-audio", is_flag=True, help="Check the rows only.")
@click.option("--workers", type=int, help="Processes.  [default: one per core]")
@click.option("--json", "as_json", is_flag=True, help="Print every problem as a JSON line.")
def validate(
    manifest: Path, fix: Path | None, ignore: tuple[str, ...], no_audio: bool, workers: int | None, as_json: bool
) -> None:
    """Report missing, unreadable, empty, truncated, silent or clipped audio, wrong durations, empty or misplaced texts,
    and duplicate ids, each with its line. Exit code 1 when there is a problem."""
    import dataclasses
    import json

    from speechkit.data.validate import validate_manifest

    try:
        report = validate_manifest(manifest, fix=fix, ignore=ignore, check_audio=not no_audio, num_workers=workers)
    except (ValueError, OSError) as error:
        fail(error)
    if as_json:
        for problem in report.problems:
            click.echo(json.dumps(dataclasses.asdict(problem), ensure_ascii=False))
    else:
        click.echo(report.summary())
    if not report.ok:
        raise SystemExit(1)


@click.command(short_help="Compile a manifest into memory-mapped columns.")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Directory of a tokenizer, to count tokens.")
def index(manifest: Path, out: Path, tokenizer: Path | None) -> None:
    """Compile MANIFEST into the columns that the sampler plans on; needed above some millions of utterances."""
    from speechkit.data.index import compile_index

    try:
        loaded = None
        if tokenizer is not None:
            from speechkit.text.tokenizers import load_tokenizer

            loaded = load_tokenizer(tokenizer)
        compiled = compile_index(manifest, out, loaded)
    except (ValueError, OSError) as error:
        fail(error)
    click.echo(f"{out}: {len(compiled)} utterances, {float(compiled.durations.sum(dtype='float64')) / 3600:.2f} h")


@click.command(short_help="Pack the audio of a manifest into tar shards.")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--audio-format", default="flac", show_default=True, type=click.Choice(["flac", "wav", "copy"]))
@click.option("--sample-rate", type=int, help="Resample to this rate in Hz.")
@click.option("--max-megabytes", default=256, show_default=True, help="Size of a shard.")
@click.option("--workers", type=int, help="Processes.  [default: one per core]")
def shard(manifest: Path, out: Path, audio_format: str, sample_rate: int | None, max_megabytes: int, workers: int | None) -> None:
    """Pack MANIFEST into numbered tar files in OUT, for object stores and slow disks."""
    from speechkit.data.manifest import iter_manifest
    from speechkit.data.shards import write_shards

    try:
        report = write_shards(
            iter_manifest(manifest),
            out,
            max_shard_bytes=max_megabytes * 2**20,
            audio_format=audio_format,  # type: ignore[arg-type]
            sample_rate=sample_rate,
            num_workers=workers,
        )
    except (ValueError, OSError) as error:
        fail(error)
    click.echo(report)


@click.command(short_help="Estimate duration (x tokens) bins.")
@click.argument("manifests", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--buckets", default=30, show_default=True, help="Duration bins.")
@click.option("--sub-buckets", default=2, show_default=True, help="Token bins inside each duration bin; 1 for none.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Directory of a tokenizer; characters without one.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the bins as YAML.")
def bins(manifests: tuple[Path, ...], buckets: int, sub_buckets: int, tokenizer: Path | None, output: Path | None) -> None:
    """Estimate bins of equal total duration; `speechkit batch-size` then finds the batch size of each."""
    import numpy as np

    from speechkit.data.buckets import estimate_bins
    from speechkit.data.manifest import iter_manifest
    from speechkit.text.tokenizers import load_tokenizer

    try:
        count = load_tokenizer(tokenizer).encode if tokenizer else list
        rows = [(u.duration, len(count(u.text))) for manifest in manifests for u in iter_manifest(manifest)]
        durations, tokens = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
        estimated = estimate_bins(durations, tokens, num_buckets=buckets, num_sub_buckets=sub_buckets)
        if output:
            estimated.save(output)
    except (ValueError, OSError) as error:
        fail(error)
    click.echo(estimated)


@click.command(short_help="Estimate an n-gram language model from texts.")
@click.argument("texts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="ARPA file to write; .arpa or .arpa.gz.")
@click.option("--order", default=3, show_default=True, help="Longest n-gram.")
@click.option("--normalizer", default="basic", show_default=True, help="Text normaliser; as the recogniser was trained.")
@click.option("--column", type=int, help="Column of TSV files that holds the text, from 1.")
def lm(texts: tuple[Path, ...], output: Path, order: int, normalizer: str, column: int | None) -> None:
    """Estimate an n-gram model of words from TEXTS: manifests (.jsonl), tables (.tsv), or files with a sentence per line.

    \b
    speechkit lm data/demo/text_en.txt -o lm.arpa
    speechkit decode decode=ctc_beam_lm decode.options.lm=lm.arpa ...
    """
    from speechkit.data.text import sentence_texts
    from speechkit.search.lm import estimate_arpa
    from speechkit.text.normalize import get_normalizer

    if not str(output).endswith((".arpa", ".arpa.gz")):
        fail(f"--output {output}: name it .arpa or .arpa.gz")
    try:
        lines = list(sentence_texts(texts, normalizer=get_normalizer(normalizer), column=column))
        model = estimate_arpa(lines, order=order)
        output.parent.mkdir(parents=True, exist_ok=True)
        model.save(output)
    except (ValueError, OSError) as error:
        fail(error)
    num_words = sum(len(line.split()) for line in lines)
    click.echo(f"{output}: {order}-gram of {len(lines):,} sentences, {num_words:,} words")


def _parse(settings: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE pairs, values read as YAML (so that numbers and lists are what they look like)."""
    import yaml

    options = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.isidentifier():
            fail(f"--set {setting!r} is not KEY=VALUE")
        options[key] = yaml.safe_load(value)
    return options
