from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image

from lit_modules.layers.backbones import build_body, build_roi_head
from lit_modules.layers.faster_rcnn import DetectedBoxes, FasterRCNN
from lit_modules.layers.proposals import PRESETS, DetectorSettings

SIZES = [(64, 96), (50, 80)]
CLASSES = 5


def make_network(**settings: Any) -> FasterRCNN:
    torch.manual_seed(0)
    body = build_body("small", widths=(4, 8, 8, 8))
    small = {"anchor_sizes": (16, 32), "rpn_post_nms": (60, 40), "rpn_pre_nms": (100, 80), "rois_sampled": 24}
    head = build_roi_head("small", body, hidden_dim=16)
    network = FasterRCNN(body, head, CLASSES, DetectorSettings(**small | settings))
    torch.nn.init.normal_(network.roi_heads.box_predictor.cls_score.weight, std=1.0)  # so that some boxes are certain
    torch.nn.init.normal_(network.roi_heads.box_predictor.bbox_pred.weight, std=1.0)
    return network


def make_targets() -> list[dict[str, Tensor]]:
    boxes = [torch.tensor([[4.0, 5.0, 40.0, 44.0], [50.0, 10.0, 90.0, 60.0]]), torch.zeros(0, 4)]
    labels = [torch.tensor([1, 5]), torch.zeros(0, dtype=torch.int64)]
    sizes = [torch.tensor([w, h]).float() for h, w in SIZES]
    return [{"boxes": b, "labels": c, "size_wh": s} for b, c, s in zip(boxes, labels, sizes, strict=True)]


def pixel_iou(a: list[float], b: list[float]) -> float:
    """Overlap of boxes given by their first and last pixels."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    area = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    both = max(width, 0) * max(height, 0)
    return both / (area[0] + area[1] - both)


def regress_pixels(box: list[float], delta: list[float]) -> list[float]:
    """Detectron's formula for boxes of pixels, with weights 10, 10, 5, 5."""
    w, h = box[2] - box[0] + 1, box[3] - box[1] + 1
    cx, cy = box[0] + w / 2 + delta[0] / 10 * w, box[1] + h / 2 + delta[1] / 10 * h
    w, h = w * math.exp(delta[2] / 5), h * math.exp(delta[3] / 5)
    return [cx - w / 2, cy - h / 2, cx + w / 2 - 1, cy + h / 2 - 1]


def detect_by_hand(
    proposals: Tensor, logits: Tensor, deltas: Tensor, size_hw: tuple[int, int], settings: DetectorSettings
) -> list[tuple[int, int, float, list[float]]]:
    """(proposal, label from 1 on, score, box of pixels) of one image, as Detectron does it with boxes of pixels."""
    probabilities = logits.double().softmax(dim=1)
    found = []
    for label in range(1, CLASSES + 1):
        candidates = []
        for roi, edges in enumerate(proposals.tolist()):
            pixels = [edges[0], edges[1], edges[2] - 1, edges[3] - 1]
            box = regress_pixels(pixels, deltas[roi, 4 * label : 4 * label + 4].tolist())
            far = (size_hw[1], size_hw[0])
            box = [min(max(box[i] + (i > 1), 0), far[i % 2]) - (i > 1) for i in range(4)]
            score = float(probabilities[roi, label])
            if score > settings.score_threshold and min(box[2] - box[0], box[3] - box[1]) + 1 >= 0.01:
                candidates.append((roi, label, score, box))
        candidates.sort(key=lambda c: -c[2])
        kept: list[tuple[int, int, float, list[float]]] = []
        for candidate in candidates:
            if all(pixel_iou(candidate[3], other[3]) <= settings.nms for other in kept):
                kept.append(candidate)
        found += kept
    found.sort(key=lambda c: -c[2])
    if settings.one_label_per_box:
        found = [c for i, c in enumerate(found) if all(c[0] != earlier[0] for earlier in found[:i])]
    return found[: settings.detections]


