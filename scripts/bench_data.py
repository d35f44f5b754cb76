"""Loaders of all data sets against plain loops with Pillow and torchvision over the same generated files."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data_modules.cifar import CIFARDataModule
from data_modules.coco import COCODataModule
from data_modules.image_sources import ArrayImages
from data_modules.mit67 import MIT67DataModule
from data_modules.openimages import OpenImagesDataModule
from data_modules.resident import ResidentLoader
from data_modules.sampling import ResumableBatchSampler
from data_modules.synthetic.cifar import write_cifar_world
from data_modules.synthetic.coco import write_coco_world
from data_modules.synthetic.mit67 import write_mit67_world
from data_modules.synthetic.openimages import write_openimages_world
from data_modules.synthetic.sbd import write_sbd_world
from data_modules.synthetic.tiny_imagenet import write_tiny_imagenet_world
from data_modules.synthetic.vg150 import write_vg150_world
from data_modules.synthetic.vg200 import write_vg200_world
from data_modules.synthetic.vg_proposals import write_vg_proposals_world
from data_modules.synthetic.voc import write_voc_world
from data_modules.synthetic.vrd import write_vrd_world
from data_modules.tiny_imagenet import TinyImageNetDataModule
from data_modules.vg150 import VG150DataModule
from data_modules.vg200 import VG200DataModule
from data_modules.vg_proposals import VGProposalsDataModule
from data_modules.voc_detection import VOCDetectionDataModule
from data_modules.voc_segmentation import VOCSegmentationDataModule
from data_modules.vrd import VRDDataModule
from scripts.bench_data_loops import (
    Epoch,
    classification_epoch,
    detection_epoch,
    relation_epoch,
    segmentation_epoch,
)
from scripts.bench_measure import Measurement

PHOTO = (500, 375)  # usual width and height of VOC's and COCO's images, in pixels
RESIDENT_MARK = 20.0  # on a GPU


@dataclass(frozen=True)
class Case:
    """One loader and the loop that it is measured against.

    Attributes:
        name: Data set and size.
        write: Writes a world with about so many training images under a folder.
        module: The DataModule's class.
        options: Its arguments besides root, seed and workers.
        epoch: Makes the plain loop for such a DataModule.
        images: Training images, mirrored ones included.
    """

    name: str
    write: Callable[[Path, int], Path]
    module: Callable[..., Any]
    options: dict[str, Any]
    epoch: Callable[[Any], Epoch]
    images: int


def _relations(name: str, write: Callable[[Path, int], Path], module: Callable[..., Any], **options: Any) -> Case:
    options = {"batch_size": 8, "images": "torchvision", "image_sides": (600, 1000)} | options
    return Case(f"{name}, 600 px", write, module, options, relation_epoch, 48)


def _classes(
    name: str, write: Callable[[Path, int], Path], module: Callable[..., Any], images: int, **options: Any
) -> Case:
    return Case(name, write, module, {"val_images": 0} | options, classification_epoch, images)


CASES = (
    Case(
        "VOC2007 detection, 600 px",
        lambda root, n: write_voc_world(root, 0, n // 4, n // 4, 2, size_wh=PHOTO),
        VOCDetectionDataModule,
        {"batch_size": 2},
        detection_epoch,
        48,
    ),
    Case(
        "COCO, 600 px",
        lambda root, n: write_coco_world(root, 0, 2, n // 2, 2, size_wh=PHOTO),
        COCODataModule,
        {"batch_size": 2},
        detection_epoch,
        48,
    ),
    Case(
        "VOC2012 + SBD segmentation, 227 px",
        lambda root, n: write_sbd_world(root, 0, n // 6, 4, 2, n // 3, size_wh=PHOTO),
        VOCSegmentationDataModule,
        {"batch_size": 16, "pixels": "torchvision"},
        segmentation_epoch,
        96,
    ),
    _relations("VRD", lambda root, n: write_vrd_world(root, 0, n, 2), VRDDataModule),
    _relations("VG150", lambda root, n: write_vg150_world(root, 0, n, 2), VG150DataModule, val_images=0),
    _relations("VG200", lambda root, n: write_vg200_world(root, 0, n, 2), VG200DataModule),
    _relations(
        "VG proposals", lambda root, n: write_vg_proposals_world(root, 0, n), VGProposalsDataModule, source="json"
    ),
    _relations("Open Images", lambda root, n: write_openimages_world(root, 0, n, 12), OpenImagesDataModule),
    _classes(
        "MIT67, 600 px",
        lambda root, n: write_mit67_world(root, 0, n // 8, 8, 1, 400),
        MIT67DataModule,
        48,
        batch_size=8,
    ),
    _classes(
        "MIT67, 224 px",
        lambda root, n: write_mit67_world(root, 0, n // 8, 8, 1, 400),
        MIT67DataModule,
        64,
        batch_size=16,
        size="crop224",
    ),
    _classes(
        "Tiny ImageNet",
        lambda root, n: write_tiny_imagenet_world(root, 0, n // 50, 50, 1),
        TinyImageNetDataModule,
        1000,
        batch_size=128,
    ),
    _classes("CIFAR-10", lambda root, n: write_cifar_world(root, 0, 10, n, 10), CIFARDataModule, 4000, batch_size=128),
    _classes(
        "CIFAR-100",
        lambda root, n: write_cifar_world(root, 0, 100, n, 100),
        CIFARDataModule,
        4000,
        batch_size=128,
        dataset=100,
    ),
)


def measure_loaders(cases: Sequence[Case], quick: bool, repeats: int) -> list[Measurement]:
    """Measure the training loaders with one worker and with none."""
    measurements = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "VOC and SBD label")
        for number, case in enumerate(tqdm(cases, "loaders", disable=None, leave=False)):
            root = case.write(Path(folder, str(number)), min(case.images, 100) if quick else case.images)
            measurements += measure_case(case, root, repeats)
    return measurements


def measure_case(case: Case, root: Path, repeats: int) -> list[Measurement]:
    """Measure one loader: time on the clock of an epoch, in turns with the plain loop."""
    alone, helped = (case.module(root, seed=0, num_workers=workers, **case.options) for workers in (0, 1))
    plain, order = case.epoch(alone), alone.train_dataloader().batch_sampler
    loaders = alone.train_dataloader(), helped.train_dataloader()
    calls = [lambda: exhaust(plain(order)), lambda: exhaust(loaders[0]), lambda: exhaust(loaders[1])]
    costs = turns(calls, len(loaders[0].dataset), repeats)
    result = []
    for column, workers, mark in ((2, "one worker", 1.0), (1, "no worker", None)):
        reference, ours = middle([(turn[0], turn[column]) for turn in costs])
        note = f"PIL and torchvision, no worker: {1000 / reference:,.0f} images/s, ours {1000 / ours:,.0f}"
        result.append(Measurement(f"{case.name}, {workers}: time an image", "ms", ours, reference, note, mark))
    return result


def measure_resident(quick: bool, repeats: int) -> list[Measurement]:
    """Measure CIFAR-10 with all images on the device against the loader with one worker, batches on the device."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        root = write_cifar_world(Path(folder, "world"), 0, 10, 500 if quick else 20_000, 10)
        options: dict[str, Any] = {"batch_size": 128, "seed": 0, "val_images": 0}
        module = CIFARDataModule(root, num_workers=1, **options)
        helped, split = module.train_dataloader(), module.split("train")
    assert isinstance(split.images, ArrayImages)
    resident = ResidentLoader(
        split.images.images.to(device),
        torch.from_numpy(split.rows),
        torch.from_numpy(split.labels),
        module.preprocessing,
        ResumableBatchSampler(len(split.rows), module.batch_size, module.seed),
        module.batch_size,
        module.seed,
    )

    def on_device(loader: Iterable[Any]) -> None:
        exhaust(batch.to(device, non_blocking=True) for batch in loader)
        if on_gpu:
            torch.cuda.synchronize()

    costs = turns([partial(on_device, helped), partial(on_device, resident)], len(split.rows), repeats)
    reference, ours = middle([(turn[0], turn[1]) for turn in costs])
    where = torch.cuda.get_device_name() if on_gpu else "on the CPU: no GPU at hand, so no mark"
    note = f"loader with one worker, {where}: {1000 / reference:,.0f} images/s, ours {1000 / ours:,.0f}"
    name = f"CIFAR-10, resident ({device.type}): time an image"
    return [Measurement(name, "ms", ours, reference, note, RESIDENT_MARK if on_gpu else None)]


def exhaust(batches: Iterable[Any]) -> None:
    """Run through an epoch."""
    for _ in batches:
        pass


def turns(calls: Sequence[Callable[[], None]], images: int, repeats: int) -> list[list[float]]:
    """Return the milliseconds on the clock that each call takes for each of its images, `repeats` rounds of all."""
    for call in calls:
        call()  # starts the worker, and warms caches
    rounds = []
    for _ in range(repeats):
        costs = []
        for call in calls:
            start = time.perf_counter()
            call()
            costs.append(1000 * (time.perf_counter() - start) / images)
        rounds.append(costs)
    return rounds


def middle(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the (reference, ours) whose ratio is the median: both are of one turn, and met the same disturbances."""
    return sorted(pairs, key=lambda pair: pair[0] / pair[1])[len(pairs) // 2]
