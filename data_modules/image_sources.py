"""Where decoded images come from: memory, files, or a cache of what the files decode to."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import PIL
import torch
import torchvision
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from tqdm import tqdm

from data_modules.errors import DataError
from data_modules.image_loading import decode_rgb

CACHE_VERSION = 2  # part of a cache's key: raise it when the same files give other pixels or files of another format


class ImageSource(Protocol):
    """Decoded images by position."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> Tensor | list[Tensor]:
        """Return images as uint8 RGB `[B, 3, H, W]`, or a list of `[3, h, w]` where sizes may differ."""
        ...


class SizedImages(Protocol):
    """Decoded images by position, with the size that they had before they were resized."""

    def __len__(self) -> int: ...

    def read_sized(self, row: int) -> tuple[Tensor, tuple[int, int]]:
        """Return an image, uint8 RGB `[3, h, w]`, and the width and height in pixels of its file."""
        ...


@dataclass(frozen=True, slots=True)
class ArrayImages:
    """Images in memory, uint8 `[N, 3, H, W]`."""

    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Sequence[int]) -> Tensor:
        """Return images, uint8 `[B, 3, H, W]`."""
        return self.images[torch.as_tensor(rows)]


@dataclass(frozen=True, slots=True)
class Resize:
    """Scale the shorter side to `short` pixels, but the longer one to `limit` at most, as `v2.Resize` does."""

    short: int
    limit: int | None = None

    def size(self, size_wh: tuple[int, int]) -> tuple[int, int]:
        """Return width and height in pixels after resizing."""
        less, more = min(size_wh), max(size_wh)
        short, long = self.short, int(self.short * more / less)
        if self.limit == self.short:  # only the longer side counts
            short, long = int(self.limit * less / more), self.limit
        elif self.limit is not None and long > self.limit:
            short, long = int(self.limit * short / long), self.limit
        return (short, long) if size_wh[0] <= size_wh[1] else (long, short)


@dataclass(frozen=True, slots=True)
class Warp:
    """Give images one width and height in pixels, whatever their own are."""

    size_wh: tuple[int, int]

    def size(self, size_wh: tuple[int, int]) -> tuple[int, int]:
        """Return width and height in pixels after resizing."""
        return self.size_wh


@dataclass(frozen=True, slots=True)
class FileImages:
    """Images in files, decoded whenever they are read; the content decides the format, not the suffix.

    Attributes:
        root: Folder that `names` are relative to.
        names: Paths of the image files.
        remedy: How to get intact files, for error messages.
        resize: Applied bilinearly and with antialiasing after decoding; None leaves sizes as they are.
        size_wh: Width and height that every file must have, in pixels; None allows any.
        decoder: Pillow reads every format and kind of pixels, torchvision common ones, somewhat faster.
    """

    root: Path
    names: tuple[str, ...]
    remedy: str
    resize: Resize | Warp | None = None
    size_wh: tuple[int, int] | None = None
    decoder: Literal["pillow", "torchvision"] = "pillow"

    def __len__(self) -> int:
        return len(self.names)

    def read(self, rows: Sequence[int]) -> Tensor | list[Tensor]:
        """Return images, uint8; one tensor where `size_wh` fixes their size.

        Raises:
            DataError: A file is missing, truncated, no image, or of a wrong size.
        """
        images = [self.read_sized(row)[0] for row in rows]
        return images if self.size_wh is None else torch.stack(images)

    def read_sized(self, row: int) -> tuple[Tensor, tuple[int, int]]:
        """Return an image, uint8 RGB `[3, h, w]`, and the width and height in pixels of its file.

        Raises:
            DataError: The file is missing, truncated, no image, or of a wrong size.
        """
        path = self.root / self.names[row]
        if self.decoder == "torchvision":
            image: Tensor = decode_rgb(path, self.remedy)
            size = image.shape[2], image.shape[1]
            self._check(path, size)
        else:
            with self._opened(path) as file:
                pixels = file.convert("RGB")
            size = pixels.size
            self._check(path, size)
            image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
        if self.resize is not None:
            image = v2.functional.resize(image, list(self.resize.size(size)[::-1]), antialias=True)
        return image.as_subclass(Tensor).contiguous(), size

    def settings(self) -> dict[str, object]:
        """Return what decides the pixels besides the files, as JSON has it."""
        resize = None if self.resize is None else [type(self.resize).__name__, asdict(self.resize)]
        versions = [PIL.__version__, torchvision.__version__, torch.__version__]
        return {"decoder": self.decoder, "versions": versions, "resize": resize, "size_wh": self.size_wh}

    def _check(self, path: Path, size: tuple[int, int]) -> None:
        if self.size_wh is not None and size != self.size_wh:
            raise DataError(f"{path}: expected {self.size_wh} pixels, found {size}; {self.remedy}")

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Image.Image]:
        try:
            with Image.open(path) as image:
                yield image
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such image; {self.remedy}") from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: truncated or damaged image ({error}); {self.remedy}") from error


