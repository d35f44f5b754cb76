"""ImageNet weights that torchvision distributes, as bodies (and VGG16's RoI head) of our detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.models import get_model

from data_modules.errors import DataError
from scripts.convert.faster_rcnn_checkpoints import detector_shapes
from scripts.convert.mapping import Change, Conversion, Rule, convert

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
RESNEXTS = ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")
LEFT_OUT = (r"classifier\.6\.\w+", r"fc\.\w+", r".*\.num_batches_tracked")


def body_of(source: Mapping[str, Tensor], where: str) -> str:
    """Tell by names and shapes which body the weights are for, as `build_body` calls it.

    Raises:
        DataError: None of those that there are.
    """
    if "features.28.weight" in source and "layer1.0.conv1.weight" not in source:
        return "vgg16"
    shapes = {name: value.shape for name, value in source.items() if "conv" in name}
    for name in (*RESNETS, *RESNEXTS):
        with torch.device("meta"):
            network = get_model(name, weights=None)
        if shapes == {key: value.shape for key, value in network.state_dict().items() if "conv" in key}:
            return f"{name}_fpn"
    known = ("vgg16", *RESNETS, *RESNEXTS)
    raise DataError(f"{where}: its tensors are those of none of {known}; it holds {list(source)[:5]}")


def torchvision_weights(
    source: Mapping[str, Tensor],
    body: str | None = None,
    target: Mapping[str, Tensor] | None = None,
    *,
    where: str,
    ignored: Sequence[str] = (),
    unfilled: Sequence[str] = (),
    change: Change | None = None,
) -> Conversion:
    """Convert an ImageNet network; classifiers are left out, but for VGG16's fc6 and fc7, which become the RoI head.

    Args:
        source: Its state dict, with torchvision's names: torchvision's own, which expects RGB pixels scaled as
            torchvision does it, or VGG16 from Caffe, which expects BGR pixels less Detectron's mean.
        body: `vgg16`, or a ResNet's or ResNeXt's name with `_fpn`; None tells by the shapes.
        target: State of our detector, or of those parts; None for parts of the papers' widths.
        where: The file, for errors.
        ignored: See `convert`.
        unfilled: See `convert`.
        change: `flip_colours` for pixels in the other order.

    Raises:
        DataError: Tensors don't fit; all of them are named.
    """
    body = body or body_of(source, where)
    if target is None:
        parts = ("body.features.", "roi_heads.box_head.") if body == "vgg16" else ("body.pyramid.body.",)
        target = {name: value for name, value in detector_shapes(body, 1).items() if name.startswith(parts)}
    rules = [
        Rule(r"features\.(\d+)\.(\w+)", r"body.features.\1.\2", change),
        Rule(r"classifier\.0\.(\w+)", r"roi_heads.box_head.fc6.\1"),
        Rule(r"classifier\.3\.(\w+)", r"roi_heads.box_head.fc7.\1"),
        Rule(r"((?:conv1|bn1|layer\d)\..+)", r"body.pyramid.body.\1", change),
    ]
    return convert(source, target, rules, ignored=[*LEFT_OUT, *ignored], unfilled=unfilled, where=where)
