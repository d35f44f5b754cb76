from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from data_modules.synthetic.relation_classes import PREDICATES, Box
from data_modules.synthetic.relation_facts import annotate, related, true_facts

SIZE = (300, 240)
BODY: Box = (101, 41, 140, 140)  # 40 x 100
NAMES = list(PREDICATES)


def between(subject: str, s_box: Box, other: str, o_box: Box) -> list[str]:
    kinds = ("walker", "platform", "tool", "cover", "shelter")
    labels = [kinds.index(name.split()[0]) + 5 * (int(name.split()[1]) - 1) for name in (subject, other)]
    return [NAMES[p] for p in related(s_box, labels[0], o_box, labels[1], SIZE)]


@pytest.mark.parametrize(
    ("other", "box", "expected"),
    [
        ("tool 1", (129, 81, 148, 100), ["holding"]),  # 12 of its 20 columns are before the walker
        ("tool 2", (129, 81, 148, 100), ["wearing"]),  # its twin is worn
        ("tool 1", (133, 81, 152, 100), []),  # 8 of 20
        ("tool 1", (141, 81, 160, 100), ["left of", "near"]),  # beside the walker
        ("tool 2", (81, 81, 100, 100), ["right of", "next to"]),
        ("cover 1", (111, 45, 130, 59), ["wearing"]),
        ("cover 2", (111, 45, 130, 59), ["holding"]),
        ("cover 1", (111, 95, 130, 109), []),  # not at the head
        ("cover 1", (111, 20, 130, 34), ["below"]),
        ("platform 1", (81, 120, 200, 150), ["on", "riding"]),
        ("platform 2", (81, 120, 200, 150), ["on"]),
        ("platform 1", (125, 120, 244, 150), []),  # 16 of the walker's 40 columns
        ("platform 1", (81, 100, 200, 130), []),  # the walker stands before it
        ("shelter 1", (81, 31, 200, 150), ["inside"]),
        ("shelter 1", (121, 31, 240, 150), []),
        ("walker 1", (150, 41, 189, 140), ["left of", "near"]),
        ("walker 2", (150, 41, 189, 140), ["left of", "next to"]),
        ("walker 1", (190, 41, 229, 140), []),  # 49 pixels away, more than 0.15 of 300
        ("walker 1", (170, 101, 209, 200), []),  # less than half of their heights is common
    ],
)
def test_what_holds_follows_from_classes_and_places(other: str, box: Box, expected: list[str]) -> None:
    assert between("walker 1", BODY, other, box) == expected


def test_only_what_fits_holds() -> None:
    assert between("tool 1", (129, 81, 148, 100), "walker 1", BODY) == []
    assert between("platform 1", (81, 120, 200, 150), "walker 1", BODY) == ["under"]
    assert between("tool 1", (111, 30, 120, 49), "platform 2", (81, 45, 200, 75)) == ["on"]  # nobody rides
    assert between("walker 1", (101, 1, 140, 40), "walker 1", (101, 41, 140, 80)) == ["above"]


def test_predicates_without_a_name_are_left_out_and_others_have_variants() -> None:
    objects = [(BODY, 5), ((81, 120, 200, 150), 1)]  # walker 2 on platform 1
    assert true_facts(objects, SIZE, 12) == [(0, 1, 1), (0, 7, 1), (1, 8, 0)]
    assert true_facts(objects, SIZE, 2) == [(0, 1, 1)]
    # Of 30 predicates, "on" has three variants (1, 13, 25) and "riding" two (7, 19); number 1 + 2 x 0 takes the second.
    assert true_facts(objects, SIZE, 30)[:2] == [(0, 13, 1), (0, 19, 1)]


@pytest.mark.parametrize("hidden", [0.0, 0.4, 1.0])
def test_people_leave_out_facts_and_the_knob_more(hidden: float) -> None:
    rng = np.random.default_rng(0)
    objects = [((1, 1, 9, 9), 0), ((5, 5, 20, 20), 1), ((8, 8, 30, 30), 2)]
    facts = [(0, p, 1) for p in range(24)] + [(1, p, 2) for p in range(12)]
    kept: Counter[int] = Counter()
    extra = 0
    for _ in range(1500):
        rows, annotated = annotate(rng, objects, facts, 20, hidden)
        kept.update(p % 12 for (_, p, _), yes in zip(facts, annotated, strict=True) if yes)
        told = {(objects[s], p, objects[o]) for (s, p, o), yes in zip(facts, annotated, strict=True) if yes}
        assert told <= set(rows)
        extra += len(rows) - len(told)
        # Whatever else is annotated repeats a fact, perhaps under another category of the object.
        assert all((p, o[0]) in {(q, b[0]) for _, q, b in told} for _, p, o in rows)
    for predicate, (name, rate) in enumerate(PREDICATES.items()):
        assert kept[predicate] / 4500 == pytest.approx(rate * (1 - hidden), abs=0.03), name
    assert extra == pytest.approx(0.03 * sum(kept.values()), rel=0.2)
