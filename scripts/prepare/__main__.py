"""Fetch data sets, or say what is there of them.

Usage: python -m scripts.prepare <name> [<name> ...] [--root DIR] [--remove-archives]
       python -m scripts.prepare check [<name> ...] [--root DIR] [--full]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from data_modules.errors import DataError
from scripts.prepare.catalog import CATALOG, find
from scripts.prepare.check import describe, report
from scripts.prepare.steps import prepare


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0 if it did all, and always after a check."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog=f"data sets: {', '.join(CATALOG)}",
    )
    parser.add_argument("names", nargs="+", metavar="name", help="a data set, or check")
    parser.add_argument("--root", type=Path, help="where the data lies; default: $DATA_ROOT")
    parser.add_argument("--remove-archives", action="store_true", help="remove archives once they are unpacked")
    parser.add_argument("--full", action="store_true", help="check: compute the checksums of large files too")
    arguments = parser.parse_args(argv)
    is_check = arguments.names[0] == "check"
    try:
        datasets = [find(name) for name in arguments.names[is_check:]] or list(CATALOG.values())
    except ValueError as error:
        parser.error(str(error))
    root = arguments.root or (Path(os.environ["DATA_ROOT"]) if os.environ.get("DATA_ROOT") else None)
    if is_check:
        if root is None:
            print("DATA_ROOT is unset: no folder of data is known (export DATA_ROOT=DIR, or --root DIR)")
        print(report(datasets, root or Path("DATA_ROOT"), arguments.full))
        return 0
    if root is None:
        parser.error("name the folder for the data: export DATA_ROOT=DIR, or --root DIR")
    failed = False
    for dataset in datasets:
        try:
            status = prepare(dataset, root, remove_archives=arguments.remove_archives)
        except DataError as error:
            print(f"{dataset.name}: {error}", file=sys.stderr)
            failed = True
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            return 130
        else:
            print(describe(dataset, status))
            failed |= status.state != "complete"
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
