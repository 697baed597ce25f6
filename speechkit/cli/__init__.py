"""The `speechkit` command. Every command imports what it needs when it runs: `--help` never loads torch."""

from __future__ import annotations

import json

import click

from speechkit import __version__
from speechkit.cli import align, data, speech, voice
from speechkit.cli.run import recipe_command, script_command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="speechkit")
def main() -> None:
    """Speech recognition, synthesis and translation: trained by recipe, used from Python or the shell."""


main.add_command(speech.transcribe)
main.add_command(voice.synthesize)
main.add_command(align.align)
for command in (data.prepare, data.download, data.validate, data.index, data.shard, data.bins, data.lm):
    main.add_command(command)
main.add_command(
    recipe_command(
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
)
main.add_command(
    recipe_command(
        "decode",
        "decode.py",
        "Decode a manifest into hyps.jsonl.",
        """Decode a manifest: speechkit decode checkpoint=<folder> manifest=<jsonl> output=<jsonl> [key=value ...].

    Writes one row per utterance: id, ref, hyp, score, audio_s, decode_s, speaker, lang.
    """,
    )
)
main.add_command(
    recipe_command(
        "synthesize-corpus",
        "synthesize.py",
        "Speak a manifest into sound files and rows to score.",
        """Speak a manifest: speechkit synthesize-corpus checkpoint=<folder> manifest=<jsonl> output=<folder> [key=value ...].

    
    recognizer=demo-ctc     let a recogniser read what was spoken, for `speechkit score`
    vocoder=<folder>        a trained vocoder in place of Griffin-Lim

    Writes audio/<id>.wav and synthesis.jsonl, which is a manifest and what score, rtfx and score_tts read.
    """,
    )
)
main.add_command(
    recipe_command(
        "batch-size",
        "batch_size.py",
        "Find the largest batch per bucket.",
        """Find the largest batch per bucket: speechkit batch-size experiment=<name> output=<yaml> [key=value ...].

    Runs real training steps of the real model and optimiser on synthetic audio, longest bucket first, until memory is
    full, and writes a table that `data.sampler.batch_sizes=<yaml>` takes.
    """,
    )
)


main.add_command(script_command("score", "score_wer.py", "Score hyps.jsonl: word and character error rates."))
main.add_command(script_command("rtfx", "rtfx.py", "Decoding speed of hyps.jsonl: seconds of audio per second."))


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
    """The models that ship with the package and load by name, and the families that can be trained."""
    import dataclasses

    from speechkit.families import list_families, list_synthesis_families
    from speechkit.pretrained import list_models

    found, families, synthesis = list_models(), list_families(), list_synthesis_families()
    if as_json:
        rows = [*map(dataclasses.asdict, found), *map(dataclasses.asdict, families), *map(dataclasses.asdict, synthesis)]
        click.echo(json.dumps(rows, indent=2))
        return
    for info in found:
        click.echo(
            f"{info.name:<16} {info.family:<10} {','.join(info.languages):<8} {info.num_bytes / 1e6:5.1f} MB  {info.description}"
        )
    if not found:
        click.echo("no model ships with this build; train one: speechkit train experiment=fsdd_ctc")
    click.echo("\nfamilies of recognisers to train: speechkit train experiment=<corpus>_<family>")
    for family in families:
        facts = [
            "all tokens at once" if family.non_autoregressive else "token by token",
            f"times of {' or '.join(family.timestamps)}" if family.timestamps else "no times",
            f"long recordings joined by {family.long_form}",
            {"identified": "languages told or identified", "told": "languages told", "one": "one language"}[family.languages],
            "streaming" if family.streaming else "no streaming",
        ]
        click.echo(f"{family.name:<14} {family.description}")
        click.echo(f"{'':<14} {'; '.join(facts)}")
        click.echo(f"{'':<14} decode={' | '.join(family.decode)}")
    click.echo("\nfamilies of synthesis to train: speechkit train experiment=<name>")
    for made in synthesis:
        click.echo(f"{made.name:<14} {made.description}")
        click.echo(f"{'':<14} {made.trains}: experiment={' | '.join(made.experiments)}")
        click.echo(f"{'':<14} model={' | '.join(made.models)}")
        for mode, controls in made.decode.items():
            click.echo(f"{'':<14} decode={mode}, with {', '.join(controls)}")
