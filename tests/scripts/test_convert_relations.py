from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from data_modules.errors import DataError
from lit_modules.functional.boxes import all_pairs
from lit_modules.functional.spatial import pair_spatial_features
from lit_modules.layers.proposals import PRESETS
from lit_modules.layers.reldn import RelDNNetwork
from scripts.convert.__main__ import main
from scripts.convert.mapping import read_checkpoint
from scripts.convert.motifs import motifs_model, motifs_parts
from scripts.convert.reldn import reldn_model
from tests.lit_modules.batches import make_batch, random_images, with_pixels
from tests.lit_modules.layers import reference_motifs
from tests.scripts.detector_files import Source, linear, vgg16_map
from tests.scripts.relation_files import cut_recurrent, motifnet, reldn, softmax_rows, two_layers, union_masks

WIDTHS, HEAD, CLASSES, PREDICATES, HIDDEN = (4, 5, 6, 7, 8), 9, 3, 2, 4
COLUMNS = CLASSES + 1


def parts(layers: tuple[int, int] = (2, 3), words: tuple[int, int] = (3, 2)) -> torch.nn.ModuleDict:
    network = {
        "num_predicates": PREDICATES,
        "feature_dim": HEAD,
        "union_dim": HEAD,
        "object_embeddings": torch.zeros(COLUMNS, words[0]),
        "decoder_embeddings": torch.zeros(COLUMNS + 1, words[1]),
        "frequency_bias": torch.zeros(CLASSES, CLASSES, PREDICATES + 1),
        "mode": "sgcls",
        "hidden_dim": HIDDEN,
        "object_layers": layers[0],
        "edge_layers": layers[1],
    }
    body, head = {"name": "vgg16", "channels": WIDTHS}, {"name": "vgg16", "hidden_dim": HEAD, "style": "crop"}
    return motifs_parts(CLASSES, body, head, PRESETS["motifs"] | {"rpn_channels": 6}, network).eval()


def file_of_motifs(layers: tuple[int, int] = (2, 3)) -> Source:
    return motifnet(WIDTHS, HEAD, CLASSES, PREDICATES, HIDDEN, layers)


@torch.no_grad()
def test_motifs_computes_the_same() -> None:
    """From pixels to predicates, step by step in the names of the file."""
    source, ours = file_of_motifs(), parts()
    result = motifs_model(source, ours.state_dict(), where="file")
    assert result.ignored == ("detector.rpn_head.anchors",)
    assert all(name.endswith("num_batches_tracked") for name in result.unfilled) and len(result.unfilled) == 3
    ours.load_state_dict(result.state, strict=False)

    images = 100 * torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[3.0, 4.0, 40.0, 50.0], [20.0, 10.0, 61.0, 33.0], [50.0, 2.0, 90.0, 60.0]])
    pairs = all_pairs(torch.zeros(3, dtype=torch.int64))
    subjects, objects = boxes[pairs[:, 0]], boxes[pairs[:, 1]]
    last_pixel = torch.tensor([0, 0, 1, 1])
    unions = torch.cat([torch.minimum(subjects, objects)[:, :2], torch.maximum(subjects, objects)[:, 2:]], dim=1)

    maps = {"0": vgg16_map(source, "detector.features", images)}
    torch.testing.assert_close(ours["detector"].body(images)["0"], maps["0"])
    pool = ours["object_head"].pool
    pooled = pool(maps, [boxes + last_pixel])
    detected = two_layers(source, "detector.roi_fmap.0", "detector.roi_fmap.3", pooled, last_relu=True)
    logits = linear(source, "detector.score_fc", detected)
    features = two_layers(source, "roi_fmap_obj.0", "roi_fmap_obj.3", pooled, last_relu=True)
    drawn = [reference_motifs.rectangles(s, o, 27) for s, o in zip(subjects.tolist(), objects.tolist(), strict=True)]
    masks = union_masks(source, torch.from_numpy(np.array(drawn)).float())
    of_unions = pool(maps, [unions + last_pixel]) + masks
    union_features = two_layers(source, "roi_fmap.1.0", "roi_fmap.1.3", of_unions, last_relu=False)

    torch.testing.assert_close(ours["detector"].classify(maps, [boxes + last_pixel])[0], logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours["object_head"](maps, [boxes + last_pixel]), features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours["union_masks"](subjects, objects), masks, atol=1e-4, rtol=1e-4)
    head = ours["union_head"]
    found = head.embed(head.pool(maps, [unions + last_pixel]) + masks)
    torch.testing.assert_close(found, union_features, atol=1e-3, rtol=1e-3)

    network = ours["network"].double()
    given = {"features": features, "detector_logits": logits, "boxes_xyxy": boxes, "union_features": union_features}
    given = {name: value.double() for name, value in given.items()}
    options = given | {"image_index": torch.zeros(3, dtype=torch.int64), "pairs": pairs}
    for labels in (None, torch.tensor([2, 0, 1])):
        network.mode = "sgcls" if labels is None else "predcls"
        output = network(**options, labels=labels)
        expected = slow_motifs(source, given, pairs, labels)
        assert output.labels.tolist() == expected[0]
        np.testing.assert_allclose(output.predicate_logits.numpy(), expected[1], rtol=1e-6, atol=1e-6)