@pytest.mark.parametrize(
    "settings", [{}, {"one_label_per_box": True, "score_threshold": 0.01, "nms": 0.3}, {"detections": 3}]
)
def test_detections_are_those_of_detectrons_pixel_formulas(settings: dict[str, Any]) -> None:
    network = make_network(**settings).eval()
    rules = DetectorSettings(**settings)
    images = torch.rand(2, 3, 64, 96)
    found = network.detect(images, SIZES)
    maps = network.body(images)
    _, proposals = network._propose(images, SIZES, maps, many=False)
    total = 0
    for image, given in enumerate(proposals):
        features = network.head(maps, [p if i == image else p[:0] for i, p in enumerate(proposals)])
        logits, deltas = (x.detach() for x in network.roi_heads.box_predictor(features))
        expected = detect_by_hand(given, logits, deltas, SIZES[image], rules)
        rows = torch.nonzero(found.image_index == image).flatten()
        assert len(rows) == len(expected) > 0
        for row, (roi, label, score, box) in zip(rows.tolist(), expected, strict=True):
            assert int(found.labels[row]) == label - 1
            assert float(found.scores[row]) == pytest.approx(score, abs=1e-5)
            edges = torch.tensor([box[0], box[1], box[2] + 1, box[3] + 1])
            torch.testing.assert_close(found.edges_xyxy[row], edges, atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(found.class_edges_xyxy[row, label - 1], found.edges_xyxy[row])
            torch.testing.assert_close(found.proposals_xyxy[row], given[roi])
            torch.testing.assert_close(found.logits[row], logits[roi])
            torch.testing.assert_close(found.features[row], features[roi])
        total += len(rows)
    assert total == len(found.labels) and found.image_index.tolist() == sorted(found.image_index.tolist())


def test_the_box_losses_are_means_over_all_sampled_boxes() -> None:
    network = make_network()
    targets = make_targets()
    images = torch.rand(2, 3, 64, 96)
    maps = network.body(images)
    proposals = [
        torch.tensor([[5.0, 5.0, 41.0, 40.0], [60.0, 0.0, 70.0, 10.0]]),
        torch.tensor([[1.0, 2.0, 30.0, 40.0]]),
    ]
    losses = network.roi_heads.losses(maps, proposals, targets)
    # All proposals and annotated boxes are drawn, as there are fewer than wanted, but no more objects than a quarter.
    rois = [torch.cat([proposals[0], targets[0]["boxes"]]), proposals[1]]
    labels = [1, 0, 1, 5, 0]
    logits, deltas = network.roi_heads.box_predictor(network.head(maps, rois))
    nll = -logits.log_softmax(dim=1)[torch.arange(5), labels]
    torch.testing.assert_close(losses["class"], nll.mean())
    box = 0.0
    for i, matched in ((0, 0), (2, 0), (3, 1)):
        roi, truth = rois[0][i].tolist(), targets[0]["boxes"][matched].tolist()
        (w, h), (tw, th) = ((b[2] - b[0], b[3] - b[1]) for b in (roi, truth))
        centre = [(truth[j] + (tw, th)[j] / 2 - roi[j] - (w, h)[j] / 2) / (w, h)[j] * 10 for j in (0, 1)]
        wanted = [*centre, 5 * math.log(tw / w), 5 * math.log(th / h)]
        label = labels[i]
        for d, t in zip(deltas[i, 4 * label : 4 * label + 4].tolist(), wanted, strict=True):
            box += 0.5 * (d - t) ** 2 if abs(d - t) < 1 else abs(d - t) - 0.5
    assert float(losses["box"].detach()) == pytest.approx(box / 5, rel=1e-4)


def test_training_gives_four_losses_whose_gradients_reach_everything_trained() -> None:
    network = make_network()
    losses = network.losses(torch.rand(2, 3, 64, 96), SIZES, make_targets())
    assert list(losses) == ["rpn_class", "rpn_box", "class", "box"]
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_images_without_any_annotation_teach_background_alone() -> None:
    network = make_network()
    targets = [make_targets()[1] | {"size_wh": torch.tensor([w, h]).float()} for h, w in SIZES]
    losses = network.losses(torch.rand(2, 3, 64, 96), SIZES, targets)
    assert float(losses["box"].detach()) == float(losses["rpn_box"].detach()) == 0.0
    assert losses["class"] > 0 and losses["rpn_class"] > 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_no_proposals_and_no_annotations_cost_nothing() -> None:
    network = make_network()
    maps = network.body(torch.rand(1, 3, 64, 96))
    losses = network.roi_heads.losses(maps, [torch.zeros(0, 4)], make_targets()[1:])
    assert [float(v.detach()) for v in losses.values()] == [0.0, 0.0]
    sum(losses.values()).backward()  # type: ignore[union-attr]


def check_empty(found: DetectedBoxes) -> None:
    assert found.edges_xyxy.shape == found.proposals_xyxy.shape == (0, 4)
    assert found.class_edges_xyxy.shape == (0, CLASSES, 4) and found.logits.shape == (0, CLASSES + 1)
    assert found.features.shape == (0, 16) and found.labels.dtype == found.image_index.dtype == torch.int64


def test_nothing_detected_is_an_empty_record() -> None:
    network = make_network().eval()
    check_empty(network.detect(torch.rand(2, 3, 64, 96), SIZES, score_threshold=1.0))
    network.rpn.score_thresh = 1.1  # no proposals
    check_empty(network.detect(torch.rand(2, 3, 64, 96), SIZES))


def test_a_diverged_network_says_so() -> None:
    network = make_network().eval()
    torch.nn.init.constant_(network.roi_heads.box_predictor.cls_score.bias, math.nan)
    with pytest.raises(ValueError, match="infinite numbers or NaN"):
        network.detect(torch.rand(2, 3, 64, 96), SIZES)


def test_detecting_in_training_mode_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"call eval\(\)"):
        make_network().detect(torch.rand(2, 3, 64, 96), SIZES)


