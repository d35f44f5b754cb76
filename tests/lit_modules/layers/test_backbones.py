from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model
from torchvision.ops import MultiScaleRoIAlign, roi_align

from lit_modules.layers.backbones import (
    HEADS,
    RoIHead,
    RoIPool,
    VGG16Body,
    build_body,
    build_roi_head,
    pad_images,
    to_edges,
    to_pixels,
)

PYRAMID = {"0": 4, "1": 8, "2": 16, "3": 32}


def draw_boxes(count: int, width: float, height: float, seed: int = 0) -> Tensor:
    """Edges of boxes of all sizes, some of them outside the image in part."""
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=random, dtype=torch.float64) * torch.tensor([width, height])
    low, high = corners.amin(dim=1), corners.amax(dim=1) + 2
    return torch.cat([low, high], dim=1)


def bilinear(feature: Tensor, x: float, y: float) -> Tensor:
    """The value `[C]` at a point inside a map `[C, h, w]`."""
    x0, y0 = min(int(x), feature.shape[2] - 1), min(int(y), feature.shape[1] - 1)
    x1, y1 = min(x0 + 1, feature.shape[2] - 1), min(y0 + 1, feature.shape[1] - 1)
    top = feature[:, y0, x0] * (1 - (x - x0)) + feature[:, y0, x1] * (x - x0)
    bottom = feature[:, y1, x0] * (1 - (x - x0)) + feature[:, y1, x1] * (x - x0)
    return top * (1 - (y - y0)) + bottom * (y - y0)


def test_pixels_become_edges_and_back() -> None:
    """A box of one pixel is one pixel wide in the network; corners are resized before that pixel is added."""
    boxes = torch.tensor([[10.0, 20.0, 10.0, 20.0], [0.0, 0.0, 99.0, 49.0]])
    assert to_edges(boxes, torch.tensor([1.0, 1.0])).tolist() == [[10, 20, 11, 21], [0, 0, 100, 50]]
    scales = torch.tensor([[2.0, 3.0], [0.5, 1.0]])
    edges = to_edges(boxes, scales)
    assert edges.tolist() == [[20, 60, 21, 61], [0, 0, 50.5, 50]]
    torch.testing.assert_close(to_pixels(edges, scales), boxes)


def test_images_are_padded_right_and_below() -> None:
    images = [torch.ones(3, 40, 70), torch.full((3, 65, 20), 2.0)]
    batch, sizes = pad_images(images)
    assert batch.shape == (2, 3, 96, 96) and sizes == [(40, 70), (65, 20)]
    assert batch[0].sum() == images[0].sum() and batch[1].sum() == images[1].sum()
    assert (batch[1, :, :65, :20] == 2).all()
    assert pad_images(images[:1], multiple=16, least=100)[0].shape == (1, 3, 112, 112)
    assert pad_images([torch.zeros(3, 64, 32)])[0].shape == (1, 3, 64, 32)  # nothing to add
    with pytest.raises(ValueError, match="no image"):
        pad_images([])


def test_vgg16_is_torchvisions_without_the_last_pooling() -> None:
    with torch.device("meta"):
        ours, theirs = build_body("vgg16"), get_model("vgg16", weights=None)
    shapes = {name: value.shape for name, value in theirs.state_dict().items() if name.startswith("features")}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes
    assert [str(layer) for layer in ours.features] == [str(layer) for layer in theirs.features[:-1]]
    assert (ours.out_channels, ours.strides, ours.roi_maps) == (512, {"0": 16}, {"0": 16})


@pytest.mark.parametrize(("stages", "trained"), [(0, 13), (2, 9), (3, 6), (5, 0)])
def test_vgg16_freezes_blocks_from_the_first_on(stages: int, trained: int) -> None:
    """Blocks have 2, 2, 3, 3 and 3 convolutions."""
    body = VGG16Body(stages, channels=(2, 3, 4, 5, 6))
    needs = [layer.weight.requires_grad for layer in body.features if isinstance(layer, torch.nn.Conv2d)]
    assert needs == [False] * (13 - trained) + [True] * trained
    assert body(torch.rand(1, 3, 50, 34))["0"].shape == (1, 6, 3, 2)