def slow_motifs(
    source: Source, given: dict[str, Tensor], pairs: Tensor, labels: Tensor | None
) -> tuple[list[int], np.ndarray]:
    """Labels and predicate logits of one image's boxes; those to the right come first."""
    tensors = {name: value.double().numpy() for name, value in source.items()}
    boxes = given["boxes_xyxy"].numpy()
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    centres = np.concatenate([boxes[:, :2] + sides / 2, sides], axis=1)
    mean, var, weight, bias = (
        tensors[f"context.pos_embed.0.{k}"] for k in ("running_mean", "running_var", "weight", "bias")
    )
    position = (centres - mean) / np.sqrt(var + 1e-5) * weight + bias
    position = np.maximum(position @ tensors["context.pos_embed.1.weight"].T + tensors["context.pos_embed.1.bias"], 0)
    words = softmax_rows(given["detector_logits"]).numpy() @ tensors["context.obj_embed.weight"]
    inputs = np.concatenate([given["features"].numpy(), words, position], axis=1)
    order = np.argsort(-centres[:, 0])
    object_state = cut_recurrent(source, "context.obj_ctx_rnn", HIDDEN, inputs.shape[1])
    context = reference_motifs.highway_lstm(inputs[order], object_state)
    if labels is None:
        decoder = {
            "embedding.weight": tensors["context.decoder_rnn.obj_embed.weight"],
            **{f"cell.input.{k}": tensors[f"context.decoder_rnn.input_linearity.{k}"] for k in ("weight", "bias")},
            **{f"cell.state.{k}": tensors[f"context.decoder_rnn.state_linearity.{k}"] for k in ("weight", "bias")},
            **{f"output.{k}": tensors[f"context.decoder_rnn.out.{k}"] for k in ("weight", "bias")},
        }
        ordered = reference_motifs.decode(context, decoder)[1]
    else:
        ordered = labels[order].tolist()
    edge_inputs = np.concatenate([tensors["context.obj_embed2.weight"][np.array(ordered) + 1], context], axis=1)
    edge_state = cut_recurrent(source, "context.edge_ctx_rnn", HIDDEN, edge_inputs.shape[1])
    edges = np.empty((len(boxes), HIDDEN))
    edges[order] = reference_motifs.highway_lstm(edge_inputs, edge_state)
    found = np.empty(len(boxes), int)
    found[order] = ordered
    ends = edges @ tensors["post_lstm.weight"].T + tensors["post_lstm.bias"]
    rows = []
    for (s, o), union in zip(pairs.tolist(), given["union_features"].numpy(), strict=True):
        product = ends[s, :HEAD] * ends[o, HEAD:] * union
        frequency = tensors["freq_bias.obj_baseline.weight"][(found[s] + 1) * COLUMNS + found[o] + 1]
        rows.append(tensors["rel_compress.weight"] @ product + tensors["rel_compress.bias"] + frequency)
    return found.tolist(), np.array(rows)


def test_motifs_without_context() -> None:
    source, ours = file_of_motifs((0, 0)), parts((0, 0))
    result = motifs_model(source, ours.state_dict(), where="file")
    assert result.ignored == ("detector.rpn_head.anchors",)
    assert torch.equal(result.state["network.edge_ends.weight"], source["post_emb.weight"])
    assert torch.equal(result.state["network.context.classifier.bias"], source["context.decoder_lin.bias"])
    with pytest.raises(DataError, match=r"context\.decoder_lin\.weight: the model has no .*classifier"):
        motifs_model(source, parts().state_dict(), where="file")


