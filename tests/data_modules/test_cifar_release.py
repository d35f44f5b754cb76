"""CIFAR-100 itself, or a copy of it in another order."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data_modules.cifar import CIFARDataModule
from data_modules.cifar_files import OFFICIAL_MD5


def make_100(root: Path, **options: Any) -> CIFARDataModule:
    return CIFARDataModule(root, **({"batch_size": 16, "seed": 0, "dataset": 100, "val_images": 100} | options))


@pytest.fixture(scope="module")
def real(data_root: Path) -> CIFARDataModule:
    if not (data_root / "cifar-100-python" / "train").is_file():
        pytest.skip("DATA_ROOT holds no cifar-100-python")
    module = make_100(data_root, batch_size=64, val_images=5000, split="smooth_topk", normalisation="smooth_topk")
    module.setup()
    return module


def all_pixels(module: CIFARDataModule) -> NDArray[np.uint8]:
    return np.asarray(module.split("train").images.read(range(50_000)))


@pytest.mark.real_data
def test_the_real_archive_has_its_known_counts_and_means(real: CIFARDataModule) -> None:
    provenance = real.provenance()
    sizes = [provenance[f"{split}_images"] for split in ("train", "val", "test")]
    assert sizes == [45_000, 5_000, 10_000]
    assert (real.num_classes, len(real.coarse_names)) == (100, 20)
    assert real.class_names[:3] == ["apple", "aquarium_fish", "baby"]
    labels = np.concatenate([real.split("train").labels, real.split("val").labels])
    assert np.bincount(labels).tolist() == [500] * 100
    assert np.bincount(real.split("test").labels).tolist() == [100] * 100
    pixels = all_pixels(real)
    means = [pixels[:, c].mean(dtype=np.float64) / 255 for c in range(3)]
    assert means == pytest.approx([0.5071, 0.4865, 0.4409], abs=5e-5)
    stds = [pixels[:, c].std(dtype=np.float64) / 255 for c in range(3)]
    assert stds == pytest.approx([0.2673, 0.2564, 0.2762], abs=5e-5)
    coarse = {real.coarse_names[c] for c in real.coarse_of[:5]}
    assert len(coarse) == 5  # apple, aquarium_fish, baby, bear and beaver have little in common


@pytest.mark.real_data
def test_another_order_of_the_real_images_is_not_official(real: CIFARDataModule) -> None:
    train = next(f for f in real.provenance()["files"] if f["name"] == "cifar-100-python/train")
    content = (real.root / "cifar-100-python" / "train").read_bytes()
    is_archive = hashlib.md5(content).hexdigest() == OFFICIAL_MD5["cifar-100-python/train"]
    assert train["bytes"] == len(content)
    assert real.provenance()["official"] is is_archive


@pytest.mark.real_data
def test_real_batches_are_alike_with_and_without_resident(real: CIFARDataModule) -> None:
    resident = make_100(
        real.root, batch_size=64, val_images=5000, split="smooth_topk", normalisation="smooth_topk", resident=True
    )
    loaded, held = real.train_dataloader(), resident.train_dataloader()
    assert len(loaded) == len(held) == 704
    for _, a, b in zip(range(20), loaded, held, strict=False):
        assert a.images.shape == (64, 3, 32, 32)
        assert torch.equal(a.images, b.images)
        assert -2.1 < a.images.min() < -1.5
        assert 1.8 < a.images.max() < 2.3


@pytest.mark.real_data
@pytest.mark.parametrize("groups", ["official_consecutive", "coarse"])
def test_noise_on_the_real_labels(real: CIFARDataModule, groups: Any) -> None:
    options = {"batch_size": 64, "val_images": 5000, "split": "smooth_topk", "noise": 0.6, "noise_groups": groups}
    module = make_100(real.root, **options)
    clean, noisy = module.clean_labels, module.split("train").labels
    assert (clean != noisy).mean() == pytest.approx(0.8 * 0.6, abs=0.01)
    same = (
        clean // 5 == noisy // 5
        if groups == "official_consecutive"
        else module.coarse_of[clean] == module.coarse_of[noisy]
    )
    assert same.all()
    assert np.array_equal(module.split("val").labels, real.split("val").labels)
    assert np.array_equal(module.split("test").labels, real.split("test").labels)
