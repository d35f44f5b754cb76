from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_modules.errors import DataError
from scripts.prepare import extract as module
from scripts.prepare.extract import extract, install
from scripts.prepare.records import DiskFullError, Unpack

Members = list[tuple[str, bytes]]
Archiver = Callable[[Path, Members], Path]
IMAGES = [("top/images/1.jpg", b"one"), ("top/images/2.jpg", b"two" * 5000)]
TREE = [*IMAGES, ("top/lists/train.txt", b"1\n2\n"), ("top/empty/", b"")]


def write_zip(folder: Path, content: Members, name: str = "archive.zip") -> Path:
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in content:
            archive.writestr(member, data)
    return folder / name


def write_tar(folder: Path, content: Members, name: str = "archive.tar") -> Path:
    with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as archive:
        for member, data in content:
            info = tarfile.TarInfo(member.rstrip("/"))
            if member.endswith("/") and not data:
                info.type = tarfile.DIRTYPE
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return folder / name


def write_tgz(folder: Path, content: Members) -> Path:
    return write_tar(folder, content, "archive.tgz")


ARCHIVERS = pytest.mark.parametrize("archiver", [write_zip, write_tar, write_tgz])


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def unpack(archive: Path, into: str = "data", marker: str = "images", max_bytes: int = 10**6) -> tuple[Path, Unpack]:
    return archive, Unpack(archive.name, into, marker, max_bytes)


@ARCHIVERS
def test_all_files_and_folders_are_unpacked(archiver: Archiver, tmp_path: Path) -> None:
    extract(archiver(tmp_path, TREE), tmp_path / "out", 10**6)
    assert listing(tmp_path / "out") == dict(TREE[:3])
    assert (tmp_path / "out/top/empty").is_dir()


