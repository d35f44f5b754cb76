from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from lit_modules.layers.backbones import build_body
from lit_modules.layers.proposals import PRESETS, Anchors, DetectorSettings, ProposalNetwork, RPNHead


def cells(anchors: Anchors) -> list[list[float]]:
    """The anchors of the first cell, as boxes of pixels."""
    edges = anchors(ImageList(torch.zeros(1, 3, 16, 16), [(16, 16)]), [torch.zeros(1, 1, 1, 1)])[0]
    return (edges - torch.tensor([0.0, 0.0, 1.0, 1.0])).tolist()


def test_anchors_are_those_of_the_first_faster_rcnn() -> None:
    """Scales 8, 16 and 32 at stride 16: the table of the MATLAB code, which counts pixels from 1."""
    from_one = [
        [-83, -39, 100, 56],
        [-175, -87, 192, 104],
        [-359, -183, 376, 200],
        [-55, -55, 72, 72],
        [-119, -119, 136, 136],
        [-247, -247, 264, 264],
        [-35, -79, 52, 96],
        [-79, -167, 96, 184],
        [-167, -343, 184, 360],
    ]
    expected = [[x - 1 for x in box] for box in from_one]
    assert cells(Anchors([16], DetectorSettings(anchor_sizes=(128, 256, 512)))) == expected


def test_motifs_anchors_are_not_rounded() -> None:
    settings = DetectorSettings(**PRESETS["motifs"])
    anchors = Anchors([16], settings)
    assert anchors.per_cell == 20
    found, n = cells(anchors), 0
    for ratio in (0.23232838, 0.63365731, 1.28478321, 3.15089189):
        for scale in (2.22152954, 4.12315647, 7.21692515, 12.60263013, 22.7102731):
            width = math.sqrt(256 / ratio)
            w, h = width * scale, width * ratio * scale
            expected = [7.5 - (w - 1) / 2, 7.5 - (h - 1) / 2, 7.5 + (w - 1) / 2, 7.5 + (h - 1) / 2]
            assert found[n] == pytest.approx(expected, rel=1e-5)
            n += 1


def test_a_pyramid_has_one_size_on_each_map_and_rows_come_first() -> None:
    """Widths and heights at scale one are rounded: 6 x 3, 4 x 4 and 3 x 6 at stride 4, eight times as large here."""
    anchors = Anchors([4, 8], DetectorSettings(anchor_sizes=(32, 64)))
    maps = [torch.zeros(2, 1, 3, 5), torch.zeros(2, 1, 2, 1)]
    first, second = anchors(ImageList(torch.zeros(2, 3, 12, 20), [(12, 20), (10, 20)]), maps)
    assert torch.equal(first, second) and len(first) == (15 + 2) * 3
    at_cell_7 = first[7 * 3 : 7 * 3 + 3]  # row 1, column 2
    centre = (at_cell_7[:, :2] + at_cell_7[:, 2:]) / 2
    assert centre.tolist() == [[2 * 4 + 2, 1 * 4 + 2]] * 3
    assert (at_cell_7[:, 2:] - at_cell_7[:, :2]).tolist() == [[48, 24], [32, 32], [24, 48]]
    last = first[-3:]
    assert ((last[:, :2] + last[:, 2:]) / 2).tolist() == [[4, 12]] * 3
    with pytest.raises(ValueError, match="3 anchor sizes for 2 maps"):
        Anchors([4, 8], DetectorSettings(anchor_sizes=(32, 64, 128)))


def test_the_heads_channels_are_anchor_by_anchor() -> None:
    """Channel 4 a + c of the deltas is coordinate c of anchor a, and proposals keep anchors in their order."""
    torch.manual_seed(0)
    body = build_body("small")
    settings = DetectorSettings(anchor_sizes=(16, 32), rpn_nms=1.1, rpn_min_side=0.0, rpn_post_nms=(99, 99))
    network = ProposalNetwork(body, settings).eval()
    feature = torch.randn(1, 64, 2, 3)
    images = ImageList(torch.zeros(1, 3, 32, 48), [(32, 48)])
    (proposals,), _ = network(images, {"0": feature})
    head = network.head
    hidden = torch.relu(head.conv(feature))
    logits, deltas = (layer(hidden)[0].detach() for layer in (head.cls_logits, head.bbox_pred))
    assert logits.shape == (6, 2, 3) and deltas.shape == (24, 2, 3)
    anchors = network.anchor_generator(images, [feature])[0].tolist()
    expected = []
    for row in range(2):
        for column in range(3):
            for a in range(6):
                x1, y1, x2, y2 = anchors[(row * 3 + column) * 6 + a]
                w, h = x2 - x1, y2 - y1
                dx, dy, dw, dh = deltas[4 * a : 4 * a + 4, row, column].tolist()
                cx, cy = x1 + w / 2 + dx * w, y1 + h / 2 + dy * h
                w, h = w * math.exp(dw), h * math.exp(dh)
                box = [max(cx - w / 2, 0), max(cy - h / 2, 0), min(cx + w / 2, 48), min(cy + h / 2, 32)]
                expected.append((float(logits[a, row, column]), box))
    expected.sort(key=lambda item: -item[0])
    torch.testing.assert_close(proposals, torch.tensor([box for _, box in expected]), atol=1e-4, rtol=1e-4)


