"""A small generated world in the layout of CIFAR-10's or CIFAR-100's python archive, pickle for pickle."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_modules.synthetic.manifest import write_world
from data_modules.synthetic.textures import class_names, family_names, family_of, kind_of, render

VERSION = 2  # part of the manifest: raise it when the same parameters give other files
PER_FAMILY = {10: 2, 100: 5}  # classes that look alike; in CIFAR-100 they make a coarse class


def write_cifar_world(
    root: str | Path,
    seed: int = 0,
    dataset: Literal[10, 100] = 100,
    train_images: int = 2000,
    test_images: int = 500,
    num_classes: int | None = None,
    kind_contrast: float = 0.6,
    noise: float = 18.0,
) -> Path:
    """Write the world under `root` and return that; a complete one of the same parameters is kept as it is.

    Classes are equally frequent. CIFAR-100's fine classes come in coarse ones of 5, which consecutive labels are not
    grouped by. The same parameters give the same bytes.

    Args:
        root: The world's folder; the archive's own folder appears in it.
        seed: Decides all pixels and the order of images.
        dataset: The layout of CIFAR-10 or of CIFAR-100.
        train_images: Number of training images; a multiple of 5 for CIFAR-10, which has 5 training files.
        test_images: Number of test images.
        num_classes: Number of (fine) classes, by default those of the data set; a multiple of 5 for CIFAR-100.
        kind_contrast: How different the classes of one family look, see `render`.
        noise: Standard deviation of pixel noise in grey levels.

    Raises:
        DataError: `root` exists and holds anything else.
        ValueError: A number is outside what the format allows.
    """
    classes = num_classes or dataset
    if dataset not in PER_FAMILY or classes % PER_FAMILY[dataset] or (dataset == 10 and train_images % 5):
        given = f"dataset={dataset}, num_classes={classes}, train_images={train_images}"
        raise ValueError(f"{given}: classes of CIFAR-10 come in pairs and of CIFAR-100 in fives, batches are 5 alike")
    if min(train_images, test_images) < classes or seed < 0 or classes < 2:
        raise ValueError("a world has 2 or more classes, an image of each in both splits, and a seed >= 0")
    manifest = {"generator": "synthetic/cifar", "version": VERSION, "seed": seed, "dataset": dataset}
    manifest |= {"train_images": train_images, "test_images": test_images, "num_classes": classes}
    looks: dict[str, Any] = {"kind_contrast": kind_contrast, "noise": noise}

    def write(folder: Path) -> None:
        parts = [
            _draw(np.random.default_rng([seed, stream]), count, classes, PER_FAMILY[dataset], looks)
            for stream, count in enumerate((train_images, test_images))
        ]
        _write_10(folder, parts, classes) if dataset == 10 else _write_100(folder, parts, classes)

    return write_world(root, manifest | looks, write)


def _draw(
    rng: np.random.Generator, count: int, classes: int, per_family: int, looks: dict[str, Any]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    labels = rng.permutation(np.arange(count) % classes)
    families, kinds = family_of(classes, per_family)[labels], kind_of(classes, per_family)[labels]
    images = render(families, kinds, 32, rng, **looks)
    return images.transpose(0, 3, 1, 2).reshape(count, 3072), labels


def _write_10(folder: Path, parts: list[tuple[NDArray[np.uint8], NDArray[np.int64]]], classes: int) -> None:
    own = folder / "cifar-10-batches-py"
    own.mkdir(parents=True)
    (train, train_labels), (test, test_labels) = parts
    batches = zip(np.split(train, 5), np.split(train_labels, 5), strict=True)
    files = {f"data_batch_{i}": batch for i, batch in enumerate(batches, 1)} | {"test_batch": (test, test_labels)}
    for name, (data, labels) in files.items():
        what = "testing batch 1 of 1" if name == "test_batch" else f"training batch {name[-1]} of 5"
        content = {
            b"batch_label": what.encode(),
            b"labels": labels.tolist(),
            b"data": data,
            b"filenames": _file_names(name, len(labels)),
        }
        (own / name).write_bytes(dumps_python2(content))
    names = [n.encode() for n in class_names(classes, PER_FAMILY[10])]
    meta = {b"num_cases_per_batch": len(train) // 5, b"label_names": names, b"num_vis": 3072}
    (own / "batches.meta").write_bytes(dumps_python2(meta))


def _write_100(folder: Path, parts: list[tuple[NDArray[np.uint8], NDArray[np.int64]]], classes: int) -> None:
    own = folder / "cifar-100-python"
    own.mkdir(parents=True)
    families = family_of(classes, PER_FAMILY[100])
    for name, (data, labels) in zip(("train", "test"), parts, strict=True):
        content = {
            b"filenames": _file_names(name, len(labels)),
            b"batch_label": f"{name}ing batch 1 of 1".encode(),
            b"fine_labels": labels.tolist(),
            b"coarse_labels": families[labels].tolist(),
            b"data": data,
        }
        (own / name).write_bytes(dumps_python2(content))
    fine = [n.encode() for n in class_names(classes, PER_FAMILY[100])]
    coarse = [n.encode() for n in family_names(int(families.max()) + 1)]
    meta = {b"fine_label_names": fine, b"coarse_label_names": coarse}
    (own / "meta").write_bytes(dumps_python2(meta))


def _file_names(stem: str, count: int) -> list[bytes]:
    return [f"{stem}_{i:06d}.png".encode() for i in range(count)]


def dumps_python2(value: Any) -> bytes:
    """Pickle dictionaries, lists, byte strings, integers and uint8 matrices as Python 2 and its NumPy did.

    Python 3's own pickler can't: it has no opcode for Python 2's byte strings, and its NumPy names other modules.
    """
    return pickle.PROTO + bytes([2]) + _opcodes(value) + pickle.STOP


def _opcodes(value: Any) -> bytes:
    if isinstance(value, dict):
        items = b"".join(_opcodes(k) + _opcodes(v) for k, v in value.items())
        return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    if isinstance(value, list):
        return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(_opcodes, value)) + pickle.APPENDS
    if isinstance(value, tuple):
        return pickle.MARK + b"".join(map(_opcodes, value)) + pickle.TUPLE
    if value is None or isinstance(value, bool):
        return {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value]
    if isinstance(value, int):
        return pickle.BININT1 + bytes([value]) if 0 <= value < 256 else pickle.BININT + struct.pack("<i", value)
    if isinstance(value, bytes):
        if len(value) < 256:
            return pickle.SHORT_BINSTRING + bytes([len(value)]) + value
        return pickle.BINSTRING + struct.pack("<i", len(value)) + value
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        kind = _named("numpy", "dtype") + _opcodes((b"u1", 0, 1)) + pickle.REDUCE
        kind += _opcodes((3, b"|", None, None, None, -1, -1, 0)) + pickle.BUILD
        empty = pickle.MARK + _named("numpy", "ndarray") + _opcodes((0,)) + _opcodes(b"b") + pickle.TUPLE
        array = _named("numpy.core.multiarray", "_reconstruct") + empty + pickle.REDUCE
        state = _opcodes(1) + _opcodes(value.shape) + kind + _opcodes(False) + _opcodes(value.tobytes())
        return array + pickle.MARK + state + pickle.TUPLE + pickle.BUILD
    raise TypeError(f"the archives hold no {type(value).__name__}")


def _named(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