@ARCHIVERS
@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "{}/evil.txt", "..\\evil.txt", "C:/evil.txt"])
def test_paths_out_of_the_folder_are_refused(archiver: Archiver, name: str, tmp_path: Path) -> None:
    name = name.format(tmp_path)
    archive = archiver(tmp_path, [("good.txt", b""), (name, b"evil")])
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="would be written outside the folder: refused") as caught:
        extract(archive, tmp_path / "out", 10**6)
    assert repr(name) in str(caught.value) and str(archive) in str(caught.value)
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("top/link")
        info.type, info.linkname = kind, "../../../etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataError, match="member 'top/link' is a link or a device: refused"):
        extract(tmp_path / "a.tar", tmp_path / "out", 10**6)


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("top/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="member 'top/link' is a link or a device: refused"):
        extract(tmp_path / "a.zip", tmp_path / "out", 10**6)


@ARCHIVERS
def test_bombs_are_refused_before_they_burst(archiver: Archiver, tmp_path: Path) -> None:
    archive = archiver(tmp_path, [("small", b"x" * 400), ("large", bytes(3_000_000))])
    with pytest.raises(DataError, match=r"member 'large': the archive wants to write more than 1\.0 MB"):
        extract(archive, tmp_path / "out", 10**6)
    assert listing(tmp_path / "out") == {"small": b"x" * 400}


def test_many_members_are_a_bomb_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MEMBERS", 5)
    with pytest.raises(DataError, match=r"member '5': .* 5 members: refused"):
        extract(write_zip(tmp_path, [(str(i), b"") for i in range(9)]), tmp_path / "out", 10**6)


def test_a_member_that_lies_about_its_size_is_damaged(tmp_path: Path) -> None:
    archive = write_zip(tmp_path, [("lie", bytes(50_000))])
    content = archive.read_bytes()
    assert content.count((50_000).to_bytes(4, "little")) == 2
    archive.write_bytes(content.replace((50_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(DataError, match="damaged at member 'lie'"):
        extract(archive, tmp_path / "out", 10**6)
    assert sum(map(len, listing(tmp_path / "out").values())) <= 10


@ARCHIVERS
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["a/b", "a/b/c", "a"])
def test_two_members_with_one_path_are_refused(archiver: Archiver, second: str, tmp_path: Path) -> None:
    archive = archiver(tmp_path, [("a/b", b"1"), (second, b"2")])
    with pytest.raises(DataError, match="another member has the same path: refused") as caught:
        extract(archive, tmp_path / "out", 10**6)
    assert repr(second) in str(caught.value)
    assert listing(tmp_path / "out") == {"a/b": b"1"}


@ARCHIVERS
def test_truncated_archives_are_named(archiver: Archiver, tmp_path: Path) -> None:
    archive = archiver(tmp_path, [("first", os.urandom(9000)), ("second", os.urandom(9000))])
    archive.write_bytes(archive.read_bytes()[:12_000])
    with pytest.raises(
        DataError, match=r"archive\..*: damaged at member .*remove the archive and run the command again"
    ):
        extract(archive, tmp_path / "out", 10**6)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz", "a.tar.gz"])
def test_what_is_no_archive_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"<html>moved</html>" * 100)
    with pytest.raises(DataError, match=f"{name}: damaged"):
        extract(tmp_path / name, tmp_path / "out", 10**6)


def test_flipped_bits_are_found(tmp_path: Path) -> None:
    body = os.urandom(5000)
    archive = write_zip(tmp_path, [("a", b"good"), ("b", body)])
    content = bytearray(archive.read_bytes())
    content[content.index(body[100:120])] ^= 1  # random bytes are stored as they are
    archive.write_bytes(content)
    with pytest.raises(DataError, match="damaged at member 'b'"):
        extract(archive, tmp_path / "out", 10**6)
    packed = bytearray(gzip.compress(write_tar(tmp_path, [("b", body)]).read_bytes(), compresslevel=0))
    packed[packed.index(body[100:120])] ^= 1
    (tmp_path / "a.tgz").write_bytes(packed)
    with pytest.raises(DataError, match=r"a\.tgz: damaged"):
        extract(tmp_path / "a.tgz", tmp_path / "out2", 10**6)


def test_an_encrypted_member_is_named(tmp_path: Path) -> None:
    archive = write_zip(tmp_path, [("a", b"good"), ("secret", b"body")])
    content = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.rindex(signature) + offset] |= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged at member 'secret' .*encrypted"):
        extract(archive, tmp_path / "out", 10**6)


def test_what_systems_add_is_left_out(tmp_path: Path) -> None:
    junk = [
        (name, b"x") for name in ("__MACOSX/top/images/._1.jpg", "top/images/._1.jpg", "top/.DS_Store", "top/Thumbs.db")
    ]
    extract(write_zip(tmp_path, TREE + junk), tmp_path / "out", 10**6)
    assert listing(tmp_path / "out") == dict(TREE[:3])


def test_permissions_of_the_archive_are_ignored(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("program")
        info.mode = 0o6777
        archive.addfile(info)
    extract(tmp_path / "a.tar", tmp_path / "out", 10**6)
    assert stat.S_IMODE((tmp_path / "out/program").stat().st_mode) & 0o6111 == 0


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_copy", full)
    with pytest.raises(DiskFullError, match=r"member 'top/images/1\.jpg': the disk is full"):
        extract(write_zip(tmp_path, TREE), tmp_path / "out", 10**6)


def test_the_marked_folder_gets_its_place(tmp_path: Path) -> None:
    counts = install([unpack(write_zip(tmp_path, TREE))], tmp_path / "root/data")
    assert listing(tmp_path / "root/data") == {name.removeprefix("top/"): body for name, body in TREE[:3]}
    assert counts == {".": [0, 0], "images": [2, 15003], "lists": [1, 4]}
    assert entries(tmp_path / "root") == ["data"]


def test_the_outermost_folder_with_the_marker_counts_whatever_its_name(tmp_path: Path) -> None:
    members = [("images/1.jpg", b"outer"), ("a/images/2.jpg", b"inner")]
    install([unpack(write_tar(tmp_path, members))], tmp_path / "data")
    assert listing(tmp_path / "data") == {"images/1.jpg": b"outer", "a/images/2.jpg": b"inner"}
    install([unpack(write_zip(tmp_path, TREE), marker="*.jpg")], tmp_path / "images")
    assert entries(tmp_path / "images") == ["1.jpg", "2.jpg"]


def test_another_archive_than_expected_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder in it holds 'JPEGImages'; at its top: \['top'\]"):
        install([unpack(write_zip(tmp_path, TREE), marker="JPEGImages")], tmp_path / "root/data")
    assert entries(tmp_path / "root") == []


def test_two_archives_share_a_folder(tmp_path: Path) -> None:
    test_part = [("other/images/3.jpg", b"three"), ("other/lists/test.txt", b"3"), TREE[0]]
    archives = [write_zip(tmp_path, TREE), write_tar(tmp_path, test_part)]
    counts = install([unpack(a) for a in archives], tmp_path / "data")
    assert sorted(listing(tmp_path / "data")) == [
        *("images/1.jpg", "images/2.jpg", "images/3.jpg", "lists/test.txt", "lists/train.txt"),
    ]
    assert counts["images"] == [3, 15008]


def test_two_archives_that_disagree_are_named(tmp_path: Path) -> None:
    archives = [write_zip(tmp_path, TREE), write_tar(tmp_path, [("top/images/1.jpg", b"uno")])]
    with pytest.raises(DataError, match=r"archive\.tar: images/1\.jpg differs"):
        install([unpack(a) for a in archives], tmp_path / "root/data")
    assert entries(tmp_path / "root") == []


def test_only_what_is_not_there_is_added(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "mine").mkdir(parents=True)
    (data / "mine/notes.txt").write_text("keep")
    archive = write_zip(tmp_path, TREE)
    install([unpack(archive)], data)
    first = listing(data)
    assert first["mine/notes.txt"] == b"keep" and len(first) == 4
    inode = (data / "images/1.jpg").stat().st_ino
    install([unpack(archive)], data)
    assert listing(data) == first and (data / "images/1.jpg").stat().st_ino == inode
    shutil.rmtree(data / "lists")  # as a process leaves it that is killed between two renames
    install([unpack(archive)], data)
    assert listing(data) == first


def test_other_files_of_the_same_name_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/images/1.jpg").write_bytes(b"my own")
    with pytest.raises(DataError, match=r"data/images: is there, but holds other files than the archive; move it away"):
        install([unpack(write_zip(tmp_path, TREE))], tmp_path / "data")
    assert listing(tmp_path / "data") == {"images/1.jpg": b"my own"}


def test_an_empty_folder_is_replaced_by_one_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    moved: list[Path] = []
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, target: (moved.append(target), rename(path, target))[1])
    install([unpack(write_zip(tmp_path, TREE))], tmp_path / "data")
    assert moved == [tmp_path / "data"]


def test_the_temporary_folder_is_one_that_the_next_call_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(module, "_root", lambda archive, folder, marker: seen.append(folder.parent.name) or folder)
    install([unpack(write_zip(tmp_path, TREE))], tmp_path / "data")
    assert seen[0].startswith(".unpack-data-")


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "root/.unpack-data-abc/0").mkdir(parents=True)
    (tmp_path / "root/.unpack-other-abc").mkdir()
    install([unpack(write_zip(tmp_path, TREE))], tmp_path / "root/data")
    assert entries(tmp_path / "root") == [".unpack-other-abc", "data"]


def test_a_folder_that_links_elsewhere_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/data").symlink_to(tmp_path / "disk/data")
    install([unpack(write_zip(tmp_path, TREE))], tmp_path / "root/data")
    assert (tmp_path / "disk/data/images/1.jpg").read_bytes() == b"one"
