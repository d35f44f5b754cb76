"""Checksums, and the record of what was downloaded and unpacked: `manifests/<data set>.json` under the root."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_modules.errors import DataError
from scripts.prepare.records import Checksum

CHUNK = 1 << 20


def new_hashers(checksum: Checksum | None) -> dict[str, Any]:
    """Start SHA-256, which is always recorded, and what `checksum` asks for."""
    names = {"sha256"} | ({checksum.algorithm} if checksum else set())
    return {name: hashlib.new(name, usedforsecurity=False) for name in names}


def hash_file(path: Path, checksum: Checksum | None = None, size: int | None = None) -> dict[str, Any]:
    """Feed a file, or its first `size` bytes, to `new_hashers(checksum)` and return these."""
    hashers = new_hashers(checksum)
    left = path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while left and (block := file.read(min(CHUNK, left))):
            left -= len(block)
            for hasher in hashers.values():
                hasher.update(block)
    return hashers


def wrong_checksum(hashers: Mapping[str, Any], checksum: Checksum | None, recorded: str | None) -> str | None:
    """Compare with the published checksum and the recorded SHA-256; None if both agree or are unknown.

    Returns:
        Otherwise what was expected and what was found.
    """
    if checksum:
        found = hashers[checksum.algorithm].hexdigest()
        if not found.startswith(checksum.digest):
            return f"expected {checksum}, found {found}"
    found = hashers["sha256"].hexdigest()
    if recorded and found != recorded:
        return f"changed since the first download: expected sha256 {recorded}, found {found}"
    return None


def tally(folder: Path) -> dict[str, list[int]]:
    """Count `folder`'s contents: `[files, bytes]` of each subfolder, subfolders of its own included, and of `.`."""
    counts = {".": [0, 0]}
    for path, size in walk(folder):
        count = counts.setdefault(path.partition("/")[0] if "/" in path else ".", [0, 0])
        count[0] += 1
        count[1] += size
    return counts


def walk(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield the path, relative to `folder`, and the bytes of every file below it, in no order."""
    waiting = [str(folder)]
    start = len(waiting[0]) + 1
    while waiting:  # os.scandir: a Path for each of 100,000 images takes seconds
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append(entry.path)
                elif entry.is_file():  # no link to nowhere
                    yield entry.path[start:], entry.stat().st_size


def manifest_path(root: Path, name: str) -> Path:
    """Where the record of data set `name` lies."""
    return root / "manifests" / f"{name}.json"


def read_manifest(root: Path, name: str) -> dict[str, Any]:
    """Read the record of a data set; an empty one if there is none.

    Returns:
        `downloads`: by file name the `url`, `bytes` and `sha256`; `folders`: by path under the root the `archives`
        and their `tally`.

    Raises:
        DataError: The record is damaged.
    """
    path = manifest_path(root, name)
    if not path.exists():
        return {"dataset": name, "downloads": {}, "folders": {}}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        downloads, folders = content["downloads"], content["folders"]
        if not all(isinstance(d["bytes"], int) and isinstance(d["sha256"], str) for d in downloads.values()):
            raise TypeError("a download without bytes and sha256")
        if not all(isinstance(f["tally"], dict) for f in folders.values()):
            raise TypeError("a folder without a tally")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged record ({error!r}); remove it and run make data-{name} again") from error
    return {"dataset": name, "downloads": downloads, "folders": folders}


def write_manifest(root: Path, manifest: Mapping[str, Any]) -> None:
    """Write the record of a data set by rename; the same contents give the same bytes."""
    write_json(manifest_path(root, str(manifest["dataset"])), manifest)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def ends_with(paths: Iterable[str], suffixes: tuple[str, ...]) -> int:
    """Count the paths that end in one of `suffixes`, whatever their case; hidden files don't count."""
    return sum(path.lower().endswith(suffixes) and not path.rpartition("/")[2].startswith(".") for path in paths)
