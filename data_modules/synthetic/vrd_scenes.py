"""Generated scenes whose relations follow from classes and places, their annotations, and noisy detections.

Five kinds of objects (walkers, platforms, tools, covers, shelters) stand in little groups. What holds between two of
them follows from their classes and from where they are: of two walkers of one class side by side, only the one whose
box meets the tool holds it. Some facts are left out of the annotations, some pairs carry two predicates, and the
detections miss, shift, confuse, repeat and invent objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KINDS = ("walker", "platform", "tool", "cover", "shelter")  # the kind of class c is KINDS[c % 5]
WALKER, PLATFORM, TOOL, COVER, SHELTER = range(5)
SIZES = ((0.13, 0.42), (0.30, 0.16), (0.07, 0.10), (0.10, 0.08), (0.45, 0.60))  # of the image, by kind
PREDICATES = {  # with the fraction of facts that are annotated
    "holding": 0.85,
    "on": 0.8,
    "left of": 0.4,
    "right of": 0.3,
    "near": 0.5,
    "next to": 0.5,
    "wearing": 0.85,
    "riding": 0.8,
    "under": 0.3,
    "inside": 0.8,
    "above": 0.3,
    "below": 0.3,
}
HOLDING, ON, LEFT_OF, RIGHT_OF, NEAR, NEXT_TO, WEARING, RIDING, UNDER, INSIDE, ABOVE, BELOW = range(12)

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels from 1, the last column and row included
Node = tuple[Box, int]  # with a 0-based class
Relation = tuple[Node, int, Node]


@dataclass(frozen=True)
class Scene:
    """One generated image; labels are 0-based."""

    image: str
    size_wh: tuple[int, int]
    objects: list[Node]
    relations: list[Relation]


def world_names(num_objects: int, num_predicates: int) -> tuple[list[str], list[str]]:
    """Return the names of the object classes and of the predicates."""
    objects = [f"{KINDS[c % 5]} {c // 5 + 1}" for c in range(num_objects)]
    base = list(PREDICATES)
    return objects, [base[p] if p < 12 else f"{base[p % 12]} {p // 12 + 1}" for p in range(num_predicates)]


def make_scenes(rng: np.random.Generator, count: int, num_objects: int, num_predicates: int) -> list[Scene]:
    """Return `count` scenes with annotations; one in twenty, from the sixth on, has none."""
    scenes: list[Scene] = []
    for index in range(count):
        # One image in ten is Flickr's "large", named `_b`, with a longer side of 1024; the others are small and fast.
        large = index % 10 == 9
        size_wh = (1024, int(rng.integers(640, 769))) if large else (int(rng.integers(240, 361)), 240)
        name = f"{rng.integers(10**9, 10**10)}_{rng.integers(16**10):010x}_{'b' if large else 'o'}.jpg"
        objects = _place(rng, size_wh, num_objects)
        relations = _annotate(rng, objects, size_wh, num_objects, num_predicates)
        scenes.append(Scene(name, size_wh, objects, [] if index % 20 == 5 else relations))
    return scenes


def _place(rng: np.random.Generator, size_wh: tuple[int, int], num_objects: int) -> list[Node]:
    """Stand one to three groups beside one another; most groups have a twin of their main object."""
    numbers = [len(range(kind, num_objects, 5)) for kind in range(5)]
    objects: list[Node] = []

    def add(kind: int, number: int, x: float, bottom: float) -> tuple[float, float, float, float]:
        number %= numbers[kind]
        scale = (0.75 + 0.5 * (number * 0.618 % 1)) * rng.uniform(0.9, 1.1)  # class-dependent
        w, h = (scale * fraction for fraction in SIZES[kind])
        corners = np.array([x - w / 2, bottom - h, x + w / 2, bottom]) * (size_wh * 2)
        box = np.clip(np.rint(corners), 1, size_wh * 2).astype(int)
        if (box[2:] - box[:2] >= 6).all():
            objects.append(((*map(int, box),), kind + 5 * number))  # type: ignore[arg-type]
        return x - w / 2, bottom - h, x + w / 2, bottom

    groups = int(rng.integers(1, 4))
    for group in range(groups):
        x, ground = (group + rng.uniform(0.3, 0.7)) / groups, rng.uniform(0.75, 0.95)
        number = int(rng.integers(numbers[WALKER]))
        partner = number + int(rng.choice([0, 0, 1]))  # classes keep company
        side = rng.choice([-1, 1])
        scene = rng.choice(4, p=[0.4, 0.3, 0.2, 0.1])
        if scene == 0:  # a walker holds a tool and may wear a cover
            x1, y1, x2, y2 = add(WALKER, number, x, ground)
            add(TOOL, partner, x1 if side < 0 else x2, y1 + rng.uniform(0.4, 0.6) * (y2 - y1))
            if rng.random() < 0.5:
                add(COVER, partner, x, y1 + 0.2 * (y2 - y1))
            if rng.random() < 0.6:
                add(WALKER, number, x + side * rng.uniform(1.3, 1.8) * (x2 - x1), ground + rng.uniform(-0.03, 0.03))
        elif scene == 1:  # a walker stands on a platform
            x1, y1, x2, y2 = add(PLATFORM, partner, x, ground)
            add(WALKER, number, x + rng.uniform(-0.2, 0.2) * (x2 - x1), y1 + rng.uniform(0.2, 0.7) * (y2 - y1))
            if rng.random() < 0.6:
                add(PLATFORM, partner, x + side * rng.uniform(1.1, 1.3) * (x2 - x1), ground + rng.uniform(-0.02, 0.02))
        elif scene == 2:  # something is inside a shelter, perhaps something else beside it
            x1, y1, x2, y2 = add(SHELTER, partner, x, ground)
            add(int(rng.choice([WALKER, TOOL])), number, x + rng.uniform(-0.2, 0.2) * (x2 - x1), ground - 0.02)
            if rng.random() < 0.6:
                add(WALKER, number, (x1 if side < 0 else x2) + side * 0.1, ground)
        else:  # things lie on a platform, another hangs above
            x1, y1, x2, y2 = add(PLATFORM, partner, x, ground)
            add(TOOL, number, x - 0.2 * (x2 - x1), y1 + 0.3 * (y2 - y1))
            add(COVER, number, x + 0.2 * (x2 - x1), y1 - rng.uniform(0.03, 0.2))
    return objects


def _related(s_box: Box, s_class: int, o_box: Box, o_class: int, size_wh: tuple[int, int]) -> list[int]:
    """Return every base predicate that holds, from the two classes and the two boxes alone."""
    (sx1, sy1, sx2, sy2), (ox1, oy1, ox2, oy2) = s_box, o_box
    s_kind, o_kind, number = s_class % 5, o_class % 5, s_class // 5 + o_class // 5
    s_wide, s_high, o_wide, o_high = sx2 - sx1 + 1, sy2 - sy1 + 1, ox2 - ox1 + 1, oy2 - oy1 + 1
    wide, high = min(sx2, ox2) - max(sx1, ox1) + 1, min(sy2, oy2) - max(sy1, oy1) + 1  # negative: the gap
    common = max(wide, 0) * max(high, 0)
    held = []
    if s_kind == WALKER and o_kind == TOOL and common > 0.3 * o_wide * o_high:
        held.append(HOLDING)
    if s_kind == WALKER and o_kind == COVER and common > 0.6 * o_wide * o_high and oy1 + oy2 < 2 * sy1 + 0.7 * s_high:
        held.append(WEARING)
    if o_kind == PLATFORM and s_kind not in (PLATFORM, SHELTER) and wide > 0.5 * s_wide and sy1 < oy1 <= sy2 <= oy2:
        held += [ON, RIDING] if s_kind == WALKER and number % 2 == 0 else [ON]
    if s_kind == PLATFORM and o_kind not in (PLATFORM, SHELTER) and wide > 0.5 * o_wide and oy1 < sy1 <= oy2 <= sy2:
        held.append(UNDER)
    if o_kind == SHELTER and s_kind != SHELTER and common > 0.85 * s_wide * s_high:
        held.append(INSIDE)
    if -0.25 * size_wh[1] < high <= 0 and wide > 0.5 * min(s_wide, o_wide):
        held.append(ABOVE if sy2 < oy1 else BELOW)
    if -0.15 * size_wh[0] < wide <= 0 and high > 0.5 * min(s_high, o_high):
        held.append(LEFT_OF if sx2 < ox1 else RIGHT_OF)
        held.append(NEXT_TO if number % 2 else NEAR)
    return held


def _annotate(
    rng: np.random.Generator,
    objects: list[Node],
    size_wh: tuple[int, int],
    num_objects: int,
    num_predicates: int,
) -> list[Relation]:
    rates = list(PREDICATES.values())
    rows = []
    for subject in objects:
        for other in objects:
            if subject is other:
                continue
            for base in _related(*subject, *other, size_wh):
                # Beyond 12 predicates, each has variants that the two classes choose from.
                variants = (num_predicates - base + 11) // 12
                if variants > 0 and rng.random() < rates[base]:
                    variant = (subject[1] // 5 + 2 * (other[1] // 5)) % variants
                    rows.append((subject, base + 12 * variant, other))
    for subject, predicate, (box, label) in list(rows):
        fate = rng.random()
        if fate < 0.02:  # annotated twice
            rows.append((subject, predicate, (box, label)))
        elif fate < 0.025:  # one box under two categories
            rows.append((subject, predicate, (box, (label + 5) % num_objects)))
        elif fate < 0.03:  # a box related to itself
            rows.append(((box, label), predicate, (box, (label + 5) % num_objects)))
    return [rows[i] for i in rng.permutation(len(rows))]


def detect(
    rng: np.random.Generator, scene: Scene, num_objects: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return noisy boxes int64 `[D, 4]`, 0-based labels int64 `[D]` and confidences float64 `[D]`."""
    found: list[tuple[NDArray[np.float64], int, float]] = []
    limits = np.array(scene.size_wh * 2)
    for box, label in scene.objects:
        missed, confused, repeated = rng.random(3) < (0.12, 0.06, 0.06)
        for again in range(0 if missed else 1 + repeated):
            extent = np.array([box[2] - box[0], box[3] - box[1]] * 2)
            moved = np.array(box) + rng.normal(0, 0.05 * (1 + again), 4) * extent
            confidence = rng.beta(9, 2) * (0.7 if confused or again else 1.0)
            found.append((moved, (label + 5) % num_objects if confused else label, confidence))
    for _ in range(rng.poisson(0.5) if found else 0):  # nothing is there
        corner = rng.uniform(0, 0.8, 2)
        invented = np.concatenate([corner, corner + rng.uniform(0.05, 0.2, 2)]) * limits
        found.append((invented, int(rng.integers(num_objects)), 0.6 * rng.beta(4, 4)))
    boxes = np.rint(np.array([b for b, _, _ in found])).reshape(-1, 4).clip(1, limits).astype(np.int64)
    boxes = np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    return boxes, np.array([c for _, c, _ in found], dtype=np.int64), np.array([c for _, _, c in found])