@pytest.mark.slow
def test_motifs_of_the_papers_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Source, "draw", lambda self, name, *shape: self.update({name: torch.ones(()).expand(shape)}))
    widths = (64, 128, 256, 512, 512)
    source = motifnet(widths, 4096, 150, 50, 512, (2, 4), words=(200, 100), rpn=512)
    result = motifs_model(source, where="file")
    assert all(name.endswith("num_batches_tracked") for name in result.unfilled)
    counted = sum(value.numel() for name, value in source.items() if "anchors" not in name)
    rpn_scores = 20 * 512 + 20  # two rows an anchor became one
    background = (151**2 - 150**2) * 51
    assert sum(value.numel() for value in result.state.values()) == counted - rpn_scores - background
    assert result.state["network.context.object_lstm.cells.1.state.weight"].shape == (5 * 512, 512)
    assert result.state["network.context.edge_lstm.cells.0.input.weight"].shape == (6 * 512, 200 + 512)


def test_cut_or_foreign_motifs_are_named() -> None:
    source = file_of_motifs()
    target = parts().state_dict()
    with pytest.raises(DataError, match=r"lacks \['context.obj_embed.weight'\]: not a MotifNet's"):
        motifs_model({k: v for k, v in source.items() if k != "context.obj_embed.weight"}, where="file")
    longer = {
        **source,
        "context.edge_ctx_rnn.weight": torch.cat([source["context.edge_ctx_rnn.weight"], torch.ones(4)]),
    }
    with pytest.raises(DataError, match=r"edge_ctx_rnn\.weight.*edge_lstm\.cells\.2\.state\.weight"):
        motifs_model(longer, target, where="file")
    with pytest.raises(DataError, match=r"union_boxes\.extra 2: unknown"):
        motifs_model({**source, "union_boxes.extra": torch.ones(2)}, target, where="file")
    assert (
        "union_boxes.extra"
        in motifs_model(
            {**source, "union_boxes.extra": torch.ones(2)}, target, where="file", ignored=[r"union_boxes\.extra"]
        ).ignored
    )


def network_of_reldn(skips: bool = True, spatial: bool = True) -> RelDNNetwork:
    torch.manual_seed(0)
    visual: dict[str, Any] = {
        "body": "vgg16",
        "body_settings": {"channels": WIDTHS},
        "head": "vgg16",
        "head_settings": {"hidden_dim": HEAD},
        "skips": skips,
    }
    bias = torch.zeros(CLASSES, CLASSES, PREDICATES + 1)
    return RelDNNetwork(bias, semantic=True, spatial=spatial, spatial_hidden_dim=64, visual=visual).eval()


