"""Spatial inputs of relation models: the pair feature of RelDN and the two-rectangle masks of VRD models."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_modules.functional.boxes import as_float_boxes, box_area, box_deltas, union_boxes

PAIR_FEATURES = 28
"""Length of one `pair_spatial_features` row: three box pairs of 6 numbers, two boxes of 5."""


def pair_spatial_features(subject_xyxy: Tensor, object_xyxy: Tensor, sizes_wh: Tensor) -> Tensor:
    """Spatial feature of each subject-object pair as RelDN's released code lays it out (equations 9-11).

    The equations give 22 numbers; the code, followed here, uses 28: for the box pairs (s, o), (s, u) and (u, o), with u
    the union box, the full regression delta (dx, dy, dw, dh) of the first box onto the second and (dx, dy) of the
    second onto the first; then (x1 / W, y1 / H, x2 / W, y2 / H, area / (W H)) of s and of o.

    Args:
        subject_xyxy: `[P, 4]`, pixels, x2 >= x1 and y2 >= y1.
        object_xyxy: `[P, 4]`, pixels, likewise.
        sizes_wh: `[P, 2]` or `[2]`, width and height of the image that the coordinates refer to, pixels.

    Returns:
        `[P, 28]`, without unit.

    Raises:
        ValueError: If the shapes don't fit.
    """
    subject, obj = _check_pairs(subject_xyxy, object_xyxy)
    if sizes_wh.shape not in ((2,), (len(subject), 2)):
        raise ValueError(f"sizes_wh must have shape [2] or [{len(subject)}, 2], got {list(sizes_wh.shape)}")
    sizes = sizes_wh.to(subject.dtype).expand(len(subject), 2)
    union = union_boxes(subject, obj)
    pairs = [_two_way_deltas(subject, obj), _two_way_deltas(subject, union), _two_way_deltas(union, obj)]
    return torch.cat([*pairs, _normalised_box(subject, sizes), _normalised_box(obj, sizes)], dim=1)


def rectangle_masks(subject_xyxy: Tensor, object_xyxy: Tensor, frame_xyxy: Tensor, size: int = 64) -> Tensor:
    """Binary masks of the subject's and the object's box in a frame that is scaled to a square grid.

    A cell is 1 if the box covers any part of it: the low edge x1 is rounded down, the high edge x2 + 1 up (the last
    column belongs to the box). Boxes are cut at the frame, but never vanish: a box outside the frame keeps the nearest
    border cell.

    Args:
        subject_xyxy: `[P, 4]`, pixels.
        object_xyxy: `[P, 4]`, pixels.
        frame_xyxy: `[P, 4]` or `[4]`, pixels: the image rectangle (0, 0, W - 1, H - 1), or the union boxes.
        size: Cells on each side of the grid.

    Returns:
        `[P, 2, size, size]` (pair, subject/object, row, column), float32 or float64 as the boxes, values 0 and 1.

    Raises:
        ValueError: If the shapes don't fit or `size` isn't positive.
    """
    subject, obj = _check_pairs(subject_xyxy, object_xyxy)
    if frame_xyxy.shape not in ((4,), (len(subject), 4)):
        raise ValueError(f"frame_xyxy must have shape [4] or [{len(subject)}, 4], got {list(frame_xyxy.shape)}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    frame = as_float_boxes(frame_xyxy, "frame_xyxy").to(subject.dtype).expand(len(subject), 4)
    boxes = torch.stack([subject, obj], dim=1)  # [P, 2, 4]
    origin, sides = frame[:, None, :2], (frame[:, 2:] - frame[:, :2] + 1)[:, None]
    # Multiply before dividing: the product of integers is exact, so an edge on a cell border stays on it.
    low = ((boxes[..., :2] - origin) * size / sides).floor().clamp(0, size - 1)
    high = ((boxes[..., 2:] + 1 - origin) * size / sides).ceil().clamp(max=size)
    high = torch.maximum(high, low + 1)
    cells = torch.arange(size, device=boxes.device, dtype=boxes.dtype)
    inside = (cells >= low[..., None]) & (cells < high[..., None])  # [P, 2, (x, y), size]
    return (inside[:, :, 1, :, None] & inside[:, :, 0, None, :]).to(boxes.dtype)


def _two_way_deltas(first: Tensor, second: Tensor) -> Tensor:
    """`[P, 6]`: the full delta of `first` onto `second` and the shift of `second` onto `first`."""
    return torch.cat([box_deltas(first, second), box_deltas(second, first)[:, :2]], dim=1)


def _normalised_box(boxes: Tensor, sizes: Tensor) -> Tensor:
    """`[P, 5]`: corners and area as fractions of the image."""
    area = box_area(boxes) / (sizes[:, 0] * sizes[:, 1])
    return torch.cat([boxes / sizes.repeat(1, 2), area[:, None]], dim=1)


def _check_pairs(subject_xyxy: Tensor, object_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Both box lists in one floating dtype."""
    if subject_xyxy.ndim != 2 or subject_xyxy.shape != object_xyxy.shape:
        shapes = f"{list(subject_xyxy.shape)} and {list(object_xyxy.shape)}"
        raise ValueError(f"subject_xyxy and object_xyxy must both have shape [P, 4], got {shapes}")
    subject, obj = as_float_boxes(subject_xyxy, "subject_xyxy"), as_float_boxes(object_xyxy, "object_xyxy")
    dtype = torch.promote_types(subject.dtype, obj.dtype)
    return subject.to(dtype), obj.to(dtype)
