from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lit_modules.functional.spatial import PAIR_FEATURES, pair_spatial_features, rectangle_masks

WORKED_EXAMPLE = [
    *(1.1, -0.15, 0.693147, -0.693147, -0.55, 0.3),
    *(0.8, 0.0, 0.955511, 0.0, -0.307692, 0.0),
    *(0.115385, -0.15, -0.262364, -0.693147, -0.15, 0.3),
    *(0.05, 0.133333, 0.295, 0.793333, 0.166667),
    *(0.2, 0.2, 0.695, 0.526667, 0.166667),
]


def random_pairs(count: int, seed: int, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(seed)
    xs = np.sort(generator.integers(0, width, (2, count, 2)), axis=2)
    ys = np.sort(generator.integers(0, height, (2, count, 2)), axis=2)
    both = torch.tensor(np.stack([xs[..., 0], ys[..., 0], xs[..., 1], ys[..., 1]], axis=-1), dtype=torch.float64)
    return both[0], both[1]


def slow_features(s: list[float], o: list[float], width: float, height: float) -> list[float]:
    def delta(a: list[float], b: list[float]) -> list[float]:
        wa, ha, wb, hb = a[2] - a[0] + 1, a[3] - a[1] + 1, b[2] - b[0] + 1, b[3] - b[1] + 1
        dx, dy = (b[0] + wb / 2 - a[0] - wa / 2) / wa, (b[1] + hb / 2 - a[1] - ha / 2) / ha
        return [dx, dy, math.log(wb / wa), math.log(hb / ha)]

    def normal(a: list[float]) -> list[float]:
        area = (a[2] - a[0] + 1) * (a[3] - a[1] + 1)
        return [a[0] / width, a[1] / height, a[2] / width, a[3] / height, area / width / height]

    u = [min(s[0], o[0]), min(s[1], o[1]), max(s[2], o[2]), max(s[3], o[3])]
    pairs = [delta(a, b) + delta(b, a)[:2] for a, b in ((s, o), (s, u), (u, o))]
    return [*pairs[0], *pairs[1], *pairs[2], *normal(s), *normal(o)]


def test_worked_example() -> None:
    subject, obj = torch.tensor([[10.0, 20, 59, 119]]), torch.tensor([[40.0, 30, 139, 79]])
    for sizes in (torch.tensor([200.0, 150.0]), torch.tensor([[200, 150]])):
        features = pair_spatial_features(subject, obj, sizes)
        assert features.shape == (1, PAIR_FEATURES)
        assert features[0].tolist() == pytest.approx(WORKED_EXAMPLE, abs=1e-6)


def test_features_against_a_loop_over_pairs_of_images_of_different_size() -> None:
    subject, obj = random_pairs(40, 0, 80, 60)
    sizes = torch.tensor([[80.0, 60.0], [200.0, 90.0]], dtype=torch.float64).repeat(20, 1)
    features = pair_spatial_features(subject, obj, sizes)
    for row, s, o, (w, h) in zip(features.tolist(), subject.tolist(), obj.tolist(), sizes.tolist(), strict=True):
        assert row == pytest.approx(slow_features(s, o, w, h), abs=1e-12)


def test_identical_boxes_have_no_pair_features_and_swapping_changes_signs() -> None:
    subject, obj = random_pairs(10, 1, 80, 60)
    sizes = torch.tensor([80.0, 60.0])
    assert (pair_spatial_features(subject, subject, sizes)[:, :18] == 0).all()
    there, back = pair_spatial_features(subject, obj, sizes), pair_spatial_features(obj, subject, sizes)
    torch.testing.assert_close(back[:, 2:4], -there[:, 2:4])
    torch.testing.assert_close(back[:, :2], there[:, 4:6])
    torch.testing.assert_close(back[:, 18:], there[:, [*range(23, 28), *range(18, 23)]])


def test_features_gradient_and_no_pairs() -> None:
    subject, obj = random_pairs(5, 2, 80, 60)
    noise = torch.rand(2, 5, 4, dtype=torch.float64) / 4
    inputs = ((subject + noise[0]).requires_grad_(), (obj + noise[1]).requires_grad_())
    sizes = torch.tensor([80.0, 60.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s, o: pair_spatial_features(s, o, sizes), inputs)
    assert pair_spatial_features(torch.zeros(0, 4), torch.zeros(0, 4), torch.ones(0, 2)).shape == (0, 28)


def slow_mask(box: list[float], frame: list[float], size: int) -> np.ndarray:
    """Per cell: it is set if a pixel of the box covers a part of it. Integers only: exact."""
    x1, y1, x2, y2 = (int(v) for v in box)
    fx1, fy1, fx2, fy2 = (int(v) for v in frame)
    width, height = fx2 - fx1 + 1, fy2 - fy1 + 1
    mask = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            # Cell edges in pixels are frame + column * width / size: all multiplied by size.
            in_x = (x1 - fx1) * size < (column + 1) * width and (x2 + 1 - fx1) * size > column * width
            in_y = (y1 - fy1) * size < (row + 1) * height and (y2 + 1 - fy1) * size > row * height
            mask[row, column] = in_x and in_y
    return mask


@pytest.mark.parametrize(("size", "width", "height"), [(8, 40, 24), (8, 5, 61), (7, 33, 33), (32, 500, 375)])
@pytest.mark.parametrize("frame_is_union", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masks_against_a_loop_over_cells(
    size: int, width: int, height: int, frame_is_union: bool, dtype: torch.dtype
) -> None:
    subject, obj = random_pairs(12, size + width, width, height)
    image = torch.tensor([0.0, 0.0, width - 1, height - 1], dtype=torch.float64)
    union = torch.cat([torch.minimum(subject, obj)[:, :2], torch.maximum(subject, obj)[:, 2:]], dim=1)
    frame = union if frame_is_union else image
    masks = rectangle_masks(subject.to(dtype), obj.to(dtype), frame.to(dtype), size)
    assert masks.shape == (12, 2, size, size)
    assert masks.dtype == dtype
    for n in range(12):
        rectangle = (union[n] if frame_is_union else image).tolist()
        assert np.array_equal(masks[n, 0].numpy(), slow_mask(subject[n].tolist(), rectangle, size))
        assert np.array_equal(masks[n, 1].numpy(), slow_mask(obj[n].tolist(), rectangle, size))


def test_low_edges_are_rounded_down_and_high_edges_up() -> None:
    mask = rectangle_masks(
        torch.tensor([[11, 20, 19, 29]]), torch.tensor([[0, 0, 99, 99]]), torch.tensor([0, 0, 99, 99]), 10
    )
    expected = torch.zeros(10, 10, dtype=torch.float64)
    expected[2, 1] = 1  # x 11 to 19 is within cell 1, y 20 to 29 is exactly cell 2
    assert torch.equal(mask[0, 0], expected)
    assert (mask[0, 1] == 1).all()


@pytest.mark.parametrize("x", [-30.0, 0.0, 49.5, 99.0, 130.0])
def test_boxes_never_vanish(x: float) -> None:
    box = torch.tensor([[x, x, x, x]])
    frame = torch.tensor([0.0, 0.0, 99.0, 99.0])
    mask = rectangle_masks(box, box, frame)
    assert mask.shape == (1, 2, 64, 64)
    assert mask.sum(dim=(2, 3)).min() >= 1
    assert mask[0, 0].diagonal().sum() >= 1  # on the side where the box lies
    assert mask[0, 0, 0, 0] == (x <= 0)
    assert mask[0, 0, -1, -1] == (x >= 99)


def test_wrong_shapes_are_named() -> None:
    boxes = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="subject_xyxy and object_xyxy"):
        pair_spatial_features(boxes, boxes[:2], torch.ones(2))
    with pytest.raises(ValueError, match="sizes_wh"):
        pair_spatial_features(boxes, boxes, torch.ones(2, 2))
    with pytest.raises(ValueError, match="frame_xyxy"):
        rectangle_masks(boxes, boxes, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="size must be at least 1"):
        rectangle_masks(boxes, boxes, torch.zeros(4), 0)
