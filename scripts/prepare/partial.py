"""The unfinished part of a download, and the note by which its version is known again."""

from __future__ import annotations

import json
from email.message import Message
from pathlib import Path
from typing import Any

from scripts.prepare.manifest import hash_file, new_hashers, write_json
from scripts.prepare.records import Checksum, human


class Partial:
    """The bytes fetched so far with their checksums, and the server's note of which version of the file they belong to.

    Args:
        path: Where the finished file goes; the bytes lie in `<path>.partial`, the note in `<path>.partial.json`.
        checksum: What the file is compared with in the end.

    Attributes:
        size: Bytes fetched so far.
        state: The note: `url`, `etag`, `modified` and `total`, any of them missing or None.
        pieced: Whether the bytes come from several connections.
        hashers: Checksums of the bytes so far, by algorithm.
    """

    def __init__(self, path: Path, checksum: Checksum | None) -> None:
        self.path = path.with_name(f"{path.name}.partial")
        self._note = path.with_name(f"{path.name}.partial.json")
        self._checksum = checksum
        self.state = read_note(path)
        self.size = self.path.stat().st_size if self.path.exists() else 0
        self.pieced = self.size > 0
        if self.size:
            print(f"{path.name}: {human(self.size)} are here from an earlier attempt")
        self.hashers = hash_file(self.path, checksum) if self.size else new_hashers(checksum)

    def validator(self, url: str) -> str | None:
        """Return what `If-Range` compares: a strong ETag, or else the date."""
        if self.state.get("url") != url:
            return None
        etag = self.state.get("etag")
        return etag if etag and not etag.startswith("W/") else self.state.get("modified")

    def may_go_on(self, url: str) -> bool:
        """Tell whether asking for the rest is safe: without a validator only a checksum shows if the pieces fit."""
        fits = 0 < self.size <= (self.state.get("total") or self.size)
        return fits and bool(self.validator(url) or self._checksum)

    def is_complete(self) -> bool:
        """Tell whether all bytes are here, as far as the server said how many there are."""
        return self.size > 0 and self.size == self.state.get("total")

    def has_changed(self, headers: Message) -> bool:
        """Compare the ETag, or without one the date, of an answer with the note."""
        for name, key in (("ETag", "etag"), ("Last-Modified", "modified")):
            if headers[name] and self.state.get(key):
                return bool(headers[name] != self.state[key])
        return False

    def add(self, block: bytes) -> None:
        """Count bytes that were written to `path`."""
        self.size += len(block)
        for hasher in self.hashers.values():
            hasher.update(block)

    def note(self, url: str, headers: Message, total: int | None) -> None:
        """Write down which version is being fetched, before its first byte."""
        self.state = {"url": url, "etag": headers["ETag"], "modified": headers["Last-Modified"], "total": total}
        write_json(self._note, self.state)

    def restart(self) -> None:
        """Drop all bytes."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        self.state, self.size, self.pieced = {}, 0, False
        self.hashers = new_hashers(self._checksum)

    def finish(self, path: Path) -> None:
        """Give the file its name."""
        self.path.replace(path)
        self._note.unlink(missing_ok=True)


def read_note(path: Path) -> dict[str, Any]:
    """Read the note beside the unfinished download of `path`; empty if there is none that can be read."""
    try:
        content = json.loads(path.with_name(f"{path.name}.partial.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the download then starts again, or its checksum decides
        return {}
    return content if isinstance(content, dict) else {}
