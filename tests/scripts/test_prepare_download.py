from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from data_modules.errors import DataError
from scripts.prepare.download import Policy, download
from scripts.prepare.records import Checksum, DiskFullError, Remote, md5, sha256
from tests.scripts.file_server import FileServer, Served, serving

HASTY = Policy(attempts=4, backoff=0.001, timeout=5.0, chunk=1000)
BODY = bytes(i * i % 251 for i in range(20_000))
OTHER = bytes(i * i % 241 for i in range(20_000))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def remote(server: FileServer, body: bytes | None = BODY, **options: Any) -> Remote:
    checksum = Checksum("md5", hashlib.md5(body).hexdigest()) if body is not None else None
    return Remote("file.zip", (server.url("file.zip"),), checksum=checksum, **options)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_and_its_checksum_returned(tmp_path: Path) -> None:
    with serving(file_zip=Served(BODY)) as server:
        fetched = download(remote(server, size=len(BODY)), tmp_path / "file.zip", policy=HASTY)
        assert (fetched.url, fetched.size) == (server.url("file.zip"), len(BODY))
    assert fetched.sha256 == hashlib.sha256(BODY).hexdigest()
    assert (tmp_path / "file.zip").read_bytes() == BODY
    assert leftovers(tmp_path) == ["file.zip"]


def test_a_cut_connection_is_gone_on_with_where_it_ended(tmp_path: Path) -> None:
    with serving(file_zip=Served(BODY, cuts=[7000, 1, 5000])) as server:
        download(remote(server), tmp_path / "file.zip", policy=HASTY)
        assert server.ranges() == [None, "bytes=7000-", "bytes=7001-", "bytes=12001-"]
        assert server.requests[1]["If-Range"] == '"v1"'
    assert (tmp_path / "file.zip").read_bytes() == BODY


def test_attempts_count_only_without_progress(tmp_path: Path) -> None:
    with serving(file_zip=Served(BODY, cuts=[1000] * 15)) as server:
        download(remote(server), tmp_path / "file.zip", policy=HASTY)
        assert len(server.requests) == 16
    assert (tmp_path / "file.zip").read_bytes() == BODY


def test_a_server_that_ignores_ranges_sends_all_again(tmp_path: Path) -> None:
    with serving(file_zip=Served(BODY, ranges=False, cuts=[7000, 12000])) as server:
        download(remote(server), tmp_path / "file.zip", policy=HASTY)
        assert server.ranges() == [None, "bytes=7000-", "bytes=12000-"]
    assert (tmp_path / "file.zip").read_bytes() == BODY


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("validator", ["etag", "modified"])
def test_a_file_that_changes_between_attempts_is_fetched_anew(tmp_path: Path, if_range: bool, validator: str) -> None:
    old = {"etag": None, "modified": None, validator: '"v1"'}
    new = {"etag": None, "modified": None, validator: '"v2"'}
    with serving(file_zip=Served(BODY, cuts=[7000] * 10, if_range=if_range, **old)) as server:  # type: ignore[arg-type]
        with pytest.raises(DataError, match="given up after 1 attempts"):
            download(remote(server, None), tmp_path / "file.zip", policy=Policy(attempts=1))
        assert leftovers(tmp_path) == ["file.zip.partial", "file.zip.partial.json"]
        server.files["/file.zip"] = Served(OTHER, if_range=if_range, **new)  # type: ignore[arg-type]
        download(remote(server, None), tmp_path / "file.zip", policy=HASTY)
        assert server.ranges()[:2] == [None, "bytes=7000-"]
    assert (tmp_path / "file.zip").read_bytes() == OTHER


def test_another_length_under_the_same_etag_is_another_file(tmp_path: Path) -> None:
    (tmp_path / "file.zip.partial").write_bytes(BODY[:7000])
    with serving(file_zip=Served(OTHER + b"more")) as server:
        note = {"url": server.url("file.zip"), "etag": '"v1"', "total": len(BODY)}
        (tmp_path / "file.zip.partial.json").write_text(json.dumps(note))
        download(remote(server, None), tmp_path / "file.zip", policy=HASTY)
        assert server.ranges() == ["bytes=7000-", None]
    assert (tmp_path / "file.zip").read_bytes() == OTHER + b"more"


