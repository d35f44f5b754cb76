"""Faster R-CNN on torchvision's parts, with Detectron's anchors and losses, and everything that relation models need.

All boxes are edges in pixels of the network's input, see `backbones`. Detectron's formulas for boxes of pixels (widths
x2 - x1 + 1) become torchvision's for edges when the last pixel's width is added once, at the border.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from lit_modules.layers.backbones import Body, RoIHead
from lit_modules.layers.proposals import DetectorSettings, ProposalNetwork

Targets = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class DetectedBoxes:
    """Detections of a batch, concatenated without padding, each image's from the most confident one on.

    Attributes:
        edges_xyxy: float32 `[D, 4]`, regressed for the label.
        labels: int64 `[D]`, 0-based categories without background.
        scores: float32 `[D]`, probability of the label.
        logits: float32 `[D, C + 1]`, of background and every category.
        features: float32 `[D, F]`, of the proposals.
        proposals_xyxy: float32 `[D, 4]`, edges of the boxes that features and logits were computed for.
        class_edges_xyxy: float32 `[D, C, 4]`, edges regressed for every category.
        image_index: int64 `[D]`, ascending, the image of each detection.
    """

    edges_xyxy: Tensor
    labels: Tensor
    scores: Tensor
    logits: Tensor
    features: Tensor
    proposals_xyxy: Tensor
    class_edges_xyxy: Tensor
    image_index: Tensor


@dataclass(frozen=True)
class SampledRoIs:
    """Boxes of one image that training has drawn among proposals and annotated boxes.

    Attributes:
        edges_xyxy: float32 `[R, 4]`.
        labels: int64 `[R]`, 0-based categories; -1 for background.
        matched: int64 `[R]`, the annotated box with the greatest overlap; of no meaning for background.
    """

    edges_xyxy: Tensor
    labels: Tensor
    matched: Tensor


class BoxHeads(RoIHeads):  # type: ignore[misc]
    """torchvision's second stage with Detectron's box loss, and detections that keep all that was computed for them."""

    def __init__(self, head: RoIHead, num_classes: int, settings: DetectorSettings):
        predictor = FastRCNNPredictor(head.out_dim, num_classes + 1)
        for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        super().__init__(
            None,
            head,
            predictor,
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=settings.rois_sampled,
            positive_fraction=settings.roi_objects,
            bbox_reg_weights=settings.box_weights,
            score_thresh=settings.score_threshold,
            nms_thresh=settings.nms,
            detections_per_img=settings.detections,
        )
        self.box_beta, self.one_label_per_box = settings.box_beta, settings.one_label_per_box

    def losses(self, maps: Mapping[str, Tensor], proposals: list[Tensor], targets: Any) -> dict[str, Tensor]:
        """Return the class loss and the box loss of sampled boxes, each divided by their number."""
        rois, _, labels, box_targets = self.select_training_samples(proposals, targets)
        logits, deltas = (x.float() for x in self.box_predictor(self.box_head(maps, rois)))
        label = torch.cat(labels)
        if not len(label):
            return {"class": logits.sum(), "box": deltas.sum()}
        objects = torch.nonzero(label > 0).flatten()
        predicted = deltas.unflatten(1, (-1, 4))[objects, label[objects]]
        box = smooth_l1_loss(predicted, torch.cat(box_targets)[objects], reduction="sum", beta=self.box_beta)
        return {"class": cross_entropy(logits, label), "box": box / len(label)}

    def detect(
        self, maps: Mapping[str, Tensor], proposals: list[Tensor], sizes_hw: Sequence[tuple[int, int]], threshold: float
    ) -> DetectedBoxes:
        """Classify proposals, regress them and keep the best of each image."""
        features = self.box_head(maps, proposals)
        logits, deltas = (x.float() for x in self.box_predictor(features))
        if not (logits.isfinite().all() and deltas.isfinite().all()):
            raise ValueError("the detector computes infinite numbers or NaN: its training diverged, or its file is bad")
        counts = [len(boxes) for boxes in proposals]
        edges = self.box_coder.decode(deltas, proposals).reshape(len(logits), logits.shape[1], 4)
        kept, labels, first = [], [], 0
        clipped = []
        for count, size in zip(counts, sizes_hw, strict=True):
            clipped.append(clip_boxes_to_image(edges[first : first + count], size))
            roi, label = self._select(clipped[-1], logits[first : first + count].softmax(dim=1), threshold)
            kept.append(roi + first)
            labels.append(label)
            first += count
        roi, label, edges = torch.cat(kept), torch.cat(labels), torch.cat(clipped)
        image = torch.arange(len(kept), device=roi.device).repeat_interleave(roi.new_tensor([len(k) for k in kept]))
        scores = logits[roi].softmax(dim=1).gather(1, label[:, None])[:, 0]
        given = torch.cat(proposals)[roi]
        of_class = edges[roi, 1:]
        boxes = edges[roi, label]
        return DetectedBoxes(boxes, label - 1, scores, logits[roi], features[roi].float(), given, of_class, image)

    def _select(self, edges: Tensor, probabilities: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """Return proposal and label (from 1 on) of the best detections of one image, best first."""
        roi, label = torch.nonzero(probabilities[:, 1:] > threshold).unbind(dim=1)
        label = label + 1
        large = remove_small_boxes(edges[roi, label], 1e-2)
        roi, label = roi[large], label[large]
        kept = batched_nms(edges[roi, label], probabilities[roi, label], label, self.nms_thresh)
        roi, label = roi[kept], label[kept]
        if self.one_label_per_box:
            # The first of each proposal, which is its best: unique() doesn't say where it met a value first.
            ranks = torch.arange(len(roi), device=roi.device)
            best = ranks.new_full((len(edges),), len(roi)).scatter_reduce(0, roi, ranks, "amin")
            first = ranks == best[roi]
            roi, label = roi[first], label[first]
        return roi[: self.detections_per_img], label[: self.detections_per_img]


class FasterRCNN(nn.Module):
    """A body, proposals from its maps, and a RoI head that classifies them and regresses their boxes.

    Args:
        body: The convolutional body.
        head: The RoI head on its maps.
        num_classes: Categories C, without background.
        settings: How boxes are proposed, sampled and selected.
    """

    def __init__(self, body: Body, head: RoIHead, num_classes: int, settings: DetectorSettings):
        super().__init__()
        self.body = body
        self.rpn = ProposalNetwork(body, settings)
        self.roi_heads = BoxHeads(head, num_classes, settings)

    @property
    def head(self) -> RoIHead:
        """The RoI head, copies of which relation models train."""
        head = self.roi_heads.box_head
        assert isinstance(head, RoIHead)
        return head

    def losses(self, images: Tensor, sizes_hw: list[tuple[int, int]], targets: Targets) -> dict[str, Tensor]:
        """Return the four losses of a batch of images `[B, 3, H, W]`; only in training mode.

        Args:
            images: Padded right and below.
            sizes_hw: Heights and widths without padding.
            targets: For each image `boxes` float `[n, 4]` (edges), `labels` int64 `[n]` (from 1 on), `size_wh` `[2]`.
        """
        maps = self.body(images)
        self.rpn.many = True
        proposals, losses = self.rpn(ImageList(images, sizes_hw), maps, targets)
        second = self.roi_heads.losses(maps, proposals, targets)
        return {"rpn_class": losses["loss_objectness"], "rpn_box": losses["loss_rpn_box_reg"], **second}

    @torch.no_grad()
    def detect(
        self,
        images: Tensor,
        sizes_hw: list[tuple[int, int]],
        maps: Mapping[str, Tensor] | None = None,
        score_threshold: float | None = None,
    ) -> DetectedBoxes:
        """Detect objects in images `[B, 3, H, W]`; only in evaluation mode.

        Args:
            images: Padded right and below.
            sizes_hw: Heights and widths without padding.
            maps: The body's maps of them, if they are there already.
            score_threshold: In place of the settings' one.

        Raises:
            ValueError: The network is in training mode, or computes infinite numbers.
        """
        maps, proposals = self._propose(images, sizes_hw, maps, many=False)
        threshold = self.roi_heads.score_thresh if score_threshold is None else score_threshold
        return self.roi_heads.detect(maps, proposals, sizes_hw, threshold)

    @torch.no_grad()
    def sample(
        self,
        images: Tensor,
        sizes_hw: list[tuple[int, int]],
        targets: Targets,
        maps: Mapping[str, Tensor] | None = None,
    ) -> list[SampledRoIs]:
        """Draw boxes of each image as training does, for relation models to train on; only in evaluation mode."""
        _, proposals = self._propose(images, sizes_hw, maps, many=True)
        rois, matched, labels, _ = self.roi_heads.select_training_samples(proposals, list(targets))
        return [SampledRoIs(r, label - 1, m) for r, label, m in zip(rois, labels, matched, strict=True)]

    def classify(self, maps: Mapping[str, Tensor], edges_xyxy: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits `[N, C + 1]` and features `[N, F]` of given boxes `[n, 4]` of each image (SGCls)."""
        features = self.head(maps, edges_xyxy)
        return self.roi_heads.box_predictor(features)[0].float(), features

    def _propose(
        self, images: Tensor, sizes_hw: list[tuple[int, int]], maps: Mapping[str, Tensor] | None, many: bool
    ) -> tuple[Mapping[str, Tensor], list[Tensor]]:
        if self.training:
            raise ValueError("the detector is in training mode: call eval() before detecting or sampling boxes")
        known = self.body(images) if maps is None else maps
        self.rpn.many = many
        return known, self.rpn(ImageList(images, sizes_hw), dict(known))[0]
