"""Geometry of boxes in pixel coordinates whose last row and column belong to the box (width = x2 - x1 + 1)."""

from __future__ import annotations

import torch
from torch import Tensor


def as_float_boxes(boxes_xyxy: Tensor, name: str = "boxes_xyxy") -> Tensor:
    """Check the shape of boxes and return them in a dtype that holds pixel coordinates and areas.

    Args:
        boxes_xyxy: `[..., 4]`, any real dtype, pixels.
        name: What an error calls the tensor.

    Returns:
        The boxes as float32 or float64: integers become float64 (unsigned ones would wrap around in differences), half
        precision becomes float32 (bfloat16 holds no odd coordinate above 256).

    Raises:
        ValueError: If the last dimension isn't 4.
    """
    if boxes_xyxy.ndim < 1 or boxes_xyxy.shape[-1] != 4:
        raise ValueError(f"{name} must have shape [..., 4] (x1, y1, x2, y2), got {list(boxes_xyxy.shape)}")
    if not boxes_xyxy.is_floating_point():
        return boxes_xyxy.to(torch.float64)
    return boxes_xyxy.float() if boxes_xyxy.dtype in (torch.float16, torch.bfloat16) else boxes_xyxy


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Area (x2 - x1 + 1)(y2 - y1 + 1) of each box.

    Args:
        boxes_xyxy: `[..., 4]`, pixels.

    Returns:
        `[...]`, square pixels; 0 for boxes turned inside out.

    Raises:
        ValueError: If the last dimension isn't 4.
    """
    boxes = as_float_boxes(boxes_xyxy)
    sides = (boxes[..., 2:] - boxes[..., :2] + 1).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def paired_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Intersection over union of boxes that stand at the same place of two tensors.

    Args:
        a_xyxy: `[..., 4]`, pixels.
        b_xyxy: `[..., 4]`, pixels; the leading dimensions broadcast against those of `a_xyxy`.

    Returns:
        `[...]`, fraction in [0, 1].

    Raises:
        ValueError: If a last dimension isn't 4.
    """
    a, b = as_float_boxes(a_xyxy, "a_xyxy"), as_float_boxes(b_xyxy, "b_xyxy")
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    sides = (high - low + 1).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    # Two empty boxes have an empty union: the clamp makes that 0 instead of 0 / 0, and leaves every pixel box alone.
    return intersection / (box_area(a) + box_area(b) - intersection).clamp(min=torch.finfo(intersection.dtype).tiny)


def box_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """Intersection over union of every box of one set with every box of another.

    Args:
        boxes1_xyxy: `[N, 4]`, pixels.
        boxes2_xyxy: `[M, 4]`, pixels.

    Returns:
        `[N, M]`, fraction in [0, 1].

    Raises:
        ValueError: If a set isn't two-dimensional with 4 columns.
    """
    _check_box_list(boxes1_xyxy, "boxes1_xyxy")
    _check_box_list(boxes2_xyxy, "boxes2_xyxy")
    return paired_iou(boxes1_xyxy[:, None], boxes2_xyxy[None])


def union_boxes(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the smallest boxes that hold both boxes of each pair.

    Args:
        a_xyxy: `[..., 4]`, pixels.
        b_xyxy: `[..., 4]`, pixels.

    Returns:
        `[..., 4]`, pixels.

    Raises:
        ValueError: If a last dimension isn't 4.
    """
    a, b = as_float_boxes(a_xyxy, "a_xyxy"), as_float_boxes(b_xyxy, "b_xyxy")
    return torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], dim=-1)


def box_deltas(reference_xyxy: Tensor, target_xyxy: Tensor) -> Tensor:
    """Regression targets that move reference boxes onto target boxes (R-CNN parametrisation, weights 1).

    dx = (cx_t - cx_r) / w_r, dy = (cy_t - cy_r) / h_r, dw = log(w_t / w_r), dh = log(h_t / h_r), with widths
    x2 - x1 + 1 and centres x1 + w / 2.

    Args:
        reference_xyxy: `[..., 4]`, pixels, x2 >= x1 and y2 >= y1 (otherwise the result isn't finite).
        target_xyxy: `[..., 4]`, pixels, likewise.

    Returns:
        `[..., 4]`, (dx, dy, dw, dh), without unit.

    Raises:
        ValueError: If a last dimension isn't 4.
    """
    reference = as_float_boxes(reference_xyxy, "reference_xyxy")
    target = as_float_boxes(target_xyxy, "target_xyxy")
    reference_sides = reference[..., 2:] - reference[..., :2] + 1
    target_sides = target[..., 2:] - target[..., :2] + 1
    shift = (target[..., :2] + target_sides / 2) - (reference[..., :2] + reference_sides / 2)
    return torch.cat([shift / reference_sides, (target_sides / reference_sides).log()], dim=-1)


def all_pairs(boxes: int | Tensor, device: torch.device | str | None = None) -> Tensor:
    """All ordered pairs (i, j) of different boxes of the same image.

    Args:
        boxes: The number of boxes of one image, or int64 `[N]`: the image of each box, in any order.
        device: Where the pairs are made if `boxes` is a number; otherwise they are where `boxes` is.

    Returns:
        int64 `[P, 2]`, ordered by i, then by j.

    Raises:
        ValueError: If the image index isn't one-dimensional.
    """
    index = torch.zeros(boxes, dtype=torch.int64, device=device) if isinstance(boxes, int) else boxes
    if index.ndim != 1:
        raise ValueError(f"image index must have shape [N], got {list(index.shape)}")
    return _same_image(index).nonzero()


def overlapping_pairs(boxes_xyxy: Tensor, image_index: Tensor | None = None) -> Tensor:
    """All ordered pairs (i, j) of different boxes of the same image whose IoU exceeds 0.

    Args:
        boxes_xyxy: `[N, 4]`, pixels.
        image_index: int64 `[N]`, the image of each box, in any order; None if all boxes are of one image.

    Returns:
        int64 `[P, 2]`, ordered by i, then by j. Boxes that share only a border row or column overlap.

    Raises:
        ValueError: If the shapes don't fit.
    """
    _check_box_list(boxes_xyxy, "boxes_xyxy")
    if image_index is None:
        image_index = torch.zeros(len(boxes_xyxy), dtype=torch.int64, device=boxes_xyxy.device)
    if image_index.shape != boxes_xyxy.shape[:1]:
        raise ValueError(f"image_index must have shape [{len(boxes_xyxy)}], got {list(image_index.shape)}")
    return (_same_image(image_index) & (box_iou(boxes_xyxy, boxes_xyxy) > 0)).nonzero()


def _same_image(image_index: Tensor) -> Tensor:
    """Boolean `[N, N]`: same image, different box."""
    itself = torch.eye(len(image_index), dtype=torch.bool, device=image_index.device)
    return (image_index[:, None] == image_index[None]) & ~itself


def _check_box_list(boxes_xyxy: Tensor, name: str) -> None:
    if boxes_xyxy.ndim != 2 or boxes_xyxy.shape[1] != 4:
        raise ValueError(f"{name} must have shape [N, 4] (x1, y1, x2, y2), got {list(boxes_xyxy.shape)}")
