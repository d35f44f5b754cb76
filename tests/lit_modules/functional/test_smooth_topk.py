from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lit_modules.functional.smooth_topk import hard_topk_svm, log_symmetric_ratio, smooth_topk_svm

F64 = torch.float64


def symmetric(values: list[float], degree: int) -> float:
    return sum(math.prod(chosen) for chosen in itertools.combinations(values, degree))


def slow_smooth(scores: list[float], label: int, k: int, tau: float, alpha: float) -> float:
    """The loss of Berrada et al., from the sums over all k-sets."""
    e = [math.exp(f / (k * tau)) for f in scores]
    others = e[:label] + e[label + 1 :]
    without, with_label = symmetric(others, k), e[label] * symmetric(others, k - 1)
    return tau * (math.log(math.exp(alpha / tau) * without + with_label) - math.log(with_label))


def slow_hard(scores: list[float], label: int, k: int, alpha: float) -> float:
    """As the official code: k best others with the margin, against the label and the k - 1 best others."""
    others = sorted(scores[:label] + scores[label + 1 :], reverse=True)
    return max(0, sum(f + alpha for f in others[:k]) / k - (sum(others[: k - 1]) + scores[label]) / k)


def problem(n: int, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(4, n, dtype=F64, generator=generator), torch.randint(n, (4,), generator=generator)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8])
def test_symmetric_polynomials_against_all_subsets(n: int) -> None:
    x, _ = problem(n, n, 5)
    for k in range(1, n + 1):
        expected = [math.log(symmetric(row, k) / symmetric(row, k - 1)) for row in x.exp().tolist()]
        assert log_symmetric_ratio(x, k).tolist() == pytest.approx(expected, abs=1e-11)
    padded = torch.cat([x, torch.full((4, 2), -math.inf, dtype=F64)], dim=1)
    torch.testing.assert_close(log_symmetric_ratio(padded, n), log_symmetric_ratio(x, n))


@pytest.mark.parametrize("k", [1, 2, 4, 5])
def test_losses_against_all_subsets(k: int) -> None:
    scores, targets = problem(6, k)
    for tau, alpha in ((1.0, 1.0), (0.3, 0.5), (2.0, 0.0)):
        rows = list(zip(scores.tolist(), targets.tolist(), strict=True))
        expected = [slow_smooth(row, y, k, tau, alpha) for row, y in rows]
        losses = smooth_topk_svm(scores, targets, k, tau, alpha, hard_ratio=1e30, reduction="none")
        assert losses.tolist() == pytest.approx(expected, abs=1e-12)
        assert smooth_topk_svm(scores, targets, k, tau, alpha, 1e30).item() == pytest.approx(sum(expected) / 4)
        hard = [slow_hard(row, y, k, alpha) for row, y in rows]
        assert hard_topk_svm(scores, targets, k, alpha, "none").tolist() == pytest.approx(hard, abs=1e-12)
        assert hard_topk_svm(scores, targets, k, alpha, "sum").item() == pytest.approx(sum(hard))


def test_one_label_is_the_log_sum_of_exponentials_with_margin() -> None:
    scores, targets = problem(9)
    margins = 1.0 - torch.nn.functional.one_hot(targets, 9)
    differences = scores + margins - scores.gather(1, targets[:, None])
    expected = 0.5 * (differences / 0.5).logsumexp(dim=1)
    torch.testing.assert_close(smooth_topk_svm(scores, targets, 1, 0.5, 1, 1e30, "none"), expected)


def test_small_temperatures_give_the_hard_loss() -> None:
    scores, targets = problem(12)
    hard = hard_topk_svm(scores, targets, 3, reduction="none")
    assert (hard > 0).any()
    for tau in (1e-3, 1e-5):
        smooth = smooth_topk_svm(scores, targets, 3, tau, hard_ratio=1e300, reduction="none")
        torch.testing.assert_close(smooth, hard, atol=20 * tau, rtol=0)


def test_rows_with_a_clear_best_k_take_the_hard_loss() -> None:
    tau, k = 0.5, 2
    gap = k * tau * math.log(1e3)
    scores = torch.tensor([[gap + 0.01, gap + 0.01, 0, -1], [gap - 0.01, gap - 0.01, 0, -1]], dtype=F64)
    targets = torch.tensor([2, 2])
    losses = smooth_topk_svm(scores, targets, k, tau, reduction="none")
    assert losses[0].item() == pytest.approx(slow_hard(scores[0].tolist(), 2, k, 1), abs=1e-12)
    assert losses[1].item() == pytest.approx(slow_smooth(scores[1].tolist(), 2, k, tau, 1), abs=1e-12)
    assert losses[1].item() != pytest.approx(slow_hard(scores[1].tolist(), 2, k, 1), abs=1e-4)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_gradients(k: int) -> None:
    scores, targets = problem(7, k)
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: smooth_topk_svm(f, targets, k, 0.3, hard_ratio=1e30), scores)
    assert torch.autograd.gradcheck(lambda f: hard_topk_svm(f, targets, k), scores)
    assert torch.autograd.gradcheck(lambda f: log_symmetric_ratio(f, k), scores)


def test_single_precision_over_many_orders_of_magnitude() -> None:
    """Polynomials of up to 1e300, and gaps that a product of probabilities can't span."""
    generator = torch.Generator().manual_seed(0)
    for n, k, scale in ((2000, 60, 1.0), (300, 5, 300.0), (1000, 100, 30.0)):
        x = scale * torch.randn(3, n, generator=generator, dtype=F64)
        logs = torch.full((3, k + 1), -math.inf, dtype=F64)  # the summation algorithm on logarithms
        logs[:, 0] = 0
        for column in x.T:
            logs[:, 1:] = torch.logaddexp(logs[:, 1:], logs[:, :-1] + column[:, None])
        expected = logs[:, k] - logs[:, k - 1]
        torch.testing.assert_close(log_symmetric_ratio(x.float(), k).double(), expected, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(log_symmetric_ratio(x, k), expected, atol=1e-10, rtol=1e-10)
    # The label between the k best others and all the rest, far below.
    scores = torch.tensor([[1.0, 2, 0.5, -2000, -2001]], requires_grad=True)
    loss = smooth_topk_svm(scores, torch.tensor([2]), 2)
    assert loss.item() == pytest.approx(slow_smooth([1.0, 2, 0.5, -1000, -1001], 2, 2, 1, 1), rel=1e-5)
    assert torch.autograd.grad(loss, scores)[0].isfinite().all()


def test_half_precision_and_no_rows() -> None:
    scores, targets = problem(9)
    half = smooth_topk_svm(scores.half(), targets, 3)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(smooth_topk_svm(scores, targets, 3).item(), abs=2e-3)
    assert smooth_topk_svm(scores[:0], targets[:0], 3).item() == 0


def test_bad_input() -> None:
    scores, targets = problem(4)
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"n > k >= 1, got .* and k = {k}"):
            smooth_topk_svm(scores, targets, k)
    with pytest.raises(ValueError, match="targets must be int64"):
        hard_topk_svm(scores, targets.float(), 2)
    with pytest.raises(ValueError, match="tau must be above 0"):
        smooth_topk_svm(scores, targets, 2, tau=0)
    with pytest.raises(ValueError, match="reduction"):
        smooth_topk_svm(scores, targets, 2, reduction="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n >= k"):
        log_symmetric_ratio(scores, 5)
