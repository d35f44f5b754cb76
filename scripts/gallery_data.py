"""Turn the batches that the DataModules give into pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_modules.cifar import CIFARDataModule
from data_modules.classification import ClassificationDataModule
from data_modules.detection import DetectionDataModule
from data_modules.relation_module import RelationDataModule
from data_modules.scene_graph import ImageRelationBatch, RelationBatch
from data_modules.voc_segmentation import VOCSegmentationDataModule
from experiments.drawing import ALARM, GREY, INK
from scripts.gallery_draw import MAX_ARROWS, Line, Picture, zoomed

LOOKED_AT = 400  # images of a large data set among which the clearest are chosen
CROWDED = 8  # boxes beyond which those without an arrow are not named


def relation_pictures(module: RelationDataModule, count: int) -> list[Picture]:
    """Return scored images with their nodes and relations: easily read ones, each showing something new if it can."""
    found = [picture for picture in islice(_graphs(module), LOOKED_AT) if picture.arrows]
    scores = [(_clutter(picture), words(picture)) for picture in found]
    chosen: list[int] = []
    shown: set[str] = set()
    while len(chosen) < min(count, len(found)):
        rest = [i for i in range(len(found)) if i not in chosen]
        chosen.append(min(rest, key=lambda i: scores[i][0] - 0.05 * len(scores[i][1] - shown)))
        shown |= scores[chosen[-1]][1]
    return [zoomed(found[i], 4 / 3) for i in chosen]


def words(picture: Picture) -> set[str]:
    """Return the kinds of objects and relations that a picture shows."""
    named = ((picture.names[subject].split()[0], names) for subject, names, _ in picture.arrows)
    return {f"{kind} {name}" for kind, names in named for name in names.split(", ")} | set(picture.names)


def detection_pictures(module: DetectionDataModule, count: int) -> list[Picture]:
    """Return scored images with their objects; of difficult ones and crowds the boxes are dashed."""
    pictures = []
    for batch in module.test_dataloader():
        for number, (example, image) in enumerate(zip(batch.examples, batch.images, strict=True)):
            own = batch.image_index == number
            dashed, crowd = batch.ignored[own].tolist(), batch.crowd[own].tolist()
            names = [
                module.class_names[label] + (" (crowd)" if is_crowd else " (difficult)" if is_dashed else "")
                for label, is_crowd, is_dashed in zip(batch.labels[own].tolist(), crowd, dashed, strict=True)
            ]
            boxes = batch.boxes_xyxy[own].double().numpy()
            caption: tuple[Line, ...] = ((example.image, GREY, False),)
            pictures.append(Picture(_rgb(255 * image), caption, boxes, tuple(names), tuple(dashed)))
            if len(pictures) == count:
                return pictures
    return pictures


def segmentation_pictures(module: VOCSegmentationDataModule, count: int) -> list[Picture]:
    """Return training images of VOC and of SBD by turns, with their label maps."""
    by_source: dict[str, list[Picture]] = defaultdict(list)
    for example, image, labels in _label_maps(module):
        source = "SBD, without void" if example.label_path.parent.name == "cls" else "VOC, void white"
        caption: tuple[Line, ...] = ((f"{example.image}: {source}", GREY, False),)
        names = module.class_names
        by_source[source].append(Picture(_rgb(255 * image), caption, labels=labels.numpy(), label_names=names))
        if all(len(pictures) >= count for pictures in by_source.values()) and len(by_source) == 2:
            break
        if sum(map(len, by_source.values())) >= LOOKED_AT:
            break
    turns = [pictures for _, pictures in sorted(by_source.items(), reverse=True)]
    mixed = [p[i] for i in range(count) for p in turns if i < len(p)]
    return mixed[:count]


def class_pictures(module: ClassificationDataModule, count: int) -> list[Picture]:
    """Return test images with their classes, equally many of each class, sorted by class."""
    each = max(1, count // module.num_classes)
    chosen: dict[int, list[Picture]] = defaultdict(list)
    for batch in module.test_dataloader():
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            if len(chosen[label]) < each:
                caption: tuple[Line, ...] = ((_spaced(module.class_names[label]), INK, False),)
                chosen[label].append(Picture(_decoded(image, module), caption))
        if len(chosen) == module.num_classes and all(len(p) == each for p in chosen.values()):
            break
    return [p for label in sorted(chosen) for p in chosen[label]][:count]


def noisy_pictures(module: CIFARDataModule, count: int) -> list[Picture]:
    """Return training images with their clean labels and, where noise changed them, the noisy ones."""
    clean = dict(zip(module.split("train").rows.tolist(), module.clean_labels.tolist(), strict=True))
    pictures: list[Picture] = []
    for batch in module.train_dataloader():
        for image, label, index in zip(batch.images, batch.labels.tolist(), batch.index.tolist(), strict=True):
            names = module.class_names
            kept = clean[index] == label
            caption: tuple[Line, ...] = ((_spaced(names[clean[index]]), INK, False),)
            caption += () if kept else ((f"→ {_spaced(names[label])}", ALARM, True),)
            pictures.append(Picture(_decoded(image, module), caption))
            if len(pictures) == count:
                return pictures
    return pictures


def _clutter(picture: Picture) -> float:
    """Return how hard a picture is to read: all arrows and boxes should be long, and there should be some of them."""
    assert picture.boxes_xyxy is not None
    boxes = picture.boxes_xyxy / np.hypot(*picture.image.shape[:2])
    middles, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    shortest = min(np.hypot(*(middles[s] - middles[o])) for s, _, o in picture.arrows)
    wrong = abs(len(picture.arrows) - 3) + max(len(picture.names) - 6, 0) + picture.left_out
    return float(0.05 * wrong - min(shortest, 0.2) - min(float(sides.min()), 0.1))


def _graphs(module: RelationDataModule) -> Iterator[Picture]:
    for batch in module.test_dataloader():
        images = batch.images if isinstance(batch, ImageRelationBatch) else _blank(batch)
        for number, (graph, image) in enumerate(zip(batch.graphs, images, strict=True)):
            own = torch.nonzero(batch.image_index == number).flatten()
            first = int(own[0]) if len(own) else 0
            boxes = _edges(batch.boxes_xyxy[own].double().numpy(), module.column_offset)
            size = batch.sizes_wh[number].double().numpy()
            boxes *= np.tile(np.array([image.shape[2], image.shape[1]]) / size, 2)
            inside = batch.relations[torch.isin(batch.relations[:, 0], own)] - torch.tensor([first, 0, first])
            names = [module.object_names[label] for label in batch.labels[own].tolist()]
            yield _picture(graph.image, image, boxes, names, inside.tolist(), module.predicate_names)


def _picture(
    name: str,
    image: Tensor,
    boxes: NDArray[np.float64],
    names: list[str],
    relations: list[list[int]],
    predicates: Sequence[str],
) -> Picture:
    """Join what lies on one another: categories of one box, and predicates of one pair."""
    merged: dict[tuple[float, ...], int] = {}
    place = [merged.setdefault(tuple(box), len(merged)) for box in boxes.round(3).tolist()]
    categories: list[dict[str, None]] = [{} for _ in merged]
    for number, category in zip(place, names, strict=True):
        categories[number][category] = None
    pairs: dict[tuple[int, int], dict[str, None]] = {}
    for subject, predicate, other in relations:
        ends = place[subject], place[other]
        if ends[0] != ends[1]:
            pairs.setdefault(ends, {})[predicates[predicate] if len(predicates) > 1 else ""] = None
    shown = dict(list(pairs.items())[:MAX_ARROWS])
    ends_shown = {end for pair in shown for end in pair}
    kept = [n for n in range(len(merged)) if len(merged) <= CROWDED or n in ends_shown]
    caption = f"{name}: {len(pairs)} related pairs" + (f", {len(shown)} drawn" if len(shown) < len(pairs) else "")
    return Picture(
        _rgb(image),
        ((caption, GREY, False),),
        np.array(list(merged), dtype=np.float64).reshape(-1, 4)[kept],
        tuple(" / ".join(categories[n]) for n in kept),
        arrows=tuple((kept.index(s), ", ".join(p), kept.index(o)) for (s, o), p in shown.items()),
        left_out=len(pairs) - len(shown),
    )


def _edges(boxes: NDArray[np.float64], column_offset: float) -> NDArray[np.float64]:
    """Return the coordinates of boxes' edges, from 0; see `RelationExample.flipped` on how columns are counted."""
    shift = {1.0: (-1, -1, 0, 0), -1.0: (0, 0, 1, 1), 0.0: (0, 0, 0, 0)}[column_offset]
    return np.asarray(boxes + np.array(shift))


def _blank(batch: RelationBatch) -> Iterable[Tensor]:
    for width, height in batch.sizes_wh.round().long().tolist():
        scale = 640 / max(width, height, 1)
        yield torch.full((3, max(1, round(scale * height)), max(1, round(scale * width))), 225, dtype=torch.uint8)


def _label_maps(module: VOCSegmentationDataModule) -> Iterator[tuple[Any, Tensor, Tensor]]:
    for batch in module.train_dataloader():
        assert batch.labels is not None
        for example, image, labels, mirrored in zip(
            batch.examples, batch.images, batch.labels, batch.mirrored, strict=True
        ):
            if not mirrored:
                yield example, image, labels


def _decoded(image: Tensor, module: ClassificationDataModule) -> NDArray[np.uint8]:
    """Undo the scaling for the network."""
    scale = module.preprocessing.scale
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (scale.mean, scale.std))
    pixels = image * std + mean
    return _rgb(pixels.flip(0) if scale.bgr else pixels)


def _rgb(image: Tensor) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = image.float().round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return rounded


def _spaced(name: str) -> str:
    return name.replace("_", " ")
