"""Readers of JSON files whose errors name the file and the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_modules.errors import DataError

LIMIT = 2**53  # whole numbers from here on aren't exact as floats, and some can't be floats at all


def is_number(value: Any) -> bool:
    """Tell whether a value of a JSON file is a number that float64 holds; it may be infinite or NaN."""
    return type(value) is float or (type(value) is int and abs(value) < LIMIT)


def is_box(value: Any) -> bool:
    """Tell whether a value of a JSON file is a list of four such numbers."""
    return isinstance(value, list) and len(value) == 4 and all(is_number(v) for v in value)


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file.

    Raises:
        DataError: The file is missing or isn't JSON; `remedy` ends the message.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; {remedy}")
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:  # also what undecodable bytes raise
        raise DataError(f"{path}: not valid JSON ({error}); {remedy}") from error


def read_name_list(path: Path, remedy: str) -> list[str]:
    """Read a JSON list of distinct names; a name's position is its label.

    Raises:
        DataError: The file is missing, isn't JSON, or isn't such a list; `remedy` ends the message.
    """
    names = read_json(path, remedy)
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise DataError(f"{path}: expected a list of names, found {str(names)[:60]}; {remedy}")
    if len(set(names)) != len(names):
        raise DataError(f"{path}: {len(names) - len(set(names))} names occur twice; {remedy}")
    return names
