"""Kill a table's command again and again, and compare what it ends with against an undisturbed run.

Usage: python -m scripts.kill_test [--paper reldn] [--table 8] [--profile paper] [--kills 10] [--seed 0]
                                    [--undisturbed DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def start(arguments: argparse.Namespace, folder: Path) -> subprocess.Popen[bytes]:
    """Start the table's command as a process group of its own, with runs and results under `folder`."""
    environment = os.environ | {"RUNS_DIR": str(folder / "runs"), "RESULTS_DIR": str(folder / "results")}
    command = ["make", f"table-{arguments.paper}-{arguments.table}", f"PROFILE={arguments.profile}"]
    log = (folder / "log.txt").open("ab")
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=log, stderr=log)


def outcome(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all that must not depend on interruptions: the table's bytes, each run's metrics and curves."""
    name = f"{arguments.paper}/table{arguments.table}.csv"
    table = folder / "results" / ("" if arguments.profile == "paper" else arguments.profile) / name
    found: dict[str, Any] = {name: table.read_text()}
    for path in sorted((folder / "runs" / arguments.paper).glob("*/record.json")):
        record = json.loads(path.read_text())
        found[record["run"]] = {key: record[key] for key in ("metrics", "curves", "needs")}
    return found


def total_duration(folder: Path, paper: str) -> float:
    """Return the seconds that all runs took together."""
    return sum(float(json.loads(p.read_text())["duration_s"]) for p in (folder / "runs" / paper).glob("*/record.json"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; return 0 if both ends are equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--paper", default="reldn")
    parser.add_argument("--table", default="8")
    parser.add_argument("--profile", default="paper")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--undisturbed", type=Path, help="folder with the runs/ and results/ of an undisturbed command")
    arguments = parser.parse_args(argv)
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        calm, killed = arguments.undisturbed or Path(scratch, "undisturbed"), Path(scratch, "killed")
        killed.mkdir()
        if arguments.undisturbed is None:
            calm.mkdir()
            if code := start(arguments, calm).wait():
                print((calm / "log.txt").read_text()[-2000:])
                return code
        duration = total_duration(calm, arguments.paper) / (os.cpu_count() or 1)
        print(f"undisturbed: about {duration:.0f} s, {len(outcome(calm, arguments))} files and records")
        kills = 0
        while kills < arguments.kills:
            process = start(arguments, killed)
            moment = draw.uniform(0.0, 2 * duration / (arguments.kills + 1))
            try:
                process.wait(moment)
                print(f"finished before its kill at {moment:.1f} s, after {kills} kills")
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                records = len(list((killed / "runs").rglob("record.json")))
                print(f"kill {kills} after {moment:.1f} s; {records} runs done", flush=True)
        if code := start(arguments, killed).wait():
            print((killed / "log.txt").read_text()[-2000:])
            return code
        one, other = outcome(calm, arguments), outcome(killed, arguments)
        different = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
        said = f"DIFFERENT: {', '.join(different)}" if different else "equal"
        print(f"after {kills} kills the table, all metrics and curves are {said}")
        return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