def test_a_server_that_sends_another_range_than_asked_for(tmp_path: Path) -> None:
    with serving(file_zip=Served(BODY, from_start=True, cuts=[7000])) as server:
        download(remote(server, None), tmp_path / "file.zip", policy=HASTY)
        assert server.ranges() == [None, "bytes=7000-", None]
    assert (tmp_path / "file.zip").read_bytes() == BODY


def test_without_validator_and_checksum_nothing_is_gone_on_with(tmp_path: Path) -> None:
    with serving(file_zip=Served(BODY, etag=None, cuts=[7000])) as server:
        download(remote(server, None), tmp_path / "file.zip", policy=HASTY)
        assert server.ranges() == [None, None]
    assert (tmp_path / "file.zip").read_bytes() == BODY


def test_a_weak_etag_is_no_validator_but_a_checksum_lets_go_on(tmp_path: Path) -> None:
    with serving(file_zip=Served(BODY, etag='W/"v1"', cuts=[7000])) as server:
        download(remote(server), tmp_path / "file.zip", policy=HASTY)
        assert server.ranges() == [None, "bytes=7000-"]
        assert "If-Range" not in server.requests[1]
    assert (tmp_path / "file.zip").read_bytes() == BODY


def test_pieces_that_do_not_fit_are_fetched_once_more_in_one_go(tmp_path: Path) -> None:
    (tmp_path / "file.zip.partial").write_bytes(OTHER[:9000])
    with serving(file_zip=Served(BODY)) as server:
        download(remote(server), tmp_path / "file.zip", policy=HASTY)
        assert server.ranges() == ["bytes=9000-", None]
    assert (tmp_path / "file.zip").read_bytes() == BODY


def test_a_partial_longer_than_the_file_starts_again(tmp_path: Path) -> None:
    (tmp_path / "file.zip.partial").write_bytes(BODY + b"more")
    with serving(file_zip=Served(BODY)) as server:
        download(remote(server), tmp_path / "file.zip", policy=HASTY)
    assert (tmp_path / "file.zip").read_bytes() == BODY


def test_all_bytes_there_but_not_renamed_needs_no_request(tmp_path: Path) -> None:
    (tmp_path / "file.zip.partial").write_bytes(BODY)
    (tmp_path / "file.zip.partial.json").write_text(json.dumps({"url": "http://mirror/a", "total": len(BODY)}))
    with serving(file_zip=Served(OTHER)) as server:
        assert download(remote(server), tmp_path / "file.zip", policy=HASTY).url == "http://mirror/a"
        assert server.requests == []
    assert leftovers(tmp_path) == ["file.zip"]


def test_a_damaged_note_beside_the_partial_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file.zip.partial").write_bytes(BODY[:100])
    (tmp_path / "file.zip.partial.json").write_text("{")
    with serving(file_zip=Served(BODY)) as server:
        download(remote(server, None), tmp_path / "file.zip", policy=HASTY)
        assert server.ranges() == [None]
    assert (tmp_path / "file.zip").read_bytes() == BODY


def test_wrong_bytes_are_named_and_removed(tmp_path: Path) -> None:
    with serving(file_zip=Served(OTHER)) as server:
        expected, found = (hashlib.md5(body).hexdigest() for body in (BODY, OTHER))
        with pytest.raises(DataError, match=f"wrong bytes: expected md5 {expected}, found {found}") as caught:
            download(remote(server), tmp_path / "file.zip", policy=HASTY)
        assert len(server.requests) == 1
    assert server.url("file.zip") in str(caught.value) and str(tmp_path / "file.zip") in str(caught.value)
    assert leftovers(tmp_path) == []


