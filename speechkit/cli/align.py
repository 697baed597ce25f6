"""The command that finds when words and phones of a manifest are spoken."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speechkit.cli.run import fail

if TYPE_CHECKING:
    from speechkit.aligner import CtcAligner, MelAligner, UtteranceAlignment
    from speechkit.types import Utterance


@click.command(short_help="Find when the words and phones of a manifest are spoken.")
@click.argument("model")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Manifest to write.")
@click.option("--textgrid", type=click.Path(file_okay=False, path_type=Path), help="Folder for a TextGrid of each utterance.")
@click.option("--json", "json_dir", type=click.Path(file_okay=False, path_type=Path), help="Folder for a JSON of each utterance.")
@click.option("--text-field", default="text", show_default=True, help="Manifest field with what is spoken.")
@click.option("--lang", help="Language of rows that name none.  [default: the model's]")
@click.option(
    "--phones",
    default="none",
    show_default=True,
    type=click.Choice(["none", "even"]),
    help="Of recognisers of characters or subwords: even spreads the phones of a word evenly over it.",
)
@click.option(
    "--frontend", "settings", multiple=True, metavar="KEY=VALUE",
    help="Setting of a recogniser's front end, as in the recipe to train: normalize=false, lexicon=FILE; repeatable.",
)  # fmt: skip
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(min=1), help="Utterances aligned together.")
@click.option("--device", help="cpu, cuda, cuda:1, ...  [default: the GPU when there is one]")
def align(
    model: str,
    manifest: Path,
    output: Path,
    textgrid: Path | None,
    json_dir: Path | None,
    text_field: str,
    batch_size: int,
    **options: Any,
) -> None:
    """Find when each word and phone of MANIFEST is spoken, by MODEL: a shipped name, folder, or hub name.

    \b
    a recogniser of phones         phones and words        experiment=demo_phone_ctc trains one
    a recogniser of characters     words alone; --phones even for evenly spread phones
    or subwords
    FastSpeech that learnt its     phones and words        model.learn_alignment=true
    own alignment

    Recognisers must label frames: those of the families ctc and owsm_ctc do.

    OUTPUT is the manifest with the fields "words" ([[word, start, end], ...]) and "phonemes" ([[symbol, start, end], ...],
    boundaries included), which training of synthesisers reads; times are seconds from the start of the utterance. Utterances
    that cannot be aligned (empty texts, silent or unreadable audio, texts too long for their audio) are left out of it; each
    costs a line on standard error, and the exit code is 1. Ctrl-C leaves what was found until then in OUTPUT.part.
    """
    from speechkit.data.manifest import read_manifest, write_manifest

    try:
        if output.resolve() == manifest.resolve():
            fail(f"-o {output} is the manifest itself, and rows that cannot be aligned would be lost; name another file")
        utterances = read_manifest(manifest)
        if not utterances:
            fail(f"{manifest} holds no utterance")
        names = _file_names(utterances) if textgrid or json_dir else {}
        aligner = _load(model, **options)
        if not aligner.gives_phones:
            click.echo(
                f"{model} does not know phones: times of words only (--phones even spreads the phones of each word over it)",
                err=True,
            )
        found: dict[int, UtteranceAlignment] = {}
        try:
            for index, result in _align(aligner, utterances, text_field, batch_size, options["lang"]):
                found[index] = result
                for folder, suffix, write in ((textgrid, "TextGrid", _textgrid), (json_dir, "json", _json)):
                    if folder is not None and not result.error:
                        folder.mkdir(parents=True, exist_ok=True)
                        path = folder / f"{names[utterances[index].id]}.{suffix}"
                        path.write_text(write(utterances[index], result), encoding="utf-8")
        except KeyboardInterrupt:
            output = output.with_name(f"{output.name}.part")
        rows = (_with_times(utterances[index], result) for index, result in sorted(found.items()) if not result.error)
        num_rows = write_manifest(output, rows)
    except (ValueError, OSError, ImportError) as error:
        fail(error)
    for index, result in sorted(found.items()):
        if result.error:
            click.echo(f"error: utterance {utterances[index].id!r}: {result.error}", err=True)
    click.echo(f"{output}: {num_rows} of {len(utterances)} utterances", err=True)
    if len(found) < len(utterances):
        raise SystemExit(130)  # as shells say of what Ctrl-C ended
    if num_rows < len(utterances):
        raise SystemExit(1)


def _load(
    model: str, *, lang: str | None, phones: Any, settings: Sequence[str], device: str | None
) -> CtcAligner | MelAligner:
    """The aligner of a model."""
    import yaml

    from speechkit.aligner import CtcAligner, MelAligner
    from speechkit.pretrained import load
    from speechkit.recognizer import Recognizer
    from speechkit.text.frontend import FrontEnd
    from speechkit.text.tokenizers import PhonemeTokenizer

    loaded = load(model, device=device)
    if not isinstance(loaded, Recognizer):
        if settings or phones != "none":
            fail("--frontend and --phones are for recognisers; a synthesiser has its own front end")
        return MelAligner(synthesizer=loaded)
    arguments: dict[str, Any] = {"lang": lang or next(iter(loaded.languages), "en")}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in ("backend", "lexicon", "stress", "normalize"):
            fail(f"--frontend {setting!r} is not KEY=VALUE with one of the keys backend, lexicon, stress, normalize")
        arguments[key] = yaml.safe_load(value)
    wants_phones = phones == "even" or isinstance(loaded.tokenizer, PhonemeTokenizer)
    return CtcAligner(recognizer=loaded, frontend=FrontEnd(**arguments) if wants_phones else None, phones=phones)


def _align(
    aligner: CtcAligner | MelAligner, utterances: Sequence[Utterance], text_field: str, batch_size: int, lang: str | None
) -> Iterator[tuple[int, UtteranceAlignment]]:
    """Alignments, with the places of their utterances; batches hold utterances of similar length."""
    from tqdm import tqdm

    from speechkit.aligner import UtteranceAlignment
    from speechkit.audio.io import AudioError
    from speechkit.data.dataset import SpeechDataset, field_text

    dataset = SpeechDataset(utterances=utterances, sample_rate=aligner.sample_rate)
    order = sorted(range(len(utterances)), key=lambda index: -utterances[index].duration)
    with tqdm(total=len(order), unit="utterance", disable=not sys.stderr.isatty()) as bar:
        for first in range(0, len(order), batch_size):
            waves: dict[int, Any] = {}
            for index in order[first : first + batch_size]:
                try:
                    example = dataset[index]
                    assert example is not None
                    waves[index] = example.wave_N
                except AudioError as error:
                    yield index, UtteranceAlignment(utterances[index].duration, error=str(error))
            chosen = [utterances[index] for index in waves]
            texts = [each.text if text_field == "text" else field_text(each, text_field) for each in chosen]
            yield from zip(waves, aligner.align(list(waves.values()), texts, langs=[each.lang or lang for each in chosen]))
            bar.update(len(order[first : first + batch_size]))


def _with_times(utterance: Utterance, result: UtteranceAlignment) -> Utterance:
    """The row with what was found; phones that another alignment has left there stay where there are none."""
    import dataclasses

    from speechkit.data.alignment import PHONES_FIELD

    extra = dict(utterance.extra) | {"words": [[span.text, span.start, span.end] for span in result.words]}
    if result.phones:
        extra[PHONES_FIELD] = [[span.text, span.start, span.end] for span in result.phones]
    return dataclasses.replace(utterance, extra=extra)


def _textgrid(utterance: Utterance, result: UtteranceAlignment) -> str:
    """Tiers of words and phones; boundaries are intervals without a label."""
    from speechkit.data.textgrid import format_textgrid
    from speechkit.text.phonemes import is_boundary

    del utterance
    tiers = {
        "words": [(span.start, span.end, span.text) for span in result.words],
        "phones": [(span.start, span.end, span.text) for span in result.phones if not is_boundary(span.text)],
    }
    return format_textgrid(tiers, duration=result.duration)


def _json(utterance: Utterance, result: UtteranceAlignment) -> str:
    words = [{"word": span.text, "start": span.start, "end": span.end, "score": span.score} for span in result.words]
    phones = [{"phone": span.text, "start": span.start, "end": span.end, "score": span.score} for span in result.phones]
    fields = {"id": utterance.id, "duration": result.duration, "words": words, "phones": phones}
    return json.dumps(fields, ensure_ascii=False, indent=1) + "\n"


def _file_names(utterances: Sequence[Utterance]) -> Mapping[str, str]:
    """A file name for each id; what may not stand in one becomes "_".

    Raises:
        ValueError: two utterances would have the same.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for utterance in utterances:
        name = "".join(char if char.isalnum() or char in "-_.+" else "_" for char in utterance.id).lstrip(".") or "_"
        if name in taken:
            raise ValueError(f"utterance {utterance.id!r}: another one has files of the name {name!r}; give each its own id")
        taken.add(name)
        names[utterance.id] = name
    return names