def labels_by_hand(anchors: Tensor, boxes: Tensor, far: tuple[int, int], inside_only: bool) -> list[float]:
    """Objects from an overlap of 0.7 on, and the best anchors of each box; background below 0.3."""
    used = [
        not inside_only or (a[0] >= 0 and a[1] >= 0 and a[2] <= far[0] and a[3] <= far[1]) for a in anchors.tolist()
    ]
    overlap = box_iou(anchors, boxes)
    labels = []
    for i, is_used in enumerate(used):
        best = float(overlap[i].max())
        is_best = any(
            overlap[i, j] == max(overlap[k, j] for k in range(len(anchors)) if used[k]) for j in range(len(boxes))
        )
        labels.append(-1.0 if not is_used else 1.0 if best >= 0.7 or is_best else 0.0 if best < 0.3 else -1.0)
    return labels


@pytest.mark.parametrize("inside_only", [True, False])
def test_anchors_outside_the_image_are_not_trained(inside_only: bool) -> None:
    body = build_body("small")
    network = ProposalNetwork(body, DetectorSettings(anchor_sizes=(32, 48), anchors_inside=inside_only))
    anchors = network.anchor_generator(ImageList(torch.zeros(1, 3, 96, 128), [(90, 120)]), [torch.zeros(1, 1, 6, 8)])
    boxes = torch.tensor([[5.0, 6.0, 40.0, 50.0], [60.0, 10.0, 90.0, 80.0], [70.0, 60.0, 119.0, 89.0]])
    target = {"boxes": boxes, "size_wh": torch.tensor([120.0, 90.0])}
    (labels,), (matched,) = network.assign_targets_to_anchors(anchors, [target])
    assert labels.tolist() == labels_by_hand(anchors[0], boxes, (120, 90), inside_only)
    assert (labels == 1).sum() >= 3 and (labels == 0).any() and (labels == -1).any()
    objects = labels == 1
    assert torch.equal(matched[objects], boxes[box_iou(anchors[0][objects], boxes).argmax(dim=1)])


def test_an_image_smaller_than_all_anchors_and_one_without_boxes_can_be_trained_on() -> None:
    network = ProposalNetwork(build_body("small"), DetectorSettings(anchor_sizes=(64,)))
    anchors = network.anchor_generator(ImageList(torch.zeros(2, 3, 32, 32), [(32, 32)] * 2), [torch.zeros(2, 1, 2, 2)])
    size = torch.tensor([32.0, 32.0])
    targets: list[dict[str, Any]] = [
        {"boxes": torch.tensor([[2.0, 2.0, 30.0, 30.0]]), "size_wh": size},
        {"boxes": torch.zeros(0, 4), "size_wh": size},
    ]
    labels, _ = network.assign_targets_to_anchors(anchors, targets)
    assert (labels[0] == 1).any() and (labels[1] == 0).all()


def test_many_proposals_are_made_where_asked() -> None:
    network = ProposalNetwork(build_body("small"), DetectorSettings(anchor_sizes=(16,), rpn_post_nms=(9, 4))).eval()
    image, feature = ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)]), {"0": torch.rand(1, 64, 4, 4)}
    assert len(network(image, feature)[0][0]) == 4
    network.many = True
    assert len(network(image, feature)[0][0]) == 9
    assert (network.pre_nms_top_n(), network.post_nms_top_n()) == (12000, 9)


def test_the_hidden_layer_is_cut_at_6_where_asked() -> None:
    feature = torch.full((1, 2, 1, 1), 100.0)
    for relu6 in (True, False):
        head = RPNHead(2, 3, 1, relu6)
        torch.nn.init.ones_(head.conv.weight)
        torch.nn.init.ones_(head.cls_logits.weight)
        assert head([feature])[0][0].item() == pytest.approx(18.0 if relu6 else 600.0)
