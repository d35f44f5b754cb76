"""Downloading and unpacking of one data set, as far as it isn't there yet."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data_modules.errors import DataError
from scripts.prepare.check import Status, inspect, is_below
from scripts.prepare.download import Policy, download
from scripts.prepare.extract import install
from scripts.prepare.manifest import manifest_path, read_manifest, write_manifest
from scripts.prepare.records import Dataset, DiskFullError, Remote


def prepare(dataset: Dataset, root: Path, policy: Policy | None = None, remove_archives: bool = False) -> Status:
    """Fetch and unpack what is missing of a data set, and record it in `manifests/<data set>.json`.

    What one address fails to give doesn't keep the rest from being fetched.

    Args:
        dataset: Entry of the catalogue.
        root: DATA_ROOT; made if it isn't there.
        policy: Patience of the downloads.
        remove_archives: Remove archives once they are unpacked.

    Returns:
        The state in the end; files that only a person can fetch are still missing then.

    Raises:
        DiskFullError: There is no room.
        DataError: Another process prepares the same data set; or some files can't be fetched or unpacked, with a line
            for each.
    """
    status = inspect(dataset, root)
    if not status.missing or not dataset.remotes:
        return status
    folder = dataset.downloads(root)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise DataError(f"{folder}: another process prepares {dataset.name}; wait for it") from error
    with held:
        errors = _download(dataset, root, status, policy) + _unpack(dataset, root, status, remove_archives)
        _link(dataset, root)
    if errors:
        raise DataError("\n".join(errors))
    return inspect(dataset, root)


def _download(dataset: Dataset, root: Path, status: Status, policy: Policy | None) -> list[str]:
    manifest = read_manifest(root, dataset.name)
    errors = []
    for remote in dataset.remotes:
        if not _is_wanted(remote, dataset, status):
            continue
        path = dataset.downloads(root) / remote.name
        recorded = manifest["downloads"].get(remote.name)
        try:
            fetched = download(remote, path, recorded, policy)
        except DiskFullError:
            raise
        except DataError as error:
            record = manifest_path(root, dataset.name)
            errors.append(f"{error}; to accept another version remove {record}" if recorded else str(error))
            continue
        url = fetched.url or (recorded or {}).get("url", "")
        manifest["downloads"][remote.name] = {"url": url, "bytes": fetched.size, "sha256": fetched.sha256}
        write_manifest(root, manifest)
        if remote.to:
            _move(path, root / remote.to)
    return errors


def _is_wanted(remote: Remote, dataset: Dataset, status: Status) -> bool:
    places = [remote.to] if remote.to else [u.into for u in dataset.unpacks if u.archive == remote.name]
    return any(is_below(path, place) for path in status.missing for place in places)


def _unpack(dataset: Dataset, root: Path, status: Status, remove_archives: bool) -> list[str]:
    manifest = read_manifest(root, dataset.name)
    errors = []
    for into in dict.fromkeys(u.into for u in dataset.unpacks):
        sources = [(dataset.downloads(root) / u.archive, u) for u in dataset.unpacks if u.into == into]
        if not any(is_below(path, into) for path in status.missing) or not all(path.exists() for path, _ in sources):
            continue
        try:
            counts = install(sources, root / into)
        except DiskFullError:
            raise
        except DataError as error:
            errors.append(str(error))
            continue
        record: dict[str, Any] = {"archives": [u.archive for _, u in sources], "tally": counts}
        manifest["folders"][into] = record
        write_manifest(root, manifest)
        for path, _ in sources if remove_archives else ():
            path.unlink()
    return errors


def _link(dataset: Dataset, root: Path) -> None:
    for name, target in dataset.links:
        path = root / name
        if path.parent.is_dir() and not path.is_symlink() and not path.exists():
            # Relative, so that the root can be moved; what it points to may come later.
            path.symlink_to(os.path.relpath(root.absolute() / target, path.parent.absolute()))


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        partial = target.with_name(f".{target.name}.{os.getpid()}")  # the folder is a link to another disk
        shutil.copyfile(source, partial)
        partial.replace(target)
        source.unlink()
