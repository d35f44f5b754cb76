from __future__ import annotations

import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_modules.cifar import CIFARDataModule
from data_modules.cifar_files import read_class_names, read_part
from data_modules.errors import DataError
from data_modules.synthetic.cifar import dumps_python2, write_cifar_world


@pytest.fixture(scope="module")
def world_10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated") / "cifar10"
    return write_cifar_world(root, dataset=10, train_images=200, test_images=40)


@pytest.fixture(scope="module")
def world_100(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated") / "cifar100"
    return write_cifar_world(root, dataset=100, train_images=400, test_images=100)


@pytest.fixture
def own_10(world_10: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world_10, tmp_path / "own10"))


@pytest.fixture
def own_100(world_100: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world_100, tmp_path / "own100"))


def make_10(root: Path, **options: Any) -> CIFARDataModule:
    return CIFARDataModule(root, **({"batch_size": 16, "seed": 0, "dataset": 10, "val_images": 40} | options))


def make_100(root: Path, **options: Any) -> CIFARDataModule:
    return CIFARDataModule(root, **({"batch_size": 16, "seed": 0, "dataset": 100, "val_images": 100} | options))


def unpickled(path: Path) -> dict[bytes, Any]:
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy 2 dislikes the module name that the official files have
        return pickle.load(file, encoding="bytes")


def test_images_are_red_green_blue_planes_row_by_row(tmp_path: Path) -> None:
    flat = np.arange(2 * 3072) % 251
    path = tmp_path / "batch"
    path.write_bytes(dumps_python2({b"data": flat.reshape(2, 3072).astype(np.uint8), b"labels": [1, 0]}))
    part = read_part(path, 2)
    for n, c, y, x in ((0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 2, 31, 30)):
        assert part.images[n, c, y, x] == (3072 * n + 1024 * c + 32 * y + x) % 251
    assert part.labels.tolist() == [1, 0]
    assert part.coarse_labels is None


def test_fine_and_coarse_classes(world_100: Path) -> None:
    module = make_100(world_100)
    assert len(module.coarse_names) == 20
    assert np.bincount(module.coarse_of).tolist() == [5] * 20
    content = unpickled(world_100 / "cifar-100-python" / "train")
    assert module.coarse_of[content[b"fine_labels"]].tolist() == content[b"coarse_labels"]
    assert module.class_names == [
        n.decode() for n in unpickled(world_100 / "cifar-100-python" / "meta")[b"fine_label_names"]
    ]
    # As in the original, consecutive fine labels don't share a coarse class.
    assert (module.coarse_of.reshape(20, 5) != module.coarse_of.reshape(20, 5)[:, :1]).any(axis=1).all()


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickles_of_python_3_are_read_too(world_100: Path, own_100: Path, protocol: int) -> None:
    for name in ("train", "test", "meta"):
        path = own_100 / "cifar-100-python" / name
        path.write_bytes(pickle.dumps(unpickled(path), protocol))
    a, b = make_100(world_100), make_100(own_100)
    assert a.class_names == b.class_names
    for x, y in zip(a.train_dataloader(), b.train_dataloader(), strict=True):
        assert torch.equal(x.images, y.images)
        assert torch.equal(x.labels, y.labels)


class Attack:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


def attack(*call: Any) -> bytes:
    return pickle.dumps({b"data": Attack(*call)}, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (attack(os.system, ("touch %s",)), r"refers to (posix|nt)\.system"),
        (attack(eval, ("1",)), r"refers to (__builtin__|builtins)\.eval"),
        (attack(np.ndarray, ((10**13,),)), "not a readable pickle"),
        (attack(bytearray, (10**13,)), r"refers to (__builtin__|builtins)\.bytearray"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.", "wants the codec 'zip'"),
        (pickle.dumps([1, 2]), "expected a pickled dictionary, found list"),
        (b"", "not a readable pickle"),
        (b"\x80\x02}q\x00(U\x04da", "not a readable pickle"),
        (b"<html>404</html>", "not a readable pickle"),
    ],
)
def test_hostile_pickles_are_refused(own_10: Path, tmp_path: Path, content: bytes, message: str) -> None:
    mark = tmp_path / "executed"
    if b"touch %s" in content:
        content = attack(os.system, (f"touch {mark}",))
    (own_10 / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match=rf"data_batch_3: .*{message}.*extract the official python archive"):
        make_10(own_10).setup()
    assert not mark.exists()


def test_a_truncated_file_is_named(own_100: Path) -> None:
    path = own_100 / "cifar-100-python" / "train"
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(DataError, match=r"train: not a readable pickle"):
        make_100(own_100).setup()


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_missing_file_is_named(own_100: Path, name: str) -> None:
    (own_100 / "cifar-100-python" / name).unlink()
    with pytest.raises(DataError, match=rf"cifar-100-python/{name}: no such file; extract"):
        make_100(own_100).setup()


def with_entry(key: bytes, value: Any) -> Callable[[dict[bytes, Any]], dict[bytes, Any]]:
    return lambda content: content | {key: value}


def without(key: bytes) -> Callable[[dict[bytes, Any]], dict[bytes, Any]]:
    return lambda content: {k: v for k, v in content.items() if k != key}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train", without(b"data"), r"train: has no key b'data', only .*fine_labels"),
        ("train", without(b"coarse_labels"), "has no key b'coarse_labels'"),
        ("test", without(b"fine_labels"), r"test: has no key b'fine_labels'"),
        ("meta", without(b"coarse_label_names"), r"meta: has no key b'coarse_label_names'"),
        ("train", with_entry(b"data", [1]), r"key b'data': expected uint8 \[N, 3072\], found list"),
        ("train", with_entry(b"data", np.zeros((400, 3071), np.uint8)), r"found uint8 \(400, 3071\)"),
        ("train", with_entry(b"data", np.zeros((400, 3072), np.float32)), "found float32"),
        ("test", with_entry(b"data", np.zeros((0, 3072), np.uint8)), "there are no images"),
        ("train", with_entry(b"fine_labels", [0] * 399), "expected a list of 400 integers, found 399 entries"),
        ("train", with_entry(b"fine_labels", [0.0] * 400), "expected a list of 400 integers"),
        ("train", with_entry(b"fine_labels", [*[0] * 399, 100]), "image 399: 100 is not from 0 to 99"),
        ("train", with_entry(b"coarse_labels", [*[0] * 3, -1, *[0] * 396]), "image 3: -1 is not from 0 to 19"),
        ("train", with_entry(b"coarse_labels", list(range(20)) * 20), "a fine class has two coarse ones"),
        ("test", with_entry(b"coarse_labels", [0] * 100), r"test: .*a fine class has two coarse ones"),
        ("train", with_entry(b"fine_labels", [0] * 400), "a class has no image"),
        ("meta", with_entry(b"fine_label_names", [b"a", b"a"]), "1 names occur twice"),
        ("meta", with_entry(b"fine_label_names", [1, 2]), r"expected a list of byte strings, found \[1, 2\]"),
    ],
)
def test_damaged_content_is_named(
    own_100: Path, name: str, change: Callable[[dict[bytes, Any]], dict[bytes, Any]], message: str
) -> None:
    path = own_100 / "cifar-100-python" / name
    path.write_bytes(pickle.dumps(change(unpickled(path)), 4))
    with pytest.raises(DataError, match=message):
        make_100(own_100).setup()


def test_names_are_read_from_meta(world_10: Path) -> None:
    names = read_class_names(world_10 / "cifar-10-batches-py" / "batches.meta", b"label_names")
    assert names == make_10(world_10).class_names
    assert len(names) == 10
