"""Resumable downloads over HTTP, checked while they are read."""

from __future__ import annotations

import errno
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_modules.errors import DataError
from scripts.prepare.manifest import hash_file, wrong_checksum
from scripts.prepare.partial import Partial
from scripts.prepare.records import DiskFullError, Remote, human

TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
COMPRESSED = (".gz", ".tgz")


@dataclass(frozen=True)
class Policy:
    """How patient a download is.

    Args:
        attempts: Failures in a row, without a new byte between them, after which an address is given up.
        backoff: Seconds before the first repetition; doubled after each failure in a row.
        longest_wait: Greatest number of seconds before a repetition.
        timeout: Seconds without a byte after which a connection counts as cut.
        chunk: Most bytes read at once.
    """

    attempts: int = 6
    backoff: float = 1.0
    longest_wait: float = 60.0
    timeout: float = 60.0
    chunk: int = 1 << 20


@dataclass(frozen=True)
class Fetched:
    """A complete file: the address it came from (empty if it lay there already), its bytes and its SHA-256."""

    url: str
    size: int
    sha256: str


class _InterruptedTransferError(Exception):
    """The transfer ended too early; the next attempt may go on. `wait` is what the server asked for, in seconds."""

    def __init__(self, reason: object, wait: float = 0.0) -> None:
        super().__init__(str(reason))
        self.wait = wait


class _UselessAddressError(Exception):
    """This address won't give the file, however often it is asked."""


def download(
    remote: Remote, path: Path, recorded: Mapping[str, Any] | None = None, policy: Policy | None = None
) -> Fetched:
    """Fetch a file to `path`, going on where an earlier attempt ended.

    The bytes go to `<path>.partial`, beside which `<path>.partial.json` notes the server's ETag or date: a file that
    has changed since then starts anew, and so does one whose server ignores ranges. `path` appears by rename, after its
    checksum was found right. A file that is there already is only checked.

    Args:
        remote: What to fetch.
        path: Where to.
        recorded: `bytes` and `sha256` of an earlier download of the same file.
        policy: Patience; the default suits large files on bad lines.

    Raises:
        DiskFullError: There is no room; what was fetched is kept.
        DataError: No address gives the file, or gives it with other bytes than published or recorded; or the file that
            is there already has other bytes.
    """
    policy = policy or Policy()
    recorded = recorded or {}
    if path.exists():
        hashers = hash_file(path, remote.checksum)
        size = path.stat().st_size
        wrong = _wrong_size(size, remote, recorded) or wrong_checksum(hashers, remote.checksum, recorded.get("sha256"))
        if wrong:
            raise DataError(f"{path}: {wrong}; remove it and run the command again")
        return Fetched("", size, hashers["sha256"].hexdigest())
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Partial(path, remote.checksum)
    reasons = []
    for url in remote.urls:
        print(f"{remote.name}: fetching {url}")
        try:
            sha256 = _fetch(url, partial, remote, recorded, policy)
        except _UselessAddressError as error:
            reasons.append(f"{url}: {error}")
        else:
            fetched = Fetched(partial.state.get("url", url), partial.size, sha256)
            partial.finish(path)
            return fetched
    kept = f"; {human(partial.size)} are kept, the same command goes on from there" if partial.size else ""
    by_hand = f"or fetch it with a browser, put it at {path} and run the command again"
    hint = f" ({remote.hint})" if remote.hint else ""
    raise DataError(f"{remote.name} can't be downloaded: {'; '.join(reasons)}{kept}; {by_hand}{hint}")


def _fetch(url: str, partial: Partial, remote: Remote, recorded: Mapping[str, Any], policy: Policy) -> str:
    failures, rejected, furthest = 0, 0, partial.size
    while True:
        try:
            if not partial.is_complete():
                _transfer(url, partial, remote, recorded, policy)
        except _InterruptedTransferError as error:
            failures = 1 if partial.size > furthest else failures + 1
            furthest = max(furthest, partial.size)
            if failures >= policy.attempts:
                raise _UselessAddressError(f"given up after {failures} attempts ({error})") from error
            time.sleep(min(policy.longest_wait, max(error.wait, policy.backoff * 2 ** (failures - 1))))
            continue
        wrong = wrong_checksum(partial.hashers, remote.checksum, recorded.get("sha256"))
        if not wrong:
            return str(partial.hashers["sha256"].hexdigest())
        pieced, rejected = partial.pieced, rejected + 1
        partial.restart()  # wrong bytes must not be gone on with
        if not pieced or rejected > 1:
            raise _UselessAddressError(f"wrong bytes: {wrong}; they were removed")
        print(f"{remote.name}: the pieces of several attempts don't fit, starting again")


