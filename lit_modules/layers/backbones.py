"""Convolutional bodies and RoI heads that the detector and all relation models share.

Inside a network, boxes are the coordinates of their edges in pixels of the resized image, 0 <= x1 < x2 <= width: a box
is x2 - x1 wide. Annotations and detections of relation data sets hold the first and the last pixel instead; `to_edges`
and `to_pixels` are the one place where the two meet.

Bodies expect pixels as their weights do: RGB with ImageNet's mean and deviation for weights from torchvision, BGR less
(102.9801, 115.9465, 122.7717) for weights from Detectron.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.vgg import make_layers
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

RoIAlignStyle = Literal["detectron", "edges", "half_pixel", "crop"]
FPN_CHANNELS = 256
CANONICAL_SIDE, CANONICAL_LEVEL = 224, 4  # a box of this side is pooled from the map of stride 2**4 (FPN, eq. 1)
HEADS: dict[str, dict[str, Any]] = {
    "vgg16": {"hidden_dim": 4096, "dropout": 0.5, "sampling_ratio": 0},
    "two_fc": {"hidden_dim": 1024, "dropout": 0.0, "sampling_ratio": 2},
    "small": {"hidden_dim": 128, "dropout": 0.0, "sampling_ratio": 2},
}


def to_edges(boxes_xyxy: Tensor, scales_xy: Tensor) -> Tensor:
    """Return the edges `[N, 4]`, in the resized image, of boxes `[N, 4]` given by their first and last pixels.

    Corners are resized first and the last pixel's width is added then, as Detectron does it.

    Args:
        boxes_xyxy: Annotated pixels.
        scales_xy: `[2]` or `[N, 2]`, resized width and height over annotated ones.
    """
    return boxes_xyxy * torch.cat([scales_xy, scales_xy], dim=-1) + boxes_xyxy.new_tensor([0, 0, 1, 1])


def to_pixels(edges_xyxy: Tensor, scales_xy: Tensor) -> Tensor:
    """Undo `to_edges`."""
    return (edges_xyxy - edges_xyxy.new_tensor([0, 0, 1, 1])) / torch.cat([scales_xy, scales_xy], dim=-1)


def pad_images(images: Iterable[Tensor], multiple: int = 32, least: int = 0) -> tuple[Tensor, list[tuple[int, int]]]:
    """Join images `[3, h, w]` as `[B, 3, H, W]`, with zeros right and below, and return their heights and widths.

    Args:
        images: At least one.
        multiple: H and W are multiples of it.
        least: And not less than this; neural-motifs pads every image to a square of 592 pixels.

    Raises:
        ValueError: There is no image.
    """
    given = list(images)
    if not given:
        raise ValueError("no image: a batch needs at least one")
    sizes = [(int(image.shape[1]), int(image.shape[2])) for image in given]
    height, width = (math.ceil(max(least, *sides) / multiple) * multiple for sides in zip(*sizes, strict=True))
    padded = [nn.functional.pad(i, (0, width - w, 0, height - h)) for i, (h, w) in zip(given, sizes, strict=True)]
    return torch.stack(padded), sizes


class Body(nn.Module):
    """Images `[B, 3, H, W]` to named feature maps, finest first.

    Attributes:
        out_channels: Channels of every map.
        strides: Names of the maps and the pixels between their neighbouring cells.
    """

    out_channels: int
    strides: dict[str, int]

    @property
    def roi_maps(self) -> dict[str, int]:
        """Names and strides of the maps that boxes are pooled from; "pool" is for the RPN alone."""
        return {name: stride for name, stride in self.strides.items() if name != "pool"}


class VGG16Body(Body):
    """VGG16 up to conv5_3 with its ReLU, without the last pooling: one map "0" of stride 16.

    Args:
        frozen_stages: Blocks of convolutions, from the first on, that aren't trained: 2 in RelDN, 5 in vrd_tensor.
        channels: Of the five blocks.
    """

    def __init__(self, frozen_stages: int = 2, channels: Sequence[int] = (64, 128, 256, 512, 512)):
        super().__init__()
        blocks = [[c] * n for c, n in zip(channels, (2, 2, 3, 3, 3), strict=True)]
        self.features = make_layers([layer for block in blocks for layer in [*block, "M"]][:-1])
        self.out_channels, self.strides = channels[-1], {"0": 16}
        starts = [0, 5, 10, 17, 24, len(self.features)]
        _freeze(self.features[: _checked(frozen_stages, starts)])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the map `[B, 512, H / 16, W / 16]`."""
        return {"0": self.features(images)}


