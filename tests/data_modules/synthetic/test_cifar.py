from __future__ import annotations

import hashlib
import pickle
import pickletools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_modules.cifar import CIFARDataModule
from data_modules.cifar_files import OFFICIAL_MD5
from data_modules.errors import DataError
from data_modules.synthetic.cifar import dumps_python2, write_cifar_world
from data_modules.synthetic.textures import class_names, family_names, family_of, kind_of, render


def checksums(root: Path) -> dict[str, str]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def unpickled(path: Path) -> dict[bytes, Any]:
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pickle.load(file, encoding="bytes")


@pytest.fixture(scope="module")
def world_10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar_world(tmp_path_factory.mktemp("w") / "c10", dataset=10, train_images=1000, test_images=400)


@pytest.fixture(scope="module")
def world_100(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar_world(tmp_path_factory.mktemp("w") / "c100", train_images=3000, test_images=500)


def test_the_layout_is_the_archives(world_10: Path, world_100: Path) -> None:
    written = set(checksums(world_10)) | set(checksums(world_100))
    assert written == {*OFFICIAL_MD5, "manifest.json"}
    for i, path in enumerate(sorted((world_10 / "cifar-10-batches-py").glob("*_batch*"))):
        content = unpickled(path)
        assert set(content) == {b"batch_label", b"labels", b"data", b"filenames"}
        count = 200 if i < 5 else 400
        assert (content[b"data"].shape, content[b"data"].dtype) == ((count, 3072), np.uint8)
        assert len(content[b"labels"]) == len(set(content[b"filenames"])) == count
    meta = unpickled(world_10 / "cifar-10-batches-py" / "batches.meta")
    assert {key: type(value) for key, value in meta.items()} == {
        b"num_cases_per_batch": int,
        b"label_names": list,
        b"num_vis": int,
    }
    content = unpickled(world_100 / "cifar-100-python" / "test")
    assert set(content) == {b"filenames", b"batch_label", b"fine_labels", b"coarse_labels", b"data"}
    assert {type(v) for v in content[b"fine_labels"] + content[b"coarse_labels"]} == {int}
    names = unpickled(world_100 / "cifar-100-python" / "meta")
    assert {k: len(v) for k, v in names.items()} == {b"fine_label_names": 100, b"coarse_label_names": 20}
    assert names[b"fine_label_names"] == sorted(set(names[b"fine_label_names"]))


def test_pickles_are_python_2_s(world_100: Path) -> None:
    opcodes = list(pickletools.genops((world_100 / "cifar-100-python" / "train").read_bytes()))
    assert (opcodes[0][0].name, opcodes[0][1]) == ("PROTO", 2)
    assert {argument for opcode, argument, _ in opcodes if opcode.name == "GLOBAL"} == {
        "numpy.core.multiarray _reconstruct",
        "numpy ndarray",
        "numpy dtype",
    }
    assert not any("UNICODE" in opcode.name for opcode, _, _ in opcodes)


def test_the_python_2_pickler_loses_nothing() -> None:
    value = {
        b"a": [0, 255, 256, -1, 2**31 - 1],
        b"b": np.arange(600, dtype=np.uint8).reshape(2, 300),
        b"c" * 300: [],
        b"d": {b"": [b"\xff"]},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pickle.loads(dumps_python2(value), encoding="bytes")
    assert np.array_equal(found.pop(b"b"), value.pop(b"b"))
    assert found == value
    with pytest.raises(TypeError, match="hold no float"):
        dumps_python2([1.0])


def test_the_same_parameters_give_the_same_bytes(tmp_path: Path) -> None:
    first, again, other = (
        write_cifar_world(tmp_path / name, seed=seed, train_images=200, test_images=100)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert checksums(again) == checksums(first)
    for name in ("train", "test"):
        assert checksums(other)[f"cifar-100-python/{name}"] != checksums(first)[f"cifar-100-python/{name}"]
    assert write_cifar_world(again, train_images=200, test_images=100) == again
    with pytest.raises(DataError, match="holds something else than the world"):
        write_cifar_world(again, train_images=195, test_images=100)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dataset": 20},
        {"dataset": 10, "train_images": 501},
        {"num_classes": 12},
        {"dataset": 10, "num_classes": 3},
        {"test_images": 99},
        {"train_images": 50},
        {"seed": -1},
    ],
)
def test_impossible_parameters_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"come in pairs|2 or more classes"):
        write_cifar_world(tmp_path / "w", **wrong)


