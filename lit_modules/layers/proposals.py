"""Where Faster R-CNN looks for objects: its settings, Detectron's anchors, and the region proposal network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork

from lit_modules.layers.backbones import Body

RPN_THRESHOLDS = (0.7, 0.3)  # IoU from which an anchor is an object, and below which it is background


@dataclass(frozen=True)
class DetectorSettings:
    """How boxes are proposed, sampled and selected; the defaults are RelDN's with VGG16.

    Attributes:
        anchor_sizes: Sides in pixels, all of them on a single map, or one for each map of a pyramid.
        anchor_ratios: Heights over widths.
        round_anchors: Round the anchors' sides at scale one, as Detectron does and neural-motifs doesn't.
        anchors_inside: Train the RPN on anchors inside the image alone.
        rpn_channels: Width of its hidden layer; 0 for the maps' own.
        rpn_relu6: Cut its hidden layer at 6, as neural-motifs does.
        rpn_sampled: Anchors an image in training, at most half of them objects.
        rpn_pre_nms: Anchors of a map before non-maximum suppression, in training and in testing.
        rpn_post_nms: Proposals an image after it, likewise.
        rpn_nms: Its IoU.
        rpn_min_side: Shortest side of a proposal in pixels.
        rois_sampled: Boxes an image in training.
        roi_objects: Greatest fraction of objects among them.
        box_weights: Factors on dx, dy, dw and dh.
        box_beta: Where the box loss turns from square to linear.
        score_threshold: Detections need a greater confidence, a fraction.
        nms: IoU of the suppression within a class.
        detections: Greatest number an image.
        one_label_per_box: Let a proposal become no more than one detection, its most confident one.
    """

    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    round_anchors: bool = True
    anchors_inside: bool = True
    rpn_channels: int = 0
    rpn_relu6: bool = False
    rpn_sampled: int = 256
    rpn_pre_nms: tuple[int, int] = (12000, 6000)
    rpn_post_nms: tuple[int, int] = (2000, 1000)
    rpn_nms: float = 0.7
    rpn_min_side: float = 1e-3
    rois_sampled: int = 512
    roi_objects: float = 0.25
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    box_beta: float = 1.0
    score_threshold: float = 0.05
    nms: float = 0.5
    detections: int = 100
    one_label_per_box: bool = False


PRESETS: dict[str, dict[str, Any]] = {
    "vgg16": {},
    "fpn": {"rpn_pre_nms": (2000, 1000)},
    "motifs": {
        "anchor_sizes": tuple(16 * s for s in (2.22152954, 4.12315647, 7.21692515, 12.60263013, 22.7102731)),
        "anchor_ratios": (0.23232838, 0.63365731, 1.28478321, 3.15089189),
        "round_anchors": False,
        "rpn_channels": 512,
        "rpn_relu6": True,
        "rpn_min_side": 4.0,
        "rois_sampled": 256,
        "box_weights": (1.0, 1.0, 1.0, 1.0),
        "score_threshold": 0.01,
        "nms": 0.3,
        "detections": 64,
        "one_label_per_box": True,
    },
}


class Anchors(nn.Module):
    """Anchor boxes around the middle of every cell of every map, ratio by ratio, each from the smallest size on.

    Args:
        strides: Of the maps.
        settings: Sizes, ratios and rounding.

    Raises:
        ValueError: There are several maps, but not one size for each.
    """

    def __init__(self, strides: Sequence[int], settings: DetectorSettings):
        super().__init__()
        sizes: list[Sequence[float]] = [settings.anchor_sizes]
        if len(strides) > 1:
            sizes = [[size] for size in settings.anchor_sizes]
        if len(sizes) != len(strides):
            raise ValueError(f"{len(sizes)} anchor sizes for {len(strides)} maps: a pyramid needs one for each")
        self.strides = tuple(strides)
        self.per_cell = len(sizes[0]) * len(settings.anchor_ratios)
        for i, (stride, of_map) in enumerate(zip(strides, sizes, strict=True)):
            sides = _anchor_sides(stride, of_map, settings.anchor_ratios, settings.round_anchors)
            self.register_buffer(f"cell{i}", torch.cat([-sides, sides], dim=1) / 2 + stride / 2, persistent=False)

    def forward(self, images: ImageList, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the anchors `[cells * per_cell, 4]` of all maps, row by row, the same for each image."""
        anchors = []
        for i, (stride, feature) in enumerate(zip(self.strides, maps, strict=True)):
            cell: Tensor = getattr(self, f"cell{i}")
            y, x = (torch.arange(side, device=cell.device) * stride for side in feature.shape[-2:])
            rows, columns = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack([columns, rows, columns, rows], dim=-1).reshape(-1, 1, 4)
            anchors.append((shifts + cell).reshape(-1, 4))
        return [torch.cat(anchors)] * len(images.image_sizes)


