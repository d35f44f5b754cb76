"""The one kind of error that a person is meant to read."""

from __future__ import annotations

from collections.abc import Iterable


class ExperimentError(Exception):
    """A mistake in what was asked for, or in what a run found: one message that names it and the remedy."""


def unknown(what: str, name: object, known: Iterable[object], hint: str = "") -> ExperimentError:
    """Return the error for a name that does not exist, listing what does."""
    listed = ", ".join(sorted(str(k) for k in known)) or "nothing"
    return ExperimentError(f"unknown {what} {str(name)!r}; there is: {listed}{'. ' + hint if hint else ''}")
