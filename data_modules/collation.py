"""One image as a relation model gets it, and batches of such images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules.scene_graph import Detections, RelationBatch, SceneGraph


@dataclass(frozen=True, slots=True)
class RelationExample:
    """One image: its annotated graph, the boxes given to the model, and relations among these boxes.

    Attributes:
        graph: The annotated graph.
        boxes: The boxes given to the model, N of them.
        size_wh: Width and height in pixels, read or estimated.
        relations: int64 `[M, 3]`, (subject box, predicate, object box); empty where the boxes are detections.
    """

    graph: SceneGraph
    boxes: Detections
    size_wh: tuple[float, float]
    relations: NDArray[np.int64]

    def flipped(self, column_offset: float = 1.0) -> RelationExample:
        """Return the image mirrored left to right: x becomes W + `column_offset` - x. Twice gives the same boxes again.

        Args:
            column_offset: 1 where pixel columns are counted from 1 to W, as in VRD; -1 where they are counted from 0 to
                W - 1; 0 where coordinates are those of the columns' edges, from 0 to W.
        """
        columns = np.float32(self.size_wh[0] + column_offset)
        graph = replace(self.graph, boxes_xyxy=_mirrored(self.graph.boxes_xyxy, columns))
        return replace(
            self, graph=graph, boxes=replace(self.boxes, boxes_xyxy=_mirrored(self.boxes.boxes_xyxy, columns))
        )


def collate(examples: Sequence[RelationExample]) -> RelationBatch:
    """Concatenate the boxes of several images without padding; relations then index the batch's boxes."""
    counts = [len(e.boxes.labels) for e in examples]
    first_box = np.cumsum([0, *counts[:-1]])
    relations = [e.relations + np.array([first, 0, first]) for e, first in zip(examples, first_box, strict=True)]
    return RelationBatch(
        boxes_xyxy=torch.from_numpy(np.concatenate([e.boxes.boxes_xyxy for e in examples])),
        labels=torch.from_numpy(np.concatenate([e.boxes.labels for e in examples])),
        scores=torch.from_numpy(np.concatenate([e.boxes.scores for e in examples]).astype(np.float64)),
        image_index=torch.from_numpy(np.repeat(np.arange(len(examples)), counts)),
        sizes_wh=torch.tensor([e.size_wh for e in examples], dtype=torch.float32),
        relations=torch.from_numpy(np.concatenate(relations)),
        graphs=tuple(e.graph for e in examples),
    )


def _mirrored(boxes_xyxy: NDArray[np.float32], columns: np.float32) -> NDArray[np.float32]:
    x1, y1, x2, y2 = boxes_xyxy.T
    return np.stack([columns - x2, y1, columns - x1, y2], axis=1)