def _transfer(url: str, partial: Partial, remote: Remote, recorded: Mapping[str, Any], policy: Policy) -> None:
    with _open(url, partial, policy) as response:
        total = _accept(response, partial, remote)
        expected = total if total is not None else remote.size
        if total is not None and (wrong := _wrong_size(total, remote, recorded)):
            raise _UselessAddressError(f"{wrong}: the file has changed on the server")
        missing = (expected or 0) - partial.size
        free = shutil.disk_usage(partial.path.parent).free
        if missing > free:
            raise _no_room(partial, f"{human(missing)} are missing, {human(free)} are free")
        partial.note(url, response.headers, total)
        bar = tqdm(total=expected, initial=partial.size, desc=remote.name, unit="B", unit_scale=True, disable=None)
        try:
            with bar, partial.path.open("ab") as file:
                for block in _blocks(response, policy):
                    file.write(block)
                    partial.add(block)
                    bar.update(len(block))
                    if expected is not None and partial.size > expected:
                        break
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_room(partial, str(error.strerror)) from error
            raise DataError(f"{partial.path}: can't be written ({error})") from error
    if expected is not None and partial.size > expected:
        partial.restart()
        raise _UselessAddressError(f"the server sends more than the {expected} bytes published")
    if expected is not None and partial.size < expected:
        raise _InterruptedTransferError(f"the connection ended after {partial.size} of {expected} bytes")
    partial.state["total"] = partial.size


def _open(url: str, partial: Partial, policy: Policy) -> http.client.HTTPResponse:
    headers = {"User-Agent": "visual-structure-suite", "Accept-Encoding": "identity"}
    if partial.may_go_on(url):
        headers["Range"] = f"bytes={partial.size}-"
        if validator := partial.validator(url):
            headers["If-Range"] = validator
    try:
        opened = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=policy.timeout)
        assert isinstance(opened, http.client.HTTPResponse)  # the catalogue has http and https addresses only
        return opened
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and partial.size:  # more is here than there
                partial.restart()
                raise _InterruptedTransferError("the file on the server is shorter than what was fetched") from error
            if error.code not in TEMPORARY:
                raise _UselessAddressError(f"HTTP {error.code} {error.reason}") from error
            asked = error.headers.get("Retry-After") or ""
            wait = float(asked) if asked.isdecimal() else 0.0
            raise _InterruptedTransferError(f"HTTP {error.code} {error.reason}", wait) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise _UselessAddressError(f"its certificate is not valid ({reason.verify_message})") from error
        raise _InterruptedTransferError(reason) from error


def _accept(response: http.client.HTTPResponse, partial: Partial, remote: Remote) -> int | None:
    """Compare the answer with what was fetched before; return the whole file's bytes if the server says so."""
    if response.headers.get_content_type() == "text/html" and not remote.name.endswith((".html", ".htm")):
        raise _UselessAddressError("the server sends a web page instead of the file")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity" and not remote.name.endswith(COMPRESSED):
        raise _UselessAddressError(f"the server sends the file in the encoding {encoding!r}")
    changed = partial.has_changed(response.headers)
    length = response.headers.get("Content-Length", "")
    if response.status != 206:
        if partial.size:
            why = "the file has changed on the server" if changed else "the server can't go on in the middle"
            print(f"{remote.name}: {why}, starting again")
            partial.restart()
        return int(length) if length.isdecimal() else None
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    total = int(found[2]) if found and found[2] != "*" else None
    fits = found and int(found[1]) == partial.size and (total or 0) >= partial.size
    if changed or not fits or partial.state.get("total") not in (None, total):
        partial.restart()
        raise _InterruptedTransferError("the file has changed on the server")
    partial.pieced = True
    return total


def _blocks(response: http.client.HTTPResponse, policy: Policy) -> Iterator[bytes]:
    try:
        while block := response.read1(policy.chunk):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedTransferError(error) from error


def _wrong_size(size: int, remote: Remote, recorded: Mapping[str, Any]) -> str | None:
    for expected, source in ((remote.size, "published"), (recorded.get("bytes"), "recorded at the first download")):
        if expected is not None and size != expected:
            return f"{size} bytes instead of the {expected} {source}"
    return None


def _no_room(partial: Partial, what: str) -> DiskFullError:
    remedy = f"{human(partial.size)} are kept, make room and run the command again"
    return DiskFullError(f"{partial.path}: the disk is full ({what}); {remedy}")