class ResNetFPNBody(Body):
    """A ResNet or ResNeXt with frozen batch norm and its feature pyramid: maps "0" to "3" and "pool", 4 to 64 apart.

    Args:
        resnet: Name in torchvision, for instance `resnext101_64x4d`.
        frozen_stages: Stages that aren't trained: the stem, then the four stages of blocks; 2 in Detectron.
    """

    def __init__(self, resnet: str, frozen_stages: int = 2):
        super().__init__()
        network = get_model(resnet, weights=None, norm_layer=FrozenBatchNorm2d)
        stages = [nn.ModuleList([network.conv1, network.bn1])]
        stages += [network.layer1, network.layer2, network.layer3, network.layer4]
        for stage in stages[: _checked(frozen_stages, range(6))]:
            _freeze(stage)
        widths = [network.fc.in_features // 2**i for i in (3, 2, 1, 0)]
        layers = {f"layer{i + 1}": str(i) for i in range(4)}
        self.pyramid = BackboneWithFPN(network, layers, widths, FPN_CHANNELS, extra_blocks=LastLevelMaxPool())
        self.out_channels, self.strides = FPN_CHANNELS, {"0": 4, "1": 8, "2": 16, "3": 32, "pool": 64}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return maps `[B, 256, H / stride, W / stride]`."""
        maps: dict[str, Tensor] = self.pyramid(images)
        return maps


class SmallBody(Body):
    """Four strided convolutions for tests and generated worlds: one map "0" of stride 16, or a small pyramid.

    Args:
        widths: Channels after each halving.
        fpn_channels: Of the pyramid's maps "0" to "2" and "pool", 4 to 32 apart; 0 for the one map.
        frozen_stages: Halvings that aren't trained.
    """

    def __init__(self, widths: Sequence[int] = (16, 32, 64, 64), fpn_channels: int = 0, frozen_stages: int = 0):
        super().__init__()
        ins = (3, *widths[:-1])
        self.stages = nn.ModuleList(_halving(a, b) for a, b in zip(ins, widths, strict=True))
        for stage in self.stages[: _checked(frozen_stages, range(len(widths) + 1))]:
            _freeze(stage)
        self.pyramid = None
        self.out_channels, self.strides = widths[-1], {"0": 16}
        if fpn_channels:
            self.pyramid = FeaturePyramidNetwork(list(widths[1:]), fpn_channels, LastLevelMaxPool())
            self.out_channels, self.strides = fpn_channels, {"0": 4, "1": 8, "2": 16, "pool": 32}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return maps `[B, out_channels, H / stride, W / stride]`."""
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        if self.pyramid is None:
            return {"0": maps[-1]}
        pyramid: dict[str, Tensor] = self.pyramid({str(i): m for i, m in enumerate(maps[2:])})
        return pyramid


def build_body(name: str, **settings: Any) -> Body:
    """Build a body with random weights.

    Args:
        name: `vgg16`, a ResNet or ResNeXt of torchvision with `_fpn` behind its name (`resnext101_64x4d_fpn`), `small`
            or `small_fpn`.
        settings: Arguments of the body's class.

    Raises:
        ValueError: The name or a number of stages is none of those there are.
    """
    if name == "vgg16":
        return VGG16Body(**settings)
    if name.startswith("small"):
        return SmallBody(**{"fpn_channels": 64} | settings if name == "small_fpn" else settings)
    if name.startswith(("resnet", "resnext")) and name.endswith("_fpn"):
        return ResNetFPNBody(name.removesuffix("_fpn"), **settings)
    raise ValueError(f"body {name!r}: expected vgg16, small, small_fpn, or a torchvision resnet with _fpn behind it")


class RoIPool(nn.Module):
    """RoIAlign of boxes from the map that fits their size.

    Args:
        strides: Names and strides of the maps, finest first.
        size: Cells on each side of a pooled box.
        sampling_ratio: Samples on each side of a cell; 0 takes as many as the cell is wide in the map (adaptive).
        style: Which points of the map belong to a box with edges x1 and x2, at a map of stride s:
            `detectron`: cells of (x2 - 1 - x1) / s from x1 / s on, as Detectron and its ports pool boxes of pixels;
            `edges`: cells of (x2 - x1) / s from x1 / s on, as torchvision does by default;
            `half_pixel`: the same moved by half a cell of the map, so that its cells' centres are met;
            `crop`: one sample at each of `size` points from x1 / s to (x2 - 1) / s, ends included, and 0 outside the
            map, as neural-motifs does; `sampling_ratio` has no meaning then.
    """

    def __init__(self, strides: Mapping[str, int], size: int, sampling_ratio: int, style: RoIAlignStyle):
        super().__init__()
        if style not in get_args(RoIAlignStyle):
            raise ValueError(f"RoI align style {style!r}: expected one of {get_args(RoIAlignStyle)}")
        self.strides, self.size, self.sampling_ratio, self.style = dict(strides), size, sampling_ratio, style

    def forward(self, features: Mapping[str, Tensor], boxes_xyxy: Sequence[Tensor]) -> Tensor:
        """Pool `[N, C, size, size]`.

        Args:
            features: Maps `[B, C, h, w]`.
            boxes_xyxy: Edges `[n, 4]` of each image's boxes, N in all, in pixels of the network's input.
        """
        numbers = [boxes.new_full((len(boxes), 1), i) for i, boxes in enumerate(boxes_xyxy)]
        rois = torch.cat([torch.cat(numbers), torch.cat(list(boxes_xyxy))], dim=1)
        if len(self.strides) == 1:
            ((name, stride),) = self.strides.items()
            return self._align(features[name], rois, stride)
        level = self.levels(rois[:, 1:])
        pooled, places = [], []
        for i, (name, stride) in enumerate(self.strides.items()):
            place = torch.nonzero(level == i).flatten()
            pooled.append(self._align(features[name], rois[place], stride))
            places.append(place)
        return torch.cat(pooled)[torch.cat(places).argsort()]

    def levels(self, boxes_xyxy: Tensor) -> Tensor:
        """Return int64 `[N]`, the position in `strides` of the map that each box is pooled from (FPN, eq. 1)."""
        sides = ((boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])).clamp(min=0).sqrt()
        level = (CANONICAL_LEVEL + torch.log2(sides / CANONICAL_SIDE + 1e-6)).floor()
        finest, *_, coarsest = (round(math.log2(stride)) for stride in self.strides.values())
        return (level.clamp(finest, coarsest) - finest).long()

    def _align(self, feature: Tensor, rois: Tensor, stride: int) -> Tensor:
        # In the boxes' precision: coordinates in half precision would be off by pixels.
        feature = feature.to(rois.dtype)
        if self.style == "crop":
            return self._crop(feature, rois, stride)
        if self.style == "detectron":
            rois = rois - rois.new_tensor([0, 0, 0, 1, 1])
        aligned = self.style == "half_pixel"
        pooled: Tensor = roi_align(feature, rois, self.size, 1 / stride, self.sampling_ratio, aligned)
        return pooled

    def _crop(self, feature: Tensor, rois: Tensor, stride: int) -> Tensor:
        low, high = rois[:, 1:3] / stride, (rois[:, 3:] - 1) / stride
        step = (high - low) / (self.size - 1)
        # Boxes whose cells' centres are the wanted points. RoIAlign takes off the half that is added; without that it
        # would widen boxes of less than one cell of the map.
        centred = torch.cat([rois[:, :1], low - step / 2 + 0.5, high + step / 2 + 0.5], dim=1)
        sampled: Tensor = roi_align(feature, centred, self.size, 1.0, 1, True)
        points = low[:, :, None] + step[:, :, None] * torch.arange(self.size, device=rois.device)
        last = points.new_tensor([feature.shape[3] - 1, feature.shape[2] - 1])[:, None]
        inside = ((points >= 0) & (points <= last)).to(sampled.dtype)
        return sampled * (inside[:, 1, :, None] * inside[:, 0, None, :])[:, None]


