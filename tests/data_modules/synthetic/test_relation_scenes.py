from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from data_modules.synthetic.relation_classes import HOLDING, INSIDE, ON, RIDING, WEARING, RelationKnobs, twin_of
from data_modules.synthetic.relation_scenes import Scene, check_sizes, detect, make_scenes

CONTACTS = {HOLDING, WEARING, ON, RIDING, INSIDE}
Box = tuple[int, int, int, int]
Triplets = list[tuple[int, int, int]]


def scenes(count: int, seed: int = 0, **knobs: float) -> list[Scene]:
    return make_scenes(np.random.default_rng([seed, 0]), count, 20, 12, RelationKnobs(**knobs))


def meet(a: Box, b: Box) -> bool:
    return min(a[2], b[2]) >= max(a[0], b[0]) and min(a[3], b[3]) >= max(a[1], b[1])


def test_a_scene_does_not_depend_on_how_many_there_are() -> None:
    assert scenes(3) == scenes(30)[:3]
    assert scenes(3, seed=1) != scenes(3)
    assert len({scene.image for scene in scenes(200)}) == len({scene.drawing for scene in scenes(200)}) == 200


def test_sizes() -> None:
    for index, scene in enumerate(scenes(60)):
        width, height = scene.size_wh
        if index % 10 == 9:
            assert width == 1024
            assert 640 <= height <= 768
            assert scene.image.endswith("_b.jpg")
        else:
            assert 240 == height <= width <= 360
        assert len(scene.objects) == len(scene.ambiguous) == len(scene.hues) == len(set(scene.objects))
        assert len(scene.facts) == len(scene.annotated) == len(set(scene.facts))
        for (x1, y1, x2, y2), label in scene.objects:
            assert 1 <= x1 < x2 <= width
            assert 1 <= y1 < y2 <= height
            assert 0 <= label < 20
    tall = make_scenes(np.random.default_rng(0), 3, 20, 12, RelationKnobs(), side=480)
    assert {s.size_wh[1] for s in tall} == {480}
    with pytest.raises(ValueError, match="side=60: images are from 120 to 640 pixels high"):
        check_sizes(0, 9, 9, 20, 12, 60)


def test_an_empty_scene_keeps_its_name_and_size() -> None:
    (scene,) = scenes(1)
    empty = scene.without_objects()
    assert (empty.image, empty.size_wh, empty.drawing) == (scene.image, scene.size_wh, scene.drawing)
    assert not (empty.objects or empty.facts or empty.relations)


def contacts(scene: Scene) -> list[tuple[int, int, int]]:
    return [fact for fact in scene.facts if fact[1] in CONTACTS]


def confused(scene: Scene, subject: int, predicate: int, other: int) -> bool:
    """Another object of the subject's or the object's class near it takes no part in the relation."""

    def rivals(end: int) -> list[int]:
        (box, label), reach = scene.objects[end], 0.15 * scene.size_wh[0]
        return [
            i
            for i, (b, c) in enumerate(scene.objects)
            if c == label and i != end and max(b[0], box[0]) - min(b[2], box[2]) < reach
        ]

    held = set(scene.facts)
    return any((i, predicate, other) not in held for i in rivals(subject)) or any(
        (subject, predicate, i) not in held for i in rivals(other)
    )


def crossed(scene: Scene, subject: int, predicate: int, other: int) -> bool:
    """Another pair with this predicate is so close that the wrong pairings overlap too."""
    boxes, held = [box for box, _ in scene.objects], set(scene.facts)
    return any(
        q == predicate
        and {s, o}.isdisjoint({subject, other})
        and meet(boxes[subject], boxes[o])
        and meet(boxes[s], boxes[other])
        and held.isdisjoint({(subject, predicate, o), (s, predicate, other)})
        for s, q, o in contacts(scene)
    )


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, 0.0, 0.12), (0.5, 0.4, 0.65), (1.0, 0.85, 1.0)])
def test_entity_confusion(value: float, low: float, high: float) -> None:
    found = [confused(s, *f) for s in scenes(400, entity_confusion=value, proximity=0, context=0) for f in contacts(s)]
    assert len(found) > 500
    assert low <= np.mean(found) <= high


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, 0.0, 0.01), (0.5, 0.45, 0.65), (1.0, 0.88, 1.0)])
def test_proximity(value: float, low: float, high: float) -> None:
    found = [crossed(s, *f) for s in scenes(300, proximity=value) for f in contacts(s)]
    assert low <= np.mean(found) <= high  # of two pairs in a close group and one or two otherwise


