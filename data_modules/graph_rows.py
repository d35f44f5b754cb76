"""From long tables of all images' boxes and relations to one graph an image, without a loop over rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_modules.scene_graph import SceneGraph


def slice_graphs(
    images: Sequence[str],
    sizes_wh: Sequence[tuple[int, int] | None],
    boxes_xyxy: NDArray[np.float32],
    labels: NDArray[np.int64],
    box_ranges: NDArray[np.int64],
    relations: NDArray[np.int64],
    relation_ranges: NDArray[np.int64],
) -> list[SceneGraph]:
    """Cut long tables into one graph an image; the graphs share the tables' memory.

    Args:
        images: I image names.
        sizes_wh: Their widths and heights in pixels.
        boxes_xyxy: float32 `[N, 4]`, the nodes of all images, pixels.
        labels: int64 `[N]`, 0-based.
        box_ranges: int64 `[I, 2]`, first row and row after the last.
        relations: int64 `[M, 3]`, (subject, predicate, object) with nodes counted from their image's first.
        relation_ranges: int64 `[I, 2]`, likewise.
    """
    ranges = zip(images, sizes_wh, box_ranges.tolist(), relation_ranges.tolist(), strict=True)
    return [
        SceneGraph(image, size, boxes_xyxy[first:end], labels[first:end], relations[first_relation:last_relation])
        for image, size, (first, end), (first_relation, last_relation) in ranges
    ]


def graphs_from_rows(
    images: Sequence[str],
    sizes_wh: Sequence[tuple[int, int] | None],
    row_image: NDArray[np.int64],
    subjects_xyxy: NDArray[np.float32],
    objects_xyxy: NDArray[np.float32],
    triplets: NDArray[np.int64],
) -> list[SceneGraph]:
    """Build graphs from relations that carry their own boxes.

    The nodes of an image are the distinct (box, category) of its relations, in order of first appearance, a relation's
    subject before its object: a box under two categories is two nodes. Exact duplicates of relations are kept.

    Args:
        images: I image names.
        sizes_wh: Their widths and heights in pixels.
        row_image: int64 `[M]`, the image of every relation, in any order.
        subjects_xyxy: float32 `[M, 4]`, pixels.
        objects_xyxy: float32 `[M, 4]`, pixels.
        triplets: int64 `[M, 3]`, 0-based (subject category, predicate, object category).
    """
    order = np.argsort(row_image, kind="stable")
    row_image, triplets = row_image[order], triplets[order]
    ends = np.stack([subjects_xyxy[order], objects_xyxy[order]], axis=1).reshape(-1, 4)
    labels = triplets[:, [0, 2]].reshape(-1)
    end_image = np.repeat(row_image, 2)
    table = pd.DataFrame({"image": end_image, "label": labels, **{f"box{i}": ends[:, i] for i in range(4)}})
    groups = table.groupby(list(table), sort=False)
    node = groups.ngroup().to_numpy()  # counted in order of first appearance, therefore image by image
    first = ~table.duplicated().to_numpy()
    box_ranges = _ranges(np.bincount(end_image[first], minlength=len(images)))
    relation_ranges = _ranges(np.bincount(row_image, minlength=len(images)))
    local = (node - box_ranges[end_image, 0]).reshape(-1, 2)
    relations = np.stack([local[:, 0], triplets[:, 1], local[:, 1]], axis=1).astype(np.int64)
    boxes = ends[first].astype(np.float32)
    return slice_graphs(images, sizes_wh, boxes, labels[first], box_ranges, relations, relation_ranges)


def _ranges(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    ends = np.cumsum(counts)
    return np.stack([ends - counts, ends], axis=1).astype(np.int64)
