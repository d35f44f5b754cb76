"""The benchmark of the loaders: the plain loops do the loaders' work, and the ratio is that of the middle turn."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from data_modules.scene_graph import RaggedImages
from scripts.bench_data import CASES, Case, measure_loaders, measure_resident, middle, turns

GREY_LEVELS = 2.5 / 255 / 0.224  # of rounding, where ours and Pillow resize


@pytest.mark.filterwarnings("ignore:VOC and SBD label")
@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[] if c.images > 100 else pytest.mark.slow) for c in CASES]
)
def test_the_plain_loop_makes_the_loader_s_batches(case: Case, tmp_path: Path) -> None:
    module = case.module(case.write(tmp_path / "world", 100 if case.images > 100 else 16), seed=0, **case.options)
    loader = module.train_dataloader()
    ours, plain = next(iter(loader)), next(case.epoch(module)(module.train_dataloader().batch_sampler))
    images = ours.images.values if isinstance(ours.images, RaggedImages) else ours.images
    assert plain[0].shape == images.shape
    if hasattr(ours, "index"):  # crops and mirroring are drawn otherwise
        assert torch.equal(plain[1], ours.labels)
        assert plain[0].mean().item() == pytest.approx(images.mean().item(), abs=0.2)
        assert plain[0].std().item() == pytest.approx(images.std().item(), rel=0.2)
        return
    assert (plain[0] - images).abs().max() < GREY_LEVELS
    if hasattr(ours, "mirrored"):
        assert ours.labels is not None
        assert torch.equal(plain[1], ours.labels.values)
    else:
        assert torch.allclose(plain[1], ours.boxes_xyxy, atol=1e-3)
        assert torch.equal(plain[2], ours.labels)
    if hasattr(ours, "relations"):
        assert torch.equal(plain[3], ours.relations)


def test_every_loader_is_measured_with_a_worker_and_without() -> None:
    measured = measure_loaders(CASES[-2:], quick=True, repeats=2)
    assert [m.name for m in measured] == [
        f"{name}, {workers}: time an image"
        for name in ("CIFAR-10", "CIFAR-100")
        for workers in ("one worker", "no worker")
    ]
    assert [m.mark for m in measured] == [1, None] * 2
    for m in measured:
        assert m.unit == "ms"
        assert f"ours {1000 / m.ours:,.0f}" in m.note
    names = " ".join(case.name for case in CASES)
    for name in ("VRD", "VG150", "VG200", "VG proposals", "Open Images", "VOC2007", "VOC2012", "COCO", "MIT67"):
        assert name in names


def test_without_a_gpu_the_resident_loader_has_no_mark() -> None:
    (measured,) = measure_resident(quick=True, repeats=1)
    assert (measured.mark, "cpu" in measured.name) == ((20, False) if torch.cuda.is_available() else (None, True))
    assert torch.cuda.is_available() or "no GPU at hand" in measured.note


def test_the_middle_turn_is_the_one_with_the_median_ratio() -> None:
    assert middle([(10, 1), (20, 10), (3, 1)]) == (3, 1)
    calls: list[str] = []
    costs = turns([lambda: calls.append("a"), lambda: (calls.append("b"), time.sleep(0.02))[0]], 4, 2)  # type: ignore[func-returns-value]
    assert calls == ["a", "b"] * 3  # once to warm up
    assert [len(row) for row in costs] == [2, 2]
    assert all(row[1] >= 5 > row[0] for row in costs)  # 20 ms for 4 images