class CachedImages:
    """Decoded and resized images of an earlier `build_cache`, mapped from the disk; processes share the memory.

    Raises:
        DataError: A file of the cache is missing or damaged, or is shorter or longer than the others say.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            # Height, width, and the width and height of the file.
            self._sizes: NDArray[np.int64] = np.load(folder / "sizes.npy")
            self._ends = np.cumsum(3 * self._sizes[:, :2].prod(axis=1))
            self._pixels = np.memmap(folder / "pixels.bin", np.uint8, "r")
        except (OSError, ValueError, IndexError, EOFError) as error:
            raise DataError(f"{folder}: not a readable image cache ({error}); delete this folder") from error
        if len(self._pixels) != self._ends[-1]:
            found = f"pixels.bin has {len(self._pixels)} bytes, by sizes.npy {self._ends[-1]}"
            raise DataError(f"{folder}: not a readable image cache ({found}); delete this folder")
        self._is_uniform = bool((self._sizes[:, :2] == self._sizes[0, :2]).all())

    def __reduce__(self) -> tuple[type[CachedImages], tuple[Path]]:
        return CachedImages, (self.folder,)  # a worker process maps the file too instead of getting a copy

    def __len__(self) -> int:
        return len(self._sizes)

    def read(self, rows: Sequence[int]) -> Tensor | list[Tensor]:
        """Return images, uint8; one tensor where all images of the cache have one size."""
        images = [self.read_sized(row)[0] for row in rows]
        return torch.stack(images) if self._is_uniform else images

    def read_sized(self, row: int) -> tuple[Tensor, tuple[int, int]]:
        """Return an image, uint8 RGB `[3, h, w]`, and the width and height in pixels of its file."""
        height, width, *size = self._sizes[row].tolist()
        end = int(self._ends[row])
        pixels = np.array(self._pixels[end - 3 * height * width : end])
        return torch.from_numpy(pixels).view(3, height, width), (size[0], size[1])


def build_cache(source: FileImages, folder: str | Path, threads: int = 1) -> CachedImages:
    """Decode and resize all images once into one file under `folder`; later calls open what is there.

    The cache's own folder is named by a hash of every file's name, size and modification time, of the resizing and of
    the decoder's version, so that changed files get another cache. It appears by one rename when all of it is on the
    disk; one that lost bytes since is made again, with a warning. Of several processes one decodes and the others wait.

    Raises:
        DataError: An image file is missing, truncated or no image, or the cache can't be written.
    """
    try:
        stats = [(source.root / name).stat() for name in source.names]
    except OSError as error:
        raise DataError(f"{error.filename}: no such image; {source.remedy}") from error
    files = [(name, s.st_size, s.st_mtime_ns) for name, s in zip(source.names, stats, strict=True)]
    key = json.dumps([CACHE_VERSION, source.settings(), files])
    target = Path(folder) / hashlib.sha256(key.encode()).hexdigest()[:24]
    if target.is_dir():  # without the lock, so that a folder which may only be read will do
        try:
            return CachedImages(target)
        except DataError as error:
            warnings.warn(f"{error}: decoding the images again", stacklevel=2)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            return _opened_or_written(source, target, threads)
    except OSError as error:
        remedy = "make room there, name another folder, or do without a cache"
        raise DataError(f"{target.parent}: the image cache can't be written ({error}); {remedy}") from error


def cached(source: FileImages, folder: str | Path | None, num_workers: int) -> FileImages | CachedImages:
    """Return the images from a cache under `folder`, or from their files if that is None."""
    return source if folder is None else build_cache(source, folder, max(1, num_workers))


def _opened_or_written(source: FileImages, target: Path, threads: int) -> CachedImages:
    try:
        return CachedImages(target)  # another process was faster
    except DataError:
        partial = target.with_suffix(".partial")
        for leftover in (target, partial):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir()
        try:
            _write(source, partial, threads)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # it may be large
            raise
        partial.rename(target)
        return CachedImages(target)


def _write(source: FileImages, folder: Path, threads: int) -> None:
    rows = range(len(source))
    sizes = np.empty((len(source), 4), dtype=np.int64)
    step = 64  # a map over all rows at once would hold all decoded images
    with ThreadPoolExecutor(threads) as pool, (folder / "pixels.bin").open("wb") as pixels:
        for first in tqdm(rows[::step], desc=f"decoding {len(source)} images for the cache", delay=3):
            part = rows[first : first + step]
            for row, (image, size) in zip(part, pool.map(source.read_sized, part), strict=True):
                sizes[row] = *image.shape[1:], *size
                pixels.write(image.numpy().data)
        pixels.flush()
        os.fsync(pixels.fileno())
    with (folder / "sizes.npy").open("wb") as file:
        np.save(file, sizes)
        file.flush()
        os.fsync(file.fileno())
