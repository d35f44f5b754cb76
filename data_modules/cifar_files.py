"""Readers of CIFAR-10 and CIFAR-100: the python pickles of the official archives, read without running their code."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_modules.errors import DataError

# MD5 of the files in the official archives, as torchvision checks them. Another checksum may still be the same images
# in another order, or another pickle protocol: such files are read, and called unofficial.
OFFICIAL_MD5 = {
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
}
REMEDY = "extract the official python archive (cifar-10-python.tar.gz or cifar-100-python.tar.gz) again"


@dataclass(frozen=True, slots=True)
class CifarPart:
    """The images of one pickle.

    Attributes:
        images: uint8 `[N, 3, 32, 32]`, RGB.
        labels: int64 `[N]`, 0-based classes; the fine ones of CIFAR-100.
        coarse_labels: int64 `[N]`, 0-based coarse classes of CIFAR-100, else None.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    coarse_labels: NDArray[np.int64] | None


def read_part(path: Path, num_classes: int, num_coarse: int | None = None) -> CifarPart:
    """Read the images of one pickle: a batch of CIFAR-10, or `train` or `test` of CIFAR-100.

    Args:
        path: The pickle.
        num_classes: Number of (fine) classes.
        num_coarse: Number of coarse classes of CIFAR-100; None reads a batch of CIFAR-10.

    Raises:
        DataError: The file is missing or no such pickle, a key is missing, or pixels or labels are of a wrong kind,
            number or range.
    """
    content = _load(path)
    data = _entry(path, content, b"data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{path}: key b'data': expected uint8 [N, 3072], found {found}; {REMEDY}")
    if len(data) == 0:
        raise DataError(f"{path}: key b'data': there are no images; {REMEDY}")
    images = np.ascontiguousarray(data).reshape(-1, 3, 32, 32)  # all red values, then green, then blue; row by row
    if num_coarse is None:
        return CifarPart(images, _labels(path, content, b"labels", len(images), num_classes), None)
    fine = _labels(path, content, b"fine_labels", len(images), num_classes)
    return CifarPart(images, fine, _labels(path, content, b"coarse_labels", len(images), num_coarse))


def read_class_names(path: Path, key: bytes) -> list[str]:
    """Read a list of class names from `batches.meta` or `meta`; a name's position is its label.

    Raises:
        DataError: The file is missing, no such pickle, or holds no list of distinct names under that key.
    """
    names = _entry(path, _load(path), key)
    if not isinstance(names, list) or not names or not all(isinstance(n, bytes) for n in names):
        raise DataError(f"{path}: key {key!r}: expected a list of byte strings, found {str(names)[:60]}; {REMEDY}")
    if len(set(names)) != len(names):
        raise DataError(f"{path}: key {key!r}: {len(names) - len(set(names))} names occur twice; {REMEDY}")
    return [name.decode("utf-8", errors="replace") for name in names]


class _PlainUnpickler(pickle.Unpickler):
    """Rebuilds containers, numbers, byte strings and NumPy arrays; nothing else that a pickle could name or call."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which a data file has no reason to")
        return _ALLOWED[module, name]


def _encode(text: str, encoding: str | bytes) -> bytes:
    # How Python 3 writes byte strings at protocol 2. Other codecs could decompress, and so fill the memory.
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"it wants the codec {encoding!r}")
    return text.encode("latin1")


def _empty_array(*_: Any) -> NDArray[Any]:
    return np.empty(0, dtype=np.uint8)  # its shape, dtype and content follow, and NumPy checks that they agree


_ALLOWED: dict[tuple[str, str], Callable[..., Any] | None] = {
    ("_codecs", "encode"): _encode,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): None,  # only an argument of _reconstruct: calling it could fill the memory
    ("numpy", "dtype"): np.dtype,
}


def _load(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; {REMEDY}")
    try:
        with path.open("rb") as file:
            content = _PlainUnpickler(file).load()
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        raise DataError(f"{path}: not a readable pickle ({error}); {REMEDY}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a pickled dictionary, found {type(content).__name__}; {REMEDY}")
    return content


def _entry(path: Path, content: dict[Any, Any], key: bytes) -> Any:
    if key not in content:
        raise DataError(f"{path}: has no key {key!r}, only {sorted(map(repr, content))[:8]}; {REMEDY}")
    return content[key]


def _labels(path: Path, content: dict[Any, Any], key: bytes, count: int, num_classes: int) -> NDArray[np.int64]:
    values = _entry(path, content, key)
    if not isinstance(values, list) or len(values) != count or not all(type(v) is int for v in values):
        found = f"{len(values)} entries" if isinstance(values, list) else type(values).__name__
        raise DataError(f"{path}: key {key!r}: expected a list of {count} integers, found {found}; {REMEDY}")
    for row, label in enumerate(values):
        if not 0 <= label < num_classes:
            raise DataError(f"{path}: key {key!r}: image {row}: {label} is not from 0 to {num_classes - 1}; {REMEDY}")
    return np.array(values, dtype=np.int64)