def test_other_numbers_of_classes(tmp_path: Path) -> None:
    root = write_cifar_world(tmp_path / "w", train_images=60, test_images=20, num_classes=20)
    module = CIFARDataModule(root, batch_size=8, seed=0, dataset=100, val_images=10, noise=0.5, noise_groups="coarse")
    assert (module.num_classes, len(module.coarse_names)) == (20, 4)
    assert sum(len(b.labels) for b in module.train_dataloader()) == 50


def nearest_mean(train: NDArray[Any], train_labels: NDArray[Any], test: NDArray[Any]) -> NDArray[np.int64]:
    """Label each test image with the class whose mean training image is nearest."""
    means = np.stack([train[train_labels == c].mean(axis=0) for c in range(train_labels.max() + 1)])
    return np.array([((means - image) ** 2).sum(axis=(1, 2, 3)).argmin() for image in test])


def predictions(root: Path, dataset: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], CIFARDataModule]:
    module = CIFARDataModule(root, batch_size=8, seed=0, dataset=dataset, val_images=0)
    train, test = module.split("train"), module.split("test")
    pixels = [np.asarray(s.images.read(s.rows.tolist())).astype(np.float32) for s in (train, test)]
    return nearest_mean(pixels[0], train.labels, pixels[1]), test.labels, module


def test_labels_follow_from_the_pictures(world_100: Path) -> None:
    predicted, labels, module = predictions(world_100, 100)
    coarse = module.coarse_of
    right = (predicted == labels).mean()
    assert right > 0.12  # chance is 0.01
    assert (coarse[predicted] == coarse[labels]).mean() > 0.5  # chance is 0.05
    # Fine classes of one coarse class are confused with one another far more than with others: chance is 4 in 99.
    wrong = predicted != labels
    assert (coarse[predicted] == coarse[labels])[wrong].mean() > 0.4
    assert right < 0.5


def test_ten_classes_follow_from_the_pictures_too(world_10: Path) -> None:
    predicted, labels, _ = predictions(world_10, 10)
    wrong = predicted != labels
    assert 0.4 < (predicted == labels).mean() < 0.9  # chance is 0.1
    assert (predicted % 5 == labels % 5)[wrong].mean() > 0.8  # classes c and c + 5 look alike; chance is 1 in 9


def test_without_contrast_the_kinds_of_a_family_are_alike() -> None:
    families, kinds = np.zeros(6, dtype=np.int64), np.arange(6)
    plain = [render(families, kinds + shift, 24, np.random.default_rng(0), kind_contrast=0.0) for shift in (0, 1)]
    assert np.array_equal(*plain)
    textured = [render(families, kinds + shift, 24, np.random.default_rng(0)) for shift in (0, 1)]
    assert not np.array_equal(*textured)
    noisy = render(families, kinds, 24, np.random.default_rng(0), noise=60.0)
    assert (
        np.abs(np.diff(noisy.astype(int), axis=2)).mean() > 2 * np.abs(np.diff(textured[0].astype(int), axis=2)).mean()
    )


def test_families_of_classes() -> None:
    assert family_of(20).tolist() == [0, 1, 2, 3] * 5
    assert kind_of(20).tolist() == sorted([0, 1, 2, 3, 4] * 4)
    for count in (1, 7, 67, 200):
        names = class_names(count)
        assert names == sorted(set(names))
        assert len(set(zip(family_of(count), kind_of(count), strict=True))) == count
        assert np.bincount(family_of(count)).max() <= 5
    assert family_names(100) == sorted(set(family_names(100)))
    with pytest.raises(ValueError, match="per_family=9: there are names for 8 kinds"):
        class_names(20, per_family=9)