class RoIHead(nn.Module):
    """RoIAlign, fc6, ReLU, dropout, fc7 and, unless `last_relu` is off (NO_FC7_RELU), ReLU and dropout.

    Args:
        strides: Names and strides of the maps that boxes are pooled from.
        in_channels: Of the maps.
        hidden_dim: Width of both layers.
        dropout: Probability.
        sampling_ratio: See `RoIPool`.
        last_relu: Whether ReLU and dropout follow fc7.
        style: See `RoIPool`.
        size: Cells on each side of a pooled box.

    Attributes:
        out_dim: Length D of a feature.
    """

    def __init__(
        self,
        strides: Mapping[str, int],
        in_channels: int,
        hidden_dim: int,
        dropout: float,
        sampling_ratio: int,
        last_relu: bool = True,
        style: RoIAlignStyle = "detectron",
        size: int = 7,
    ):
        super().__init__()
        self.out_dim = hidden_dim
        self.pool = RoIPool(strides, size, sampling_ratio, style)
        self.fc6 = nn.Linear(in_channels * size**2, hidden_dim)
        self.fc7 = nn.Linear(hidden_dim, hidden_dim)
        for layer in (self.fc6, self.fc7):  # Caffe's "Xavier", by the number of inputs alone
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        self.activation = nn.Sequential(nn.ReLU(), nn.Dropout(dropout))
        self.last_relu = last_relu

    def embed(self, pooled: Tensor) -> Tensor:
        """Turn pooled boxes `[N, C, size, size]` into features `[N, D]`."""
        features: Tensor = self.fc7(self.activation(self.fc6(pooled.flatten(1))))
        return self.activation(features) if self.last_relu else features

    def forward(self, features: Mapping[str, Tensor], boxes_xyxy: Sequence[Tensor], image_sizes: Any = None) -> Tensor:
        """Return the features `[N, D]` of boxes.

        Args:
            features: A body's maps.
            boxes_xyxy: Edges `[n, 4]` of each image's boxes, N in all, in pixels of the network's input.
            image_sizes: Without effect: torchvision's detectors pass them, because they must guess the strides.
        """
        return self.embed(self.pool(features, boxes_xyxy))


