from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lit_modules.functional import boxes as B


def random_boxes(count: int, seed: int, high: int = 30) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    corners = np.sort(generator.integers(0, high, (count, 2, 2)), axis=1)  # (low/high, x/y)
    return torch.tensor(corners.reshape(count, 4), dtype=torch.float64)


def pixels(box: torch.Tensor) -> set[tuple[int, int]]:
    x1, y1, x2, y2 = (int(v) for v in box)
    return {(x, y) for x in range(x1, x2 + 1) for y in range(y1, y2 + 1)}


@pytest.mark.parametrize(
    ("second", "expected"), [((0, 0, 9, 4), 0.5), ((9, 0, 18, 9), 10 / 190), ((10, 0, 19, 9), 0.0), ((0, 0, 9, 9), 1.0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64])
def test_worked_iou_examples(second: tuple[int, ...], expected: float, dtype: torch.dtype) -> None:
    first, other = torch.tensor([(0, 0, 9, 9)], dtype=dtype), torch.tensor([second], dtype=dtype)
    for iou in (B.paired_iou(first, other)[0], B.box_iou(first, other)[0, 0], B.box_iou(other, first)[0, 0]):
        assert iou.item() == pytest.approx(expected, abs=1e-7)
    if expected in (0.0, 0.5, 1.0):  # decided by >= 0.5 and > 0 in the protocols: must be exact
        assert B.paired_iou(first, other).item() == expected


def test_area_and_iou_count_pixels() -> None:
    first, second = random_boxes(25, 0), random_boxes(20, 1)
    iou = B.box_iou(first, second)
    assert iou.shape == (25, 20)
    for i, a in enumerate(first):
        assert B.box_area(first)[i].item() == len(pixels(a))
        for j, b in enumerate(second):
            assert iou[i, j].item() == pytest.approx(len(pixels(a) & pixels(b)) / len(pixels(a) | pixels(b)), abs=1e-12)
    assert torch.equal(B.paired_iou(first[:20], second), iou.diagonal())


def test_unsigned_coordinates_do_not_wrap_around() -> None:
    first, second = torch.tensor([[200, 200, 255, 255]], dtype=torch.uint8), torch.tensor([[0, 0, 9, 9]]).byte()
    assert B.box_area(first).item() == 56 * 56
    assert B.paired_iou(first, second).item() == 0


def test_inverted_boxes_have_no_area_and_finite_iou() -> None:
    inverted = torch.tensor([[5.0, 5.0, 1.0, 1.0]], requires_grad=True)
    assert B.box_area(inverted).item() == 0
    iou = B.paired_iou(inverted, inverted)
    iou.sum().backward()
    assert iou.item() == 0
    assert torch.isfinite(inverted.grad).all()


def test_union_is_the_smallest_box_around_both() -> None:
    first, second = random_boxes(30, 2), random_boxes(30, 3)
    for a, b, u in zip(first, second, B.union_boxes(first, second), strict=True):
        both = pixels(a) | pixels(b)
        xs, ys = [x for x, _ in both], [y for _, y in both]
        assert u.tolist() == [min(xs), min(ys), max(xs), max(ys)]


def test_deltas_match_the_formula_and_move_the_reference_onto_the_target() -> None:
    reference, target = random_boxes(30, 4), random_boxes(30, 5)
    deltas = B.box_deltas(reference, target)
    for (x1, y1, x2, y2), (u1, v1, u2, v2), delta in zip(reference.tolist(), target.tolist(), deltas, strict=True):
        w, h, tw, th = x2 - x1 + 1, y2 - y1 + 1, u2 - u1 + 1, v2 - v1 + 1
        dx, dy = ((u1 + tw / 2) - (x1 + w / 2)) / w, ((v1 + th / 2) - (y1 + h / 2)) / h
        assert delta.tolist() == pytest.approx([dx, dy, math.log(tw / w), math.log(th / h)], abs=1e-12)


def test_deltas_of_the_worked_example() -> None:
    subject, obj = torch.tensor([[10.0, 20, 59, 119]]), torch.tensor([[40.0, 30, 139, 79]])
    assert B.box_deltas(subject, obj)[0].tolist() == pytest.approx([1.1, -0.15, 0.693147, -0.693147], abs=1e-6)


def test_gradients() -> None:
    first = random_boxes(6, 6) + torch.rand(6, 4, dtype=torch.float64) / 4
    second = random_boxes(6, 7) + torch.rand(6, 4, dtype=torch.float64) / 4
    first.requires_grad_()
    second.requires_grad_()
    for function in (B.box_iou, B.paired_iou, B.union_boxes, B.box_deltas):
        assert torch.autograd.gradcheck(function, (first, second))


def slow_pairs(boxes: torch.Tensor, images: list[int], overlap: bool) -> list[list[int]]:
    return [
        [i, j]
        for i in range(len(boxes))
        for j in range(len(boxes))
        if i != j and images[i] == images[j] and (not overlap or pixels(boxes[i]) & pixels(boxes[j]))
    ]


@pytest.mark.parametrize("images", [[0] * 12, [0] * 5 + [1] * 7, [0, 2, 1, 0, 2, 2, 1, 1, 0, 3, 0, 2]])
def test_pairs(images: list[int]) -> None:
    boxes, index = random_boxes(12, 8, high=12), torch.tensor(images)
    overlapping, every = B.overlapping_pairs(boxes, index), B.all_pairs(index)
    assert overlapping.dtype == every.dtype == torch.int64
    assert overlapping.tolist() == slow_pairs(boxes, images, overlap=True)
    assert every.tolist() == slow_pairs(boxes, images, overlap=False)
    assert 0 < len(overlapping) < len(every)


def test_pairs_of_one_image_need_no_index() -> None:
    boxes = random_boxes(9, 9, high=12)
    assert B.overlapping_pairs(boxes).tolist() == slow_pairs(boxes, [0] * 9, overlap=True)
    assert B.all_pairs(9).tolist() == slow_pairs(boxes, [0] * 9, overlap=False)
    assert B.all_pairs(0).shape == B.all_pairs(1).shape == B.overlapping_pairs(torch.zeros(0, 4)).shape == (0, 2)


def test_equal_boxes_of_two_nodes_overlap_and_neighbours_do_not() -> None:
    boxes = torch.tensor([[0, 0, 9, 9], [0, 0, 9, 9], [10, 0, 19, 9], [9, 0, 18, 9]])
    assert B.overlapping_pairs(boxes).tolist() == [[0, 1], [0, 3], [1, 0], [1, 3], [2, 3], [3, 0], [3, 1], [3, 2]]


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"boxes1_xyxy must have shape \[N, 4\].*\[3, 5\]"):
        B.box_iou(torch.zeros(3, 5), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="b_xyxy"):
        B.paired_iou(torch.zeros(3, 4), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="target_xyxy"):
        B.box_deltas(torch.zeros(3, 4), torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"image_index must have shape \[3\]"):
        B.overlapping_pairs(torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="image index"):
        B.all_pairs(torch.zeros(2, 2, dtype=torch.int64))
