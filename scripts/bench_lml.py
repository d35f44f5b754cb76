"""The LML projection against the paper's bracketing method, and the smooth top-k SVM against its published form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lit_modules.functional.lml import lml, lml_bracketing
from lit_modules.functional.smooth_topk import smooth_topk_svm
from scripts.bench_measure import Measurement, milliseconds, peak_mebibytes


@dataclass(frozen=True)
class LMLSize:
    """Problem size: rows, labels and how many of them are chosen, and how many times as fast as bracketing to be."""

    rows: int
    labels: int
    k: int
    mark: float | None = None

    @property
    def name(self) -> str:
        """As the table prints it."""
        return f"({self.rows}, {self.labels}, k={self.k})"


PROJECTIONS = (LMLSize(256, 1000, 5, 15), LMLSize(256, 10_000, 50, 20))
GRAPH = LMLSize(1, 495_000, 20)  # an image with 100 boxes: 9,900 pairs times 50 predicates
SVMS = (LMLSize(256, 1000, 5, 1), LMLSize(256, 1000, 50, 1))
QUICK = LMLSize(4, 60, 3)


def lml_problem(size: LMLSize) -> tuple[Tensor, Tensor]:
    """Return random scores and random gradients of the loss by y, `[rows, labels]` each."""
    generator = torch.Generator().manual_seed(1234)
    scores, gradients = (torch.randn(size.rows, size.labels, generator=generator) for _ in range(2))
    return scores.requires_grad_(), gradients


def measure_lml(sizes: Sequence[LMLSize], repeats: int) -> list[Measurement]:
    """Measure the projection's time, forward and backward; bracketing with the official d = 10 and eps = 1e-4."""
    measurements = []
    for size in sizes:
        scores, gradients = lml_problem(size)

        def ours(x: Tensor = scores, g: Tensor = gradients, k: int = size.k) -> object:
            return torch.autograd.grad(lml(x, k), x, g)

        def reference(x: Tensor = scores, g: Tensor = gradients, k: int = size.k) -> object:
            return torch.autograd.grad(lml_bracketing(x, k, samples=10), x, g)

        cost = milliseconds(ours, reference, repeats)
        measurements.append(Measurement(f"LML {size.name}: time", "ms", *cost, "bracketing, d=10", mark=size.mark))
    return measurements


def measure_lml_memory(size: LMLSize, samples: int = 1000, measured_samples: int = 100) -> Measurement:
    """Measure the projection's memory, forward and backward; bracketing with the official scene graphs' d = 1000."""
    scores, gradients = lml_problem(size)
    scale = samples / measured_samples

    def ours() -> object:
        return torch.autograd.grad(lml(scores, size.k), scores, gradients)

    def reference() -> object:
        return torch.autograd.grad(lml_bracketing(scores, size.k, samples=measured_samples), scores, gradients)

    note = f"bracketing, d={measured_samples}, times {scale:g}"
    memory = peak_mebibytes(ours), scale * peak_mebibytes(reference)
    return Measurement(f"LML {size.name}: memory", "MiB", *memory, note, limit=25e6 / 2**20)


def published_smooth_svm(scores: Tensor, targets: Tensor, k: int, tau: float = 1.0, alpha: float = 1.0) -> Tensor:
    """The smooth top-k SVM by divide and conquer over logarithms of coefficients (Berrada et al.), for autograd."""
    label = targets[:, None]
    kept = torch.ones_like(scores, dtype=torch.bool).scatter(1, label, False)
    others = (scores[kept].view(len(scores), -1) / (k * tau)).t()  # [n - 1, B]
    polynomial = [torch.zeros_like(others), others]
    spare: list[list[Tensor]] = []
    while len(polynomial[0]) > 1:
        half = len(polynomial[0]) // 2
        if len(polynomial[0]) % 2:
            spare.append([c[-1:] for c in polynomial])
        polynomial = _log_product([c[:half] for c in polynomial], [c[half : 2 * half] for c in polynomial], k)
    for factor in spare:
        polynomial = _log_product(polynomial, factor, k)
    log_ratio = polynomial[k][0] - polynomial[k - 1][0] - scores.gather(1, label)[:, 0] / (k * tau)
    loss: Tensor = (tau * softplus(alpha / tau + log_ratio)).mean()
    return loss


def _log_product(left: list[Tensor], right: list[Tensor], k: int) -> list[Tensor]:
    product: list[Tensor | None] = [None] * min(len(left) + len(right) - 1, k + 1)
    for i, a in enumerate(left):
        for j, b in enumerate(right[: len(product) - i]):
            before = product[i + j]
            product[i + j] = a + b if before is None else torch.logaddexp(before, a + b)
    return [c for c in product if c is not None]


def measure_smooth_svm(sizes: Sequence[LMLSize], repeats: int) -> list[Measurement]:
    """Measure the smooth top-k SVM's time, forward and backward, in the official setting of temperature 1."""
    measurements = []
    for size in sizes:
        scores, _ = lml_problem(size)
        targets = torch.randint(size.labels, (size.rows,), generator=torch.Generator().manual_seed(0))

        def ours(x: Tensor = scores, y: Tensor = targets, k: int = size.k) -> object:
            return torch.autograd.grad(smooth_topk_svm(x, y, k), x)

        def reference(x: Tensor = scores, y: Tensor = targets, k: int = size.k) -> object:
            return torch.autograd.grad(published_smooth_svm(x, y, k), x)

        cost = milliseconds(ours, reference, repeats)
        note = "divide and conquer over logarithms, autograd"
        measurements.append(Measurement(f"Smooth SVM {size.name}: time", "ms", *cost, note, mark=size.mark))
    return measurements
