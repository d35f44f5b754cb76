"""The one error that every reader of files raises."""

from __future__ import annotations


class DataError(ValueError):
    """A file of a data set is missing, damaged or inconsistent; the message names the file and the remedy."""