def test_maps_that_are_there_already_are_used() -> None:
    network = make_network().eval()
    images = torch.rand(2, 3, 64, 96)
    expected = network.detect(images, SIZES)
    again = network.detect(torch.zeros_like(images), SIZES, maps=network.body(images))
    assert torch.equal(expected.scores, again.scores) and torch.equal(expected.edges_xyxy, again.edges_xyxy)


def test_a_threshold_in_place_of_the_settings_one() -> None:
    network = make_network(detections=10**6).eval()
    images = torch.rand(2, 3, 64, 96)
    few, many = (network.detect(images, SIZES, score_threshold=t) for t in (0.3, 0.01))
    assert 0 < len(few.labels) < len(many.labels) and few.scores.min() > 0.3


def test_sampled_rois_hold_the_annotated_boxes_and_their_labels() -> None:
    network = make_network().eval()
    drawn = network.sample(torch.rand(2, 3, 64, 96), SIZES, make_targets())
    first, second = drawn
    assert len(first.labels) <= 24 and 0 < (first.labels >= 0).sum() <= 6
    for box, label in zip(make_targets()[0]["boxes"], [0, 4], strict=True):
        rows = (first.edges_xyxy == box).all(dim=1)
        assert first.labels[rows].tolist() in ([], [label])
    assert (first.labels[first.matched == 1] != 0).all() and (second.labels == -1).all() and len(second.labels)


def test_half_precision_keeps_boxes_of_full_precision() -> None:
    """bfloat16 knows no coordinate between 512 and 516."""
    network = make_network().eval()
    torch.nn.init.zeros_(network.rpn.head.bbox_pred.weight)
    images, sizes = torch.rand(1, 3, 32, 736), [(32, 736)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network.detect(images, sizes, score_threshold=0.0)
        losses = network.train().losses(images, sizes, [make_targets()[0] | {"size_wh": torch.tensor([736.0, 32.0])}])
    assert found.edges_xyxy.dtype == found.proposals_xyxy.dtype == found.logits.dtype == torch.float32
    anchors = network.rpn.anchor_generator(ImageList(images, sizes), [torch.zeros(1, 1, 2, 46)])[0]
    clipped = clip_boxes_to_image(anchors, (32, 736))
    assert found.proposals_xyxy[:, 0].max() > 512
    assert all((clipped == box).all(dim=1).any() for box in found.proposals_xyxy)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())


def test_given_boxes_are_classified() -> None:
    network = make_network().eval()
    maps = network.body(torch.rand(2, 3, 64, 96))
    boxes = [make_targets()[0]["boxes"], torch.tensor([[1.0, 1.0, 20.0, 20.0]])]
    logits, features = network.classify(maps, boxes)
    assert logits.shape == (3, CLASSES + 1) and features.shape == (3, 16)
    torch.testing.assert_close(features, network.head(maps, boxes))
    torch.testing.assert_close(logits, network.roi_heads.box_predictor.cls_score(features))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_build_networks_of_the_papers_shapes(preset: str) -> None:
    settings = DetectorSettings(**PRESETS[preset])
    name = "resnet50_fpn" if preset == "fpn" else "vgg16"
    with torch.device("meta"):
        body = build_body(name)
        network = FasterRCNN(body, build_roi_head("two_fc" if preset == "fpn" else "vgg16", body), 150, settings)
    anchors = {"vgg16": 15, "fpn": 3, "motifs": 20}[preset]
    assert network.rpn.head.cls_logits.out_channels == anchors
    assert network.rpn.head.bbox_pred.out_channels == 4 * anchors
    assert network.roi_heads.box_predictor.cls_score.out_features == 151
    assert network.roi_heads.box_predictor.bbox_pred.out_features == 4 * 151