def build_roi_head(name: str, body: Body, **settings: Any) -> RoIHead:
    """Build a RoI head with random weights for a body's maps.

    Args:
        name: `vgg16` (4096 wide, adaptive sampling), `two_fc` (1024, two samples, FPN's) or `small` (128).
        body: Whose maps boxes are pooled from.
        settings: Arguments of `RoIHead` in place of the named head's own.

    Raises:
        ValueError: The name is none of these.
    """
    if name not in HEADS:
        raise ValueError(f"RoI head {name!r}: expected one of {tuple(HEADS)}")
    return RoIHead(body.roi_maps, body.out_channels, **HEADS[name] | settings)


def _halving(in_channels: int, out_channels: int) -> nn.Sequential:
    # Group norm, because it needs neither large batches nor pretrained statistics.
    norms = [nn.GroupNorm(math.gcd(out_channels, 8), out_channels) for _ in range(2)]
    strided = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
    return nn.Sequential(
        strided, norms[0], nn.ReLU(), nn.Conv2d(out_channels, out_channels, 3, padding=1), norms[1], nn.ReLU()
    )


def _checked(frozen_stages: int, ends: Sequence[int]) -> int:
    if not 0 <= frozen_stages < len(ends):
        raise ValueError(f"frozen_stages={frozen_stages}: this body has {len(ends) - 1} stages")
    return ends[frozen_stages]


def _freeze(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)
