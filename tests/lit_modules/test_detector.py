from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data_modules.synthetic.voc import write_voc_world
from data_modules.voc_detection import VOCDetectionDataModule
from lit_modules.detector import Detector, load_weights
from lit_modules.layers.faster_rcnn import DetectedBoxes
from tests.lit_modules.batches import Image
from tests.lit_modules.detections import edge_batch, with_images

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are trying to `self.log:UserWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning"),
]

SETTINGS = {"anchor_sizes": (24, 48, 96), "rpn_sampled": 64, "rois_sampled": 64}
SETTINGS |= {"rpn_pre_nms": (300, 300), "rpn_post_nms": (100, 100)}
SGD = {"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4, "bias_lr_factor": 2.0}
SGD |= {"bias_weight_decay": False, "warmup_steps": 20, "warmup_factor": 1 / 3, "drops": (0.8,)}
SCENES = (
    Image(boxes=[[10, 20, 49, 59], [60, 5, 89, 39]], labels=[0, 1], size=(96, 64)),
    Image(boxes=[[5, 5, 60, 50]], labels=[2], size=(96, 64)),
)


def make_detector(num_classes: int = 3, **changes: Any) -> Detector:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"body": {"name": "small"}, "head": {"name": "small"}, "settings": SETTINGS}
    return Detector(num_classes, **arguments | {"optimizer": SGD} | changes)


def make_trainer(**settings: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", **{"enable_checkpointing": False} | quiet | settings)


def as_loader(batch: Any) -> DataLoader[Any]:
    return DataLoader([batch], batch_size=None)


def boxes_found(edges: Tensor, labels: list[int], scores: list[float], image: list[int]) -> DetectedBoxes:
    """Detections as a network gives them, without what the scores don't need."""
    empty = torch.zeros(len(labels), 1)
    index = torch.tensor(image)
    return DetectedBoxes(edges, torch.tensor(labels), torch.tensor(scores), empty, empty, edges, empty, index)


def scores_of(
    detector: Detector, batch: Any, found: DetectedBoxes, monkeypatch: pytest.MonkeyPatch
) -> dict[str, float]:
    monkeypatch.setattr(detector.network, "detect", lambda images, sizes: found)
    return dict(make_trainer().test(detector, as_loader(batch), verbose=False)[0])


def test_overlaps_count_the_last_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels (0,0,9,4) against (0,0,9,9) overlap by one half exactly: right at 0.5 and wrong at 0.75."""
    batch = with_images(Image(boxes=[[0, 0, 9, 9]], labels=[1], size=(40, 40)), scale=2.0)
    edges = torch.tensor([[0.0, 0.0, 19.0, 9.0]])  # the corners (0,0,18,8) in the resized image, and one pixel
    scores = scores_of(make_detector(), batch, boxes_found(edges, [1], [0.9], [0]), monkeypatch)
    assert scores["test/mAP@0.5"] == 1 and scores["test/mAP@0.75"] == 0 and scores["test/mAP"] == pytest.approx(0.1)


def test_precision_is_a_mean_over_classes_and_ignored_objects_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [[[0.0, 0.0, 40.0, 40.0], [50.0, 0.0, 90.0, 40.0]], [[10.0, 10.0, 30.0, 30.0]]]
    batch = edge_batch(boxes, [[0, 1], [2]], ignored=[[False, False], [True]], scale=2.0)
    edges = torch.tensor([boxes[0][0], boxes[0][0], boxes[1][0]])
    found = boxes_found(edges, [0, 1, 2], [0.9, 0.8, 0.7], [0, 0, 1])
    scores = scores_of(make_detector(), batch, found, monkeypatch)
    assert scores["test/mAP@0.5"] == scores["test/mAP"] == 0.5  # class 0 is found, 1 isn't, 2 is ignored
    assert scores["test/mAP_small"] == 0.5  # 20 x 20 annotated pixels
    assert "test/mAP_large" not in scores and scores["test/mAR@100"] == 0.5


def test_validation_has_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, batch = make_detector(), with_images(*SCENES)
    found = boxes_found(torch.tensor([[10.0, 20.0, 50.0, 60.0]]), [0], [0.9], [0])
    monkeypatch.setattr(detector.network, "detect", lambda images, sizes: found)
    scores = make_trainer().validate(detector, as_loader(batch), verbose=False)[0]
    assert scores["val/mAP@0.5"] == pytest.approx(1 / 3)
    again = make_trainer().validate(detector, as_loader(batch), verbose=False)[0]  # earlier images are forgotten
    assert again == scores


def test_training_needs_no_coco_package() -> None:
    """It is imported where scores are wanted, and no earlier."""
    detector = make_detector()
    make_trainer(max_steps=1).fit(detector, as_loader(with_images(*SCENES)))
    assert detector._precision is None


@pytest.mark.parametrize("kind", ["relations", "detection"])
def test_a_step_trains_on_batches_of_either_kind(kind: str) -> None:
    detector = make_detector()
    boxes = [[[10.0, 20.0, 50.0, 60.0]], []]
    batch = with_images(*SCENES, Image(size=(50, 40))) if kind == "relations" else edge_batch(boxes, [[0], []])
    before = {name: value.clone() for name, value in detector.named_parameters()}
    trainer = make_trainer(max_steps=1)
    trainer.fit(detector, as_loader(batch))
    assert trainer.callback_metrics["loss"] > 0
    changed = [name for name, value in detector.named_parameters() if not torch.equal(value, before[name])]
    assert len(changed) == len(before)


def test_the_loss_is_the_sum_of_its_parts() -> None:
    parts = make_detector().training_step(with_images(*SCENES), 0)
    assert set(parts) == {"loss", "rpn_class", "rpn_box", "class", "box"}
    assert float(parts.pop("loss").detach()) == pytest.approx(sum(float(v.detach()) for v in parts.values()), rel=1e-5)


def test_a_loss_that_is_not_finite_stops_training() -> None:
    detector = make_detector()
    torch.nn.init.constant_(detector.network.rpn.head.conv.bias, math.nan)
    with pytest.raises(ValueError, match=r"'rpn_class': nan.*'0\.jpg'.*optimizer\.lr"):
        detector.training_step(with_images(*SCENES), 0)


def test_predictions_are_records_in_the_annotated_frame() -> None:
    detector = make_detector().eval()
    torch.nn.init.normal_(detector.network.roi_heads.box_predictor.cls_score.weight, std=1.0)
    batch = with_images(*SCENES, Image(size=(30, 30)), scale=2.0)
    given, found = detector.detect(batch)
    records = detector.predict_step(batch, 0)
    assert len(records) == 3 and sum(len(r.labels) for r in records) == len(found.labels) > 0
    for number, record in enumerate(records):
        edges = found.edges_xyxy[found.image_index == number].numpy()
        assert record.boxes_xyxy == pytest.approx((edges - [0, 0, 1, 1]) / 2, abs=1e-4)
        assert record.boxes_xyxy.dtype == "float32" and record.labels.dtype == "int64"
        assert record.scores.dtype == "float64" and list(record.scores) == sorted(record.scores, reverse=True)
    boxes = [[[10.0, 20.0, 50.0, 60.0]]]
    given, found = detector.detect(edge_batch(boxes, [[0]], scale=2.0))
    (record,) = detector.predict_step(edge_batch(boxes, [[0]], scale=2.0), 0)
    assert given.last_pixel.tolist() == [0, 0, 0, 0] and record.boxes_xyxy.shape[1] == 4


def test_a_checkpoint_restores_the_detections(tmp_path: Path) -> None:
    detector, batch = make_detector(), with_images(*SCENES)
    trainer = make_trainer(max_steps=2, enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.fit(detector, as_loader(batch))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    other = make_detector()
    other.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    torch.save(detector.network.state_dict(), tmp_path / "network.pt")
    third = make_detector(weights=tmp_path / "network.pt")
    expected = detector.eval().network.detect(torch.ones(1, 3, 64, 96), [(64, 96)], score_threshold=0.0)
    assert len(expected.scores)
    for restored in (other, third):
        found = restored.eval().network.detect(torch.ones(1, 3, 64, 96), [(64, 96)], score_threshold=0.0)
        assert torch.equal(found.scores, expected.scores) and torch.equal(found.features, expected.features)


def test_parts_of_a_network_can_be_loaded_and_pieces_of_parts_not(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    donor, own = make_detector().network, make_detector().network
    torch.nn.init.ones_(donor.body.stages[0][0].weight)
    body = {name: value for name, value in donor.state_dict().items() if name.startswith("body.")}
    torch.save(body, path)
    assert load_weights(own, path) == ("rpn", "roi_heads.box_head", "roi_heads.box_predictor")
    assert (own.body.stages[0][0].weight == 1).all()
    torch.save(dict(list(body.items())[1:]), path)
    with pytest.raises(ValueError, match=r"1 tensors don't fit.*missing: \['body\.stages\.0\.0\.weight'\]"):
        load_weights(own, path)
    torch.save(body | {"body.extra": torch.ones(1), "rpn.head.conv.bias": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"unknown or of another shape: \['body\.extra', 'rpn\.head\.conv\.bias'\]"):
        load_weights(own, path)


@pytest.mark.slow
def test_four_generated_images_are_learnt_by_heart(tmp_path: Path) -> None:
    root = write_voc_world(tmp_path / "voc", train_images=4, val_images=1, test_images=4, size_wh=(128, 96))
    data = VOCDetectionDataModule(
        root, batch_size=4, seed=0, train_split="train", flip=False, short_side=96, long_side=160
    )
    data.setup("fit")
    detector = make_detector(20)
    untrained = make_trainer().test(detector, data.train_dataloader(), verbose=False)[0]
    make_trainer(max_steps=150, gradient_clip_val=10.0).fit(detector, data.train_dataloader())
    trained = make_trainer().test(detector, data.train_dataloader(), verbose=False)[0]
    assert untrained["test/mAP@0.5"] < 0.1 and trained["test/mAP@0.5"] > 0.8
