r"""Convert released weights to PyTorch's format.

Usage: python -m scripts.convert caffemodel bvlc_reference_caffenet.caffemodel caffenet.pt [--channels rgb|bgr]
                                            [--only conv1 conv2 ...]
       python -m scripts.convert torchvision vgg16-397923af.pth vgg16.pt
       python -m scripts.convert detectron X-101-64x4d.pkl resnext.pt --body resnext101_64x4d_fpn
       python -m scripts.convert reldn-detector model_step479999.pth detector.pt
       python -m scripts.convert motifs-detector vg-faster-rcnn.tar detector.pt
       python -m scripts.convert reldn model_step125445.pth reldn.pt
       python -m scripts.convert motifs motifnet-sgcls.tar motifs.pt

A tensor that has no counterpart is an error that names it, unless --ignore or --unfilled names it first: a detector of
other categories gives all but its last layers with --ignore 'Box_Outs\..*' --unfilled 'roi_heads\.box_predictor\..*'.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts.convert.caffemodel import SHA1, SHAPES, caffenet_state_dict
from scripts.convert.detectron import detectron_weights, read_blobs
from scripts.convert.faster_rcnn_checkpoints import RELDN_FPN, motifs_detector, reldn_detector
from scripts.convert.mapping import Conversion, flip_colours, read_checkpoint
from scripts.convert.motifs import motifs_model
from scripts.convert.reldn import reldn_model
from scripts.convert.torchvision_weights import torchvision_weights

# What a kind of file is converted by: from the arguments, and the options that all converters take.
Converter = Callable[[argparse.Namespace, Mapping[str, Any]], Conversion]


def main(argv: Sequence[str] | None = None) -> int:
    """Convert one file; return 0 if that was done."""
    arguments = _parser().parse_args(argv)
    try:
        state, report = arguments.convert(arguments)
    except ValueError as error:  # of the file, or of an option
        print(error, file=sys.stderr)
        return 1
    arguments.target.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.target.with_name(f".{arguments.target.name}.{os.getpid()}")
    torch.save(state, partial)
    partial.replace(arguments.target)
    print(f"{arguments.target}: {report}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    caffe = kinds.add_parser("caffemodel", help="CaffeNet, as a state dict of conv1 to conv5 and fc6 to fc8")
    caffe.add_argument("source", type=Path)
    caffe.add_argument("target", type=Path)
    caffe.add_argument("--channels", choices=("rgb", "bgr"), default="rgb", help="order of the colours fed to the net")
    caffe.add_argument("--only", nargs="+", choices=tuple(SHAPES), default=tuple(SHAPES), help="layers to take")
    caffe.set_defaults(convert=_caffenet)
    one = _add(kinds, "torchvision", _torchvision, "an ImageNet network with torchvision's names, as a body")
    one.add_argument("--body", help="vgg16, or a torchvision resnet with _fpn behind its name (default: by the shapes)")
    one = _add(kinds, "detectron", _detectron, "a pickle of Detectron's model zoo, as a body or a detector")
    one.add_argument("--body", default=RELDN_FPN, help="vgg16, or a resnet with _fpn behind its name (%(default)s)")
    _add(kinds, "reldn-detector", _reldn_detector, "a detector of RelDN or Detectron.pytorch, model_step*.pth")
    _add(kinds, "motifs-detector", _motifs_detector, "the detector of neural-motifs, vg-faster-rcnn.tar", colours=False)
    _add(kinds, "reldn", _reldn, "a trained RelDN, model_step*.pth, without the detector that its file holds too")
    _add(kinds, "motifs", _motifs, "a trained MotifNet of neural-motifs, motifnet-*.tar, with detector", colours=False)
    return parser


def _add(kinds: Any, name: str, convert: Converter, text: str, colours: bool = True) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = kinds.add_parser(name, help=text)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--ignore", nargs="+", default=[], help="expressions of names in the source to leave out")
    parser.add_argument("--unfilled", nargs="+", default=[], help="expressions of our names that may be missing")
    parser.add_argument("--like", type=Path, help="state dict of ours to fill (default: one of the paper's widths)")
    parser.set_defaults(convert=lambda arguments: _converted(convert, arguments))
    if colours:
        parser.add_argument("--flip-colours", action="store_true", help="feed the net with the colours reversed")
    return parser


def _converted(convert: Converter, arguments: argparse.Namespace) -> tuple[dict[str, Tensor], str]:
    options: dict[str, Any] = {"where": str(arguments.source), "ignored": arguments.ignore}
    options |= {"unfilled": arguments.unfilled, "target": read_checkpoint(arguments.like) if arguments.like else None}
    if getattr(arguments, "flip_colours", False):
        options["change"] = flip_colours
    result = convert(arguments, options)
    return result.state, result.report()


def _torchvision(arguments: argparse.Namespace, options: Mapping[str, Any]) -> Conversion:
    return torchvision_weights(read_checkpoint(arguments.source), arguments.body, **options)


def _detectron(arguments: argparse.Namespace, options: Mapping[str, Any]) -> Conversion:
    return detectron_weights(read_blobs(arguments.source), arguments.body, **options)


def _reldn_detector(arguments: argparse.Namespace, options: Mapping[str, Any]) -> Conversion:
    return reldn_detector(read_checkpoint(arguments.source), **options)


def _motifs_detector(arguments: argparse.Namespace, options: Mapping[str, Any]) -> Conversion:
    return motifs_detector(read_checkpoint(arguments.source), **options)


def _reldn(arguments: argparse.Namespace, options: Mapping[str, Any]) -> Conversion:
    return reldn_model(read_checkpoint(arguments.source), **options)


def _motifs(arguments: argparse.Namespace, options: Mapping[str, Any]) -> Conversion:
    return motifs_model(read_checkpoint(arguments.source), **options)


def _caffenet(arguments: argparse.Namespace) -> tuple[dict[str, Tensor], str]:
    state = caffenet_state_dict(arguments.source, arguments.channels, arguments.only)
    with arguments.source.open("rb") as file:
        is_official = hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest() == SHA1
    numbers = sum(tensor.numel() for tensor in state.values())
    release = "BVLC's release" if is_official else "not BVLC's release: its SHA-1 is another one"
    return state, f"{numbers:,} numbers in {len(state)} tensors, {arguments.channels} ({release})"


if __name__ == "__main__":
    sys.exit(main())
