"""Weights of Detectron's model zoo: pickles of Caffe2 blobs, of ImageNet networks and of whole detectors."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_modules.errors import DataError
from scripts.convert.faster_rcnn_checkpoints import affine_rules, detector_shapes
from scripts.convert.mapping import Change, Conversion, Rule, convert

VGG16_BLOCKS = (2, 2, 3, 3, 3)  # convolutions in each
STAGES = {"resnet50_fpn": (3, 4, 6, 3), "resnet152_fpn": (3, 8, 36, 3)}
STAGES_OF_101 = (3, 4, 23, 3)  # all others that Detectron has are this deep
LEFT_OUT = (r"(pred|fc1000|fc8)_[wb]", r".*_momentum", r"lr|model_iter|weight_order")
IDLE_BIAS = re.compile(r"conv1_b|res\d_\d+_branch(1|2[abc])_b")  # of convolutions that an affine layer follows
BACKBONE_PARTS = ("body.pyramid.body.", "body.features.", "roi_heads.box_head.")


ARRAYS: dict[tuple[str, str], Any] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0] for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): np.float64(0).__reduce__()[0] for core in ("core", "_core")},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
}


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that knows NumPy's arrays and nothing else: pickles can run any code otherwise."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return ARRAYS[module, name]


def read_blobs(path: str | Path) -> dict[str, Tensor]:
    """Read the arrays of one of Detectron's pickles, without running any code that it holds.

    Args:
        path: `*.pkl`, with the arrays on top or under "blobs".

    Raises:
        DataError: The file is missing, truncated or damaged, holds other objects than arrays, or none.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()  # written by Python 2
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; give the path of the downloaded pickle") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{path}: damaged, or not a pickle of arrays alone ({error}); fetch it again") from error
    blobs = content.get("blobs", content) if isinstance(content, Mapping) else None
    if not isinstance(blobs, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__} instead of named arrays; fetch it again")
    arrays = {str(name): value for name, value in blobs.items() if isinstance(value, np.ndarray)}
    numeric = {name: torch.from_numpy(array.copy()) for name, array in arrays.items() if array.dtype.kind in "fiu"}
    if not numeric:
        raise DataError(f"{path}: holds no arrays of numbers on top or under 'blobs', but {list(content)[:5]}")
    return numeric


def detectron_rules(body: str, change: Change | None = None) -> list[Rule]:
    """Rules for Detectron's blobs of a detector.

    Args:
        body: `vgg16`, or a ResNet's or ResNeXt's name with `_fpn`.
        change: For convolutions that may see pixels, for instance `flip_colours`.
    """
    rules = _vgg16_rules(change) if body == "vgg16" else _resnet_rules(STAGES.get(body, STAGES_OF_101), change)
    for suffix, name in (("w", "weight"), ("b", "bias")):
        rules += [
            Rule(rf"(fc6|fc7)_{suffix}", rf"roi_heads.box_head.\1.{name}"),
            Rule(rf"(cls_score|bbox_pred)_{suffix}", rf"roi_heads.box_predictor.\1.{name}"),
            Rule(rf"conv_rpn(?:_fpn2)?_{suffix}", f"rpn.head.conv.{name}"),
            Rule(rf"rpn_cls_logits(?:_fpn2)?_{suffix}", f"rpn.head.cls_logits.{name}"),
            Rule(rf"rpn_bbox_pred(?:_fpn2)?_{suffix}", f"rpn.head.bbox_pred.{name}"),
        ]
    return rules


def detectron_weights(
    source: Mapping[str, Tensor],
    body: str,
    target: Mapping[str, Tensor] | None = None,
    *,
    where: str,
    ignored: Sequence[str] = (),
    unfilled: Sequence[str] = (),
    change: Change | None = None,
) -> Conversion:
    """Convert Detectron's blobs, which expect BGR pixels less Detectron's mean.

    Args:
        source: The blobs.
        body: `vgg16`, or a ResNet's or ResNeXt's name with `_fpn`.
        target: State of our detector; None for one of the papers' widths, or the backbone's part of it (and VGG16's
            fc6 and fc7) where the source has no detector.
        where: The file, for errors.
        ignored: See `convert`; the classifier of ImageNet and the optimiser's momenta are ignored anyway, and biases
            of convolutions that an affine layer follows, where they are 0.
        unfilled: See `convert`.
        change: `flip_colours` for RGB pixels.

    Raises:
        DataError: Tensors don't fit; all of them are named.
    """
    if target is None:
        has_detector = "cls_score_w" in source
        target = detector_shapes(body, len(source["cls_score_w"]) - 1 if has_detector else 1)
        if not has_detector:
            has_head = "fc6_w" in source
            parts = BACKBONE_PARTS if has_head else BACKBONE_PARTS[:2]
            target = {name: value for name, value in target.items() if name.startswith(parts)}
    idle = [name for name, blob in source.items() if IDLE_BIAS.fullmatch(name) and not blob.any()]
    skipped = [*LEFT_OUT, *ignored, *map(re.escape, idle)]
    return convert(source, target, detectron_rules(body, change), ignored=skipped, unfilled=unfilled, where=where)


def _vgg16_rules(change: Change | None) -> list[Rule]:
    rules, layer = [], 0
    for block, depth in enumerate(VGG16_BLOCKS, start=1):
        for i in range(1, depth + 1):
            rules.append(Rule(f"conv{block}_{i}_w", f"body.features.{layer}.weight", change))
            rules.append(Rule(f"conv{block}_{i}_b", f"body.features.{layer}.bias"))
            layer += 2  # a ReLU follows
        layer += 1  # pooling
    return rules


def _resnet_rules(stages: Sequence[int], change: Change | None) -> list[Rule]:
    body, fpn = "body.pyramid.body", "body.pyramid.fpn"
    rules = [Rule("conv1_w", f"{body}.conv1.weight", change)]
    rules += affine_rules("res_conv1_bn_s", "res_conv1_bn_b", f"{body}.bn1")
    for i, blocks in enumerate(stages):
        stage, layer = rf"res{i + 2}_(\d+)", rf"{body}.layer{i + 1}.\1"
        branches = [("1", "downsample.0", "downsample.1")]
        branches += [(f"2{letter}", f"conv{n}", f"bn{n}") for n, letter in enumerate("abc", start=1)]
        for branch, convolution, norm in branches:
            name = rf"{stage}_branch{branch}"
            rules.append(Rule(rf"{name}_w", rf"{layer}.{convolution}.weight"))
            rules += affine_rules(rf"{name}_bn_s", rf"{name}_bn_b", rf"{layer}.{norm}")
        last = f"res{i + 2}_{blocks - 1}_sum"
        for suffix, kind in (("w", "weight"), ("b", "bias")):
            rules.append(Rule(rf"fpn_inner_{last}(?:_lateral)?_{suffix}", f"{fpn}.inner_blocks.{i}.0.{kind}"))
            rules.append(Rule(f"fpn_{last}_{suffix}", f"{fpn}.layer_blocks.{i}.0.{kind}"))
    return rules