@pytest.mark.parametrize("name", ["resnet18_fpn", "resnext101_64x4d_fpn"])
def test_resnets_have_five_maps_and_a_frozen_stem(name: str) -> None:
    with torch.device("meta"):
        body = build_body(name, frozen_stages=2)
        maps = body(torch.empty(1, 3, 128, 64))
    assert {k: tuple(v.shape) for k, v in maps.items()} == {
        k: (1, 256, 128 // s, 64 // s) for k, s in body.strides.items()
    }
    assert body.roi_maps == PYRAMID
    trained = {n.split(".")[2] for n, p in body.named_parameters() if p.requires_grad and "pyramid.body" in n}
    assert trained == {"layer2", "layer3", "layer4"}
    kinds = {type(module).__name__ for module in body.modules()}
    assert "FrozenBatchNorm2d" in kinds and "BatchNorm2d" not in kinds


def test_resnext_is_the_one_of_64_groups_of_4() -> None:
    with torch.device("meta"):
        body = build_body("resnext101_64x4d_fpn")
    block = body.pyramid.body.layer1[0].conv2
    assert (block.groups, block.in_channels) == (64, 256) and len(body.pyramid.body.layer3) == 23


@pytest.mark.parametrize("name", ["small", "small_fpn"])
def test_small_bodies_have_the_strides_they_name(name: str) -> None:
    body = build_body(name)
    maps = body(torch.rand(2, 3, 96, 64))
    assert list(maps) == list(body.strides)
    for key, stride in body.strides.items():
        assert maps[key].shape == (2, body.out_channels, 96 // stride, 64 // stride)
    frozen = build_body(name, widths=(4, 4, 8, 8), frozen_stages=1)
    assert not any(p.requires_grad for p in frozen.stages[0].parameters())
    assert all(p.requires_grad for p in frozen.stages[1].parameters())


def test_unknown_bodies_heads_and_stages_are_named() -> None:
    with pytest.raises(ValueError, match="body 'resnet18'"):
        build_body("resnet18")
    with pytest.raises(ValueError, match="frozen_stages=6: this body has 5 stages"):
        VGG16Body(6)
    with pytest.raises(ValueError, match="RoI head 'vgg'"):
        build_roi_head("vgg", build_body("small"))
    with pytest.raises(ValueError, match="RoI align style 'exact'"):
        RoIPool({"0": 16}, 7, 0, "exact")  # type: ignore[arg-type]


@pytest.mark.parametrize("style", ["detectron", "edges", "half_pixel"])
def test_one_map_is_pooled_box_by_box(style: str) -> None:
    feature = torch.rand(2, 3, 10, 12, dtype=torch.float64)
    boxes = [draw_boxes(4, 180, 150), draw_boxes(2, 180, 150, seed=1)]
    pooled = RoIPool({"0": 16}, 7, 0, style)({"0": feature}, boxes)  # type: ignore[arg-type]
    expected = []
    for image, of_image in enumerate(boxes):
        for x1, y1, x2, y2 in of_image.tolist():
            shift = {"detectron": -1.0}.get(style, 0.0)
            box = torch.tensor([[x1, y1, x2 + shift, y2 + shift]], dtype=torch.float64)
            one = roi_align(feature[image : image + 1], [box], 7, 1 / 16, 0, aligned=style == "half_pixel")
            expected.append(one[0])
    torch.testing.assert_close(pooled, torch.stack(expected))


def test_crop_takes_one_sample_at_each_point_and_nothing_outside() -> None:
    """neural-motifs' pooling in plain loops: points from the first to the last pixel of the box, both included."""
    feature = torch.rand(1, 2, 6, 8, dtype=torch.float64)
    boxes = torch.cat([draw_boxes(6, 140, 110), torch.tensor([[3.0, 5.0, 4.0, 9.0], [100.0, 60.0, 128.0, 96.0]])])
    pooled = RoIPool({"0": 16}, 7, 0, "crop")({"0": feature}, [boxes.double()])
    outside = 0
    for n, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        for row in range(7):
            for column in range(7):
                x = (x1 + (x2 - 1 - x1) * column / 6) / 16
                y = (y1 + (y2 - 1 - y1) * row / 6) / 16
                is_inside = 0 <= x <= 7 and 0 <= y <= 5
                outside += not is_inside
                value = bilinear(feature[0], x, y) if is_inside else torch.zeros(2, dtype=torch.float64)
                torch.testing.assert_close(pooled[n, :, row, column], value)
    assert outside > 20


def test_a_pyramid_is_pooled_as_torchvision_does() -> None:
    features = {name: torch.rand(2, 3, 512 // s, 512 // s, dtype=torch.float64) for name, s in PYRAMID.items()}
    boxes = [draw_boxes(20, 500, 500), draw_boxes(15, 60, 60, seed=1)]
    pooled = RoIPool(PYRAMID, 7, 2, "edges")(features, boxes)
    reference = MultiScaleRoIAlign(list(PYRAMID), 7, 2)(features, boxes, [(512, 512)] * 2)
    torch.testing.assert_close(pooled, reference)


def test_boxes_go_to_the_level_of_their_size() -> None:
    """floor(4 + log2(side / 224)), from 2 to 5."""
    pool = RoIPool(PYRAMID, 7, 2, "detectron")
    sides = [1.0, 55.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 2000.0]
    boxes = torch.tensor([[10.0, 10.0, 10 + side * 2, 10 + side / 2] for side in sides])
    expected = [min(max(math.floor(4 + math.log2(side / 224) + 1e-9), 2), 5) - 2 for side in sides]
    assert pool.levels(boxes).tolist() == expected
    assert pool.levels(torch.tensor([[5.0, 5.0, 5.0, 5.0]])).tolist() == [0]


@pytest.mark.parametrize("last_relu", [True, False])
def test_a_roi_head_is_two_linear_layers_over_each_pooled_box(last_relu: bool) -> None:
    body = build_body("small_fpn", widths=(4, 4, 8, 8), fpn_channels=6)
    head = build_roi_head("small", body, hidden_dim=5, last_relu=last_relu).eval()
    maps = body(torch.rand(2, 3, 128, 96))
    boxes = [draw_boxes(3, 90, 120).float(), torch.zeros(0, 4)]
    features = head(maps, boxes, [(128, 96)] * 2)
    assert features.shape == (3, head.out_dim) == (3, 5)
    for n, box in enumerate(boxes[0]):
        pooled = head.pool(maps, [box[None], torch.zeros(0, 4)])[0]
        hidden = torch.clamp(head.fc6.weight @ pooled.flatten() + head.fc6.bias, min=0)
        out = head.fc7.weight @ hidden + head.fc7.bias
        torch.testing.assert_close(features[n], out.clamp(min=0) if last_relu else out)


def test_no_boxes_give_no_features_and_no_gradients_of_nan() -> None:
    for name in ("small", "small_fpn"):
        body = build_body(name)
        head = build_roi_head("small", body)
        features = head(body(torch.rand(1, 3, 64, 64)), [torch.zeros(0, 4)])
        assert features.shape == (0, 128)
        features.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in body.parameters())


def test_heads_have_the_papers_settings() -> None:
    with torch.device("meta"):
        vgg = build_roi_head("vgg16", build_body("vgg16"))
        fpn = build_roi_head("two_fc", build_body("resnext101_64x4d_fpn"))
    assert (vgg.fc6.in_features, vgg.out_dim, vgg.activation[1].p, vgg.pool.sampling_ratio) == (512 * 49, 4096, 0.5, 0)
    assert (fpn.fc6.in_features, fpn.out_dim, fpn.activation[1].p, fpn.pool.sampling_ratio) == (256 * 49, 1024, 0.0, 2)
    assert set(HEADS) == {"vgg16", "two_fc", "small"} and vgg.last_relu and vgg.pool.style == "detectron"


def test_gradients_reach_the_maps_in_every_style() -> None:
    boxes = [draw_boxes(3, 60, 60)]
    for style in ("detectron", "edges", "half_pixel", "crop"):
        feature = torch.rand(1, 1, 5, 5, dtype=torch.float64, requires_grad=True)
        pool = RoIPool({"0": 16}, 3, 2, style)  # type: ignore[arg-type]
        assert torch.autograd.gradcheck(lambda f, pool=pool: pool({"0": f}, boxes), feature)


def test_half_precision_maps_are_pooled_in_the_boxes_precision() -> None:
    feature = torch.rand(1, 2, 40, 40)
    head = RoIHead({"0": 16}, 2, 4, 0.0, 2)
    boxes = [draw_boxes(5, 600, 600).float()]
    pooled = head.pool({"0": feature.bfloat16()}, boxes)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, head.pool({"0": feature}, boxes), atol=5e-3, rtol=1e-2)
