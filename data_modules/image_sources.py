"""Where decoded images come from: memory, files, or a cache of what the files decode to."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL
import torch
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from tqdm import tqdm

from data_modules.errors import DataError

CACHE_VERSION = 1  # part of a cache's key: raise it when the same files give other pixels


class ImageSource(Protocol):
    """Decoded images by position."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> Tensor | list[Tensor]:
        """Return images as uint8 RGB `[B, 3, H, W]`, or a list of `[3, h, w]` where sizes may differ."""
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
        if self.limit is not None and long > self.limit:
            short, long = int(self.limit * short / long), self.limit
        return (short, long) if size_wh[0] <= size_wh[1] else (long, short)


@dataclass(frozen=True, slots=True)
class FileImages:
    """Images in files, decoded whenever they are read; the content decides the format, not the suffix.

    Attributes:
        root: Folder that `names` are relative to.
        names: Paths of the image files.
        remedy: How to get intact files, for error messages.
        resize: Applied with antialiasing after decoding; None leaves sizes as they are.
        size_wh: Width and height that every file must have, in pixels; None allows any.
    """

    root: Path
    names: tuple[str, ...]
    remedy: str
    resize: Resize | None = None
    size_wh: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def read(self, rows: Sequence[int]) -> Tensor | list[Tensor]:
        """Return images, uint8; one tensor where `size_wh` fixes their size.

        Raises:
            DataError: A file is missing, truncated, no image, or of a wrong size.
        """
        images = [self._decode(self.root / self.names[row]) for row in rows]
        return images if self.size_wh is None else torch.stack(images)

    def shape(self, row: int) -> tuple[int, int]:
        """Return an image's height and width in pixels after resizing, from its header alone."""
        with self._opened(self.root / self.names[row]) as image:
            size = image.size
        width, height = size if self.resize is None else self.resize.size(size)
        return height, width

    def _decode(self, path: Path) -> Tensor:
        with self._opened(path) as image:
            pixels = image.convert("RGB")
        if self.size_wh is not None and pixels.size != self.size_wh:
            raise DataError(f"{path}: expected {self.size_wh} pixels, found {pixels.size}; {self.remedy}")
        if self.resize is not None:
            size = list(self.resize.size(pixels.size)[::-1])
            pixels = v2.functional.resize(pixels, size, InterpolationMode.BILINEAR, antialias=True)
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()

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
        DataError: The cache's files don't fit each other.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.shapes: NDArray[np.int64] = np.load(folder / "shapes.npy")
            self._pixels: NDArray[np.uint8] = np.load(folder / "pixels.npy", mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{folder}: not a readable image cache ({error}); delete this folder") from error
        self._ends = np.cumsum(3 * self.shapes.prod(axis=1))
        if self._pixels.shape != (self._ends[-1],):
            raise DataError(f"{folder}: pixels.npy and shapes.npy disagree; delete this folder")
        self._is_uniform = bool((self.shapes == self.shapes[0]).all())

    def __reduce__(self) -> tuple[type[CachedImages], tuple[Path]]:
        return CachedImages, (self.folder,)  # a worker process maps the file too instead of getting a copy

    def __len__(self) -> int:
        return len(self.shapes)

    def read(self, rows: Sequence[int]) -> Tensor | list[Tensor]:
        """Return images, uint8; one tensor where all images of the cache have one size."""
        images = []
        for row in rows:
            height, width = self.shapes[row].tolist()
            end = int(self._ends[row])
            pixels = np.array(self._pixels[end - 3 * height * width : end])
            images.append(torch.from_numpy(pixels).view(3, height, width))
        return torch.stack(images) if self._is_uniform else images


def build_cache(source: FileImages, folder: str | Path, threads: int = 1) -> CachedImages:
    """Decode and resize all images once into `pixels.npy` under `folder`; later calls open what is there.

    The cache's own folder is named by a hash of every file's name, size and modification time, of the resizing and of
    the decoder's version, so that changed files get another cache. It appears by one rename. Of several processes one
    decodes and the others wait.

    Raises:
        DataError: A file is missing, truncated or no image.
    """
    try:
        stats = [(source.root / name).stat() for name in source.names]
    except OSError as error:
        raise DataError(f"{error.filename}: no such image; {source.remedy}") from error
    files = [(name, s.st_size, s.st_mtime_ns) for name, s in zip(source.names, stats, strict=True)]
    resize = None if source.resize is None else asdict(source.resize)
    key = json.dumps([CACHE_VERSION, PIL.__version__, resize, source.size_wh, files])
    target = Path(folder) / hashlib.sha256(key.encode()).hexdigest()[:24]
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.is_dir():
            partial = target.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
            partial.mkdir()
            _decode_all(source, partial, threads)
            partial.rename(target)
    return CachedImages(target)


def _decode_all(source: FileImages, folder: Path, threads: int) -> None:
    rows = range(len(source))
    with ThreadPoolExecutor(threads) as pool:
        shapes = np.array(list(pool.map(source.shape, rows)), dtype=np.int64).reshape(-1, 2)
        starts = np.concatenate([[0], np.cumsum(3 * shapes.prod(axis=1))])
        pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (int(starts[-1]),))
        step = 64  # a map over all rows at once would hold all decoded images
        for first in tqdm(rows[::step], desc=f"decoding images of {source.root}", delay=3):
            part = rows[first : first + step]
            for row, image in zip(part, pool.map(lambda row: source.read([row])[0], part), strict=True):
                pixels[starts[row] : starts[row + 1]] = image.numpy().ravel()
        pixels.flush()
    np.save(folder / "shapes.npy", shapes)
