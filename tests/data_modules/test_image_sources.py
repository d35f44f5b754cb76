from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from data_modules.errors import DataError
from data_modules.image_sources import CachedImages, FileImages, Resize, Warp, build_cache, cached

SIZES = [(40, 30), (30, 40), (33, 33), (90, 31)]


@pytest.fixture
def files(tmp_path: Path) -> FileImages:
    rng = np.random.default_rng(0)
    names = []
    for i, (width, height) in enumerate(SIZES):
        names.append(f"folder/image {i}.jpg")
        path = tmp_path / "data" / names[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return FileImages(tmp_path / "data", tuple(names), "get them again", Resize(24, limit=50))


def decoded(source: FileImages, row: int) -> np.ndarray:
    return np.asarray(Image.open(source.root / source.names[row]).convert("RGB"))


@pytest.mark.parametrize("limit", [None, 1000, 700])
def test_sizes_after_resizing_are_torchvision_s(limit: int | None) -> None:
    for size in ((640, 480), (480, 640), (600, 600), (333, 500), (500, 1234), (1600, 300), (601, 999), (7, 5)):
        width, height = Resize(600, limit).size(size)
        image = Image.new("RGB", size)
        assert v2.Resize(600, max_size=limit)(image).size == (width, height)
        assert v2.Resize(None, max_size=600)(image).size == Resize(600, 600).size(size)


def test_images_are_resized_as_torchvision_resizes_them(files: FileImages) -> None:
    for row, image in enumerate(files.read(range(4))):
        pixels = decoded(files, row)
        expected = v2.Resize(24, max_size=50)(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
        assert (image.dtype, image.shape, image.is_contiguous()) == (torch.uint8, expected.shape, True)
        assert torch.equal(image, expected)
        by_pillow = np.asarray(v2.Resize(24, max_size=50)(Image.fromarray(pixels)), dtype=int)
        assert np.abs(image.permute(1, 2, 0).numpy() - by_pillow).max() <= 2  # but for rounding
        assert files.read_sized(row)[1] == SIZES[row]


@pytest.mark.parametrize(
    ("resize", "expected"),
    [
        (Resize(24, 50), v2.Resize(24, max_size=50)),
        (Warp((20, 30)), v2.Resize((30, 20))),
        (None, v2.Identity()),
    ],
)
def test_torchvision_decodes_the_same_pixels(
    files: FileImages, resize: Resize | Warp | None, expected: v2.Transform
) -> None:
    fast = replace(files, resize=resize, decoder="torchvision")
    for row, image in enumerate(fast.read(range(4))):
        pixels = torch.from_numpy(decoded(files, row).copy()).permute(2, 0, 1)
        assert torch.equal(image, expected(pixels))
        assert fast.read_sized(row)[1] == SIZES[row]


def test_without_resizing_pixels_are_the_file_s(files: FileImages) -> None:
    plain = FileImages(files.root, files.names, files.remedy)
    for row, image in enumerate(plain.read(range(4))):
        assert np.array_equal(image.permute(1, 2, 0), decoded(files, row))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    if (mode == "CMYK" and suffix == ".png") or mode == "I;16":
        suffix = ".tiff"
    image = Image.new(mode, (6, 5)) if mode == "I;16" else Image.new("RGB", (6, 5), (200, 10, 60)).convert(mode)
    image.save(tmp_path / f"wrong{suffix}")
    (tmp_path / f"wrong{suffix}").rename(tmp_path / "wrong.jpg")  # the suffix isn't believed
    (result,) = FileImages(tmp_path, ("wrong.jpg",), "").read([0])
    assert (result.dtype, result.shape) == (torch.uint8, (3, 5, 6))


@pytest.mark.parametrize("decoder", ["pillow", "torchvision"])
def test_damaged_files_are_named(files: FileImages, decoder: Literal["pillow", "torchvision"]) -> None:
    files = replace(files, decoder=decoder)
    path = files.root / files.names[1]
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"<html>"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"image 1\.jpg: truncated or damaged image .*get them again"):
            files.read([1])
    path.unlink()
    with pytest.raises(DataError, match=r"image 1\.jpg: no such image; get them again"):
        files.read([1])


def test_a_fixed_size_is_checked(files: FileImages) -> None:
    for decoder in ("pillow", "torchvision"):
        fixed = replace(files, resize=None, size_wh=(40, 30), decoder=decoder)
        assert fixed.read([0, 0]).shape == (2, 3, 30, 40)
        with pytest.raises(DataError, match=r"image 1\.jpg: expected \(40, 30\) pixels, found \(30, 40\)"):
            fixed.read([0, 1])


# The cache


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("decoder", ["pillow", "torchvision"])
def test_the_cache_holds_the_same_pixels(
    files: FileImages, tmp_path: Path, threads: int, decoder: Literal["pillow", "torchvision"]
) -> None:
    files = replace(files, decoder=decoder)
    cache = cached(files, tmp_path / "cache", threads)
    assert isinstance(cache, CachedImages)
    assert len(cache) == 4
    for a, b in zip(files.read([2, 0, 3, 1, 2]), cache.read([2, 0, 3, 1, 2]), strict=True):
        assert torch.equal(a, b)
    for row in range(4):
        (a, size), (b, cached_size) = files.read_sized(row), cache.read_sized(row)
        assert torch.equal(a, b)
        assert size == cached_size == SIZES[row]
    assert cached(files, None, threads) is files


def test_a_cache_of_one_size_gives_one_tensor(files: FileImages, tmp_path: Path) -> None:
    fixed = FileImages(files.root, files.names[:1] * 3, "", size_wh=SIZES[0])
    cached = build_cache(fixed, tmp_path / "cache")
    assert torch.equal(cached.read([2, 1]), fixed.read([2, 1]))


def test_images_from_the_cache_may_be_changed(files: FileImages, tmp_path: Path) -> None:
    cached = build_cache(files, tmp_path / "cache")
    before = cached.read([0])[0].clone()
    cached.read([0])[0].zero_()
    assert torch.equal(cached.read([0])[0], before)


def test_the_files_are_decoded_once(files: FileImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_cache(files, tmp_path / "cache")
    monkeypatch.setattr(FileImages, "read_sized", lambda self, row: pytest.fail("decoded again"))
    assert build_cache(files, tmp_path / "cache").folder == first.folder
    assert first.read([0])[0].shape == (3, 24, 32)


def test_changed_files_or_sizes_get_another_cache(files: FileImages, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first = build_cache(files, folder)
    larger = build_cache(FileImages(files.root, files.names, "", Resize(25)), folder)
    fewer = build_cache(FileImages(files.root, files.names[:3], "", files.resize), folder)
    other = build_cache(replace(files, decoder="torchvision"), folder)
    warped = build_cache(replace(files, resize=Warp((24, 24))), folder)
    assert len({first.folder, larger.folder, fewer.folder, other.folder, warped.folder}) == 5
    path = files.root / files.names[0]
    Image.new("RGB", (40, 30), (1, 2, 3)).save(path)
    changed = build_cache(files, folder)
    assert changed.folder != first.folder
    assert changed.read([0])[0].float().mean() < 10
    os.utime(path, ns=(1, 1))
    assert build_cache(files, folder).folder != changed.folder


def test_a_damaged_file_leaves_no_cache(files: FileImages, tmp_path: Path) -> None:
    path = files.root / files.names[2]
    content = path.read_bytes()
    path.write_bytes(content[:-500])
    with pytest.raises(DataError, match=r"image 2\.jpg: truncated"):
        build_cache(files, tmp_path / "cache")
    path.write_bytes(content)
    assert torch.equal(build_cache(files, tmp_path / "cache").read([2])[0], files.read([2])[0])
    path.unlink()
    with pytest.raises(DataError, match=r"image 2\.jpg: no such image"):
        build_cache(files, tmp_path / "cache")


def test_what_a_killed_process_left_is_replaced(files: FileImages, tmp_path: Path) -> None:
    cached = build_cache(files, tmp_path / "cache")
    half = cached.folder.with_suffix(".partial")
    cached.folder.rename(half)
    (half / "sizes.npy").unlink()
    again = build_cache(files, tmp_path / "cache")
    assert torch.equal(again.read([1])[0], files.read([1])[0])
    assert not half.exists()


def build_and_die(files: FileImages, folder: Path) -> None:
    read, written = FileImages.read_sized, []

    def read_three(self: FileImages, row: int) -> tuple[torch.Tensor, tuple[int, int]]:
        written.append(row)
        if len(written) > 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, row)

    FileImages.read_sized = read_three  # type: ignore[method-assign]
    build_cache(files, folder)


def test_after_a_kill_in_the_middle_the_cache_is_made_again(files: FileImages, tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=build_and_die, args=(files, tmp_path / "cache"))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert [p.suffix for p in sorted((tmp_path / "cache").iterdir())] == [".lock", ".partial"]
    again = build_cache(files, tmp_path / "cache")
    assert all(torch.equal(a, b) for a, b in zip(again.read(range(4)), files.read(range(4)), strict=True))
    assert [p.suffix for p in sorted((tmp_path / "cache").iterdir())] == ["", ".lock"]


@pytest.mark.parametrize("name", ["pixels.bin", "sizes.npy"])
@pytest.mark.parametrize("damage", ["shorter", "longer", "empty", "gone"])
def test_a_damaged_cache_is_made_again(files: FileImages, tmp_path: Path, name: str, damage: str) -> None:
    path = build_cache(files, tmp_path / "cache").folder / name
    content = path.read_bytes()
    if (name, damage) == ("sizes.npy", "longer"):
        np.save(path, np.concatenate([np.load(path), [[9, 9, 9, 9]]]))
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"shorter": content[:-1], "longer": content + b"0", "empty": b""}[damage])
    with pytest.raises(DataError, match=r"not a readable image cache .*delete this folder"):
        CachedImages(path.parent)
    with pytest.warns(UserWarning, match="not a readable image cache .*decoding the images again"):
        again = build_cache(files, tmp_path / "cache")
    assert all(torch.equal(a, b) for a, b in zip(again.read(range(4)), files.read(range(4)), strict=True))
    assert path.read_bytes() == content


