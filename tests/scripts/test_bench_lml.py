from __future__ import annotations

import pytest
import torch

from lit_modules.functional.smooth_topk import smooth_topk_svm
from scripts.bench_lml import (
    QUICK,
    LMLSize,
    lml_problem,
    measure_lml,
    measure_lml_memory,
    measure_smooth_svm,
    published_smooth_svm,
)


def test_a_quick_measurement() -> None:
    measured = [*measure_lml((QUICK,), 1), measure_lml_memory(QUICK), *measure_smooth_svm((QUICK,), 1)]
    assert [m.unit for m in measured] == ["ms", "MiB", "ms"]
    assert all(m.ours > 0 and m.reference > 0 and "(4, 60, k=3)" in m.name for m in measured)


@pytest.mark.parametrize("size", [LMLSize(5, 8, 2), LMLSize(3, 21, 7)])
def test_the_published_algorithm_gives_the_same_loss_and_gradient(size: LMLSize) -> None:
    scores, _ = lml_problem(size)
    targets = torch.arange(size.rows)
    losses = published_smooth_svm(scores, targets, size.k, 0.7), smooth_topk_svm(scores, targets, size.k, 0.7)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, scores)[0] for loss in losses]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_the_memory_of_a_whole_graph() -> None:
    measured = measure_lml_memory(LMLSize(1, 495_000, 20), measured_samples=10)
    assert measured.ours < 25e6 / 2**20 < measured.reference