def test_the_next_address_is_tried(tmp_path: Path) -> None:
    with serving(good=Served(BODY), wrong=Served(OTHER)) as server:
        urls = tuple(server.url(name) for name in ("gone", "wrong", "good"))
        checksum = md5(hashlib.md5(BODY).hexdigest())
        fetched = download(Remote("file.zip", urls, checksum=checksum), tmp_path / "file.zip", policy=HASTY)
    assert fetched.url == urls[2]
    assert (tmp_path / "file.zip").read_bytes() == BODY


def test_another_mirror_going_offline_keeps_the_partial_of_the_first(tmp_path: Path) -> None:
    with serving(file_zip=Served(BODY, cuts=[7000], statuses=[0, 503, 503, 503, 503])) as server:
        urls = (server.url("file.zip"), server.url("gone"))
        with pytest.raises(DataError, match="HTTP 404"):
            download(Remote("file.zip", urls), tmp_path / "file.zip", policy=HASTY)
        assert (tmp_path / "file.zip.partial").read_bytes() == BODY[:7000]
        download(Remote("file.zip", urls), tmp_path / "file.zip", policy=HASTY)
        assert server.ranges()[-1] == "bytes=7000-"
    assert (tmp_path / "file.zip").read_bytes() == BODY


def test_a_missing_file_is_not_asked_for_twice(tmp_path: Path) -> None:
    with serving() as server:
        with pytest.raises(DataError, match=r"file\.zip can't be downloaded: .*HTTP 404 .*put it at .*ask Lu"):
            download(remote(server, hint="ask Lu"), tmp_path / "file.zip", policy=HASTY)
        assert len(server.requests) == 1


def test_busy_servers_are_asked_again_and_then_given_up(tmp_path: Path) -> None:
    with serving(file_zip=Served(BODY, statuses=[503, 429, 500])) as server:
        download(remote(server), tmp_path / "file.zip", policy=HASTY)
        assert len(server.requests) == 4
        server.files["/file.zip"] = Served(BODY, statuses=[503] * 9)
        with pytest.raises(DataError, match=r"given up after 4 attempts \(HTTP 503"):
            download(remote(server), tmp_path / "second.zip", policy=HASTY)


def test_no_server_at_all(tmp_path: Path) -> None:
    with serving() as server:
        pass
    with pytest.raises(DataError, match=r"given up after 4 attempts \(.*refused"):
        download(remote(server), tmp_path / "file.zip", policy=HASTY)


def test_a_silent_connection_counts_as_cut(tmp_path: Path) -> None:
    with serving(file_zip=Served(BODY, pause=0.5)) as server:
        with pytest.raises(DataError, match="timed out"):
            download(remote(server), tmp_path / "file.zip", policy=Policy(attempts=2, backoff=0.0, timeout=0.05))
        server.files["/file.zip"].pause = 0.0


def test_a_web_page_is_not_the_file(tmp_path: Path) -> None:
    page = Served(b"<html>sign in</html>", headers={"Content-Type": "text/html; charset=utf-8"})
    with serving(file_zip=page) as server, pytest.raises(DataError, match="a web page instead of the file"):
        download(remote(server, None), tmp_path / "file.zip", policy=HASTY)
    assert leftovers(tmp_path) == []


def test_another_length_than_published_or_recorded_is_named_before_the_first_byte(tmp_path: Path) -> None:
    with serving(file_zip=Served(BODY)) as server:
        with pytest.raises(DataError, match="20000 bytes instead of the 30000 published: the file has changed"):
            download(remote(server, size=30000), tmp_path / "file.zip", policy=HASTY)
        recorded = {"bytes": 19999, "sha256": "0" * 64}
        with pytest.raises(DataError, match="20000 bytes instead of the 19999 recorded at the first download"):
            download(remote(server, None), tmp_path / "file.zip", recorded, HASTY)
    assert leftovers(tmp_path) == []


def test_other_bytes_of_the_recorded_length_are_named(tmp_path: Path) -> None:
    recorded = {"bytes": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest()}
    with serving(file_zip=Served(OTHER)) as server, pytest.raises(DataError, match="changed since the first download"):
        download(remote(server, None), tmp_path / "file.zip", recorded, HASTY)
    assert leftovers(tmp_path) == []


