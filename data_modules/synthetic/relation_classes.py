"""The words of the generated relation worlds: kinds of objects, classes and their twins, predicates, and the knobs.

Class c is number c // 5 of kind KINDS[c % 5]; the classes of one number are a family. Numbers 2i and 2i + 1 of a kind
are twins: of the same shape, texture and size, they differ by their hue alone, and in what is done with them.
"""

from __future__ import annotations

from dataclasses import dataclass

from data_modules.synthetic.shapes import Knobs
from data_modules.synthetic.textures import GOLDEN

KINDS = ("walker", "platform", "tool", "cover", "shelter")
WALKER, PLATFORM, TOOL, COVER, SHELTER = range(5)
PREDICATES = {  # with the fraction of facts that people annotate where no knob hides more
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


@dataclass(frozen=True, slots=True)
class RelationKnobs(Knobs):
    """How hard the scenes are; all are fractions from 0 to 1.

    Attributes:
        multimodality: Probability that a group's objects are drawn halfway between their classes and the classes'
            twins, and detected as either. What is seen then fits two triplets of which no two labels may be exchanged,
            as "walker 1 holding tool 1" and "walker 2 wearing tool 2": a distribution that a tensor of rank 1 can't
            represent and one of rank 2 can (vrd_tensor, introduction and equation 1).
        hidden: Fraction of the true relations left out of the annotations beyond what people leave out anyway: true
            labels that a model is punished for, or not (lml, Section 4).
        entity_confusion: Probability that beside a related subject or object stands another one of its class, which
            takes no part in the relation (reldn, Section 1, "entity instance confusion": L1 and L2).
        proximity: Probability that a group is of two pairs with one predicate, so close that each subject's box meets
            the other's object too (reldn, Section 1, "proximal relationship ambiguity": L3).
        context: Probability that a group is of its scene's family; otherwise any is as likely. What stands elsewhere
            in a scene then helps with what is hard to tell (affinity, Section 4.1).
        clutter: Contrast of the background's texture.
    """

    multimodality: float = 0.1
    hidden: float = 0.0
    entity_confusion: float = 0.5
    proximity: float = 0.15
    context: float = 0.5
    clutter: float = 0.5


def world_names(num_objects: int, num_predicates: int) -> tuple[list[str], list[str]]:
    """Return the names of the object classes and of the predicates."""
    objects = [f"{KINDS[c % 5]} {c // 5 + 1}" for c in range(num_objects)]
    base = list(PREDICATES)
    return objects, [base[p] if p < 12 else f"{base[p % 12]} {p // 12 + 1}" for p in range(num_predicates)]


def numbers_of(kind: int, num_objects: int) -> int:
    """Return how many classes a kind has."""
    return len(range(kind, num_objects, 5))


def twin_of(label: int, num_objects: int) -> int:
    """Return the class that only its hue tells from this one; a kind's last class may have none and is its own."""
    twin = label % 5 + 5 * (label // 5 ^ 1)
    return twin if twin < num_objects else label


def class_hue(label: int, num_objects: int, ambiguous: bool) -> float:
    """Return a class's hue, from 0 to 1; if `ambiguous`, the one halfway to its twin's."""
    number = label // 5
    shift = 0.0 if ambiguous else hue_shift(num_objects)
    return float((number // 2 * GOLDEN + label % 5 * 0.19 + (shift if number % 2 else -shift)) % 1)


def hue_shift(num_objects: int) -> float:
    """Return half the distance of twins' hues: the smaller, the more hues a kind needs."""
    return min(0.04, 0.1 / ((numbers_of(0, num_objects) + 1) // 2))
