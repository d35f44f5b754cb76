from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from data_modules.errors import DataError
from scripts.prepare import __main__ as command
from scripts.prepare.catalog import CATALOG
from scripts.prepare.check import inspect
from scripts.prepare.records import Dataset, DiskFullError, Manual, Remote
from scripts.prepare.steps import prepare
from tests.scripts.file_server import Served, serving
from tests.scripts.small_set import FIRST, HASTY, LIST, SECOND, archive, served, small_set


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def manifest(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "manifests/small.json").read_text())
    return content


def test_everything_is_fetched_unpacked_and_recorded(tmp_path: Path) -> None:
    with serving(**served()) as server:
        assert prepare(small_set(server), tmp_path, HASTY).state == "complete"
        names = {name: server.url(name) for name in ("first.zip", "second.zip", "list.txt")}
    assert {p.name for p in (tmp_path / "small/images").iterdir()} == {"1.jpg", "2.jpg", "3.jpg"}
    assert (tmp_path / "small/list.txt").read_bytes() == LIST
    bodies = {"first.zip": FIRST, "second.zip": SECOND, "list.txt": LIST}
    assert manifest(tmp_path) == {
        "dataset": "small",
        "downloads": {
            name: {"url": names[name], "bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
            for name, body in bodies.items()
        },
        "folders": {"small/images": {"archives": ["first.zip", "second.zip"], "tally": {".": [3, 9000]}}},
    }
    assert sorted(p.name for p in (tmp_path / "downloads/small").iterdir()) == [".lock", "first.zip", "second.zip"]


def test_a_second_call_asks_for_nothing(tmp_path: Path) -> None:
    with serving(**served()) as server:
        prepare(small_set(server), tmp_path, HASTY)
        requests, recorded = len(server.requests), (tmp_path / "manifests/small.json").read_bytes()
        assert prepare(small_set(server), tmp_path, HASTY).state == "complete"
        assert len(server.requests) == requests == 3
        shutil.rmtree(tmp_path / "small/images")  # the archives are still there
        assert prepare(small_set(server), tmp_path, HASTY).state == "complete"
        assert len(server.requests) == requests
    assert (tmp_path / "manifests/small.json").read_bytes() == recorded


def test_data_that_a_user_holds_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "small/images").mkdir(parents=True)
    for name in ("a.JPG", "b.png", "c.jpeg"):
        (tmp_path / "small/images" / name).write_bytes(b"x")
    (tmp_path / "small/list.txt").write_bytes(b"mine")
    with serving() as server:
        assert prepare(small_set(server), tmp_path, HASTY).state == "complete"
        assert server.requests == []
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


def test_only_what_is_missing_is_fetched(tmp_path: Path) -> None:
    with serving(**served()) as server:
        prepare(small_set(server), tmp_path, HASTY, remove_archives=True)
        assert [p.name for p in (tmp_path / "downloads/small").iterdir()] == [".lock"]
        del server.requests[:]
        (tmp_path / "small/list.txt").unlink()
        assert prepare(small_set(server), tmp_path, HASTY).state == "complete"
        assert len(server.requests) == 1


def test_a_dead_address_keeps_nothing_else_from_coming(tmp_path: Path) -> None:
    files = served()
    del files["second_zip"]
    with serving(**files) as server:
        with pytest.raises(DataError, match=r"second\.zip can't be downloaded: .*HTTP 404") as caught:
            prepare(small_set(server), tmp_path, HASTY)
        assert len(str(caught.value).splitlines()) == 1
        assert (tmp_path / "small/list.txt").exists() and not (tmp_path / "small/images").exists()
        assert inspect(small_set(server), tmp_path).state == "incomplete"
        (tmp_path / "downloads/small/second.zip").write_bytes(SECOND)  # fetched by hand, as the error says
        assert prepare(small_set(server), tmp_path, HASTY).state == "complete"


def test_a_file_that_changed_since_the_first_download_is_named(tmp_path: Path) -> None:
    with serving(**served()) as server:
        prepare(small_set(server), tmp_path, HASTY, remove_archives=True)
        shutil.rmtree(tmp_path / "small")
        for body in (archive("4.jpg", folder="more"), archive("4.jpg", "5.jpg", folder="more")):
            server.files["/second.zip"] = Served(body, etag='"v2"')
            with pytest.raises(DataError, match="first download") as caught:
                prepare(small_set(server), tmp_path, HASTY)
            assert "second.zip" in str(caught.value)
            assert f"remove {tmp_path / 'manifests/small.json'}" in str(caught.value)
        assert not (tmp_path / "small/images").exists()
        (tmp_path / "manifests/small.json").unlink()
        server.files["/second.zip"] = Served(archive("4.jpg", folder="more"), etag='"v2"')
        assert prepare(small_set(server), tmp_path, HASTY).state == "complete"


