"""Boxes drawn as anti-aliased rectangles in the frame of their union, as Neural Motifs sees pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_modules.functional.boxes import as_float_boxes


def union_rectangles(subjects_xyxy: Tensor, objects_xyxy: Tensor, size: int) -> Tensor:
    """Draw subject and object in a square that their union fills.

    A cell holds the fraction of it that the box covers. As in the official code, corners count as they are: a box of
    pixels x1 to x2 is drawn x2 - x1 wide.

    Args:
        subjects_xyxy: `[E, 4]`, pixels.
        objects_xyxy: `[E, 4]`, pixels.
        size: Cells on each side.

    Returns:
        `[E, 2, size, size]`, fractions: subject and object, rows from top to bottom. Where the union has no width or no
        height, all 0.

    Raises:
        ValueError: If the boxes don't have shape `[E, 4]`, or not the same.
    """
    subjects, objects = as_float_boxes(subjects_xyxy, "subjects_xyxy"), as_float_boxes(objects_xyxy, "objects_xyxy")
    if subjects.shape != objects.shape or subjects.ndim != 2:
        raise ValueError(f"subjects and objects must be [E, 4], got {list(subjects.shape)} and {list(objects.shape)}")
    low = torch.minimum(subjects[:, :2], objects[:, :2])
    sides = torch.maximum(subjects[:, 2:], objects[:, 2:]) - low
    scale = size / torch.where(sides > 0, sides, 1)
    corners = (torch.stack([subjects, objects], dim=1).unflatten(2, (2, 2)) - low[:, None, None]) * scale[:, None, None]
    cells = torch.arange(size, device=low.device, dtype=low.dtype)
    start, end = (corners[:, :, i, :, None] for i in range(2))  # [E, 2, xy, 1]
    covered = (cells + 1 - start).clamp(0, 1) * (end - cells).clamp(0, 1)  # [E, 2, xy, size]
    drawn: Tensor = covered[:, :, 1, :, None] * covered[:, :, 0, None]
    return drawn
