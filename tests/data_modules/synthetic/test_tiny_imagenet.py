from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_modules.errors import DataError
from data_modules.synthetic.textures import family_of
from data_modules.synthetic.tiny_imagenet import write_tiny_imagenet_world
from data_modules.tiny_imagenet import TinyImageNetDataModule


def checksums(root: Path) -> dict[str, str]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


SIZES = {"num_classes": 10, "train_per_class": 30, "val_per_class": 10}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_imagenet_world(tmp_path_factory.mktemp("w") / "tiny", **SIZES)


def test_the_layout_is_the_archive_s(world: Path) -> None:
    root = world / "tiny-imagenet-200"
    assert {p.name for p in root.iterdir()} == {"wnids.txt", "words.txt", "train", "val", "test"}
    wnids = (root / "wnids.txt").read_text().split("\n")
    assert len(wnids) == 10
    assert all(len(wnid) == 9 and wnid[0] == "n" and wnid[1:].isdigit() for wnid in wnids)
    for wnid in wnids:
        folder = root / "train" / wnid
        assert {p.name for p in folder.iterdir()} == {"images", f"{wnid}_boxes.txt"}
        rows = [line.split("\t") for line in (folder / f"{wnid}_boxes.txt").read_text().splitlines()]
        assert [row[0] for row in rows] == [f"{wnid}_{i}.JPEG" for i in range(30)]
        assert all(0 <= int(x1) < int(x2) < 64 and 0 <= int(y1) < int(y2) < 64 for _, x1, y1, x2, y2 in rows)
    rows = [line.split("\t") for line in (root / "val" / "val_annotations.txt").read_text().splitlines()]
    assert [row[0] for row in rows] == [f"val_{i}.JPEG" for i in range(100)]
    assert {row[1] for row in rows} == set(wnids)
    assert {len(row) for row in rows} == {6}
    assert len(list((root / "test" / "images").iterdir())) == 100
    for path in list(root.rglob("*.JPEG"))[::37]:
        image = Image.open(path)
        assert (image.format, image.size) == ("JPEG", (64, 64))
        assert image.mode in ("RGB", "L")


def test_the_same_parameters_give_the_same_bytes(world: Path, tmp_path: Path) -> None:
    again = write_tiny_imagenet_world(tmp_path / "again", **SIZES)
    assert checksums(again) == checksums(world)
    other = write_tiny_imagenet_world(tmp_path / "other", seed=1, **SIZES)
    assert (other / "tiny-imagenet-200/wnids.txt").read_text() != (again / "tiny-imagenet-200/wnids.txt").read_text()
    with pytest.raises(DataError, match="holds something else than the world"):
        write_tiny_imagenet_world(again, seed=1, **SIZES)


@pytest.mark.parametrize("wrong", [{"num_classes": 0}, {"train_per_class": 0}, {"val_per_class": 0}, {"seed": -1}])
def test_impossible_parameters_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 or more classes"):
        write_tiny_imagenet_world(tmp_path / "w", **wrong)


def test_labels_follow_from_the_pictures(world: Path) -> None:
    module = TinyImageNetDataModule(world, batch_size=50, seed=0, val_images=0, augment=False)
    train, test = (
        [(b.images.numpy(), b.labels.numpy()) for b in loader]
        for loader in (module.train_dataloader(), module.test_dataloader())
    )
    images, labels = (np.concatenate(part) for part in zip(*train, strict=True))
    means = np.stack([images[labels == c].mean(axis=0) for c in range(10)])
    test_images, test_labels = (np.concatenate(part) for part in zip(*test, strict=True))
    predicted = np.array([((means - image) ** 2).sum(axis=(1, 2, 3)).argmin() for image in test_images])
    families = family_of(10)
    wrong = predicted != test_labels
    assert (predicted == test_labels).mean() > 0.2  # chance is 0.1
    assert (families[predicted] == families[test_labels]).mean() > 0.9
    assert (families[predicted] == families[test_labels])[wrong].mean() > 0.8  # chance is 4 in 9
