"""Measure speed and memory as ratios against reference implementations, in the same run and one thread.

Usage: python -m scripts.bench [--json PATH] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from experiments.store import write_atomically
from scripts.bench_cp import CPSize, measure_contrastive, measure_cp
from scripts.bench_data import CASES, measure_loaders, measure_resident
from scripts.bench_lml import GRAPH, PROJECTIONS, QUICK, SVMS, measure_lml, measure_lml_memory, measure_smooth_svm
from scripts.bench_measure import Measurement
from scripts.bench_relations import measure_evaluators
from scripts.bench_step import NARROW, PAPER, measure_step
from scripts.bench_step import QUICK as QUICK_STEP
from scripts.bench_vrd import generated_test_set, measure_evaluation, real_test_set

Item = tuple[str, Callable[[], list[Measurement]]]


def items(quick: bool) -> list[Item]:
    """Return what to measure: a title and a function each."""
    size = CPSize(pairs=8, rank=2, subjects=6, predicates=4, objects=6, reference_pairs=4) if quick else CPSize()

    def evaluation() -> list[Measurement]:
        data_root = os.environ.get("DATA_ROOT")
        if data_root and not quick and Path(data_root, "vrd", "lu2016").is_dir():
            return measure_evaluation(real_test_set(Path(data_root, "vrd")), "VRD, detections of Lu et al.", 40, 3)
        return measure_evaluation(generated_test_set(6 if quick else 1000), "generated", 2 if quick else 40, 3)

    repeats = 2 if quick else 9
    return [
        ("CP likelihood", lambda: measure_cp(size, repeats)),
        ("contrastive losses", lambda: measure_contrastive(24 if quick else 512, repeats)),
        ("VRD evaluation", evaluation),
        ("VG and Open Images evaluation", lambda: measure_evaluators(*((4, 2, 2) if quick else (1000, 50, 3)))),
        ("RelDN training step", lambda: training_step(quick)),
        ("LML projection", lambda: measure_lml((QUICK,) if quick else PROJECTIONS, repeats)),
        ("LML memory", lambda: [measure_lml_memory(QUICK if quick else GRAPH)]),
        ("smooth top-k SVM", lambda: measure_smooth_svm((QUICK,) if quick else SVMS, min(repeats, 3))),
        ("loaders", lambda: measure_loaders(CASES[-3:] if quick else CASES, quick, 2 if quick else 5)),
        ("resident CIFAR", lambda: measure_resident(quick, 2 if quick else 7)),
    ]


def training_step(quick: bool) -> list[Measurement]:
    """Measure at the paper's size on a GPU, and in an eighth of its width where there is none."""
    has_gpu = torch.cuda.is_available()
    size = QUICK_STEP if quick else PAPER if has_gpu else NARROW
    return measure_step((size,), 1 if quick else 5, torch.device("cuda" if has_gpu and not quick else "cpu"))


def table(measurements: Sequence[Measurement]) -> Table:
    """Return the table that is printed."""
    result = Table("measured", "ours", "reference", "ratio", "mark", "reached", "reference measured on")
    for m in measurements:
        marks = [f">= {m.mark:g}x"] if m.mark is not None else []
        marks += [f"< {m.limit:g} {m.unit}"] if m.limit is not None else []
        reached = {None: "-", True: "yes", False: "NO"}[m.reached]
        costs = (f"{c:,.3g} {m.unit}" if c < 1000 else f"{c:,.0f} {m.unit}" for c in (m.ours, m.reference))
        result.add_row(m.name, *costs, f"{m.ratio:,.1f}x", ", ".join(marks) or "-", reached, m.note)
    return result


def as_json(measurements: Sequence[Measurement]) -> str:
    """Return the measurements and what they were taken on as a JSON text."""
    machine = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": platform.processor() or platform.machine(),
    }
    lines = [asdict(m) | {"ratio": m.ratio, "reached": m.reached} for m in measurements]
    return json.dumps({"machine": machine | {"threads": 1}, "measurements": lines}, indent=1) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0 if every mark is reached, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="tiny problems, to try the script: marks don't count")
    arguments = parser.parse_args(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measurements: list[Measurement] = []
        for title, measure in items(arguments.quick):
            print(f"measuring {title} ...", end=" ", flush=True)
            start = time.monotonic()
            measurements += measure()
            print(f"{time.monotonic() - start:.1f} s", flush=True)
    finally:
        torch.set_num_threads(threads)
    if arguments.quick:
        measurements = [replace(m, mark=None, limit=None) for m in measurements]
    Console(width=None if sys.stdout.isatty() else 200).print(table(measurements))
    print("Medians of processor time in one thread; memory is the peak of what the call's tensors hold at one time.")
    print(
        "Loaders: time on the clock, ours and the reference in turns, of which the one with the median ratio is shown."
    )
    if arguments.json:
        write_atomically(arguments.json, as_json(measurements))
    return 1 if any(m.reached is False for m in measurements) else 0


if __name__ == "__main__":
    sys.exit(main())
