"""Relation batches for the tests of models, made without the suite's own collation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch

from data_modules.scene_graph import ImageRelationBatch, RaggedImages, RelationBatch, SceneGraph


@dataclass
class Image:
    """Boxes, labels and relations (subject box, predicate, object box) of one image, as plain lists."""

    boxes: list[list[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    relations: list[list[int]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    size: tuple[int, int] = (200, 100)


def make_batch(*images: Image) -> RelationBatch:
    graphs, first, relations = [], 0, []
    for number, image in enumerate(images):
        graphs.append(
            SceneGraph(
                f"{number}.jpg",
                image.size,
                np.array(image.boxes, np.float32).reshape(-1, 4),
                np.array(image.labels, np.int64),
                np.array(image.relations, np.int64).reshape(-1, 3),
            )
        )
        relations += [[s + first, p, o + first] for s, p, o in image.relations]
        first += len(image.labels)
    scores = [x for image in images for x in image.scores or [1.0] * len(image.labels)]
    return RelationBatch(
        boxes_xyxy=torch.tensor([b for image in images for b in image.boxes]).float().reshape(-1, 4),
        labels=torch.tensor([x for image in images for x in image.labels], dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float64),
        image_index=torch.tensor([i for i, image in enumerate(images) for _ in image.labels], dtype=torch.int64),
        sizes_wh=torch.tensor([image.size for image in images], dtype=torch.float32).reshape(-1, 2),
        relations=torch.tensor(relations, dtype=torch.int64).reshape(-1, 3),
        graphs=tuple(graphs),
    )


def random_images(
    seed: int, boxes: Sequence[int] = (6, 0, 1, 4), num_objects: int = 4, num_predicates: int = 3
) -> list[Image]:
    """Images with that many boxes; some boxes nearly equal an earlier one, some pairs have two predicates."""
    draw = np.random.default_rng(seed)
    images = []
    for count in boxes:
        image = Image(size=(int(draw.integers(150, 250)), int(draw.integers(150, 250))))
        for i in range(count):
            x, y, w, h = draw.integers([1, 1, 10, 10], [60, 60, 80, 80]).tolist()
            box = [x, y, x + w, y + h]
            if i and draw.random() < 0.4:
                box = (np.array(image.boxes[draw.integers(i)]) + draw.integers(-4, 5, 4)).clip(1).tolist()
            image.boxes.append(box)
            image.labels.append(int(draw.integers(num_objects)))
            image.scores.append(float(draw.uniform(0.2, 1)))
        for _ in range(count if count > 1 else 0):
            subject, obj = draw.choice(count, 2, replace=False).tolist()
            image.relations.append([subject, int(draw.integers(num_predicates)), obj])
        images.append(image)
    return images


def with_pixels(batch: RelationBatch, seed: int = 0, scale: float = 0.5) -> ImageRelationBatch:
    """The batch with random images, `scale` times as large as annotated."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [[round(scale * side) for side in size] for size in batch.sizes_wh.tolist()]
    images = [torch.randn(3, h, w, generator=generator) for w, h in sizes]
    given = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return ImageRelationBatch(**given, images=RaggedImages.of(images))