def test_the_difficulties_are_there_unless_switched_off() -> None:
    made = scenes(400)
    facts = [(s, *f) for s in made for f in contacts(s)]
    assert 0.35 < np.mean([confused(*f) for f in facts]) < 0.75
    assert 0.1 < np.mean([crossed(*f) for f in facts]) < 0.35
    assert 0.06 < np.mean([a for s in made for a in s.ambiguous]) < 0.15
    assert 0.4 < np.mean([a for s in made for a in s.annotated]) < 0.55
    pairs = [Counter((a, b) for a, _, b in set(s.relations)) for s in made]
    several = np.mean([n > 1 for counted in pairs for n in counted.values()])
    assert 0.1 < several < 0.3  # pairs of several predicates
    assert [not s.relations for s in made][5::20] == [True] * 20  # images that nobody annotated


@pytest.mark.parametrize("hidden", [0.25, 0.5, 1.0])
def test_hidden_relations(hidden: float) -> None:
    usual, fewer = scenes(300), scenes(300, hidden=hidden)
    assert [s.facts for s in usual] == [s.facts for s in fewer]  # what is true stays
    told = [sum(sum(s.annotated) for s in side) for side in (usual, fewer)]
    assert told[1] / told[0] == pytest.approx(1 - hidden, abs=0.04)


