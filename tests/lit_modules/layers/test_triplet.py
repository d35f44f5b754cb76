from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from data_modules.scene_graph import RelationBatch
from lit_modules.functional.boxes import all_pairs
from lit_modules.layers.backbones import build_body, build_roi_head
from lit_modules.layers.triplet import MaskEncoder, TripletNetwork
from tests.lit_modules.batches import Image, make_batch, random_images, with_pixels

SMALL: dict[str, Any] = {
    "rank": 3,
    "labels": True,
    "embedding_dim": 5,
    "mask_frame": "union",
    "mask_size": 8,
    "mask_channels": (2, 3),
    "spatial_dim": 6,
    "hidden_dim": 7,
    "dropout": 0.5,
    "init_std": 0.01,
}


def network(**changes: Any) -> TripletNetwork:
    torch.manual_seed(0)
    return TripletNetwork(4, 3, **SMALL | changes).eval()


def example(seed: int = 0) -> tuple[RelationBatch, Tensor]:
    batch = make_batch(*random_images(seed))
    return batch, all_pairs(batch.image_index)


def masks_of(model: TripletNetwork, batch: RelationBatch, pairs: Tensor) -> Tensor:
    """The masks that the encoder of `model` is given."""
    seen: list[Tensor] = []
    handle = model.mask_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.pair_features(batch, pairs)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("frame", ["image", "union"])
def test_shapes(frame: str) -> None:
    batch, pairs = example()
    s, p, o, features = network(mask_frame=frame)(batch, pairs)
    assert [tuple(x.shape) for x in (s, p, o)] == [(42, 3, 4), (42, 3, 3), (42, 3, 4)]
    assert features.shape == (42, network().pair_dim) == (42, 2 * 5 + 6)
    assert [x.shape[0] for x in network()(batch, pairs[:0])] == [0, 0, 0, 0]


@pytest.mark.parametrize("size", [1, 2, 5, 7, 8, 9, 32])
def test_the_mask_encoder_takes_any_size(size: int) -> None:
    assert MaskEncoder(size, (2, 3), 6)(torch.ones(4, 2, size, size)).shape == (4, 6)


def test_components_differ_from_the_start_by_the_given_deviation() -> None:
    batch, pairs = example()
    for logits in network()(batch, pairs)[:3]:
        for first, second in ((0, 1), (0, 2), (1, 2)):
            assert not torch.allclose(logits[:, first], logits[:, second], atol=1e-6)
    model = network(hidden_dim=200, rank=20, init_std=0.03)
    for branch in (model.subject_branch, model.predicate_branch, model.object_branch):
        assert float(branch[-1].weight.detach().std()) == pytest.approx(0.03, rel=0.05)
        assert not branch[-1].bias.any()


def test_dropout_is_off_in_evaluation_only() -> None:
    batch, pairs = example()
    model = network()
    assert torch.equal(model(batch, pairs)[1], model(batch, pairs)[1])
    model.train()
    for first, second in zip(model(batch, pairs)[:3], model(batch, pairs)[:3], strict=True):
        assert not torch.equal(first, second)
    assert torch.equal(model(batch, pairs)[3], model(batch, pairs)[3])  # what X_sel reads has none
    free = network(dropout=0.0).train()
    assert torch.equal(free(batch, pairs)[1], free(batch, pairs)[1])


def test_what_each_branch_sees() -> None:
    """The subject's label, the object's label, or both and the boxes."""
    batch, _ = example()
    pairs = torch.tensor([[0, 1]])
    model = network()
    before = model(batch, pairs)[:3]

    def changed(**fields: Tensor) -> list[bool]:
        after = model(replace(batch, **fields), pairs)[:3]
        return [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]

    def relabelled(box: int) -> Tensor:
        return torch.where(torch.arange(len(batch.labels)) == box, (batch.labels + 1) % 4, batch.labels)

    assert changed(labels=relabelled(0)) == [True, True, False]
    assert changed(labels=relabelled(1)) == [False, True, True]
    assert changed(labels=relabelled(2)) == [False, False, False]
    for embedding, expected in (
        (model.subject_embedding, [True, True, False]),
        (model.object_embedding, [False, True, True]),
    ):
        with torch.no_grad():
            embedding.weight.add_(1)
        assert changed() == expected
        with torch.no_grad():
            embedding.weight.sub_(1)
        before = model(batch, pairs)[:3]  # rounded
    moved = batch.boxes_xyxy.clone()
    moved[0, 2:] += 40
    assert changed(boxes_xyxy=moved) == [False, True, False]


def test_the_union_frame_is_blind_to_position_and_the_image_frame_is_not() -> None:
    batch, pairs = example(1)
    moved = replace(batch, boxes_xyxy=batch.boxes_xyxy + 32)
    for frame, same in (("union", True), ("image", False)):
        model = network(mask_frame=frame)
        assert torch.equal(masks_of(model, batch, pairs), masks_of(model, moved, pairs)) == same
        assert torch.equal(model(batch, pairs)[1], model(moved, pairs)[1]) == same


