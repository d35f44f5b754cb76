from __future__ import annotations

from collections import Counter

import pytest
import torch

from lit_modules.pair_sampling import LabelledPairs, label_pairs, sample_pairs
from tests.lit_modules.batches import Image, make_batch, random_images
from tests.lit_modules.metrics.reference_vrd import iou


def slow_labels(images: list[Image], candidates: str) -> list[tuple[int, int, int, set[int]]]:
    """(image, subject, object, possible labels) of every training pair, by the words of the spec."""
    expected, first = [], 0
    for number, image in enumerate(images):
        annotated = [(s, o) for s, _, o in image.relations]
        for s, p, o in image.relations:
            expected.append((number, s + first, o + first, {p + 1}))
        for s, subject in enumerate(image.boxes):
            for o, obj in enumerate(image.boxes):
                roles = s in [r[0] for r in image.relations] and o in [r[2] for r in image.relations]
                wanted = candidates == "all" or iou(subject, obj) > 0 or roles
                if s == o or (s, o) in annotated or not wanted:
                    continue
                overlaps = [min(iou(subject, image.boxes[r[0]]), iou(obj, image.boxes[r[2]])) for r in image.relations]
                best = max(overlaps, default=0.0)
                near = {r[1] + 1 for r, overlap in zip(image.relations, overlaps, strict=True) if overlap == best}
                expected.append((number, s + first, o + first, near if best >= 0.5 else {0}))
        first += len(image.boxes)
    return expected


def rows(labelled: LabelledPairs) -> list[tuple[int, int, int, int]]:
    columns = (labelled.image, labelled.pairs[:, 0], labelled.pairs[:, 1], labelled.predicates)
    return list(zip(*(c.tolist() for c in columns), strict=True))


@pytest.mark.parametrize("candidates", ["all", "overlapping"])
@pytest.mark.parametrize("seed", range(6))
def test_labels_equal_loops_over_the_definition(seed: int, candidates: str) -> None:
    images = random_images(seed, boxes=(7, 0, 1, 5, 6))
    labelled = label_pairs(make_batch(*images), candidates)
    got, expected = rows(labelled), slow_labels(images, candidates)
    assert Counter(row[:3] for row in got) == Counter(row[:3] for row in expected)
    for image, subject, obj, predicate in got:
        assert any(row[:3] == (image, subject, obj) and predicate in row[3] for row in expected)
    annotated = [row for row in expected if row[3] != {0}]
    assert Counter(row[:3] for row in got if row[3]) == Counter(row[:3] for row in annotated)
    assert labelled.image.tolist() == sorted(labelled.image.tolist())


def test_the_labels_of_random_images_are_of_all_kinds() -> None:
    """What the comparison with the loops relies on: near-duplicates, touching and distant pairs, double relations."""
    images = [image for seed in range(6) for image in random_images(seed, boxes=(7, 0, 1, 5, 6))]
    labelled = label_pairs(make_batch(*images), "all")
    relations = sum(len(image.relations) for image in images)
    assert int((labelled.predicates > 0).sum()) > relations + 20
    assert len(label_pairs(make_batch(*images), "overlapping").pairs) < len(labelled.pairs) - 20
    assert any(len({(s, o) for s, _, o in image.relations}) < len(image.relations) for image in images)


def test_a_near_duplicate_takes_the_predicate_whatever_its_category() -> None:
    person, bike, half, less = [1, 1, 10, 10], [31, 1, 40, 10], [31, 1, 40, 5], [31, 1, 40, 4]
    image = Image([person, bike, half, less], [0, 1, 2, 3], [[0, 6, 1]])
    labelled = label_pairs(make_batch(image), "all")
    labels = {(s, o): p for _, s, o, p in rows(labelled)}
    assert labels[0, 1] == 7
    assert labels[0, 2] == 7  # an overlap of exactly one half is enough
    assert labels[0, 3] == 0
    assert labels[1, 0] == labels[2, 3] == 0
    assert [p for _, s, o, p in rows(label_pairs(make_batch(image), "overlapping")) if (s, o) == (2, 3)] == [0]


def test_the_closest_relation_gives_the_label() -> None:
    boxes = [[1, 1, 10, 10], [1, 1, 10, 9], [1, 1, 10, 7], [50, 50, 60, 60]]
    image = Image(boxes, [0, 0, 0, 1], [[2, 4, 3], [0, 5, 3]])
    labels = {(s, o): p for _, s, o, p in rows(label_pairs(make_batch(image), "all"))}
    assert labels[1, 3] == 6  # 0.9 of box 0, 7/9 of box 2


