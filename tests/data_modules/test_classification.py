from __future__ import annotations

import numpy as np
import pytest

from data_modules.classification import hold_out, hold_out_smooth_topk


def test_held_out_and_kept_examples_are_all_of_them() -> None:
    for kept, held_out in (hold_out(1000, 100, [0]), hold_out_smooth_topk(1000, 100)):
        assert (len(kept), len(held_out)) == (900, 100)
        assert sorted([*kept, *held_out]) == list(range(1000))
    kept, held_out = hold_out(1000, 100, [0])
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held_out) > 0).all()
    assert abs(held_out.mean() - 499.5) < 120  # from everywhere


def test_the_seeds_alone_decide() -> None:
    np.random.seed(1)  # noqa: NPY002
    first = hold_out(1000, 100, [3, 4])[1].tolist()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert hold_out(1000, 100, [3, 4])[1].tolist() == first
    hold_out_smooth_topk(1000, 100)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert hold_out(1000, 100, [4, 3])[1].tolist() != first
    assert hold_out(1000, 100, [3])[1].tolist() != first


@pytest.mark.parametrize(("counts", "held_out"), [([100, 100, 100], 30), ([10, 30, 7, 53], 25), ([1, 2, 97], 10)])
def test_a_stratified_draw_takes_the_same_fraction_of_every_class(counts: list[int], held_out: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    chosen = hold_out(len(labels), held_out, [0], labels)[1]
    assert len(chosen) == held_out
    for label, count in enumerate(counts):
        assert abs((labels[chosen] == label).sum() - count * held_out / len(labels)) <= 1
    assert chosen.tolist() != hold_out(len(labels), held_out, [1], labels)[1].tolist()


@pytest.mark.parametrize("draw", [lambda n: hold_out(50, n, [0]), lambda n: hold_out_smooth_topk(50, n)])
def test_something_is_kept(draw: object) -> None:
    assert callable(draw)
    assert len(draw(0)[1]) == 0
    for impossible in (-1, 50, 51):
        with pytest.raises(ValueError, match=f"val_images={impossible}: there are 50 training images"):
            draw(impossible)
