"""Executes runs in order: in this process, or in a pool of local processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.errors import ExperimentError
from experiments.machine import Machine
from experiments.runs import Run, to_json
from experiments.store import explained_full_disk, write_atomically


@dataclass
class _Progress:
    """What is left of one launch, and what went wrong."""

    todo: list[Run]
    failures: dict[str, str] = field(default_factory=dict)
    finished: int = 0
    cause: Exception | None = None  # the first error of a run in this process

    def blocked(self, run: Run) -> bool:
        """Return whether a need of the run failed; the run then counts as failed too."""
        lacking = any(need.name in self.failures for need in run.needs.values())
        if lacking:
            self.failures[run.name] = "needs a run that failed"
        return lacking


def launch(runs: Sequence[Run], machine: Machine, workers: int = 1) -> None:
    """Execute what is missing of `runs`; a failure does not stop the runs that don't need it.

    Args:
        runs: Any runs; those done already are skipped, what they need is added.
        machine: This machine.
        workers: 1 executes in this process; more start that many processes at a time.

    Raises:
        ExperimentError: At least one run failed; the message says which and why. All others are done.
    """
    todo = list({r.name: r for run in runs for r in machine.store.missing(run)}.values())
    if not todo:
        return
    progress = _Progress(todo)
    if workers == 1 or len(todo) <= 1:
        _in_process(progress, machine)
    else:
        _in_pool(progress, machine, workers)
    if progress.failures:
        # Many runs fail for one reason, such as data that is not there: say it once.
        reasons: dict[str, list[str]] = {}
        for name, reason in progress.failures.items():
            reasons.setdefault(reason, []).append(name)
        lines = "\n".join(f"  {', '.join(names)}: {reason}" for reason, names in reasons.items())
        message = f"{len(progress.failures)} of {len(todo)} runs are not done:\n{lines}"
        raise ExperimentError(message) from progress.cause


def _announce(progress: _Progress, run: Run, what: str) -> None:
    total = len(progress.todo)
    print(f"[{progress.finished}/{total}] {what} {run.paper} {run.stage_name} seed {run.seed} ({run.name})", flush=True)


def _in_process(progress: _Progress, machine: Machine) -> None:
    from experiments.run import execute  # the only import of torch: a table that is done must not wait for it

    for run in progress.todo:
        if progress.blocked(run):
            continue
        _announce(progress, run, "start")
        try:
            execute(run, machine)
        except (ExperimentError, ValueError, OSError) as error:
            progress.failures[run.name] = f"{error}"
            progress.cause = progress.cause or error
        progress.finished += 1


def _in_pool(progress: _Progress, machine: Machine, workers: int) -> None:
    waiting = list(progress.todo)
    unfinished = {run.name for run in waiting}
    working: dict[str, tuple[Run, subprocess.Popen[bytes]]] = {}
    try:
        while waiting or working:
            for run in list(waiting):
                if progress.blocked(run):
                    waiting.remove(run)
                elif len(working) < workers and not any(need.name in unfinished for need in run.needs.values()):
                    _announce(progress, run, "start")
                    working[run.name] = run, _start(run, machine)
                    waiting.remove(run)
            time.sleep(0.2)
            for name, (run, process) in list(working.items()):
                if process.poll() is None:
                    continue
                del working[name]
                unfinished.discard(name)
                progress.finished += 1
                if process.returncode:
                    progress.failures[name] = _failure(machine.store.folder(run) / "log.txt", process.returncode)
                _announce(progress, run, "failed" if process.returncode else "done")
    finally:
        for _, process in working.values():
            process.terminate()


def _start(run: Run, machine: Machine) -> subprocess.Popen[bytes]:
    folder = machine.store.folder(run)
    write_atomically(folder / "run.json", json.dumps(to_json(run)))
    command = [sys.executable, "-m", "experiments", "run", str(folder / "run.json")]
    with explained_full_disk(folder / "log.txt"), (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def _failure(log: Path, returncode: int) -> str:
    """Return why a process failed: its last error line, or the signal that ended it."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    errors = [line for line in lines if line.startswith("error: ")]
    if returncode == 2 and errors:
        return errors[-1].removeprefix("error: ")
    how = f"killed by signal {-returncode}" if returncode < 0 else f"exit status {returncode}"
    return f"{how}; see {log}"
