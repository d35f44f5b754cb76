"""Detectors as others save them, with random numbers, and what they compute, spelled in the names of their files."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

VGG_LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # convolutions among torchvision's features
POOLED_AFTER = (2, 7, 14, 21)
BLOCKS = (2, 2, 3, 3, 3)


class Source(dict[str, Tensor]):
    """Named tensors; layers of random numbers are added by name, or of ones without memory if `flat`."""

    def __init__(self, flat: bool = False):
        super().__init__()
        self.flat, self.random = flat, torch.Generator().manual_seed(0)

    def draw(self, name: str, *shape: int) -> None:
        if self.flat:
            self[name] = torch.ones(()).expand(shape)
            return
        fan_in = max(self_size(shape) // shape[0], 1) if len(shape) > 1 else 4
        self[name] = torch.randn(shape, generator=self.random) / fan_in**0.5

    def layer(self, name: str, out: int, *ins: int, weight: str = ".weight", bias: str = ".bias") -> None:
        self.draw(name + weight, out, *ins)
        self.draw(name + bias, out)

    def affine(self, name: str, channels: int) -> None:
        self.layer(name, channels)


def self_size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def vgg_channels(widths: tuple[int, ...]) -> list[tuple[int, int]]:
    """(in, out) of the thirteen convolutions."""
    outs = [width for width, depth in zip(widths, BLOCKS, strict=True) for _ in range(depth)]
    return list(zip([3, *outs[:-1]], outs, strict=True))


def reldn_vgg16(widths: tuple[int, ...], hidden: int, classes: int, anchors: int, flat: bool = False) -> Source:
    """RelDN's detector with VGG16."""
    source = Source(flat)
    for index, (ins, outs) in zip(VGG_LAYERS, vgg_channels(widths), strict=True):
        source.layer(f"Conv_Body.convs.{index}", outs, ins, 3, 3)
    source.layer("RPN.RPN_conv", widths[-1], widths[-1], 3, 3)
    source.layer("RPN.RPN_cls_score", anchors, widths[-1], 1, 1)
    source.layer("RPN.RPN_bbox_pred", 4 * anchors, widths[-1], 1, 1)
    source.layer("Box_Head.heads.0", hidden, widths[-1] * 49)
    source.layer("Box_Head.heads.3", hidden, hidden)
    source.layer("Box_Outs.cls_score", classes + 1, hidden)
    source.layer("Box_Outs.bbox_pred", 4 * (classes + 1), hidden)
    return source


