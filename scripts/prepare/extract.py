"""Unpacking of archives that nobody has looked into, to a temporary folder and from there by rename."""

from __future__ import annotations

import errno
import filecmp
import functools
import gzip
import lzma
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, cast

from tqdm import tqdm

from data_modules.errors import DataError
from scripts.prepare.manifest import CHUNK, tally, walk
from scripts.prepare.records import DiskFullError, Unpack, human

MAX_MEMBERS = 1_000_000
# RuntimeError: encrypted, or of an unknown compression; the last two: what hostile headers make zipfile raise.
DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError),
    *(struct.error, UnicodeError),
)
REFETCH = "remove the archive and run the command again"
# What macOS and Windows add to archives; beside an image named x.jpg, ._x.jpg would count as one more.
JUNK = re.compile(r"(^|/)(__MACOSX(/|$)|\._|\.DS_Store$|Thumbs\.db$)")


def extract(archive: Path, folder: Path, max_bytes: int) -> None:
    """Unpack a zip or tar archive, compressed or not, below `folder`.

    Only files and folders are made, with the process's own permissions. What operating systems add (`__MACOSX/`,
    `.DS_Store`) is left out.

    Raises:
        DiskFullError: There is no room.
        DataError: The archive is damaged or wants to write more than `max_bytes`; or a member has an absolute path, a
            path with `..` or the path of another one, or is a link or a device. The member is named.
    """
    written = members = 0
    name = ""
    try:
        with tqdm(desc=f"unpacking {archive.name}", unit=" files", disable=None) as bar:
            for name, size, open_member in _members(archive):
                members += 1
                target = folder / _safe(archive, name)
                if written + size > max_bytes or members > MAX_MEMBERS:
                    limit = f"{human(max_bytes)} or {MAX_MEMBERS} members"
                    raise DataError(
                        f"{archive}: member {name!r}: the archive wants to write more than {limit}: refused"
                    )
                if open_member is None:
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with open_member() as source, target.open("xb") as file:
                    written += _copy(source, file, size)
                bar.update()
    except DAMAGED as error:
        raise DataError(f"{archive}: damaged at member {name!r} ({error}); {REFETCH}") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise DataError(f"{archive}: member {name!r}: another member has the same path: refused") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            room = f"the disk is full after {human(written)}; make room and run the command again"
            raise DiskFullError(f"{archive}: member {name!r}: {room}") from error
        raise DataError(f"{archive}: member {name!r} can't be unpacked ({error})") from error


def install(sources: Sequence[tuple[Path, Unpack]], target: Path) -> dict[str, list[int]]:
    """Unpack archives that belong in one folder, and put that in its place once all of them are unpacked.

    A folder that isn't there yet appears by one rename. Beside entries that are there already, only new ones are added;
    an entry that is there and equals the archive's in names and sizes is kept.

    Args:
        sources: The archives, and from which of their folders to take the contents.
        target: The folder to make or to complete; no other process may be at it.

    Returns:
        The `tally` of what the archives hold.

    Raises:
        DataError: See `extract`; or an archive lacks the folder; or two archives, or an archive and `target`, hold
            different files of the same name. `target` is then unchanged.
    """
    target = target.resolve()  # a link to another disk: the temporary folder must lie on that
    prefix = f".unpack-{target.name}-"
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f"{prefix}*"):  # by a killed process
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as temporary:
        roots = []
        for number, (archive, unpack) in enumerate(sources):
            folder = Path(temporary, str(number))
            folder.mkdir()
            extract(archive, folder, unpack.max_bytes)
            roots.append(_root(archive, folder, unpack.marker))
        for (archive, _), root in zip(sources[1:], roots[1:], strict=True):
            _merge(root, roots[0], archive)
        counts = tally(roots[0])
        _place(roots[0], target)
    return counts


def _members(archive: Path) -> Iterator[tuple[str, int, Callable[[], IO[bytes]] | None]]:
    """Yield name, bytes and opener of each member; None stands for the opener of a folder."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise DataError(f"{archive}: member {info.filename!r} is a link or a device: refused")
                if not JUNK.search(info.filename):
                    # orig_filename shows what ZipFile has cut off or turned round
                    yield info.orig_filename, info.file_size, None if info.is_dir() else _opener(opened.open, info)
    else:
        with tarfile.open(archive) as tar:
            for member in tar:
                if not (member.isfile() or member.isdir()):
                    raise DataError(f"{archive}: member {member.name!r} is a link or a device: refused")
                if not JUNK.search(member.name):
                    yield member.name, member.size, None if member.isdir() else _opener(tar.extractfile, member)
            # Behind the last member: gzip compares its checksum when it comes to the end.
            while tar.fileobj and tar.fileobj.read(CHUNK):
                pass


def _opener(function: Callable[..., IO[bytes] | None], member: object) -> Callable[[], IO[bytes]]:
    # Only the opening of a member may fail for it, so that the error names that one.
    return cast("Callable[[], IO[bytes]]", functools.partial(function, member))


def _safe(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or re.search(r"[\\\0]", name) or re.match(r"[A-Za-z]:", name):
        raise DataError(f"{archive}: member {name!r} would be written outside the folder: refused")
    return path


def _copy(source: IO[bytes], file: IO[bytes], size: int) -> int:
    copied = 0
    while block := source.read(CHUNK):
        copied += len(block)
        file.write(block)
    if copied != size:
        raise EOFError(f"{copied} bytes instead of {size}")
    return copied


def _root(archive: Path, folder: Path, marker: str) -> Path:
    level = [folder]
    while level:
        for candidate in level:
            if any(candidate.glob(marker)):
                return candidate
        level = [child for candidate in level for child in sorted(candidate.iterdir()) if child.is_dir()]
    found = sorted(p.name for p in folder.iterdir())[:5]
    raise DataError(f"{archive}: no folder in it holds {marker!r}; at its top: {found}; it is not the expected archive")


def _merge(source: Path, target: Path, archive: Path) -> None:
    for path in sorted(source.rglob("*")):
        other = target / path.relative_to(source)
        if path.is_dir():
            other.mkdir(exist_ok=True)
        elif not other.exists():
            path.rename(other)
        elif not filecmp.cmp(path, other, shallow=False):
            name = path.relative_to(source)
            raise DataError(f"{archive}: {name} differs from that of the other archive; {REFETCH}")


def _place(staged: Path, target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        staged.rename(target)
        return
    children = sorted(staged.iterdir())
    for child in children:
        present = target / child.name
        if present.exists() and _listing(present) != _listing(child):
            remedy = "move it away and run the command again"
            raise DataError(f"{present}: is there, but holds other files than the archive; {remedy}")
    for child in children:
        if not (target / child.name).exists():
            child.rename(target / child.name)


def _listing(path: Path) -> list[tuple[str, int]]:
    return sorted(walk(path)) if path.is_dir() else [("", path.stat().st_size)]