@pytest.mark.parametrize("own_heads", [True, False])
@torch.no_grad()
def test_reldn_computes_the_same(own_heads: bool) -> None:
    source, network = reldn(WIDTHS, HEAD, CLASSES, PREDICATES, own_heads), network_of_reldn(skips=own_heads)
    result = reldn_model(source, network.state_dict(), where="file")
    left_out = {name.split(".")[0] for name in result.ignored}
    assert left_out == ({"RPN", "Box_Outs", "Box_Head"} if own_heads else {"RPN", "Box_Outs"})
    assert result.unfilled == ()
    network.load_state_dict(result.state)

    batch = with_pixels(make_batch(*random_images(0)[:1]))
    pairs = all_pairs(batch.image_index)
    (image,) = batch.images
    padded = torch.zeros(1, 3, *(side + -side % 32 for side in image.shape[1:]))
    padded[0, :, : image.shape[1], : image.shape[2]] = image
    scale = torch.tensor([image.shape[2], image.shape[1]]) / batch.sizes_wh[0]
    maps = {body: vgg16_map(source, f"{body}.convs", padded) for body in ("Conv_Body", "Prd_RCNN.Conv_Body")}
    subjects, objects = (batch.boxes_xyxy[end] for end in pairs.T)
    unions = torch.cat([torch.minimum(subjects, objects)[:, :2], torch.maximum(subjects, objects)[:, 2:]], dim=1)

    def head(name: str, body: str, boxes: Tensor) -> Tensor:
        pooled = roi_align(maps[body], [boxes * scale.repeat(2)], 7, 1 / 16, 0, False)
        return two_layers(source, f"{name}.heads.0", f"{name}.heads.3", pooled, last_relu=False)

    subject = head("S_Head" if own_heads else "Box_Head", "Conv_Body", subjects)
    obj = head("O_Head" if own_heads else "Box_Head", "Conv_Body", objects)
    relation = head("Prd_RCNN.Box_Head", "Prd_RCNN.Conv_Body", unions)

    def leaky(name: str, x: Tensor) -> Tensor:
        y = linear(source, name, x)
        return torch.where(y > 0, y, 0.1 * y)

    hidden = torch.cat([subject, relation, obj], dim=1)
    for name in ("RelDN.prd_cls_feats.0", "RelDN.prd_cls_feats.2"):
        hidden = leaky(name, hidden)
    logits = linear(source, "RelDN.prd_cls_scores", hidden)
    labels = batch.labels[pairs]
    logits = logits + source["RelDN.freq_bias.rel_baseline.weight"][labels[:, 0] * CLASSES + labels[:, 1]]
    spatial = pair_spatial_features(subjects, objects, batch.sizes_wh[batch.image_index[pairs[:, 0]]])
    for name in ("RelDN.spt_cls_feats.0", "RelDN.spt_cls_feats.2"):
        spatial = leaky(name, spatial)
    logits = logits + linear(source, "RelDN.spt_cls_scores", spatial)
    if own_heads:
        logits = logits + linear(source, "RelDN.prd_sbj_scores", subject) + linear(source, "RelDN.prd_obj_scores", obj)
    torch.testing.assert_close(network(batch, pairs), logits, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_reldn_of_the_papers_widths_and_without_spatial_module() -> None:
    shapes = {name: tuple(value.shape) for name, value in reldn((1, 1, 1, 1, 1), 2, 100, 70).items()}
    with torch.device("meta"):
        wide = RelDNNetwork(
            torch.empty(100, 100, 71),
            semantic=True,
            spatial=True,
            spatial_hidden_dim=64,
            visual={"body": "vgg16", "body_settings": {}, "head": "vgg16", "head_settings": {}},
        ).state_dict()
    grown = {name: wide_shape(name, shape) for name, shape in shapes.items()}
    source = {name: torch.ones(()).expand(shape) for name, shape in grown.items()}
    result = reldn_model(source, where="file")
    assert {name: value.shape for name, value in result.state.items()} == {n: v.shape for n, v in wide.items()}
    small, network = reldn(WIDTHS, HEAD, CLASSES, PREDICATES, spatial=False), network_of_reldn(spatial=False)
    assert set(reldn_model(small, network.state_dict(), where="file").state) == set(network.state_dict())
    with pytest.raises(DataError, match=r"spatial\.4\.bias 3: not in the source"):
        reldn_model(small, network_of_reldn().state_dict(), where="file")
    with pytest.raises(DataError, match=r"lacks RelDN\.prd_cls_scores\.weight: not RelDN's"):
        reldn_model({"a": torch.ones(1)}, where="file")


def wide_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """That of VGG16 and its head in place of one channel and two numbers."""
    if ".convs." in name:
        index = int(name.split(".")[-2])
        outs = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256}
        ins = {0: 3, 2: 64, 5: 64, 7: 128, 10: 128, 12: 256, 14: 256, 17: 256}
        return (outs.get(index, 512), *((ins.get(index, 512), 3, 3) if len(shape) > 1 else ()))
    if "_Head" in name:
        inputs = 512 * 49 if ".0." in name else 4096
        return (4096, inputs) if len(shape) > 1 else (4096,)
    grown = {2: 4096, 6: 3 * 4096, 3: 3 * 4096 // 2}
    if name.startswith("RelDN.prd_"):
        return tuple(grown.get(side, side) for side in shape)
    return shape


def test_files_through_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {f"module.{name}": value for name, value in file_of_motifs().items()}
    torch.save({"epoch": 7, "state_dict": state}, tmp_path / "motifnet-sgcls.tar", _use_new_zipfile_serialization=False)
    torch.save(parts().state_dict(), tmp_path / "like.pt")
    arguments = [str(tmp_path / "motifnet-sgcls.tar"), str(tmp_path / "motifs.pt"), "--like", str(tmp_path / "like.pt")]
    assert main(["motifs", *arguments]) == 0
    assert "left out: detector.rpn_head.anchors" in capsys.readouterr().out
    assert "network.predicates.weight" in read_checkpoint(tmp_path / "motifs.pt")
    source, network = reldn(WIDTHS, HEAD, CLASSES, PREDICATES), network_of_reldn()
    torch.save({"model": dict(source), "step": 62722}, tmp_path / "model_step62722.pth")
    torch.save(network.state_dict(), tmp_path / "like.pt")
    arguments = [str(tmp_path / "model_step62722.pth"), str(tmp_path / "reldn.pt"), "--like", str(tmp_path / "like.pt")]
    assert main(["reldn", *arguments, "--flip-colours"]) == 0
    flipped = read_checkpoint(tmp_path / "reldn.pt")
    assert "left out: Box_Head.heads.0.weight" in capsys.readouterr().out
    for ours, theirs in (("detector.body", "Conv_Body"), ("relation_body", "Prd_RCNN.Conv_Body")):
        weight = source[f"{theirs}.convs.0.weight"]
        assert torch.equal(flipped[f"visual.{ours}.features.0.weight"], weight.flip(1))
    network.load_state_dict(flipped)
