"""Faster R-CNN as a LightningModule: trained on images with boxes, of detection and of relation data sets alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from data_modules.scene_graph import Detections, RelationBatch
from lit_modules.detector_batches import LAST_PIXEL, DetectionBatchLike, DetectorInput
from lit_modules.layers.backbones import build_body, build_roi_head
from lit_modules.layers.faster_rcnn import DetectedBoxes, FasterRCNN
from lit_modules.layers.proposals import DetectorSettings
from lit_modules.optimizers import build_optimizer

PARTS = ("body.pyramid.fpn.", "body.", "rpn.", "roi_heads.box_head.", "roi_heads.box_predictor.")
PRECISIONS = {
    "map": "mAP",
    "map_50": "mAP@0.5",
    "map_75": "mAP@0.75",
    "map_small": "mAP_small",
    "map_medium": "mAP_medium",
    "map_large": "mAP_large",
    "mar_100": "mAR@100",
}


class Detector(pl.LightningModule):
    """Trains Faster R-CNN and reports COCO's average precisions, fractions, as `val/...` and `test/...`.

    Args:
        num_classes: Categories, without background.
        body: `name` and arguments of `build_body`.
        head: `name` and arguments of `build_roi_head`.
        settings: Arguments of `DetectorSettings` in place of its defaults.
        optimizer: Arguments of `build_optimizer`.
        weights: File that `scripts.convert` or `torch.save` wrote: the state of a whole network, or of some parts.
        one_label_per_box: See `DetectorInput.of`.

    Attributes:
        detected: What the last test found, by image name, as `predict_step` returns it.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        body: Mapping[str, Any],
        head: Mapping[str, Any],
        settings: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        weights: str | Path | None = None,
        one_label_per_box: bool = False,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.network = build_detector(num_classes, body, head, settings)
        if weights is not None:
            load_weights(self.network, weights)
        self._optimizer, self._one_label = optimizer, one_label_per_box
        self.detected: dict[str, Detections] = {}
        self._precision: MeanAveragePrecision | None = None

    def training_step(self, batch: RelationBatch | DetectionBatchLike, batch_idx: int) -> dict[str, Tensor]:
        """Return the total loss of one batch of images, and its four parts.

        Raises:
            ValueError: An annotation is no box or no category, or the loss is not finite.
        """
        given = DetectorInput.of(batch, self._one_label)
        parts = self.network.losses(given.images, given.sizes_hw, given.targets(self.num_classes))
        loss = torch.stack(list(parts.values())).sum()
        if not loss.isfinite():
            values = {name: float(value.detach()) for name, value in parts.items()}
            raise ValueError(
                f"losses {values} at {given.names}: training diverged; lower optimizer.lr, or clip gradients"
            )
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(given.names))
        return {"loss": loss, **{name: value.detach() for name, value in parts.items()}}

    def detect(self, batch: RelationBatch | DetectionBatchLike) -> tuple[DetectorInput, DetectedBoxes]:
        """Return a batch as the network takes it, and the detections with their features; only in evaluation mode."""
        given = DetectorInput.of(batch, self._one_label)
        return given, self.network.detect(given.images, given.sizes_hw)

    def predict_step(self, batch: RelationBatch | DetectionBatchLike, batch_idx: int) -> list[Detections]:
        """Return one record an image, boxes in the annotated frame with their last pixels, most confident first."""
        return _records(*self.detect(batch))

    def on_validation_epoch_start(self) -> None:
        """Forget earlier validations."""
        self._start_scoring()

    def validation_step(self, batch: RelationBatch | DetectionBatchLike, batch_idx: int) -> None:
        """Detect and compare."""
        self._score(*self.detect(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the precisions."""
        self._log_scores("val")

    def on_test_epoch_start(self) -> None:
        """Forget earlier tests."""
        self.detected = {}
        self._start_scoring()

    def test_step(self, batch: RelationBatch | DetectionBatchLike, batch_idx: int) -> None:
        """Detect, keep and compare."""
        given, found = self.detect(batch)
        self._score(given, found)
        self.detected.update(zip(given.names, _records(given, found), strict=True))

    def on_test_epoch_end(self) -> None:
        """Log the precisions."""
        self._log_scores("test")

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule."""
        return build_optimizer(self, int(self.trainer.estimated_stepping_batches), **self._optimizer)

    def _start_scoring(self) -> None:
        # Here and not before: training must work where pycocotools is missing.
        self._precision = MeanAveragePrecision(backend="pycocotools").to(self.device)
        self._precision.warn_on_many_detections = False

    def _score(self, given: DetectorInput, found: DetectedBoxes) -> None:
        assert self._precision is not None
        boxes = given.annotated(found.edges_xyxy, found.image_index) + given.last_pixel
        truth = given.annotated(given.edges_xyxy, given.image_index) + given.last_pixel
        predicted, wanted = [], []
        for i in range(len(given.names)):
            mine, theirs = found.image_index == i, given.image_index == i
            predicted.append({"boxes": boxes[mine], "scores": found.scores[mine], "labels": found.labels[mine]})
            crowd, areas = given.ignored[theirs].long(), given.areas[theirs]
            wanted.append({"boxes": truth[theirs], "labels": given.labels[theirs], "iscrowd": crowd, "area": areas})
        self._precision.update(predicted, wanted)

    def _log_scores(self, split: str) -> None:
        assert self._precision is not None
        scores = {name: float(value) for name, value in self._precision.compute().items() if name in PRECISIONS}
        # COCO says -1 where nothing is annotated.
        self.log_dict({f"{split}/{PRECISIONS[name]}": value for name, value in scores.items() if value >= 0})


def build_detector(
    num_classes: int, body: Mapping[str, Any], head: Mapping[str, Any], settings: Mapping[str, Any]
) -> FasterRCNN:
    """Build a network with random weights from plain settings, see `Detector`."""
    built = build_body(**body)
    return FasterRCNN(built, build_roi_head(body=built, **head), num_classes, DetectorSettings(**settings))


def load_weights(network: FasterRCNN, path: str | Path) -> tuple[str, ...]:
    """Load the parts that a file holds: body, pyramid, RPN, RoI head, predictors.

    Args:
        network: Changed in place.
        path: State dict, for instance from `scripts.convert`.

    Returns:
        The parts that the file doesn't hold and that keep their weights.

    Raises:
        ValueError: A tensor is unknown or of another shape, or a part is there in part only.
    """
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    own = network.state_dict()
    wrong = [name for name, value in state.items() if name not in own or own[name].shape != value.shape]
    missing = [name for name in own if name not in state]
    absent = [part for part in PARTS if not any(_part(name) == part for name in state)]
    broken = [name for name in missing if _part(name) not in absent]
    if wrong or broken:
        found = f"unknown or of another shape: {wrong[:5]}, missing: {broken[:5]}"
        raise ValueError(f"{path}: {len(wrong) + len(broken)} tensors don't fit this detector ({found})")
    network.load_state_dict(state, strict=False)
    return tuple(part.rstrip(".") for part in absent if any(_part(name) == part for name in missing))


def _part(name: str) -> str:
    return next((part for part in PARTS if name.startswith(part)), "")


def _records(given: DetectorInput, found: DetectedBoxes) -> list[Detections]:
    """Return one record an image, in the annotated frame."""
    edges = given.annotated(found.edges_xyxy, found.image_index) + given.last_pixel
    boxes = edges - edges.new_tensor(LAST_PIXEL)
    counts = torch.bincount(found.image_index, minlength=len(given.names)).tolist()
    columns = [x.cpu().split(counts) for x in (boxes.float(), found.labels, found.scores.double())]
    return [Detections(b.numpy(), label.numpy(), s.numpy()) for b, label, s in zip(*columns, strict=True)]
