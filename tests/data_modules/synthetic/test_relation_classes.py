from __future__ import annotations

import pytest

from data_modules.synthetic.relation_classes import (
    KINDS,
    RelationKnobs,
    class_hue,
    hue_shift,
    numbers_of,
    twin_of,
    world_names,
)


def test_names() -> None:
    objects, predicates = world_names(12, 14)
    assert objects[:6] == ["walker 1", "platform 1", "tool 1", "cover 1", "shelter 1", "walker 2"]
    assert len(set(objects)) == 12
    assert predicates[:2] == ["holding", "on"]
    assert predicates[12:] == ["holding 2", "on 2"]
    assert [numbers_of(kind, 12) for kind in range(5)] == [3, 3, 2, 2, 2]


@pytest.mark.parametrize("num_objects", [5, 8, 20, 57, 150, 255])
def test_twins_are_of_one_kind_and_differ_by_their_hue(num_objects: int) -> None:
    alone = 0
    for label in range(num_objects):
        twin = twin_of(label, num_objects)
        assert twin_of(twin, num_objects) == label
        assert twin % 5 == label % 5
        if twin == label:
            alone += 1
            continue
        assert twin // 10 == label // 10  # they share everything that is drawn but the hue
        assert class_hue(label, num_objects, True) == class_hue(twin, num_objects, True)
        apart = abs((class_hue(label, num_objects, False) - class_hue(twin, num_objects, False) + 0.5) % 1 - 0.5)
        assert apart == pytest.approx(2 * hue_shift(num_objects))
    assert alone == sum(numbers_of(kind, num_objects) % 2 for kind in range(5))
    assert 0.003 < hue_shift(num_objects) <= 0.04


def test_hues_of_a_kind_lie_apart() -> None:
    for kind in range(len(KINDS)):
        hues = sorted(class_hue(kind + 5 * n, 20, False) for n in range(4))
        gaps = [b - a for a, b in zip(hues, [*hues[1:], hues[0] + 1], strict=True)]
        assert min(gaps) > 0.07


@pytest.mark.parametrize("wrong", [{"hidden": -0.1}, {"proximity": 1.01}, {"context": 2}])
def test_knobs_are_fractions(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"fractions from 0 to 1, found \{{'{next(iter(wrong))}'"):
        RelationKnobs(**wrong)