@pytest.mark.parametrize(("context", "low", "high"), [(0.0, 0.15, 0.3), (0.5, 0.3, 0.55), (1.0, 0.7, 0.9)])
def test_objects_of_a_scene_are_of_one_family(context: float, low: float, high: float) -> None:
    same = []
    for scene in scenes(300, context=context):
        # Objects far apart are of different groups.
        ends = [(box[0], box[2], label // 5) for box, label in scene.objects]
        far = 0.3 * scene.size_wh[0]
        same += [a[2] == b[2] for a in ends for b in ends if b[0] - a[1] > far]
    assert len(same) > 500
    assert low <= np.mean(same) <= high  # by chance 0.25, and company is of one family seldom less than 0.85


def entropy(rows: list[tuple[int, ...]]) -> float:
    counts = np.array(list(Counter(rows).values()))
    return float(-(counts / len(rows) * np.log2(counts / len(rows))).sum())


def total_correlation(triplets: Triplets) -> float:
    """How many bits a product of independent distributions of s, p and o loses; the most a rank 1 can do."""
    return sum(entropy([(t[i],) for t in triplets]) for i in range(3)) - entropy(list(triplets))


def by_appearance(scene: Scene, rng: np.random.Generator) -> list[tuple[tuple[int, int], tuple[int, int, int]]]:
    """The walker-tool relations of a scene that a detector sees, with the labels that it gives their ends."""
    boxes, labels, _ = detect(rng, scene, 20)

    def seen(end: int) -> int | None:
        (x1, y1, x2, y2), _ = scene.objects[end]
        if not len(boxes):
            return None
        overlap = np.minimum(boxes[:, 2:], (x2, y2)) - np.maximum(boxes[:, :2], (x1, y1)) + 1
        common = overlap.clip(0).prod(axis=1)
        areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1) + (x2 - x1 + 1) * (y2 - y1 + 1)
        best = int(np.argmax(common / (areas - common)))
        return int(labels[best]) if common[best] / (areas[best] - common[best]) >= 0.5 else None

    rows = []
    for s, p, o in scene.facts:
        ends = scene.objects[s][1], scene.objects[o][1]
        if p in (HOLDING, WEARING) and ends[1] % 5 == 2 and (a := seen(s)) is not None and (b := seen(o)) is not None:
            rows.append(((a, b), (ends[0], p, ends[1])))
    return rows


def cells(multimodality: float, count: int) -> dict[tuple[int, int], Triplets]:
    rng = np.random.default_rng(5)
    result = defaultdict(list)
    for scene in scenes(count, multimodality=multimodality):
        for appearance, triplet in by_appearance(scene, rng):
            result[appearance].append(triplet)
    return {key: rows for key, rows in result.items() if len(rows) >= 20}


def correlation_given_appearance(multimodality: float, rng: np.random.Generator) -> float:
    """Total correlation of (s, p, o) given the detected labels, in bits, without what small samples add."""
    bits = total = 0.0
    for rows in cells(multimodality, 1500).values():
        columns = [list(c) for c in zip(*rows, strict=True)]
        shuffled = [total_correlation(list(zip(*map(rng.permutation, columns), strict=True))) for _ in range(4)]
        bits += len(rows) * (total_correlation(rows) - float(np.mean(shuffled)))
        total += len(rows)
    return bits / total


def test_what_is_seen_fits_several_triplets_as_far_as_the_knob_says() -> None:
    rng = np.random.default_rng(0)
    bits = [correlation_given_appearance(m, rng) for m in (0.0, 0.3, 0.6, 1.0)]
    assert -0.02 < bits[0] < 0.12  # a detector that confuses one object in fifty
    assert all(b > a + 0.2 for a, b in pairwise(bits))
    assert 1.2 < bits[-1] < 2.0


def joint(triplets: Triplets) -> NDArray[np.float64]:
    """The distribution of the triplets as a tensor over the labels that occur."""
    names = [sorted({t[i] for t in triplets}) for i in range(3)]
    table = np.zeros([len(n) for n in names])
    for t in triplets:
        table[tuple(n.index(v) for n, v in zip(names, t, strict=True))] += 1 / len(triplets)
    return table


def excess_bits(table: NDArray[np.float64], rank: int, rng: np.random.Generator) -> float:
    """The least Kullback-Leibler divergence in bits of a mixture of `rank` products, by expectation maximisation."""
    best = np.inf
    for _ in range(5):
        weights, factors = np.full(rank, 1 / rank), [rng.dirichlet(np.ones(n), rank) for n in table.shape]
        for _ in range(300):
            parts = np.einsum("r,ri,rj,rk->rijk", weights, *factors) + 1e-300
            shares = parts / parts.sum(axis=0) * table
            weights = shares.sum(axis=(1, 2, 3))
            factors = [shares.sum(axis=axes) / weights[:, None] for axes in ((2, 3), (1, 3), (1, 2))]
        fit = np.einsum("r,ri,rj,rk->ijk", weights, *factors)
        best = min(best, float((table[table > 0] * np.log2(table[table > 0] / fit[table > 0])).sum()))
    return best


def test_rank_two_represents_what_rank_one_cannot() -> None:
    rng = np.random.default_rng(0)
    commonest = sorted(cells(1.0, 2500).values(), key=len)[-4:]
    for rows in commonest:
        table = joint(rows)
        assert excess_bits(table, 1, rng) == pytest.approx(total_correlation(rows), abs=1e-3)
        assert excess_bits(table, 1, rng) > 1
        assert excess_bits(table, 2, rng) < 0.15 * excess_bits(table, 1, rng)
        subjects, objects = ({t[end] for t in rows} for end in (0, 2))
        assert any(twin_of(s, 20) in subjects for s in subjects)
        assert any(twin_of(o, 20) in objects for o in objects)


def test_ambiguous_objects_are_detected_as_either_twin() -> None:
    rng = np.random.default_rng(0)
    right = Counter[tuple[bool, str]]()
    for scene in scenes(300, multimodality=0.5):
        boxes, labels, scores = detect(rng, scene, 20)
        assert boxes.shape == (len(labels), 4)
        assert ((scores > 0) & (scores < 1)).all()
        for (box, label), ambiguous in zip(scene.objects, scene.ambiguous, strict=True):
            distance = np.abs(boxes - box).max(axis=1, initial=0)
            near = labels[(distance < 0.1 * max(box[2] - box[0], box[3] - box[1]))]
            for found in near[near % 5 == label % 5]:
                kind = "right" if found == label else "twin" if found == twin_of(label, 20) else "other"
                right[ambiguous, kind] += 1
    told = {
        a: {k: right[a, k] / sum(right[a, j] for j in ("right", "twin", "other")) for k in ("right", "twin")}
        for a in (True, False)
    }
    assert 0.4 < told[True]["right"] < 0.55
    assert 0.4 < told[True]["twin"] < 0.55
    assert told[False]["right"] > 0.9
