"""Names of languages and tasks, and where they stand among those that a model has tags for."""

from __future__ import annotations

from collections.abc import Sequence


def tag_places(what: str, names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Where each name stands among the known ones.

    Args:
        what: "language" or "task", for the message.
        names: of utterances, "" when unknown, which then is the only known one.
        known: names that have a tag, at least one.

    Raises:
        ValueError: a name is not known, or none is given although there are several.
    """
    names = [known[0] if not name and len(known) == 1 else name for name in names]
    strangers = sorted(set(names) - set(known))
    if strangers:
        raise ValueError(f"{what} {strangers[0]!r} has no token in this model; give one that has: {', '.join(known)}")
    return [known.index(name) for name in names]
