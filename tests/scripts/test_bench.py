from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_modules.functional.cp import cp_nll
from lit_modules.metrics.vrd import evaluate_dataset
from scripts import bench
from scripts.bench_cp import CPSize, cp_problem, full_tensor_nll
from scripts.bench_measure import Measurement, milliseconds, peak_mebibytes
from scripts.bench_vrd import generated_test_set, real_test_set
from tests.lit_modules.metrics import reference_vrd


def test_a_quick_run_prints_and_writes_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert bench.main(["--quick", "--json", str(tmp_path / "bench.json")]) == 0
    assert torch.get_num_threads() == threads
    written = json.loads((tmp_path / "bench.json").read_text())
    lines = written["measurements"]
    assert written["machine"]["threads"] == 1
    assert {m["unit"] for m in lines} == {"ms", "MiB"}
    assert sum("time an image" in m["name"] for m in lines) == 7
    assert all(m["ours"] > 0 and m["ratio"] == pytest.approx(m["reference"] / m["ours"]) for m in lines)
    assert all(m["reached"] is None for m in lines)  # tiny problems have no marks
    printed = capsys.readouterr().out
    for title in ("CP likelihood", "contrastive losses", "VRD evaluation", "loaders", "resident CIFAR"):
        assert f"measuring {title} ..." in printed
    assert all(m["name"] in printed for m in lines)


def test_nothing_is_written_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bench.main(["--quick"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("marks", "reached", "code"),
    [
        ({}, None, 0),
        ({"mark": 10.0}, True, 0),
        ({"mark": 10.1}, False, 1),
        ({"limit": 3.0}, True, 0),
        ({"limit": 2.0}, False, 1),
        ({"mark": 10.0, "limit": 2.0}, False, 1),
    ],
)
def test_marks_and_limits_decide_the_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    marks: dict[str, float],
    reached: bool | None,
    code: int,
) -> None:
    measured = Measurement("thing", "ms", ours=2.0, reference=20.0, note="", **marks)
    fine = Measurement("other", "ms", 1.0, 2.0, "", mark=1.0)
    assert measured.reached is reached
    monkeypatch.setattr(bench, "items", lambda quick: [("both", lambda: [fine, measured])])
    assert bench.main([]) == code
    assert ("NO" in capsys.readouterr().out) == bool(code)


def test_time_is_the_median_of_processor_time() -> None:
    calls: list[str] = []

    def spin(name: str, seconds: float) -> None:
        calls.append(name)
        end = time.process_time() + (seconds if len(calls) > 3 else 10 * seconds)  # the warm-up is slower
        while time.process_time() < end:
            pass

    ours, reference = milliseconds(lambda: spin("ours", 0.002), lambda: spin("reference", 0.02), repeats=3)
    assert ours == pytest.approx(2, rel=0.4)
    assert reference == pytest.approx(20, rel=0.4)
    assert calls == ["ours", "reference"] + 3 * (4 * ["ours"] + ["reference"])
    idle, _ = milliseconds(lambda: time.sleep(0.01), lambda: None, repeats=1)
    assert idle < 5  # waiting costs nothing


def test_memory_is_what_is_held_at_one_time() -> None:
    mebibyte = 2**18  # of float32

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.ones(2 * mebibyte)

    def together() -> list[torch.Tensor]:
        return [torch.ones(2 * mebibyte) for _ in range(3)]

    assert peak_mebibytes(one_after_the_other) == pytest.approx(2, rel=1e-3)
    assert peak_mebibytes(together) == pytest.approx(6, rel=1e-3)


def test_the_full_tensor_gives_the_same_likelihood_and_gradient() -> None:
    logits, targets = cp_problem(CPSize(rank=3, subjects=5, predicates=4, objects=6), 7)
    losses = (cp_nll(*logits, targets), full_tensor_nll(*logits, targets))
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for ours, reference in zip(*(torch.autograd.grad(loss, logits) for loss in losses), strict=True):
        assert torch.allclose(ours, reference, atol=1e-6)


def test_the_generated_test_set_has_matches_to_find() -> None:
    predictions, graphs = generated_test_set(12)
    options = {"ks": (70,), "tops": (50, 100), "tasks": ("relationship", "phrase")}
    counts = evaluate_dataset(predictions, graphs, **options)  # type: ignore[arg-type]
    expected = reference_vrd.recalls(predictions, graphs, **options, train=set())  # type: ignore[arg-type]
    assert counts.truths > 50
    for t, task in enumerate(("relationship", "phrase")):
        for n, top in enumerate((50, 100)):
            for m, name in enumerate(("", "/multi")):
                assert counts.hits[t, 0, n, m] / counts.truths == expected[f"{task}_k70/R@{top}{name}"]
    assert 0 < counts.hits[0, 0, 1, 0] < counts.truths
    pairs = np.array([len(p.scores) for p in generated_test_set(300)[0]])
    assert 50 < pairs.mean() < 90 and all(p.scores.shape[1] == 70 for p in predictions)


@pytest.mark.real_data
def test_the_real_test_set(data_root: Path) -> None:
    predictions, graphs = real_test_set(data_root / "vrd")
    assert len(predictions) == len(graphs) == 1000
    counts = evaluate_dataset(predictions, graphs, ks=(70,), tasks=("relationship",))
    assert 100 * counts.hits[0, 0, 0, 0] / counts.truths == pytest.approx(16.4834, abs=5e-5)
