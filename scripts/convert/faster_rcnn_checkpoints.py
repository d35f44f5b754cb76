"""Detectors trained by others as states of our `FasterRCNN`: Detectron.pytorch's, which RelDN uses, and neural-motifs'.

The rules are made of prefixes, because checkpoints of relation models hold the same parts under other names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from data_modules.errors import DataError
from lit_modules.detector import build_detector
from lit_modules.layers.proposals import PRESETS
from scripts.convert.mapping import Change, Conversion, Rule, convert

RELDN_FPN = "resnext101_64x4d_fpn"
BATCH_NORM_EPS = 1e-5  # of torchvision's frozen batch norm


def detector_shapes(body: str, num_classes: int, preset: str | None = None) -> dict[str, Tensor]:
    """Return the state of a detector of the papers' widths, without any numbers.

    Args:
        body: Name for `build_body`.
        num_classes: Categories, without background.
        preset: One of `PRESETS`; None takes that of the body.
    """
    is_vgg = body == "vgg16"
    settings = PRESETS[preset or ("vgg16" if is_vgg else "fpn")]
    with torch.device("meta"):
        network = build_detector(num_classes, {"name": body}, {"name": "vgg16" if is_vgg else "two_fc"}, settings)
    return network.state_dict()


def affine_rules(scale: str, shift: str, target: str) -> list[Rule]:
    """Rules for a channel's scale and shift, which become a frozen batch norm of mean 0 and deviation 1.

    Args:
        scale: Expression of the scale's name.
        shift: Expression of the shift's name.
        target: The batch norm.
    """
    return [
        Rule(scale, f"{target}.weight"),
        Rule(shift, f"{target}.bias"),
        Rule(scale, f"{target}.running_mean", torch.zeros_like),
        Rule(scale, f"{target}.running_var", lambda t: torch.ones_like(t) - BATCH_NORM_EPS),
    ]


def body_rules(source: str, target: str, change: Change | None = None) -> list[Rule]:
    """Rules for a body of Detectron.pytorch: VGG16's `convs`, or a ResNet's `conv_body` and its pyramid.

    Args:
        source: Its name in the checkpoint.
        target: Its name in our model.
        change: For convolutions' weights, for instance `flip_colours`.
    """
    prefix, pyramid = re.escape(source), f"{target}.pyramid"
    rules = [
        Rule(rf"{prefix}\.convs\.(\d+)\.(weight|bias)", rf"{target}.features.\1.\2", change),
        Rule(rf"{prefix}\.conv_body\.res1\.conv1\.weight", f"{pyramid}.body.conv1.weight", change),
        Rule(rf"{prefix}\.conv_top\.(\w+)", rf"{pyramid}.fpn.inner_blocks.3.0.\1"),
        *_affine(rf"{prefix}\.conv_body\.res1\.bn1", f"{pyramid}.body.bn1"),
    ]
    for i in range(4):  # Detectron counts maps from the coarsest, torchvision from the finest
        rules.append(Rule(rf"{prefix}\.posthoc_modules\.{i}\.(\w+)", rf"{pyramid}.fpn.layer_blocks.{3 - i}.0.\1"))
        lateral = rf"{prefix}\.topdown_lateral_modules\.{i}\.conv_lateral\.(\w+)"
        rules.append(Rule(lateral, rf"{pyramid}.fpn.inner_blocks.{2 - i}.0.\1"))
        stage, layer = rf"{prefix}\.conv_body\.res{i + 2}\.(\d+)", rf"{pyramid}.body.layer{i + 1}.\1"
        rules.append(Rule(rf"{stage}\.(conv\d|downsample\.0)\.weight", rf"{layer}.\2.weight"))
        rules += _affine(rf"{stage}\.(bn\d|downsample\.1)", rf"{layer}.\2")
    return rules


def head_rules(source: str, target: str) -> list[Rule]:
    """Rules for a RoI head: `heads.0` and `heads.3` of VGG16, `fc1` and `fc2` of a pyramid."""
    prefix = re.escape(source)
    return [
        Rule(rf"{prefix}\.(?:heads\.0|fc1)\.(\w+)", rf"{target}.fc6.\1"),
        Rule(rf"{prefix}\.(?:heads\.3|fc2)\.(\w+)", rf"{target}.fc7.\1"),
    ]


def reldn_rules(change: Change | None = None) -> list[Rule]:
    """Rules for a whole detector of Detectron.pytorch."""
    return [
        *body_rules("Conv_Body", "body", change),
        *head_rules("Box_Head", "roi_heads.box_head"),
        Rule(r"RPN\.(?:FPN_)?RPN_conv\.(\w+)", r"rpn.head.conv.\1"),
        Rule(r"RPN\.(?:FPN_)?RPN_cls_score\.(\w+)", r"rpn.head.cls_logits.\1"),
        Rule(r"RPN\.(?:FPN_)?RPN_bbox_pred\.(\w+)", r"rpn.head.bbox_pred.\1"),
        Rule(r"Box_Outs\.(cls_score|bbox_pred)\.(\w+)", r"roi_heads.box_predictor.\1.\2"),
    ]


def reldn_detector(
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor] | None = None,
    *,
    where: str,
    ignored: Sequence[str] = (),
    unfilled: Sequence[str] = (),
    change: Change | None = None,
) -> Conversion:
    """Convert a detector that Detectron.pytorch or RelDN trained, fed with BGR pixels less Detectron's mean.

    Args:
        source: Tensors of `model_step*.pth`.
        target: State of our detector; None for RelDN's, VGG16 or ResNeXt-101-64x4d-FPN, told by the names.
        where: The file, for errors.
        ignored: See `convert`.
        unfilled: See `convert`.
        change: `flip_colours` for RGB pixels.

    Raises:
        DataError: Tensors don't fit; all of them are named.
    """
    if target is None:
        is_vgg = any(name.startswith("Conv_Body.convs.") for name in source)
        classes = _num_classes(source, "Box_Outs.cls_score.weight", where)
        target = detector_shapes("vgg16" if is_vgg else RELDN_FPN, classes)
    return convert(source, target, reldn_rules(change), ignored=ignored, unfilled=unfilled, where=where)


def motifs_rules(source: str = "", target: str = "") -> list[Rule]:
    r"""Rules for neural-motifs' detector, whose pixels are torchvision's.

    Its RPN gives each anchor two scores and four deltas in a row; of the scores, softmax makes the same probability of
    an object as a sigmoid of their difference.

    Args:
        source: Expression of what stands before the names, for instance `detector\.` in checkpoints of relation models.
        target: What stands before ours, with a dot behind it.
    """
    rpn, predictor = f"{target}rpn.head", f"{target}roi_heads.box_predictor"
    return [
        Rule(rf"{source}features\.(\d+)\.(\w+)", rf"{target}body.features.\1.\2"),
        Rule(rf"{source}roi_fmap\.0\.(\w+)", rf"{target}roi_heads.box_head.fc6.\1"),
        Rule(rf"{source}roi_fmap\.3\.(\w+)", rf"{target}roi_heads.box_head.fc7.\1"),
        Rule(rf"{source}score_fc\.(\w+)", rf"{predictor}.cls_score.\1"),
        Rule(rf"{source}bbox_fc\.(\w+)", rf"{predictor}.bbox_pred.\1"),
        Rule(rf"{source}rpn_head\.conv\.0\.(\w+)", rf"{rpn}.conv.\1"),
        Rule(rf"{source}rpn_head\.conv\.2\.(\w+)", rf"{rpn}.cls_logits.\1", objectness),
        Rule(
            rf"{source}rpn_head\.conv\.2\.(\w+)", rf"{rpn}.bbox_pred.\1", lambda t: _of_anchors(t)[:, 2:].flatten(0, 1)
        ),
    ]


def motifs_detector(
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor] | None = None,
    *,
    where: str,
    ignored: Sequence[str] = (),
    unfilled: Sequence[str] = (),
) -> Conversion:
    """Convert neural-motifs' `vg-faster-rcnn.tar`; detect with the settings `PRESETS["motifs"]` and RoI style `crop`.

    Args:
        source: Its tensors.
        target: State of our detector; None for VGG16 of the paper's widths.
        where: The file, for errors.
        ignored: See `convert`; the anchors, which we compute, are ignored anyway.
        unfilled: See `convert`.

    Raises:
        DataError: Tensors don't fit; all of them are named.
    """
    if target is None:
        target = detector_shapes("vgg16", _num_classes(source, "score_fc.weight", where), "motifs")
    skipped = [r"rpn_head\.anchors", *ignored]
    return convert(source, target, motifs_rules(), ignored=skipped, unfilled=unfilled, where=where)


def objectness(scores_and_deltas: Tensor) -> Tensor:
    """Return the logit of an object `[A, ...]` of six rows an anchor: background, object and four deltas."""
    rows = _of_anchors(scores_and_deltas)
    return rows[:, 1] - rows[:, 0]


def _affine(source: str, target: str) -> list[Rule]:
    return affine_rules(rf"{source}\.weight", rf"{source}\.bias", target)


def _of_anchors(rows: Tensor) -> Tensor:
    """Return `[A, 6, ...]` of rows `[A * 6, ...]`."""
    return rows.reshape(-1, 6, *rows.shape[1:])


def _num_classes(source: Mapping[str, Tensor], name: str, where: str) -> int:
    if name not in source:
        raise DataError(f"{where}: lacks {name}: another model's checkpoint? it holds {list(source)[:5]}")
    return len(source[name]) - 1
