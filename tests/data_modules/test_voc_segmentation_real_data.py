from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_modules.errors import DataError
from data_modules.voc_segmentation import OFFICIAL_SHA256, VOCSegmentationDataModule


def make(root: Path, input_size: int, batch_size: int) -> VOCSegmentationDataModule:
    return VOCSegmentationDataModule(root, batch_size=batch_size, seed=0, input_size=input_size)


def lists(root: Path) -> Path:
    return root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"


def ids(root: Path, name: str) -> list[str]:
    return (lists(root) / f"{name}.txt").read_text().split()


@pytest.mark.real_data
def test_the_real_lists_are_complete_and_disjoint(data_root: Path) -> None:
    found = {name: ids(data_root, name) for name in ("train", "train_aug", "val", "val_official", "test")}
    assert {name: len(set(found[name])) for name in found} == {
        "train": 1464,
        "train_aug": 10582,
        "val": 320,
        "val_official": 1449,
        "test": 1456,
    }
    assert set(found["train"]) < set(found["train_aug"])
    assert set(found["val"]) < set(found["val_official"])
    assert not set(found["val_official"]) & set(found["train_aug"])
    assert not set(found["test"]) & (set(found["train_aug"]) | set(found["val_official"]))
    content = {name: (lists(data_root) / f"{name}.txt").read_bytes() for name in ("train", "val_official", "test")}
    sums = {f"{name.removesuffix('_official')}.txt": hashlib.sha256(c).hexdigest() for name, c in content.items()}
    assert sums == OFFICIAL_SHA256


@pytest.mark.real_data
def test_the_real_images_in_batches(data_root: Path) -> None:
    module = make(data_root, input_size=227, batch_size=16)
    module.setup("test")
    assert module.provenance()["official"] is False  # a part of val
    with warnings.catch_warnings(), pytest.raises(DataError, match=r"no such file, nor \d{5} others"):
        warnings.simplefilter("error")  # the pool is complete, its files aren't here
        module.setup("fit")
    batch = next(iter(module.test_dataloader()))
    assert batch.images.stacked().shape == (16, 3, 227, 227)
    assert -124 < batch.images.values.min() < -80 < 80 < batch.images.values.max() < 152


@pytest.mark.slow
@pytest.mark.real_data
def test_every_real_label_map_has_its_image_s_size_and_legal_ids(data_root: Path) -> None:
    module = make(data_root, input_size=32, batch_size=32)
    pixels = np.zeros(256, dtype=np.int64)
    count = 0
    for batch in module.test_dataloader():  # raises where a size or an id is wrong
        count += len(batch.examples)
        for example, labels in zip(batch.examples, batch.labels, strict=True):
            assert tuple(labels.shape[::-1]) == Image.open(example.path).size
            assert max(labels.shape) <= 500
            pixels += np.bincount(labels.numpy().ravel(), minlength=256)
    assert count == 320
    assert (pixels[:21] > 0).all()
    assert pixels[21:255].sum() == 0
    assert 0.6 < pixels[0] / pixels.sum() < 0.8
    assert 0.03 < pixels[255] / pixels.sum() < 0.08
