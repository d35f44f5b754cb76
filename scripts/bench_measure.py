"""How the benchmark measures: processor time and peak memory of one call, in one thread."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Measurement:
    """One line of the benchmark's table.

    Attributes:
        name: What was measured.
        unit: `ms` or `MiB`.
        ours: The suite's cost, in that unit.
        reference: The reference implementation's cost, at the same problem size.
        mark: What to reach: at least this many times less than the reference; None for no mark.
        limit: What `ours` has to stay below; None for no limit.
        note: How the reference was measured.
    """

    name: str
    unit: str
    ours: float
    reference: float
    note: str
    mark: float | None = None
    limit: float | None = None

    @property
    def ratio(self) -> float:
        """How many times more the reference costs."""
        return self.reference / self.ours

    @property
    def reached(self) -> bool | None:
        """Whether mark and limit are reached; None where there is neither."""
        if self.mark is None and self.limit is None:
            return None
        return (self.mark is None or self.ratio >= self.mark) and (self.limit is None or self.ours < self.limit)


def milliseconds(ours: Callable[[], object], reference: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the median processor time of a call of each in milliseconds, after one call to warm up.

    Processor time, user and system, is what a call takes on a core of its own, also where other processes compete. The
    two take turns, one call of the reference after four of ours, so that what still disturbs one disturbs the other.
    """
    ours()
    reference()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for which, function in ((0, ours), (0, ours), (0, ours), (0, ours), (1, reference)):
            start = time.process_time()
            function()
            seconds[which].append(time.process_time() - start)
    return 1000 * statistics.median(seconds[0]), 1000 * statistics.median(seconds[1])


def peak_mebibytes(function: Callable[[], object]) -> float:
    """Return the most memory that the tensors made during a call held at one time, in MiB, after one call to warm up.

    Exact, from PyTorch's own log of what its CPU allocator gave out and took back. The resident set of a fresh process
    is too coarse for calls of few MiB; for large ones it grows by the same number.
    """
    function()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler complains about absent GPUs otherwise
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: float(e["ts"])):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak / 2**20