def test_both_predicates_of_a_pair_and_a_relation_with_itself_are_candidates() -> None:
    image = Image([[1, 1, 10, 10], [5, 5, 20, 20]], [0, 1], [[0, 2, 1], [0, 3, 1], [0, 2, 1], [1, 0, 1]])
    expected = [(0, 0, 1, 3), (0, 0, 1, 4), (0, 0, 1, 3), (0, 1, 1, 1), (0, 1, 0, 0)]
    assert Counter(rows(label_pairs(make_batch(image), "overlapping"))) == Counter(expected)


def test_images_are_never_mixed() -> None:
    """The same boxes twice, once without relations: nothing of the first image may reach the second."""
    boxes = [[1, 1, 30, 30], [10, 10, 40, 40], [2, 1, 31, 30]]
    related, unrelated = Image(boxes, [0, 1, 2], [[0, 1, 1]]), Image(boxes, [0, 1, 2])
    labelled = label_pairs(make_batch(unrelated, related, unrelated), "overlapping")
    assert (torch.div(labelled.pairs, 3, rounding_mode="floor") == labelled.image[:, None]).all()
    assert set(labelled.image[labelled.predicates > 0].tolist()) == {1}
    assert Counter(labelled.image.tolist()) == {0: 6, 1: 6, 2: 6}


@pytest.mark.parametrize("candidates", ["all", "overlapping"])
@pytest.mark.parametrize("images", [[], [Image()], [Image([[1, 1, 2, 2]], [0])], [Image(), Image()]])
def test_images_without_pairs(images: list[Image], candidates: str) -> None:
    labelled = label_pairs(make_batch(*images), candidates)
    assert labelled.pairs.shape == (0, 2)
    assert labelled.pairs.dtype == labelled.predicates.dtype == labelled.image.dtype == torch.int64
    assert sample_pairs(labelled, 4, 2).tolist() == []
    assert sample_pairs(labelled, 4, 2, 2).tolist() == []


def test_an_unknown_candidate_rule_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"sampling\.pairs must be all or overlapping, not 'every'"):
        label_pairs(make_batch(Image()), "every")


def labelled_counts(*counts: tuple[int, int, int]) -> LabelledPairs:
    """Pairs of images (image, related, unrelated), in that order."""
    image = [i for i, related, other in counts for _ in range(related + other)]
    predicates = [p for _, related, other in counts for p in [2] * related + [0] * other]
    pairs = torch.arange(len(image))[:, None].expand(-1, 2)
    return LabelledPairs(pairs, torch.tensor(predicates), torch.tensor(image))


def sampled_counts(labelled: LabelledPairs, chosen: torch.Tensor) -> dict[int, tuple[int, int]]:
    taken = labelled.take(chosen)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    return {
        i: (
            int(((taken.predicates > 0) & (taken.image == i)).sum()),
            int(((taken.predicates == 0) & (taken.image == i)).sum()),
        )
        for i in labelled.image.unique().tolist()
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_negative", [None, 0, 3, 100])
@pytest.mark.parametrize(("max_pairs", "max_positive"), [(8, 3), (8, 8), (20, 3), (1, 1), (100, 100), (5, 0)])
def test_quotas_of_each_image(seed: int, max_pairs: int, max_positive: int, max_negative: int | None) -> None:
    """A high image index with few pairs, images without related or without other pairs, and a rich one."""
    counts = ((0, 10, 30), (1, 0, 9), (2, 6, 0), (5, 2, 1), (40, 1, 4))
    labelled = labelled_counts(*counts)
    torch.manual_seed(seed)
    chosen = sample_pairs(labelled, max_pairs, max_positive, max_negative)
    expected = {}
    for image, related, other in counts:
        positives = min(related, max_positive)
        room = max_pairs - positives
        expected[image] = (positives, min(other, room if max_negative is None else min(room, max_negative)))
    assert sampled_counts(labelled, chosen) == expected


def test_sampling_follows_the_global_seed_and_is_fair() -> None:
    labelled = labelled_counts((0, 4, 12), (3, 2, 3))
    torch.manual_seed(5)
    first = sample_pairs(labelled, 6, 2)
    second = sample_pairs(labelled, 6, 2)
    torch.manual_seed(5)
    assert torch.equal(first, sample_pairs(labelled, 6, 2))
    assert not torch.equal(first, second)
    drawn = torch.zeros(len(labelled.image))
    for _ in range(600):
        drawn[sample_pairs(labelled, 6, 2)] += 1
    # 2 of 4 related and 4 of 12 other pairs of image 0; all pairs of image 3.
    assert ((drawn[:4] / 600 - 1 / 2).abs() < 0.1).all()
    assert ((drawn[4:16] / 600 - 1 / 3).abs() < 0.1).all()
    assert (drawn[16:] == 600).all()


def test_more_quota_than_pairs_takes_all() -> None:
    labelled = label_pairs(make_batch(*random_images(1)), "all")
    assert sample_pairs(labelled, 1000, 1000).tolist() == list(range(len(labelled.image)))