def reldn_fpn(blocks: tuple[int, ...], groups: int, width: int, classes: int, flat: bool = False) -> Source:
    """RelDN's detector with a ResNet or ResNeXt and its pyramid."""
    source = Source(flat)
    body = "Conv_Body.conv_body"
    source.draw(f"{body}.res1.conv1.weight", 64, 3, 7, 7)
    source.affine(f"{body}.res1.bn1", 64)
    ins = 64
    for stage, depth in enumerate(blocks, start=2):
        inner, outs = width * groups * 2 ** (stage - 2), 64 * 2**stage
        for block in range(depth):
            name = f"{body}.res{stage}.{block}"
            source.draw(f"{name}.conv1.weight", inner, ins, 1, 1)
            source.draw(f"{name}.conv2.weight", inner, inner // groups, 3, 3)
            source.draw(f"{name}.conv3.weight", outs, inner, 1, 1)
            for n, channels in ((1, inner), (2, inner), (3, outs)):
                source.affine(f"{name}.bn{n}", channels)
            if block == 0:
                source.draw(f"{name}.downsample.0.weight", outs, ins, 1, 1)
                source.affine(f"{name}.downsample.1", outs)
            ins = outs
    source.layer("Conv_Body.conv_top", 256, 2048, 1, 1)
    for i, channels in enumerate((1024, 512, 256)):
        source.layer(f"Conv_Body.topdown_lateral_modules.{i}.conv_lateral", 256, channels, 1, 1)
    for i in range(4):
        source.layer(f"Conv_Body.posthoc_modules.{i}", 256, 256, 3, 3)
    source.layer("RPN.FPN_RPN_conv", 256, 256, 3, 3)
    source.layer("RPN.FPN_RPN_cls_score", 3, 256, 1, 1)
    source.layer("RPN.FPN_RPN_bbox_pred", 12, 256, 1, 1)
    source.layer("Box_Head.fc1", 1024, 256 * 49)
    source.layer("Box_Head.fc2", 1024, 1024)
    source.layer("Box_Outs.cls_score", classes + 1, 1024)
    source.layer("Box_Outs.bbox_pred", 4 * (classes + 1), 1024)
    return source


def motifs_vgg16(widths: tuple[int, ...], hidden: int, classes: int, anchors: int, rpn: int) -> Source:
    """neural-motifs' detector."""
    source = Source()
    for index, (ins, outs) in zip(VGG_LAYERS, vgg_channels(widths), strict=True):
        source.layer(f"features.{index}", outs, ins, 3, 3)
    source.layer("roi_fmap.0", hidden, widths[-1] * 49)
    source.layer("roi_fmap.3", hidden, hidden)
    source.layer("score_fc", classes + 1, hidden)
    source.layer("bbox_fc", 4 * (classes + 1), hidden)
    source.layer("rpn_head.conv.0", rpn, widths[-1], 3, 3)
    source.layer("rpn_head.conv.2", 6 * anchors, rpn, 1, 1)
    source.draw("rpn_head.anchors", 37, 37, anchors, 4)
    return source


def convolve(source: Source, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """The named convolution, with a bias if it has one, padded so that the size is kept."""
    weight = source[f"{name}.weight"]
    groups = x.shape[1] // weight.shape[1]
    return functional.conv2d(x, weight, source.get(f"{name}.bias"), stride, weight.shape[2] // 2, groups=groups)


def linear(source: Source, name: str, x: Tensor) -> Tensor:
    return x @ source[f"{name}.weight"].T + source[f"{name}.bias"]


def vgg16_map(source: Source, prefix: str, x: Tensor) -> Tensor:
    """conv5_3 with its ReLU."""
    for index in VGG_LAYERS:
        x = convolve(source, f"{prefix}.{index}", x).relu()
        if index in POOLED_AFTER:
            x = functional.max_pool2d(x, 2)
    return x


def reldn_pyramid(source: Source, blocks: tuple[int, ...], x: Tensor) -> list[Tensor]:
    """The five maps, finest first."""
    body = "Conv_Body.conv_body"

    def affine(name: str, x: Tensor) -> Tensor:
        return x * source[f"{name}.weight"][:, None, None] + source[f"{name}.bias"][:, None, None]

    x = affine(f"{body}.res1.bn1", convolve(source, f"{body}.res1.conv1", x, 2)).relu()
    x = functional.max_pool2d(x, 3, 2, 1)
    stages = []
    for stage, depth in enumerate(blocks, start=2):
        for block in range(depth):
            name, stride = f"{body}.res{stage}.{block}", 2 if stage > 2 and block == 0 else 1
            y = affine(f"{name}.bn1", convolve(source, f"{name}.conv1", x)).relu()
            y = affine(f"{name}.bn2", convolve(source, f"{name}.conv2", y, stride)).relu()
            y = affine(f"{name}.bn3", convolve(source, f"{name}.conv3", y))
            if block == 0:
                x = affine(f"{name}.downsample.1", convolve(source, f"{name}.downsample.0", x, stride))
            x = (x + y).relu()
        stages.append(x)
    inner = [convolve(source, "Conv_Body.conv_top", stages[3])]
    for i in range(3):
        lateral = convolve(source, f"Conv_Body.topdown_lateral_modules.{i}.conv_lateral", stages[2 - i])
        inner.append(lateral + inner[-1].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    maps = [convolve(source, f"Conv_Body.posthoc_modules.{i}", x) for i, x in enumerate(inner)]
    return [*maps[::-1], maps[0][:, :, ::2, ::2]]


def detectron_blobs(source: Source, depths: tuple[int, ...]) -> dict[str, Tensor]:
    """A ResNet's detector under the names of Detectron's own pickles."""
    last = dict(zip(range(2, 6), (depth - 1 for depth in depths), strict=True))
    blobs = {}
    for name, value in source.items():
        *parts, kind = name.removeprefix("Conv_Body.").removeprefix("conv_body.").split(".")
        suffix = {"weight": "w", "bias": "b"}[kind]
        scale = {"weight": "s", "bias": "b"}[kind]
        if parts[0] == "res1":
            blobs[f"conv1_{suffix}" if parts[1] == "conv1" else f"res_conv1_bn_{scale}"] = value
        elif parts[0].startswith("res"):
            branch = f"{parts[0]}_{parts[1]}_branch" + (f"2{'abc'[int(parts[2][-1]) - 1]}" if len(parts) == 3 else "1")
            is_affine = parts[2].startswith("bn") or parts[2:] == ["downsample", "1"]
            if parts[2] == "downsample":
                branch = f"{parts[0]}_{parts[1]}_branch1"
            blobs[f"{branch}_bn_{scale}" if is_affine else f"{branch}_{suffix}"] = value
        elif parts[0] == "conv_top":
            blobs[f"fpn_inner_res5_{last[5]}_sum_{suffix}"] = value
        elif parts[0] == "topdown_lateral_modules":
            stage = 4 - int(parts[1])
            blobs[f"fpn_inner_res{stage}_{last[stage]}_sum_lateral_{suffix}"] = value
        elif parts[0] == "posthoc_modules":
            stage = 5 - int(parts[1])
            blobs[f"fpn_res{stage}_{last[stage]}_sum_{suffix}"] = value
        else:
            short = {"FPN_RPN_conv": "conv_rpn_fpn2", "FPN_RPN_cls_score": "rpn_cls_logits_fpn2"}
            short |= {"FPN_RPN_bbox_pred": "rpn_bbox_pred_fpn2", "fc1": "fc6", "fc2": "fc7"}
            blobs[f"{short.get(parts[-1], parts[-1])}_{suffix}"] = value
    return blobs
