"""A small data set on a server of this machine, with all that the catalogue's entries have."""

from __future__ import annotations

import hashlib
import io
import zipfile

from scripts.prepare.download import Policy
from scripts.prepare.records import Dataset, Manual, Need, Remote, Unpack, md5
from tests.scripts.file_server import FileServer, Served

HASTY = Policy(attempts=3, backoff=0.001, timeout=5.0, chunk=1000)
LIST = b"1.jpg\n2.jpg\n3.jpg\n"


def archive(*names: str, folder: str = "images", size: int = 3000) -> bytes:
    """Zip images, each of `size` bytes that tell their name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name in names:
            packed.writestr(zipfile.ZipInfo(f"{folder}/{name}"), name.encode() * (size // len(name)))
    return buffer.getvalue()


FIRST, SECOND = archive("1.jpg", "2.jpg"), archive("3.jpg", folder="more")


def served() -> dict[str, Served]:
    """Give what the server needs for `small_set`."""
    return {"first_zip": Served(FIRST), "second_zip": Served(SECOND), "list_txt": Served(LIST)}


def small_set(server: FileServer, manual: tuple[Manual, ...] = ()) -> Dataset:
    """Give the entry: two archives for one folder, one with a published checksum, and a list with its own place."""
    return Dataset(
        "small",
        "a small set",
        (
            Remote("first.zip", (server.url("first.zip"),), len(FIRST), md5(hashlib.md5(FIRST).hexdigest())),
            Remote("second.zip", (server.url("second.zip"),)),
            Remote("list.txt", (server.url("list.txt"),), to="small/list.txt"),
        ),
        (
            Unpack("first.zip", "small/images", "*.jpg", 10**5),
            Unpack("second.zip", "small/images", "*.jpg", 10**5),
        ),
        (Need("small/images", 3),),
        manual,
    )