class RPNHead(nn.Module):
    """Objectness and four box deltas of every anchor of every cell, from a 3x3 convolution shared by all maps."""

    def __init__(self, in_channels: int, channels: int, per_cell: int, relu6: bool):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.activation = nn.ReLU6() if relu6 else nn.ReLU()
        self.cls_logits = nn.Conv2d(channels, per_cell, 1)
        self.bbox_pred = nn.Conv2d(channels, per_cell * 4, 1)
        for layer in (self.conv, self.cls_logits, self.bbox_pred):
            nn.init.normal_(layer.weight, std=0.01)
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels))

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return `[B, A, h, w]` and `[B, 4 A, h, w]` of each map `[B, C, h, w]`."""
        hidden = [self.activation(self.conv(feature)) for feature in maps]
        # In full precision: torchvision gives the boxes the precision of the deltas, and half of it is off by pixels.
        return [self.cls_logits(h).float() for h in hidden], [self.bbox_pred(h).float() for h in hidden]


class ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's RPN, trained on anchors inside the image alone where that is wanted.

    Attributes:
        many: Propose as many boxes as in training.
    """

    def __init__(self, body: Body, settings: DetectorSettings):
        anchors = Anchors(list(body.strides.values()), settings)
        channels = settings.rpn_channels or body.out_channels
        super().__init__(
            anchors,
            RPNHead(body.out_channels, channels, anchors.per_cell, settings.rpn_relu6),
            *RPN_THRESHOLDS,
            settings.rpn_sampled,
            0.5,
            dict(zip(("training", "testing"), settings.rpn_pre_nms, strict=True)),
            dict(zip(("training", "testing"), settings.rpn_post_nms, strict=True)),
            settings.rpn_nms,
        )
        self.min_size = settings.rpn_min_side
        self.anchors_inside, self.many = settings.anchors_inside, False

    def pre_nms_top_n(self) -> int:
        """Return how many anchors of a map are considered."""
        count: int = self._pre_nms_top_n["training" if self.many else "testing"]
        return count

    def post_nms_top_n(self) -> int:
        """Return how many proposals of an image are kept."""
        count: int = self._post_nms_top_n["training" if self.many else "testing"]
        return count

    def assign_targets_to_anchors(self, anchors: list[Tensor], targets: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Return each anchor's label (1 object, 0 background, -1 neither) and the annotated box it stands for."""
        labels, boxes = [], []
        for all_anchors, target in zip(anchors, targets, strict=True):
            kept = torch.nonzero(self._trained(all_anchors, target)).flatten()
            (label,), (box,) = super().assign_targets_to_anchors([all_anchors[kept]], [target])
            labels.append(label.new_full((len(all_anchors),), -1).index_copy(0, kept, label))
            boxes.append(all_anchors.index_copy(0, kept, box.to(all_anchors.dtype)))
        return labels, boxes

    def _trained(self, anchors: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        far = target["size_wh"].to(anchors)
        inside = (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2:] <= far).all(dim=1)
        # An image may be smaller than all anchors; then all of them count.
        return inside | ~inside.any() if self.anchors_inside else torch.ones_like(inside)


def _anchor_sides(stride: int, sizes: Sequence[float], ratios: Sequence[float], rounded: bool) -> Tensor:
    """Return widths and heights `[ratios * sizes, 2]`: those of a stride's square, by ratio, times size / stride."""
    sides = []
    for ratio in ratios:
        width = math.sqrt(stride**2 / ratio)
        width, height = (round(width), round(round(width) * ratio)) if rounded else (width, width * ratio)
        sides += [(width * size / stride, height * size / stride) for size in sizes]
    return torch.tensor(sides)
