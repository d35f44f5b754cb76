from __future__ import annotations

import numpy as np
import pytest

from data_modules.scene_graph import Detections
from data_modules.suppression import suppress
from data_modules.synthetic.vrd import write_vrd_world
from data_modules.vrd import VRDDataModule
from tests.lit_modules.metrics.reference_vrd import iou


def slow(found: Detections, limit: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(found.labels)), key=lambda i: (-found.scores[i], i)):
        rivals = [j for j in kept if found.labels[j] == found.labels[i]]
        if all(iou(found.boxes_xyxy[i].tolist(), found.boxes_xyxy[j].tolist()) <= limit for j in rivals):
            kept.append(i)
    return sorted(kept)


@pytest.mark.parametrize("limit", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_equals_a_loop(seed: int, limit: float) -> None:
    rng = np.random.default_rng(seed)
    low = rng.integers(1, 30, (60, 2))
    boxes = np.concatenate([low, low + rng.integers(10, 30, (60, 2))], axis=1).astype(np.float32)
    found = Detections(boxes, rng.integers(0, 3, 60), rng.integers(1, 6, 60) / 5)
    kept = slow(found, limit)
    got = suppress(found, limit)
    assert 0 < len(kept) < 60
    assert np.array_equal(got.boxes_xyxy, boxes[kept]) and np.array_equal(got.labels, found.labels[kept])
    assert np.array_equal(got.scores, found.scores[kept])


def test_an_overlap_at_the_limit_stays() -> None:
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 4]], np.float32)  # IoU 50 / 100
    found = Detections(boxes, np.zeros(2, np.int64), np.array([0.9, 0.8]))
    assert len(suppress(found, 0.5).labels) == 2 and len(suppress(found, 0.49).labels) == 1
    assert suppress(found, 1.0) is found
    nothing = Detections(boxes[:0], found.labels[:0], found.scores[:0])
    assert len(suppress(nothing, 0.5).labels) == 0


def test_the_data_module_suppresses_what_is_scored(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = write_vrd_world(tmp_path_factory.mktemp("vrd") / "world", train_images=4, test_images=12, with_images=False)
    counts = []
    for limit in (1.0, 0.3):
        data = VRDDataModule(root, batch_size=4, seed=0, proposals="lu2016", image_size="box_extent")
        data.nms = limit
        data.setup()
        counts.append(sum(len(found.labels) for found in data.detections))
        assert data.provenance().get("nms", 1.0) == limit
    assert counts[1] < counts[0]
