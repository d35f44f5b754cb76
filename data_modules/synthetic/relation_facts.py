"""What is true of a generated relation scene, and which of it people annotate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_modules.synthetic.relation_classes import (
    ABOVE,
    BELOW,
    COVER,
    HOLDING,
    INSIDE,
    LEFT_OF,
    NEAR,
    NEXT_TO,
    ON,
    PLATFORM,
    PREDICATES,
    RIDING,
    RIGHT_OF,
    SHELTER,
    TOOL,
    UNDER,
    WALKER,
    WEARING,
    Box,
    Node,
)

Relation = tuple[Node, int, Node]
Fact = tuple[int, int, int]  # subject, predicate, object; the ends as places in the list of objects


def related(s_box: Box, s_class: int, o_box: Box, o_class: int, size_wh: tuple[int, int]) -> list[int]:
    """Return every base predicate that holds, from the two classes and the two boxes alone.

    What is done with a thing depends on its number: an even tool is held and an odd one worn, a cover the other way
    round, an even platform is ridden too, and one is near an even thing but next to an odd one.
    """
    (sx1, sy1, sx2, sy2), (ox1, oy1, ox2, oy2) = s_box, o_box
    s_kind, o_kind, even = s_class % 5, o_class % 5, o_class // 5 % 2 == 0
    s_wide, s_high, o_wide, o_high = sx2 - sx1 + 1, sy2 - sy1 + 1, ox2 - ox1 + 1, oy2 - oy1 + 1
    wide, high = min(sx2, ox2) - max(sx1, ox1) + 1, min(sy2, oy2) - max(sy1, oy1) + 1  # negative: the gap
    common = max(wide, 0) * max(high, 0)
    held = []
    if s_kind == WALKER and o_kind == TOOL and common > 0.45 * o_wide * o_high:
        held.append(HOLDING if even else WEARING)
    if s_kind == WALKER and o_kind == COVER and common > 0.6 * o_wide * o_high and oy1 + oy2 < 2 * sy1 + 0.7 * s_high:
        held.append(WEARING if even else HOLDING)
    if o_kind == PLATFORM and s_kind not in (PLATFORM, SHELTER) and wide > 0.5 * s_wide and sy1 < oy1 <= sy2 <= oy2:
        held += [ON, RIDING] if s_kind == WALKER and even else [ON]
    if s_kind == PLATFORM and o_kind not in (PLATFORM, SHELTER) and wide > 0.5 * o_wide and oy1 < sy1 <= oy2 <= sy2:
        held.append(UNDER)
    if o_kind == SHELTER and s_kind != SHELTER and common > 0.85 * s_wide * s_high:
        held.append(INSIDE)
    if -0.25 * size_wh[1] < high <= 0 and wide > 0.5 * min(s_wide, o_wide):
        held.append(ABOVE if sy2 < oy1 else BELOW)
    if -0.15 * size_wh[0] < wide <= 0 and high > 0.5 * min(s_high, o_high):
        held.append(LEFT_OF if sx2 < ox1 else RIGHT_OF)
        held.append(NEAR if even else NEXT_TO)
    return held


def true_facts(objects: Sequence[Node], size_wh: tuple[int, int], num_predicates: int) -> list[Fact]:
    """Return all that holds in a scene and has a name among the predicates."""
    facts = []
    for s, subject in enumerate(objects):
        for o, other in enumerate(objects):
            if s == o:
                continue
            for base in related(*subject, *other, size_wh):
                # Beyond 12 predicates, each has variants that the two classes choose from.
                variants = (num_predicates - base + 11) // 12
                if variants > 0:
                    facts.append((s, base + 12 * ((subject[1] // 5 + 2 * (other[1] // 5)) % variants), o))
    return facts


def annotate(
    rng: np.random.Generator, objects: Sequence[Node], facts: Sequence[Fact], num_objects: int, hidden: float
) -> tuple[list[Relation], list[bool]]:
    """Return the annotated relations in a random order, and which facts are among them.

    A few relations are annotated twice, once more for another category of the object's box, or of the object's box
    with itself; these are no facts.
    """
    rates = list(PREDICATES.values())
    annotated = [bool(rng.random() < rates[p % 12] * (1 - hidden)) for _, p, _ in facts]
    rows = [(objects[s], p, objects[o]) for (s, p, o), kept in zip(facts, annotated, strict=True) if kept]
    for subject, predicate, (box, label) in list(rows):
        fate = rng.random()
        if fate < 0.02:
            rows.append((subject, predicate, (box, label)))
        elif fate < 0.025:
            rows.append((subject, predicate, (box, (label + 5) % num_objects)))
        elif fate < 0.03:
            rows.append(((box, label), predicate, (box, (label + 5) % num_objects)))
    return [rows[i] for i in rng.permutation(len(rows))], annotated
