"""Non-maximum suppression of detections that come from files."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.ops import batched_nms

from data_modules.scene_graph import Detections


def suppress(found: Detections, max_overlap: float) -> Detections:
    """Drop detections that overlap a more confident one of their category by more than `max_overlap`.

    Overlaps are those of boxes whose last row and column belong to them ("+1" widths). The others keep their order; of
    equally confident ones the earlier is kept.

    Args:
        found: Detections of one image.
        max_overlap: IoU, a fraction; from 1 on nothing is dropped.
    """
    if max_overlap >= 1:
        return found
    order = np.argsort(-found.scores, kind="stable")
    edges = torch.from_numpy(found.boxes_xyxy[order].astype(np.float64)) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    # Ranks in place of the scores, so that ties are settled by the stable order.
    ranks = torch.arange(len(order), 0, -1, dtype=torch.float64)
    kept = order[batched_nms(edges, ranks, torch.from_numpy(found.labels[order]), max_overlap).numpy()]
    kept.sort()
    return Detections(found.boxes_xyxy[kept], found.labels[kept], found.scores[kept])