def test_the_masks_fill_their_frames() -> None:
    """Pixels count from 1: a box of the whole image fills the grid, one of its left half fills half of it."""
    whole, left, corner = [1, 1, 80, 40], [1, 1, 40, 40], [71, 36, 80, 40]
    images = (Image([[1, 1, 16, 16]], [0], size=(16, 16)), Image([whole, left, corner], [0, 1, 2], size=(80, 40)))
    batch, pairs = make_batch(*images), torch.tensor([[1, 2], [2, 3]])
    masks = masks_of(network(mask_frame="image"), batch, pairs)
    assert masks.shape == (2, 2, 8, 8)
    assert masks[0, 0].all()
    expected_left, expected_corner = torch.zeros(8, 8), torch.zeros(8, 8)
    expected_left[:, :4], expected_corner[7:, 7:] = 1, 1
    assert torch.equal(masks[0, 1], expected_left)
    assert torch.equal(masks[1], torch.stack([expected_left, expected_corner]))
    near = make_batch(Image([[11, 21, 18, 28], [23, 21, 26, 36]], [0, 1]))  # union 11-26, 21-36: 2 pixels a cell
    expected = torch.zeros(2, 8, 8)
    expected[0, :4, :4], expected[1, :, 6:] = 1, 1
    assert torch.equal(masks_of(network(), near, torch.tensor([[0, 1]]))[0], expected)


def test_pairs_of_a_batch_are_those_of_single_images() -> None:
    images = random_images(2, boxes=(3, 5))
    alone = make_batch(images[1])
    pairs = all_pairs(alone.image_index)
    model = network(mask_frame="image")
    for batched, single in zip(model(make_batch(*images), pairs + 3), model(alone, pairs), strict=True):
        assert torch.allclose(batched, single, atol=1e-6)


def test_an_unknown_frame_is_an_error() -> None:
    with pytest.raises(ValueError, match="mask_frame must be image or union, not 'object'"):
        network(mask_frame="object")


VISUAL: dict[str, Any] = {
    "body": "small",
    "body_settings": {"widths": (4, 4, 8, 8)},
    "pool_size": 3,
    "sampling_ratio": 2,
}


@pytest.mark.parametrize("labels", [False, True])
@torch.no_grad()
def test_pixels_box_by_box(labels: bool) -> None:
    """Every pair's logits from its own three boxes, pooled one at a time."""
    model = network(visual=VISUAL, labels=labels)
    batch = with_pixels(make_batch(*random_images(7)))
    pairs = all_pairs(batch.image_index)
    assert model.pixels is not None and model.pair_dim == 8 * 9 + 6 + (10 if labels else 0)
    seen = model.see(batch)
    assert seen is not None
    pixels, maps = seen
    s, p, o, features = model(batch, pairs, seen)
    masks = masks_of(model, batch, pairs)

    def pooled(box: Tensor, image: int) -> Tensor:
        assert model.pixels is not None
        height, width = batch.images[image].shape[1:]
        scale = torch.tensor([width, height]) / batch.sizes_wh[image]
        edges = box * scale.repeat(2) + torch.tensor([0, 0, 1, 1])
        alone = {name: values[[image]] for name, values in maps.items()}
        found: Tensor = model.pixels.pool(alone, [edges[None]])
        return found.flatten()

    for row in range(0, len(pairs), 5):
        subject, obj = pairs[row].tolist()
        image = int(batch.image_index[subject])
        a, b = batch.boxes_xyxy[subject], batch.boxes_xyxy[obj]
        union = torch.cat([torch.minimum(a[:2], b[:2]), torch.maximum(a[2:], b[2:])])
        ends = [pooled(a, image), pooled(b, image)]
        context = [pooled(union, image)]
        if labels:
            assert model.subject_embedding is not None and model.object_embedding is not None
            words = [model.subject_embedding.weight[batch.labels[subject]]]
            words.append(model.object_embedding.weight[batch.labels[obj]])
            ends = [torch.cat(parts) for parts in zip(ends, words, strict=True)]
            context += words
        context.append(model.mask_encoder(masks[[row]])[0])
        expected = (
            model.subject_branch(ends[0]),
            model.predicate_branch(torch.cat(context)),
            model.object_branch(ends[1]),
        )
        assert torch.allclose(features[row], torch.cat(context), atol=1e-5)
        for found, wanted in zip((s, p, o), expected, strict=True):
            assert torch.allclose(found[row].flatten(), wanted, atol=1e-5)
    assert pixels.images.shape[0] == 4 and torch.equal(model(batch, pairs)[0], s)


def test_pixels_come_from_a_frozen_detector() -> None:
    body = build_body("small", widths=(4, 4, 8, 8))
    head = build_roi_head("small", body, hidden_dim=7, size=3)
    model = network(visual=VISUAL, labels=False).train()
    model.start_from(body.state_dict(), head.state_dict())
    assert model.pixels is not None
    for branch in (model.subject_branch, model.object_branch):
        assert torch.equal(branch[0].weight, head.fc6.weight) and torch.equal(branch[3].bias, head.fc7.bias)
    batch = with_pixels(make_batch(*random_images(8)))
    sum(x.sum() for x in model(batch, all_pairs(batch.image_index))).backward()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("pixels."), name


def test_no_input() -> None:
    with pytest.raises(ValueError, match=r"no input: set model\.visual or model\.labels to true"):
        network(labels=False)
