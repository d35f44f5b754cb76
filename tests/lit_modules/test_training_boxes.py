from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from lit_modules.pair_sampling import label_pairs
from lit_modules.training_boxes import add_foreground, propose_relations
from tests.lit_modules.batches import Image, make_batch, random_images, with_pixels
from tests.lit_modules.metrics.reference_vrd import iou


def near(images: list[Image], seed: int, count: int = 12) -> list[Tensor]:
    """Proposals of each image: copies of its boxes, moved by little or much, and some elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for image in images:
        boxes = torch.tensor(image.boxes or [[1, 1, 30, 30]]).float()
        chosen = boxes[torch.randint(len(boxes), (count,), generator=generator)]
        shift = torch.randint(-12, 13, (count, 4), generator=generator) * torch.rand(count, 1, generator=generator)
        found.append((chosen + shift).clamp(min=1).round())
    return found


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_loop_over_the_definition(seed: int) -> None:
    images = random_images(seed, boxes=(6, 0, 1, 4))
    batch, proposals = make_batch(*images), near(images, seed)
    extended, is_annotated = add_foreground(batch, proposals, 1000)
    expected: list[tuple[int, bool, list[float], set[int]]] = []
    for number, (image, given) in enumerate(zip(images, proposals, strict=True)):
        expected += [(number, True, box, {label}) for box, label in zip(image.boxes, image.labels, strict=True)]
        for box in given.tolist():
            overlaps = [iou(box, own) for own in image.boxes]
            best = max(overlaps, default=0.0)
            if best >= 0.5:
                labels = {c for c, v in zip(image.labels, overlaps, strict=True) if v > best - 1e-6}
                expected.append((number, False, box, labels))
    columns = (extended.image_index, is_annotated, extended.boxes_xyxy, extended.labels)
    got = zip(*(column.tolist() for column in columns), strict=True)
    for (number, annotated, box, label), (n, a, b, labels) in zip(got, expected, strict=True):
        assert (number, annotated, box) == (n, a, pytest.approx(b)) and label in labels
    assert 0 < int((~is_annotated).sum()) < sum(map(len, proposals))
    assert torch.equal(extended.scores[is_annotated], batch.scores)

    def named(b: object, boxes: Tensor, relations: Tensor) -> list[tuple[object, ...]]:
        return [(tuple(boxes[s].tolist()), p, tuple(boxes[o].tolist())) for s, p, o in relations.tolist()]

    assert named(0, extended.boxes_xyxy, extended.relations) == named(0, batch.boxes_xyxy, batch.relations)
    assert is_annotated[extended.relations[:, [0, 2]]].all()


def test_the_limit_counts_annotated_boxes() -> None:
    images = random_images(0, boxes=(6, 3))
    batch, proposals = make_batch(*images), near(images, 0, count=40)
    whole, _ = add_foreground(batch, proposals, 1000)
    torch.manual_seed(0)
    some, is_annotated = add_foreground(batch, proposals, 8)
    assert torch.bincount(some.image_index).tolist() == [8, 8]
    assert is_annotated.sum() == 9
    kept = {tuple(b) for b in some.boxes_xyxy.tolist()}
    assert kept < {tuple(b) for b in whole.boxes_xyxy.tolist()}
    other, _ = add_foreground(batch, proposals, 8)
    assert not torch.equal(other.boxes_xyxy, some.boxes_xyxy)
    few, is_annotated = add_foreground(batch, proposals, 2)  # annotated boxes stay in any case
    assert is_annotated.all() and torch.equal(few.boxes_xyxy, batch.boxes_xyxy)


def test_pixels_stay_and_nothing_to_add() -> None:
    images = random_images(2, boxes=(4, 0))
    batch = with_pixels(make_batch(*images))
    extended, is_annotated = add_foreground(batch, [torch.zeros(0, 4), torch.ones(3, 4)], 100)
    assert type(extended) is type(batch) and len(extended.images) == 2  # type: ignore[attr-defined]
    assert is_annotated.all() and torch.equal(extended.relations, batch.relations)
    with pytest.raises(ValueError, match="expected proposals of 2 images, got 1"):
        add_foreground(batch, [torch.zeros(0, 4)], 100)


@pytest.mark.parametrize("seed", range(4))
def test_candidates_with_proposals(seed: int) -> None:
    """Overlapping pairs; annotated subject x proposal, proposal x annotated object, annotated subject x object."""
    images = random_images(seed, boxes=(6, 1, 4))
    batch, is_annotated = add_foreground(make_batch(*images), near(images, seed), 1000)
    labelled = label_pairs(batch, "overlapping", is_annotated)
    subjects, objects = (set(batch.relations[:, end].tolist()) for end in (0, 2))
    annotated = [tuple(row) for row in batch.relations[:, [0, 2]].tolist()]
    expected = list(annotated)
    apart = 0
    for s in range(len(batch.labels)):
        for o in range(len(batch.labels)):
            if s == o or batch.image_index[s] != batch.image_index[o] or (s, o) in annotated:
                continue
            given = (
                (s in subjects and o in objects)
                or (s in subjects and not is_annotated[o])
                or (not is_annotated[s] and o in objects)
            )
            touching = iou(batch.boxes_xyxy[s].tolist(), batch.boxes_xyxy[o].tolist()) > 0
            apart += given and not touching
            expected += [(s, o)] if given or touching else []
    assert Counter(map(tuple, labelled.pairs.tolist())) == Counter(expected)
    assert apart
    positive = labelled.predicates > 0
    proposed = ~is_annotated[labelled.pairs].all(dim=1)
    assert (positive & proposed).any() and (~positive & proposed).any()


@pytest.mark.parametrize("seed", range(4))
def test_relations_among_proposals(seed: int) -> None:
    images = random_images(seed, boxes=(6, 0, 1, 4))
    batch, proposals = make_batch(*images), near(images, seed, count=30)
    torch.manual_seed(seed)
    proposed = propose_relations(batch, proposals, 3)
    boxes = [tuple(b) for b in proposed.boxes_xyxy.tolist()]
    counts: Counter[tuple[int, int, int]] = Counter()
    at = 0
    for row, relation in enumerate(batch.relations.tolist()):  # the relations stand in the order of their origins
        subject, predicate, obj = relation
        image = int(batch.image_index[subject])
        fit = []
        for end in (subject, obj):
            own = batch.boxes_xyxy[end].tolist()
            mates = batch.boxes_xyxy[batch.image_index == image].tolist()
            good = [
                b for b in proposals[image].tolist() if (v := iou(b, own)) >= 0.5 and v >= max(iou(b, m) for m in mates)
            ]
            fit.append(good or [own])
        many = max(min(len(good), 3) for good in fit)
        for s, p, o in proposed.relations[at : at + many].tolist():
            assert p == predicate and boxes[s] in map(tuple, fit[0]) and boxes[o] in map(tuple, fit[1])
            assert proposed.image_index[s] == proposed.image_index[o] == image
            assert proposed.labels[s] == batch.labels[subject] and proposed.labels[o] == batch.labels[obj]
            counts[row, s, o] += 1
        at += many
    assert at == len(proposed.relations) > len(batch.relations)
    assert max(counts.values()) == 1
    assert proposed.image_index.tolist() == sorted(proposed.image_index.tolist())
