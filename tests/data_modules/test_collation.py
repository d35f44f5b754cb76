from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from data_modules.collation import RelationExample, collate
from data_modules.scene_graph import Detections, SceneGraph
from tests.lit_modules.batches import make_batch, random_images, with_pixels


def example(image: str, boxes: list[list[float]], relations: list[list[int]], width: float = 100) -> RelationExample:
    boxes_xyxy = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    labels = np.arange(len(boxes), dtype=np.int64) + 5
    rows = np.array(relations, dtype=np.int64).reshape(-1, 3)
    graph = SceneGraph(image, None, boxes_xyxy, labels, rows)
    return RelationExample(graph, Detections(boxes_xyxy, labels, np.ones(len(boxes)) / 4), (width, 50), rows)


def test_boxes_are_concatenated_and_relations_follow_them() -> None:
    first = example("a", [[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 9, 0], [0, 9, 1]])
    none = example("b", [], [])
    last = example("c", [[9, 9, 9, 9]], [[0, 0, 0]], width=80)
    batch = collate([none, first, none, last])
    assert batch.boxes_xyxy.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]]
    assert batch.labels.tolist() == [5, 6, 5]
    assert batch.scores.tolist() == [0.25] * 3
    assert batch.image_index.tolist() == [1, 1, 3]
    assert batch.sizes_wh.tolist() == [[100, 50], [100, 50], [100, 50], [80, 50]]
    assert batch.relations.tolist() == [[1, 9, 0], [0, 9, 1], [2, 0, 2]]
    assert [g.image for g in batch.graphs] == ["b", "a", "b", "c"]
    assert batch.graphs[3].relations.tolist() == [[0, 0, 0]]  # those of the image itself
    types = [t.dtype for t in (batch.boxes_xyxy, batch.scores, batch.sizes_wh)]
    assert types == [torch.float32, torch.float64, torch.float32]
    types = [t.dtype for t in (batch.labels, batch.image_index, batch.relations)]
    assert types == [torch.int64] * 3


def test_a_batch_shares_no_memory_with_the_data_set() -> None:
    single = example("a", [[1, 2, 3, 4]], [])
    collate([single]).boxes_xyxy.zero_()
    assert single.boxes.boxes_xyxy.tolist() == [[1, 2, 3, 4]]


def test_flipping_mirrors_the_columns_1_to_width_and_undoes_itself() -> None:
    original = example("a", [[1, 2, 100, 4], [1, 6, 1, 8], [11, 20, 40, 30]], [[0, 3, 2]])
    flipped = original.flipped()
    expected = [[1, 2, 100, 4], [100, 6, 100, 8], [61, 20, 90, 30]]
    assert flipped.boxes.boxes_xyxy.tolist() == expected
    assert flipped.graph.boxes_xyxy.tolist() == expected
    assert flipped.relations.tolist() == [[0, 3, 2]]
    assert flipped.boxes.boxes_xyxy.dtype == np.float32
    again = flipped.flipped()
    assert np.array_equal(again.boxes.boxes_xyxy, original.boxes.boxes_xyxy)
    assert np.array_equal(again.graph.boxes_xyxy, original.graph.boxes_xyxy)
    assert example("a", [], []).flipped().boxes.boxes_xyxy.shape == (0, 4)


def test_every_tensor_of_a_batch_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page-locked memory needs a GPU, so that the call is watched instead."""
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self.clone())
    batch = with_pixels(make_batch(*random_images(0)))
    copy = batch.pin_memory()
    tensors = [getattr(batch, f.name) for f in fields(batch)]
    tensors = [*(t for t in tensors if isinstance(t, torch.Tensor)), batch.images.values]
    assert len(tensors) == 7 and {id(t) for t in pinned} == {id(t) for t in tensors}
    assert torch.equal(copy.boxes_xyxy, batch.boxes_xyxy) and len(copy.images) == len(batch.images)
