"""The expectation of a prior under the CP distribution, against the full tensor."""

from __future__ import annotations

import pytest
import torch

from lit_modules.functional.cp import cp_log_tensor
from lit_modules.functional.cp_prior import cp_log_expectation


def _logits(batch: int = 5, rank: int = 3, sizes: tuple[int, int, int] = (4, 3, 6)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(batch, rank, n, generator=generator, dtype=torch.float64) for n in sizes]


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_equals_the_sum_over_the_full_tensor(chunk: int) -> None:
    logits = _logits()
    prior = torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log()
    expected = (cp_log_tensor(*logits) + prior).flatten(1).logsumexp(dim=1)
    torch.testing.assert_close(cp_log_expectation(*logits, prior, chunk), expected)


def test_of_a_constant_prior_is_that_constant() -> None:
    prior = torch.full((4, 3, 6), -7.5, dtype=torch.float64)
    torch.testing.assert_close(cp_log_expectation(*_logits(), prior), torch.full((5,), -7.5, dtype=torch.float64))


def test_names_a_prior_of_the_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"\[S, P, O\] = \[4, 3, 6\], got \[6, 3, 4\]"):
        cp_log_expectation(*_logits(), torch.zeros(6, 3, 4))
