from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_modules.functional.rectangles import union_rectangles
from tests.lit_modules.layers import reference_motifs


def random_boxes(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = 100 * torch.rand(n, 2, 2, generator=generator, dtype=torch.float64)
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1) + 3], dim=1)


def test_against_loops() -> None:
    subjects, objects = random_boxes(6, 0), random_boxes(6, 1)
    drawn = union_rectangles(subjects, objects, 9).numpy()
    expected = [reference_motifs.rectangles(s, o, 9) for s, o in zip(subjects.tolist(), objects.tolist(), strict=True)]
    np.testing.assert_allclose(drawn, np.array(expected), atol=1e-12)


def test_rows_run_down_and_columns_right() -> None:
    drawn = union_rectangles(torch.tensor([[0, 0, 8, 4]]), torch.tensor([[6, 0, 8, 8]]), 4)[0]
    assert drawn[0].tolist() == [[1] * 4, [1] * 4, [0] * 4, [0] * 4]
    assert drawn[1].tolist() == [[0, 0, 0, 1]] * 4


def test_flat_unions_are_empty_and_other_shapes_are_errors() -> None:
    flat = torch.tensor([[5.0, 1, 5, 9]])
    assert (union_rectangles(flat, flat, 7) == 0).all()
    assert union_rectangles(flat[:0], flat[:0], 7).shape == (0, 2, 7, 7)
    with pytest.raises(ValueError, match=r"\[E, 4\]"):
        union_rectangles(flat, flat[:0], 7)