def test_hostile_and_damaged_archives_install_nothing(tmp_path: Path) -> None:
    with serving(**served()) as server:
        for body, what in ((archive("../../evil.jpg"), "outside the folder"), (SECOND[:-9], "damaged")):
            server.files["/second.zip"] = Served(body)
            with pytest.raises(DataError, match=rf"second\.zip: .*{what}"):
                prepare(small_set(server), tmp_path, HASTY)
            assert not (tmp_path / "small/images").exists() and not list(tmp_path.rglob("evil*"))
            (tmp_path / "downloads/small/second.zip").unlink()
            (tmp_path / "manifests/small.json").unlink()
        assert [p.name for p in (tmp_path / "small").iterdir()] == ["list.txt"]


def test_two_processes_do_not_prepare_the_same_set(tmp_path: Path) -> None:
    (tmp_path / "downloads/small").mkdir(parents=True)
    with serving(**served()) as server, FileLock(tmp_path / "downloads/small/.lock"):
        with pytest.raises(DataError, match="another process prepares small"):
            prepare(small_set(server), tmp_path, HASTY)
        assert server.requests == []


def test_a_full_disk_ends_the_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with serving(**served()) as server:
        with pytest.raises(DiskFullError):
            prepare(small_set(server), tmp_path, HASTY)
        assert len(server.requests) == 1


def test_what_only_a_person_can_fetch_stays_missing(tmp_path: Path) -> None:
    manual = (
        Manual("https://example.org/register", ("small/secret.bin",), "sign in"),
        Manual("https://example.org/extra", ("small/extra.bin",), "ask", optional=True),
    )
    with serving(**served()) as server:
        status = prepare(small_set(server, manual), tmp_path, HASTY)
        assert (status.state, status.missing) == ("incomplete", {"small/secret.bin": "small/secret.bin"})
        assert status.notes == ("optional, not there: small/extra.bin (ask: https://example.org/extra)",)
        (tmp_path / "small/secret.bin").write_bytes(b"x")
        assert inspect(small_set(server, manual), tmp_path).state == "complete"
    by_hand = Dataset("hand", "by hand", manual=manual)
    assert prepare(by_hand, tmp_path / "new", HASTY).state == "absent"
    assert not (tmp_path / "new").exists()


def test_folders_of_another_set_are_linked(tmp_path: Path) -> None:
    with serving(**served()) as server:
        entry = replace(small_set(server), links=(("small/photos", "other/photos"),))
        prepare(entry, tmp_path, HASTY)
        link = tmp_path / "small/photos"
        assert link.is_symlink() and not link.exists() and not link.readlink().is_absolute()
        (tmp_path / "small/list.txt").unlink()
        assert prepare(entry, tmp_path, HASTY).state == "complete"
        (tmp_path / "other/photos").mkdir(parents=True)
        assert link.is_dir()
        link.unlink()
        link.mkdir()
        (tmp_path / "small/list.txt").unlink()
        prepare(entry, tmp_path, HASTY)
        assert not link.is_symlink()  # a folder of the user's stays


def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from scripts.prepare.steps import prepare\n"
        "from tests.scripts.small_set import HASTY, small_set\n"
        "from tests.scripts.file_server import FileServer\n"
        "prepare(small_set(FileServer(sys.argv[1], {}, [])), Path(sys.argv[2]), HASTY)"
    )
    partial = tmp_path / "downloads/small/first.zip.partial"
    with serving(**served()) as server:
        server.files["/first.zip"].pause = 0.1
        process = subprocess.Popen([sys.executable, "-c", code, server.address, str(tmp_path)])
        deadline = time.monotonic() + 10
        while not (partial.exists() and partial.stat().st_size > 1000) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = partial.stat().st_size
        status = inspect(small_set(server), tmp_path)
        assert status.state == "incomplete"
        assert status.notes == (f"unfinished download: first.zip, {kept / 1000:.1f} kB of {len(FIRST) / 1000:.1f} kB",)
        server.files["/first.zip"].pause = 0.0
        assert prepare(small_set(server), tmp_path, HASTY).state == "complete"
        assert server.ranges()[1] == f"bytes={kept}-"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(**served()) as server:
        monkeypatch.setitem(CATALOG, "small", small_set(server))
        monkeypatch.setenv("DATA_ROOT", str(tmp_path))
        assert command.main(["check", "small"]) == 0
        assert "absent      small" in capsys.readouterr().out
        assert command.main(["small"]) == 0
        assert "complete    small" in capsys.readouterr().out
        assert command.main(["check", "small", "--root", str(tmp_path / "other"), "--full"]) == 0
        assert capsys.readouterr().out.endswith("1 absent\n")
        dead = Dataset("dead", "gone", (Remote("gone.txt", (server.url("gone.txt"),), to="gone.txt"),))
        monkeypatch.setitem(CATALOG, "dead", dead)
        assert command.main(["dead"]) == 1
        assert "dead: gone.txt can't be downloaded" in capsys.readouterr().err


def test_the_command_names_its_mistakes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("DATA_ROOT", raising=False)
    for arguments, what in ((["vrd"], "DATA_ROOT"), (["vrdd", "--root", "x"], "no data set 'vrdd'; there are vrd,")):
        with pytest.raises(SystemExit) as caught:
            command.main(arguments)
        assert caught.value.code == 2 and what in capsys.readouterr().err
    assert command.main(["check", "tiny-imagenet"]) == 0
    assert "DATA_ROOT is unset" in capsys.readouterr().out
