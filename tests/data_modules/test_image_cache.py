"""The image cache of the detection, segmentation and relation data sets: the same batches, and no old pixels."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import data_modules.image_sources as image_sources
from data_modules.coco import COCODataModule
from data_modules.errors import DataError
from data_modules.image_loading import ImageDataModule
from data_modules.openimages import OpenImagesDataModule
from data_modules.synthetic.coco import write_coco_world
from data_modules.synthetic.openimages import write_openimages_world
from data_modules.synthetic.sbd import write_sbd_world
from data_modules.synthetic.vg150 import write_vg150_world
from data_modules.synthetic.vg200 import write_vg200_world
from data_modules.synthetic.vg_proposals import write_vg_proposals_world
from data_modules.synthetic.voc import write_voc_world
from data_modules.synthetic.vrd import write_vrd_world
from data_modules.vg150 import VG150DataModule
from data_modules.vg200 import VG200DataModule
from data_modules.vg_proposals import VGProposalsDataModule
from data_modules.voc_detection import VOCDetectionDataModule
from data_modules.voc_segmentation import VOCSegmentationDataModule
from data_modules.vrd import VRDDataModule

pytestmark = pytest.mark.filterwarnings("ignore:VOC and SBD label")
SIDES: dict[str, Any] = {"short_side": 90, "long_side": 120}
WARPED: dict[str, Any] = {"images": "torchvision", "image_sides": (60, 80), "flip": "random"}
Case = tuple[Callable[[Path], Path], type[ImageDataModule], dict[str, Any]]
CASES: dict[str, Case] = {
    "voc": (lambda root: write_voc_world(root, 0, 6, 2, 4), VOCDetectionDataModule, SIDES),
    "coco": (lambda root: write_coco_world(root, 0, 2, 6, 4), COCODataModule, SIDES | {"pixels": "relnet"}),
    "segmentation": (lambda root: write_sbd_world(root, 0, 4, 3, 2, 4), VOCSegmentationDataModule, {"input_size": 64}),
    "segmentation, own sizes": (
        lambda root: write_sbd_world(root, 0, 4, 3, 2, 4),
        VOCSegmentationDataModule,
        {"input_size": None},
    ),
    "vrd": (
        lambda root: write_vrd_world(root, 0, 9, 5),
        VRDDataModule,
        {"images": "torchvision", "image_sides": (60, 80), "flip": True},
    ),
    "vg150": (lambda root: write_vg150_world(root, 0, 12, 9), VG150DataModule, WARPED | {"val_images": 2}),
    "vg200": (lambda root: write_vg200_world(root, 0, 8, 5), VG200DataModule, WARPED | {"images": "uint8"}),
    "vg_proposals": (
        lambda root: write_vg_proposals_world(root, 0, 14),
        VGProposalsDataModule,
        {"source": "json", "images": "torchvision", "flip": "double"},
    ),
    "openimages": (lambda root: write_openimages_world(root, 0, 9, 5), OpenImagesDataModule, WARPED),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Callable[..., ImageDataModule]]:
    """A world of a test's own, and how a DataModule of it is made."""
    write, module, options = CASES[request.param]
    root = write(tmp_path / "world")
    return root, lambda **more: module(root, batch_size=4, seed=0, **(options | more))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def image_files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.jpg"))


def test_batches_are_the_same_to_the_bit_and_files_are_decoded_once(
    case: tuple[Path, Callable[..., ImageDataModule]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, make = case
    cache = tmp_path / "cache"

    def epochs(module: ImageDataModule) -> list[Any]:
        train = module.train_dataloader()
        return [batch for loader in (train, train, module.test_dataloader()) for batch in loader]

    plain, cached = epochs(make()), epochs(make(image_cache=cache))
    assert len(plain) > 3
    assert same(plain, cached)
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 2  # of the training and of the scored images
    monkeypatch.setattr(image_sources, "decode_rgb", lambda path, remedy: pytest.fail(f"{path} was decoded"))
    assert same(plain, epochs(make(image_cache=str(cache))))


def test_changed_images_and_truncated_caches_are_noticed(
    case: tuple[Path, Callable[..., ImageDataModule]], tmp_path: Path
) -> None:
    root, make = case
    cache = tmp_path / "cache"
    before = list(make(image_cache=cache).test_dataloader())
    for path in image_files(root):
        with Image.open(path) as image:
            size = image.size
        Image.new("RGB", size, (250, 128, 3)).save(path)
        os.utime(path, ns=(1, 1))  # older, as after unpacking an archive
    changed = list(make(image_cache=cache).test_dataloader())
    assert not same(before, changed)
    assert same(changed, list(make().test_dataloader()))
    for pixels in cache.glob("*/pixels.bin"):
        pixels.write_bytes(pixels.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="decoding the images again"):
        again = list(make(image_cache=cache).test_dataloader())
    assert same(changed, again)


# Open Images and VRD take an image's size from the file.
@pytest.mark.parametrize("case", [name for name in CASES if name not in ("openimages", "vrd")], indirect=True)
def test_images_that_do_not_fit_are_named_with_a_cache_too(
    case: tuple[Path, Callable[..., ImageDataModule]], tmp_path: Path
) -> None:
    root, make = case
    files = image_files(root)
    for path in files:
        Image.new("RGB", (31, 77)).save(path)
    with pytest.raises(DataError, match=r"\.(jpg|png|mat): .*\b31 x 77\b"):
        list(make(image_cache=tmp_path / "cache").test_dataloader())
    content = files[0].read_bytes()
    for path in files:
        path.write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"\.jpg: truncated or damaged image"):
        list(make(image_cache=tmp_path / "cache").test_dataloader())
