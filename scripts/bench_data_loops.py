"""Plain loops with Pillow and torchvision that do by hand what the loaders do: decode, resize, mirror, scale, join."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.io import loadmat
from torch import Tensor
from torchvision.transforms import v2

from data_modules.classification import ClassificationDataModule
from data_modules.detection import DetectionDataModule
from data_modules.image_sources import ArrayImages, FileImages
from data_modules.relation_module import RelationDataModule
from data_modules.voc_segmentation import VOCSegmentationDataModule

Batches = Iterable[Sequence[Any]]  # the indices or keys of an epoch's batches, as a loader's batch sampler gives them
Epoch = Callable[[Batches], Iterator[tuple[Tensor, ...]]]  # yields a batch's images, then what belongs to them
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def to_network(mean: Sequence[float], std: Sequence[float]) -> v2.Compose:
    """Return the transforms from a Pillow image to float32 `[3, H, W]`, by means and standard deviations."""
    return v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def joined(images: Sequence[Tensor]) -> Tensor:
    """Return all images in one flat tensor, as the batches of the suite hold them."""
    return torch.cat([image.flatten() for image in images])


def detection_epoch(module: DetectionDataModule) -> Epoch:
    """Return a loop over the training images of a detection data set, plain and mirrored, with their boxes."""
    examples = module.train_examples
    resize, prepare = v2.Resize(module.short_side, max_size=module.long_side), to_network(*IMAGENET)

    def epoch(batches: Batches) -> Iterator[tuple[Tensor, ...]]:
        for batch in batches:
            images, boxes, labels = [], [], []
            for index in batch:
                mirrored, number = divmod(index, len(examples))
                example = examples[number]
                image, own = Image.open(example.path).convert("RGB"), torch.from_numpy(example.boxes_xyxy)
                if mirrored:
                    image = v2.functional.horizontal_flip(image)
                    own = torch.stack([image.width - own[:, 2], own[:, 1], image.width - own[:, 0], own[:, 3]], dim=1)
                resized = prepare(resize(image))
                images.append(resized)
                scale = torch.tensor([resized.shape[2] / image.width, resized.shape[1] / image.height])
                boxes.append(own * scale.repeat(2))
                labels.append(torch.from_numpy(example.labels))
            yield joined(images), torch.cat(boxes), torch.cat(labels)

    return epoch


def segmentation_epoch(module: VOCSegmentationDataModule) -> Epoch:
    """Return a loop over the training images of VOC and SBD, plain and mirrored, with their label maps."""
    examples = module.train_examples
    assert module.input_size is not None
    warp, prepare = v2.Resize((module.input_size, module.input_size)), to_network(*IMAGENET)

    def label_map(path: Path) -> Tensor:
        if path.suffix == ".mat":
            return torch.from_numpy(loadmat(path, struct_as_record=False, squeeze_me=True)["GTcls"].Segmentation)
        return torch.from_numpy(np.array(Image.open(path)))

    def epoch(batches: Batches) -> Iterator[tuple[Tensor, ...]]:
        for batch in batches:
            images, labels = [], []
            for index in batch:
                mirrored, number = divmod(index, len(examples))
                example = examples[number]
                assert example.label_path is not None
                image, own = Image.open(example.path).convert("RGB"), label_map(example.label_path)
                if mirrored:
                    image, own = v2.functional.horizontal_flip(image), own.flip(1)
                images.append(prepare(warp(image)))
                labels.append(own)
            yield joined(images), joined(labels)

    return epoch


def relation_epoch(module: RelationDataModule) -> Epoch:
    """Return a loop over the training images of a relation data set, with nodes and relations."""
    graphs = module.train_graphs
    # By stem: an image of VRD that is called .jpg may be a GIF.
    paths = {path.stem: path for path in module.root.rglob("*") if path.suffix in (".jpg", ".png", ".gif")}
    assert module.image_sides is not None
    resize, prepare = v2.Resize(module.image_sides[0], max_size=module.image_sides[1]), to_network(*IMAGENET)

    def epoch(batches: Batches) -> Iterator[tuple[Tensor, ...]]:
        for batch in batches:
            images, boxes, labels, relations, first = [], [], [], [], 0
            for index in batch:
                graph = graphs[index % len(graphs)]
                images.append(prepare(resize(Image.open(paths[Path(graph.image).stem]).convert("RGB"))))
                boxes.append(torch.from_numpy(graph.boxes_xyxy))
                labels.append(torch.from_numpy(graph.labels))
                relations.append(torch.from_numpy(graph.relations) + torch.tensor([first, 0, first]))
                first += len(graph.labels)
            yield joined(images), torch.cat(boxes), torch.cat(labels), torch.cat(relations)

    return epoch


def classification_epoch(module: ClassificationDataModule) -> Epoch:
    """Return a loop over the training images of a classification data set, with standard augmentation."""
    split, crop, pad, scale = (
        module.split("train"),
        *(getattr(module.preprocessing, k) for k in ("crop", "pad", "scale")),
    )
    source, resize = split.images, getattr(split.images, "resize", None)
    steps: list[v2.Transform] = [] if resize is None else [v2.Resize(resize.short, max_size=resize.limit)]
    steps += [] if crop is None else [v2.RandomCrop(crop, padding=pad or None)]
    steps += [v2.RandomHorizontalFlip(), to_network([v / 255 for v in scale.mean], [v / 255 for v in scale.std])]
    prepare = v2.Compose(steps)
    has_one_size = crop is not None or getattr(source, "size_wh", None) is not None

    def opened(row: int) -> Image.Image:
        if isinstance(source, FileImages):
            return Image.open(source.root / source.names[row]).convert("RGB")
        assert isinstance(source, ArrayImages)
        return Image.fromarray(source.images[row].permute(1, 2, 0).numpy())

    def epoch(batches: Batches) -> Iterator[tuple[Tensor, ...]]:
        for batch in batches:
            positions = [position for _, position in batch]
            images = [prepare(opened(row)) for row in split.rows[positions].tolist()]
            labels = torch.from_numpy(split.labels[positions])
            yield torch.stack(images) if has_one_size else joined(images), labels

    return epoch
