"""What a data set consists of: the records of the catalogue, and the errors of this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_modules.errors import DataError

IMAGES = (".jpg", ".jpeg", ".png", ".gif")
MB, GB = 10**6, 10**9


class DiskFullError(DataError):
    """There is no room for a download or for what is unpacked; what has been fetched is kept."""


@dataclass(frozen=True)
class Checksum:
    """A published checksum; a short `digest` is only the beginning of it, as in torchvision's file names."""

    algorithm: Literal["md5", "sha1", "sha256"]
    digest: str

    def __str__(self) -> str:
        return f"{self.algorithm} {self.digest}"


def md5(digest: str) -> Checksum:
    """Name a published MD5."""
    return Checksum("md5", digest)


def sha256(digest: str) -> Checksum:
    """Name a published SHA-256, or its beginning."""
    return Checksum("sha256", digest)


@dataclass(frozen=True)
class Remote:
    """One file to download.

    Args:
        name: File name, in `downloads/<data set>/` under the root.
        urls: Addresses in the order in which they are tried.
        size: Bytes, where published.
        checksum: None where nobody publishes one: then the first download is recorded and later ones are compared.
        to: Where the file belongs under the root; None for an archive.
        hint: Where else it can be had, for the error when all addresses fail.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    checksum: Checksum | None = None
    to: str | None = None
    hint: str = ""


@dataclass(frozen=True)
class Unpack:
    """An archive's place.

    Args:
        archive: Name of the `Remote`.
        into: Folder under the root that gets the contents of one folder of the archive ...
        marker: ... namely of the outermost folder that holds an entry whose name fits this pattern.
        max_bytes: An archive that wants to write more than this is refused.
    """

    archive: str
    into: str
    marker: str
    max_bytes: int


@dataclass(frozen=True)
class Need:
    """What must be there.

    Args:
        path: A file or a folder under the root; with `count` a folder.
        count: Least number of files with one of `suffixes` in the folder, subfolders included.
        suffixes: Endings, lower case.
        checksum: Of the file.
        size: Of the file, in bytes.
    """

    path: str
    count: int | None = None
    suffixes: tuple[str, ...] = IMAGES
    checksum: Checksum | None = None
    size: int | None = None


@dataclass(frozen=True)
class Manual:
    """What nobody serves without a browser.

    Args:
        page: Where a person finds it.
        paths: Files or folders, under the root, that it must be saved as.
        how: What to do on that page.
        optional: The data set is complete without it.
    """

    page: str
    paths: tuple[str, ...]
    how: str
    optional: bool = False


@dataclass(frozen=True)
class Dataset:
    """One entry of the catalogue.

    Args:
        name: As in `make data-<name>`.
        title: What it is, in a few words.
        remotes: What is downloaded.
        unpacks: Where archives go.
        parts: What must be there, besides the remotes that have a place of their own and the manual files.
        manual: What a person must fetch.
        uses: Names of other entries that hold the rest, such as the images.
        links: Folders of those, as (path, target) under the root, that are linked into this one's.
    """

    name: str
    title: str
    remotes: tuple[Remote, ...] = ()
    unpacks: tuple[Unpack, ...] = ()
    parts: tuple[Need, ...] = ()
    manual: tuple[Manual, ...] = ()
    uses: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()

    @property
    def needs(self) -> tuple[Need, ...]:
        """All that must be there for the data set to be complete."""
        placed = tuple(Need(r.to, checksum=r.checksum, size=r.size) for r in self.remotes if r.to)
        by_hand = tuple(Need(path) for m in self.manual if not m.optional for path in m.paths)
        return (*self.parts, *placed, *by_hand)

    def downloads(self, root: Path) -> Path:
        """Folder of its archives and unfinished downloads."""
        return root / "downloads" / self.name


def human(size: float) -> str:
    """Write a number of bytes as people read it."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