def test_a_server_that_tells_no_length(tmp_path: Path) -> None:
    with serving(file_zip=Served(BODY, length=False, cuts=[7000])) as server:
        download(remote(server, size=len(BODY)), tmp_path / "file.zip", policy=HASTY)
        assert server.ranges() == [None, "bytes=7000-"]
        assert (tmp_path / "file.zip").read_bytes() == BODY
        server.files["/file.zip"] = Served(BODY * 9, length=False)
        with pytest.raises(DataError, match="more than the 20000 bytes published"):
            download(remote(server, size=len(BODY)), tmp_path / "second.zip", policy=HASTY)
    assert leftovers(tmp_path) == ["file.zip"]


def test_a_file_that_is_there_is_checked_and_not_fetched(tmp_path: Path) -> None:
    path = tmp_path / "file.zip"
    path.write_bytes(BODY)
    with serving() as server:
        assert download(remote(server), path, policy=HASTY).sha256 == hashlib.sha256(BODY).hexdigest()
        path.write_bytes(OTHER)
        with pytest.raises(DataError, match=r"expected md5 .* found .*remove it"):
            download(remote(server), path, policy=HASTY)
        assert server.requests == []
    assert path.read_bytes() == OTHER


def test_the_beginning_of_a_checksum_is_enough(tmp_path: Path) -> None:
    with serving(file_zip=Served(BODY)) as server:
        start = hashlib.sha256(BODY).hexdigest()[:8]
        download(Remote("a", (server.url("file.zip"),), checksum=sha256(start)), tmp_path / "a", policy=HASTY)
        wrong = sha256("0" * 8 if start != "0" * 8 else "1" * 8)
        with pytest.raises(DataError, match=f"expected {wrong}"):
            download(Remote("b", (server.url("file.zip"),), checksum=wrong), tmp_path / "b", policy=HASTY)


def test_a_disk_without_room_is_found_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 5000, 5000))
    with serving(file_zip=Served(BODY)) as server, pytest.raises(DiskFullError, match=r"20\.0 kB are missing, 5\.0 kB"):
        download(remote(server), tmp_path / "file.zip", policy=HASTY)


def test_a_disk_that_fills_up_keeps_what_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() > 8000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    real_open = Path.open

    def opened(path: Path, mode: str = "r", **options: Any) -> Any:
        return Full(path, mode) if mode == "ab" else real_open(path, mode, **options)

    with serving(file_zip=Served(BODY)) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", opened)
            with pytest.raises(DiskFullError, match=r"the disk is full .*make room and run the command again"):
                download(remote(server), tmp_path / "file.zip", policy=HASTY)
        kept = (tmp_path / "file.zip.partial").stat().st_size
        assert 8000 < kept < len(BODY)
        download(remote(server), tmp_path / "file.zip", policy=HASTY)
        assert server.ranges() == [None, f"bytes={kept}-"]
    assert (tmp_path / "file.zip").read_bytes() == BODY


def test_a_killed_download_goes_on(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from scripts.prepare.download import Policy, Remote, download\n"
        "download(Remote('file.zip', (sys.argv[1],)), Path(sys.argv[2]), policy=Policy(chunk=1000))"
    )
    partial = tmp_path / "file.zip.partial"
    with serving(file_zip=Served(BODY * 5, pause=0.01)) as server:
        process = subprocess.Popen([sys.executable, "-c", code, server.url("file.zip"), str(tmp_path / "file.zip")])
        deadline = time.monotonic() + 10
        while not (partial.exists() and partial.stat().st_size > 10_000) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = partial.stat().st_size
        assert 10_000 < kept < len(BODY) * 5
        server.files["/file.zip"].pause = 0.0
        download(remote(server, None), tmp_path / "file.zip", policy=HASTY)
        assert server.ranges() == [None, f"bytes={kept}-"]
    assert (tmp_path / "file.zip").read_bytes() == BODY * 5
