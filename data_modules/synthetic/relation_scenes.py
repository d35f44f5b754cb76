"""Generated scenes whose relations follow from classes and places, their annotations, and noisy detections.

Five kinds of objects (walkers, platforms, tools, covers, shelters) stand in little groups. What holds between two of
them follows from their classes and from where they are: of two walkers of one class side by side, only the one whose
box meets the tool holds it. Some facts are left out of the annotations, some pairs carry two predicates, and the
detections miss, shift, confuse, repeat and invent objects. `RelationKnobs` says how hard all of this is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_modules.synthetic.relation_classes import Node, RelationKnobs, class_hue, hue_shift, twin_of
from data_modules.synthetic.relation_facts import Fact, Relation, annotate, true_facts
from data_modules.synthetic.relation_layout import place

CONFUSED = 0.02  # of clear objects are detected as another class


@dataclass(frozen=True, slots=True)
class Scene:
    """One generated image; labels are 0-based.

    Attributes:
        image: File name in the manner of VRD.
        size_wh: Width and height in pixels.
        objects: Boxes and classes.
        ambiguous: Of each object, whether it is drawn halfway between its class and that one's twin.
        hues: Of each object, the hue it is drawn in, 0 to 1.
        facts: All that holds, as places in `objects`.
        annotated: Of each fact, whether it is annotated.
        relations: The annotations, with their mistakes.
        drawing: Seed of everything in the image that isn't said here.
    """

    image: str
    size_wh: tuple[int, int]
    objects: tuple[Node, ...]
    ambiguous: tuple[bool, ...]
    hues: tuple[float, ...]
    facts: tuple[Fact, ...]
    annotated: tuple[bool, ...]
    relations: tuple[Relation, ...]
    drawing: int

    def without_objects(self) -> Scene:
        """Return the empty scene of the same name, size and background."""
        return Scene(self.image, self.size_wh, (), (), (), (), (), (), self.drawing)


def check_sizes(
    seed: int, train_images: int, test_images: int, num_objects: int, num_predicates: int, side: int
) -> None:
    """Check what a world is to be like.

    Raises:
        ValueError: A number is outside what the file formats, the five kinds or the outlines allow.
    """
    if not (
        5 <= num_objects <= 255 and 1 <= num_predicates <= 255 and train_images > 1 and test_images > 1 and seed >= 0
    ):
        raise ValueError("a world has 5 to 255 objects, 1 to 255 predicates, 2 or more images a split and a seed >= 0")
    if not 120 <= side <= 640:
        raise ValueError(f"side={side}: images are from 120 to 640 pixels high")


def make_scenes(
    rng: np.random.Generator, count: int, num_objects: int, num_predicates: int, knobs: RelationKnobs, side: int = 240
) -> list[Scene]:
    """Return `count` scenes with annotations; one in twenty, from the sixth on, has none.

    Each has a stream of random numbers of its own: a scene doesn't depend on how many there are. Every tenth image is
    Flickr's "large", named `_b`, with a longer side of 1024 pixels; the others are `side` high and up to 1.5 times as
    wide.
    """
    scenes = []
    for index, child in enumerate(rng.spawn(count)):
        large = index % 10 == 9
        size_wh = (
            (1024, int(child.integers(640, 769))) if large else (int(child.integers(side, side * 3 // 2 + 1)), side)
        )
        name = f"{child.integers(10**9, 10**10)}_{child.integers(16**10):010x}_{'b' if large else 'o'}.jpg"
        objects, ambiguous = place(child, size_wh, num_objects, knobs)
        spread = 0.08 * hue_shift(num_objects)
        hues = [
            float(class_hue(label, num_objects, halfway) + child.normal(0, spread)) % 1
            for (_, label), halfway in zip(objects, ambiguous, strict=True)
        ]
        facts = true_facts(objects, size_wh, num_predicates)
        relations, annotated = annotate(child, objects, facts, num_objects, knobs.hidden)
        if index % 20 == 5:
            relations, annotated = [], [False] * len(facts)
        scenes.append(
            Scene(
                name,
                size_wh,
                tuple(objects),
                tuple(ambiguous),
                tuple(hues),
                tuple(facts),
                tuple(annotated),
                tuple(relations),
                drawing=int(child.integers(2**63)),
            )
        )
    return scenes


def detect(
    rng: np.random.Generator, scene: Scene, num_objects: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return noisy boxes int64 `[D, 4]`, 0-based labels int64 `[D]` and confidences float64 `[D]`.

    Which of two twins an ambiguous object is taken for is as chance will have it.
    """
    found: list[tuple[NDArray[np.float64], int, float]] = []
    limits = np.array(scene.size_wh * 2)
    for (box, label), ambiguous in zip(scene.objects, scene.ambiguous, strict=True):
        missed, confused, repeated, mistaken = rng.random(4) < (0.12, CONFUSED, 0.06, 0.5)
        if ambiguous:
            seen = twin_of(label, num_objects) if mistaken else label
        else:
            seen = (label + 5) % num_objects if confused else label
        for again in range(0 if missed else 1 + repeated):
            extent = np.array([box[2] - box[0], box[3] - box[1]] * 2)
            moved = np.array(box) + rng.normal(0, 0.05 * (1 + again), 4) * extent
            confidence = rng.beta(9, 2) * (0.7 if (confused and not ambiguous) or again else 1.0)
            found.append((moved, seen, confidence))
    for _ in range(rng.poisson(0.5) if found else 0):  # nothing is there
        corner = rng.uniform(0, 0.8, 2)
        invented = np.concatenate([corner, corner + rng.uniform(0.05, 0.2, 2)]) * limits
        found.append((invented, int(rng.integers(num_objects)), 0.6 * rng.beta(4, 4)))
    boxes = np.rint(np.array([b for b, _, _ in found])).reshape(-1, 4).clip(1, limits).astype(np.int64)
    boxes = np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    return boxes, np.array([c for _, c, _ in found], dtype=np.int64), np.array([c for _, _, c in found])
