"""What is there of each data set. Nothing here writes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_modules.errors import DataError
from scripts.prepare.manifest import ends_with, hash_file, read_manifest, tally, walk, wrong_checksum
from scripts.prepare.partial import read_note
from scripts.prepare.records import MB, Dataset, Need, human

State = Literal["absent", "incomplete", "changed", "complete"]
SHOWN = 4
QUICK = 256 * MB  # larger files are hashed on request only


@dataclass(frozen=True)
class Status:
    """The state of one data set.

    Args:
        state: `changed` means that all is there, but not as published or recorded.
        missing: By path under the root, what is missing of it.
        changed: What differs from what was published or recorded.
        notes: What else a person should know, such as unfinished downloads.
    """

    state: State
    missing: dict[str, str]
    changed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def inspect(dataset: Dataset, root: Path, full: bool = False) -> Status:
    """Compare what lies under `root` with the catalogue and with the record of what was downloaded and unpacked.

    Args:
        dataset: Entry of the catalogue.
        root: DATA_ROOT; it need not exist.
        full: Also compute the checksums of files of more than 256 MB, and of those that only the record knows.
    """
    missing: dict[str, str] = {}
    changed, notes = [], []
    listings: dict[Path, list[str]] = {}
    found = False
    for need in dataset.needs:
        lacking, wrong = _missing(need, root, listings), None
        if lacking is None:
            wrong = _unofficial(need, root / need.path, full)
        else:
            missing[need.path] = lacking
        found |= lacking is None or bool(listings.get(root / need.path))
        changed += [wrong] if wrong else []
    try:
        manifest = read_manifest(root, dataset.name)
        changed += _against_record(dataset, root, manifest, full)
    except DataError as error:
        changed.append(str(error))
    for remote in dataset.remotes:
        path = dataset.downloads(root) / remote.name
        partial = path.with_name(f"{path.name}.partial")
        if partial.exists():
            total = read_note(path).get("total") or remote.size
            of = f" of {human(total)}" if total else ""
            notes.append(f"unfinished download: {remote.name}, {human(partial.stat().st_size)}{of}")
        into = next((u.into for u in dataset.unpacks if u.archive == remote.name), None)
        if into and path.exists() and any(is_below(name, into) for name in missing):
            notes.append(f"downloaded, not unpacked yet: {remote.name}")
    for manual in dataset.manual:
        if manual.optional:
            absent = [path for path in manual.paths if not (root / path).exists()]
            notes += [f"optional, not there: {path} ({manual.how}: {manual.page})" for path in absent]
    started = any(not note.startswith("optional") for note in notes)
    state: State = "changed" if changed else "complete"
    if missing:
        state = "incomplete" if found or started else "absent"
    return Status(state, missing, tuple(changed), tuple(notes))


def describe(dataset: Dataset, status: Status) -> str:
    """Write a data set's state in a few lines: what is missing, what differs, and how to get it."""
    lines = [f"{status.state:<12}{dataset.name:<20}{dataset.title}"]
    lacking = list(status.missing.values())
    more = [f"and {len(lacking) - SHOWN} more"] if len(lacking) > SHOWN else []
    lines += [f"missing: {what}" for what in lacking[:SHOWN]] + more
    lines += [f"not as published or recorded: {what}" for what in status.changed]
    lines += status.notes
    if status.missing:
        if dataset.remotes:
            lines.append(f"get it: make data-{dataset.name}")
        for manual in dataset.manual:
            if any(path in status.missing for path in manual.paths):
                lines.append(f"by hand: {manual.page}, {manual.how}")
    elif status.changed:
        lines.append(f"get it anew: move what differs away, then make data-{dataset.name}")
    if status.state != "absent" and dataset.uses:
        lines.append(f"uses also: {', '.join(dataset.uses)}")
    return "\n            ".join(lines)


def report(datasets: Iterable[Dataset], root: Path, full: bool = False) -> str:
    """Describe the state of several data sets under `root`, and count the states."""
    lines = [f"data under {root}"]
    states: list[State] = []
    for dataset in datasets:
        try:
            status = inspect(dataset, root, full)
        except OSError as error:  # such as a folder of somebody else
            status = Status("incomplete", {str(error.filename): f"{error.filename} can't be read ({error.strerror})"})
        states.append(status.state)
        lines.append(describe(dataset, status))
    counted = [f"{states.count(s)} {s}" for s in ("complete", "changed", "incomplete", "absent") if s in states]
    return "\n".join([*lines, ", ".join(counted)])


def is_below(path: str, folder: str) -> bool:
    """Tell whether `path` is `folder` or lies in it."""
    return path == folder or path.startswith(f"{folder}/")


def _missing(need: Need, root: Path, listings: dict[Path, list[str]]) -> str | None:
    path = root / need.path
    if need.count is None:
        if not path.exists():
            return need.path
        empty = not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0
        return f"{need.path} is empty" if empty else None
    if path not in listings:
        listings[path] = [name for name, size in walk(path) if size] if path.is_dir() else []
    count = ends_with(listings[path], need.suffixes)
    return f"{need.path}: {count} of {need.count} files" if count < need.count else None


def _unofficial(need: Need, path: Path, full: bool) -> str | None:
    if need.size is not None and path.stat().st_size != need.size:
        return f"{need.path}: {path.stat().st_size} bytes instead of {need.size}"
    if need.checksum is None or (path.stat().st_size > QUICK and not full):
        return None
    wrong = wrong_checksum(hash_file(path, need.checksum), need.checksum, None)
    return f"{need.path}: {wrong}" if wrong else None


def _against_record(dataset: Dataset, root: Path, manifest: dict[str, Any], full: bool) -> list[str]:
    differences = []
    for remote in dataset.remotes:
        recorded = manifest["downloads"].get(remote.name)
        path = root / remote.to if remote.to else dataset.downloads(root) / remote.name
        if recorded is None or not path.is_file():
            continue
        if path.stat().st_size != recorded["bytes"]:
            differences.append(f"{path}: {path.stat().st_size} bytes, {recorded['bytes']} when it was downloaded")
        elif full and (wrong := wrong_checksum(hash_file(path), None, recorded["sha256"])):
            differences.append(f"{path}: {wrong}")
    for into, recorded in manifest["folders"].items():
        if not (root / into).is_dir():
            continue
        now = tally(root / into)
        for name, (files, size) in sorted(recorded["tally"].items()):
            here = f"{into}/{name}" if name != "." else into
            left, bytes_left = now.get(name, (0, 0))
            if left < files:
                differences.append(f"{here}: {left} of the {files} files unpacked are left")
            elif left == files and bytes_left != size:
                differences.append(f"{here}: {bytes_left} bytes, {size} when it was unpacked")
    return differences