def test_a_cache_that_cannot_be_written_is_named(
    files: FileImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file: the image cache can't be written .*name another folder"):
        build_cache(files, tmp_path / "file")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"can't be written \(.*No space left on device\); make room"):
        build_cache(files, tmp_path / "cache")
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]  # what was written is gone


def test_a_finished_cache_needs_no_lock(files: FileImages, tmp_path: Path) -> None:
    first = build_cache(files, tmp_path / "cache")
    lock = first.folder.with_suffix(".lock")
    lock.unlink()
    assert build_cache(files, tmp_path / "cache").folder == first.folder
    assert not lock.exists()  # the folder may be one that can only be read


def test_a_cache_reaches_other_processes_by_its_name(files: FileImages, tmp_path: Path) -> None:
    cached = build_cache(files, tmp_path / "cache")
    sent = pickle.dumps(cached)
    assert len(sent) < 500  # not the pixels
    assert torch.equal(pickle.loads(sent).read([3])[0], cached.read([3])[0])


def cache_at_once(arguments: tuple[FileImages, Path]) -> int:
    return int(sum(int(image.sum()) for image in build_cache(*arguments).read(range(4))))


def test_several_processes_share_one_cache(files: FileImages, tmp_path: Path) -> None:
    with ProcessPoolExecutor(3) as pool:
        sums = list(pool.map(cache_at_once, [(files, tmp_path / "cache")] * 6))
    assert sums == [sum(int(image.sum()) for image in files.read(range(4)))] * 6
    assert len([p for p in (tmp_path / "cache").iterdir() if p.is_dir()]) == 1
