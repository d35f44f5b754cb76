"""Convert released weights to PyTorch's format.

Usage: python -m scripts.convert caffemodel bvlc_reference_caffenet.caffemodel caffenet.pt [--channels rgb|bgr]
                                            [--only conv1 conv2 ...]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from data_modules.errors import DataError
from scripts.convert.caffemodel import SHA1, SHAPES, caffenet_state_dict


def main(argv: Sequence[str] | None = None) -> int:
    """Convert one file; return 0 if that was done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    kinds = parser.add_subparsers(dest="kind", required=True)
    caffe = kinds.add_parser("caffemodel", help="CaffeNet, as a state dict of conv1 to conv5 and fc6 to fc8")
    caffe.add_argument("source", type=Path)
    caffe.add_argument("target", type=Path)
    caffe.add_argument("--channels", choices=("rgb", "bgr"), default="rgb", help="order of the colours fed to the net")
    caffe.add_argument("--only", nargs="+", choices=tuple(SHAPES), default=tuple(SHAPES), help="layers to take")
    arguments = parser.parse_args(argv)
    try:
        state = caffenet_state_dict(arguments.source, arguments.channels, arguments.only)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    with arguments.source.open("rb") as file:
        is_official = hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest() == SHA1
    arguments.target.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.target.with_name(f".{arguments.target.name}.{os.getpid()}")
    torch.save(state, partial)
    partial.replace(arguments.target)
    numbers = sum(tensor.numel() for tensor in state.values())
    release = "BVLC's release" if is_official else "not BVLC's release: its SHA-1 is another one"
    print(f"{arguments.target}: {numbers:,} numbers in {len(state)} tensors, {arguments.channels} ({release})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
