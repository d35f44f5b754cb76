from __future__ import annotations

from pathlib import Path

import pytest

from scripts.prepare import check
from scripts.prepare.check import describe, inspect, report
from scripts.prepare.records import Dataset, Need, Remote, md5
from scripts.prepare.steps import prepare
from tests.scripts.file_server import serving
from tests.scripts.small_set import FIRST, HASTY, served, small_set


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def small(tmp_path: Path) -> Dataset:
    with serving(**served()) as server:
        entry = small_set(server)
        prepare(entry, tmp_path, HASTY)
    return entry


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in [root, *root.rglob("*")]}


def test_an_empty_machine(small: Dataset, tmp_path: Path) -> None:
    status = inspect(small, tmp_path / "nothing")
    assert status.state == "absent"
    assert status.missing == {"small/images": "small/images: 0 of 3 files", "small/list.txt": "small/list.txt"}
    assert not (tmp_path / "nothing").exists()
    assert "get it: make data-small" in describe(small, status)


def test_a_complete_machine_and_nothing_is_written(small: Dataset, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    assert inspect(small, tmp_path, full=True).state == "complete"
    text = report([small], tmp_path, full=True)
    assert text == f"data under {tmp_path}\ncomplete    small               a small set\n1 complete"
    assert snapshot(tmp_path) == before


def test_half_of_it(small: Dataset, tmp_path: Path) -> None:
    (tmp_path / "small/images/2.jpg").unlink()
    (tmp_path / "small/images/3.jpg").write_bytes(b"")  # an empty file is no image
    status = inspect(small, tmp_path)
    assert status.state == "incomplete"
    assert status.missing == {"small/images": "small/images: 1 of 3 files"}
    assert status.changed == ("small/images: 2 of the 3 files unpacked are left",)
    assert "downloaded, not unpacked yet: first.zip" in status.notes


def test_an_unfinished_download_alone_is_not_absent(small: Dataset, tmp_path: Path) -> None:
    folder = small.downloads(tmp_path / "new")
    folder.mkdir(parents=True)
    (folder / "second.zip.partial").write_bytes(b"x" * 1500)
    status = inspect(small, tmp_path / "new")
    assert (status.state, status.notes) == ("incomplete", ("unfinished download: second.zip, 1.5 kB",))
    (folder / "second.zip.partial.json").write_text('{"total": 6000}')
    assert inspect(small, tmp_path / "new").notes == ("unfinished download: second.zip, 1.5 kB of 6.0 kB",)
    (folder / "second.zip.partial").rename(folder / "first.zip")
    assert inspect(small, tmp_path / "new").notes == ("downloaded, not unpacked yet: first.zip",)


def test_changed_data_is_named(small: Dataset, tmp_path: Path) -> None:
    (tmp_path / "small/images/2.jpg").write_bytes(b"other")
    status = inspect(small, tmp_path)
    assert status.state == "changed"
    assert status.changed == ("small/images: 6005 bytes, 9000 when it was unpacked",)
    assert "get it anew" in describe(small, status)
    (tmp_path / "small/images/4.jpg").write_bytes(b"more than the record may be there")
    assert inspect(small, tmp_path).state == "complete"


def test_a_changed_file_is_named(small: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "small/list.txt"
    body = path.read_bytes()
    path.write_bytes(body + b"4.jpg\n")
    expected = f"{path}: {len(body) + 6} bytes, {len(body)} when it was downloaded"
    assert inspect(small, tmp_path).changed == (expected,)
    path.write_bytes(body[::-1])
    assert inspect(small, tmp_path).state == "complete"  # only the checksum tells
    (changed,) = inspect(small, tmp_path, full=True).changed
    assert changed.startswith(f"{path}: changed since the first download")


def test_a_changed_archive_is_named(small: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "downloads/small/first.zip"
    path.write_bytes(FIRST[:-1])
    assert inspect(small, tmp_path).changed == (f"{path}: {len(FIRST) - 1} bytes, {len(FIRST)} when it was downloaded",)


def test_files_that_are_not_the_official_ones_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"hello")
    good = Need("a", checksum=md5("5d41402abc4b2a76b9719d911017c592"), size=5)
    assert inspect(Dataset("d", "", parts=(good,)), tmp_path).state == "complete"
    wrong = Dataset("d", "", parts=(Need("a", checksum=md5("0" * 32)),))
    expected = f"a: expected md5 {'0' * 32}, found 5d41402abc4b2a76b9719d911017c592"
    assert inspect(wrong, tmp_path).changed == (expected,)
    assert inspect(Dataset("d", "", parts=(Need("a", size=6),)), tmp_path).changed == ("a: 5 bytes instead of 6",)
    monkeypatch.setattr(check, "QUICK", 4)  # now it's a large file
    assert inspect(wrong, tmp_path).state == "complete"
    assert inspect(wrong, tmp_path, full=True).changed == (expected,)


def test_a_damaged_record_is_named(small: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "manifests/small.json"
    for content in ("{", "[]", '{"downloads": {"a": 1}, "folders": {}}', '{"downloads": {}, "folders": {"a": []}}'):
        path.write_text(content)
        (changed,) = inspect(small, tmp_path).changed
        assert changed.startswith(f"{path}: damaged record")


def test_empty_files_and_folders_and_dangling_links_are_missing(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "images/._2.jpg").write_bytes(b"x")
    needs = (Need("empty"), Need("folder"), Need("images", 1))
    status = inspect(Dataset("d", "", (Remote("r", ("http://127.0.0.1/",)),), parts=needs), tmp_path)
    assert list(status.missing.values()) == ["empty is empty", "folder is empty", "images: 0 of 1 files"]
    (tmp_path / "nowhere").write_bytes(b"x")
    assert "images" not in inspect(Dataset("d", "", parts=needs), tmp_path).missing


def test_subfolders_and_linked_folders_count(tmp_path: Path) -> None:
    for name in ("disk/a", "disk/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.JPEG").write_bytes(b"x")
    (tmp_path / "images").symlink_to(tmp_path / "disk")
    assert inspect(Dataset("d", "", parts=(Need("images", 2),)), tmp_path).state == "complete"
    assert inspect(Dataset("d", "", parts=(Need("images", 2, (".mat",)),)), tmp_path).state == "incomplete"


def test_what_cannot_be_read_is_named(small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(folder: Path) -> list[tuple[str, int]]:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(check, "walk", forbidden)  # a real folder without permissions is no obstacle to root
    text = report([small], tmp_path)
    assert f"missing: {tmp_path / 'small/images'} can't be read (Permission denied)" in text
    assert text.endswith("1 incomplete")
