from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models import get_model
from torchvision.ops import roi_align

from data_modules.errors import DataError
from lit_modules.detector import build_detector, load_weights
from lit_modules.layers.faster_rcnn import FasterRCNN
from lit_modules.layers.proposals import PRESETS
from scripts.convert.__main__ import main
from scripts.convert.detectron import detectron_weights, read_blobs
from scripts.convert.faster_rcnn_checkpoints import detector_shapes, motifs_detector, reldn_detector
from scripts.convert.mapping import flip_colours
from scripts.convert.torchvision_weights import torchvision_weights
from tests.scripts.detector_files import (
    Source,
    convolve,
    detectron_blobs,
    linear,
    motifs_vgg16,
    reldn_fpn,
    reldn_pyramid,
    reldn_vgg16,
    vgg16_map,
)

WIDTHS, HIDDEN, CLASSES = (4, 5, 6, 7, 8), 9, 3
BOXES = torch.tensor([[3.0, 4.0, 40.0, 50.0], [20.0, 10.0, 61.0, 33.0]])
DEPTHS = (3, 4, 6, 3)  # of ResNet-50


def vgg16(preset: str, style: str = "detectron") -> FasterRCNN:
    body, head = {"name": "vgg16", "channels": WIDTHS}, {"name": "vgg16", "hidden_dim": HIDDEN, "style": style}
    settings = PRESETS[preset] | ({"rpn_channels": 6} if preset == "motifs" else {})
    return build_detector(CLASSES, body, head, settings).eval()


@pytest.fixture(scope="module")
def resnet50() -> FasterRCNN:
    return build_detector(CLASSES, {"name": "resnet50_fpn"}, {"name": "two_fc"}, PRESETS["fpn"]).eval()


@pytest.fixture(scope="module")
def resnet50_source() -> Source:
    return reldn_fpn(DEPTHS, 1, 64, CLASSES)


def check_second_stage(
    network: FasterRCNN, pooled: Tensor, maps: dict[str, Tensor], source: Source, names: tuple[str, ...]
) -> None:
    """Two layers with ReLU, scores and deltas, in the names of the file."""
    fc6, fc7, scores, deltas = names
    hidden = linear(source, fc7, linear(source, fc6, pooled.flatten(1)).relu()).relu()
    features = network.head(maps, [BOXES])
    torch.testing.assert_close(features, hidden, atol=1e-4, rtol=1e-4)
    found = network.roi_heads.box_predictor(features)
    torch.testing.assert_close(found[0], linear(source, scores, hidden), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1], linear(source, deltas, hidden), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_reldns_vgg16_computes_the_same() -> None:
    source, network = reldn_vgg16(WIDTHS, HIDDEN, CLASSES, anchors=15), vgg16("vgg16")
    result = reldn_detector(source, network.state_dict(), where="file")
    assert result.ignored == result.unfilled == ()
    network.load_state_dict(result.state)
    images = torch.rand(1, 3, 64, 96)
    maps = network.body(images)
    expected = vgg16_map(source, "Conv_Body.convs", images)
    torch.testing.assert_close(maps["0"], expected)
    hidden = convolve(source, "RPN.RPN_conv", expected).relu()
    (logits,), (deltas,) = network.rpn.head([maps["0"]])
    torch.testing.assert_close(logits, convolve(source, "RPN.RPN_cls_score", hidden))
    torch.testing.assert_close(deltas, convolve(source, "RPN.RPN_bbox_pred", hidden))
    pooled = roi_align(expected, [BOXES - torch.tensor([0.0, 0.0, 1.0, 1.0])], 7, 1 / 16, 0, False)
    names = ("Box_Head.heads.0", "Box_Head.heads.3", "Box_Outs.cls_score", "Box_Outs.bbox_pred")
    check_second_stage(network, pooled, maps, source, names)


@torch.no_grad()
def test_reldns_pyramid_computes_the_same(resnet50: FasterRCNN, resnet50_source: Source) -> None:
    result = reldn_detector(resnet50_source, resnet50.state_dict(), where="file")
    assert result.ignored == result.unfilled == ()
    resnet50.load_state_dict(result.state)
    images = torch.rand(1, 3, 128, 64)
    expected = reldn_pyramid(resnet50_source, DEPTHS, images)
    maps = resnet50.body(images)
    scale = expected[0].abs().max()
    for found, wanted in zip(maps.values(), expected, strict=True):
        assert found.abs().max() > scale * 1e-3
        torch.testing.assert_close(found / scale, wanted / scale, atol=1e-4, rtol=1e-3)
    hidden = [convolve(resnet50_source, "RPN.FPN_RPN_conv", x).relu() for x in maps.values()]
    logits, deltas = resnet50.rpn.head(list(maps.values()))
    for x, logit, delta in zip(hidden, logits, deltas, strict=True):
        torch.testing.assert_close(logit, convolve(resnet50_source, "RPN.FPN_RPN_cls_score", x), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(delta, convolve(resnet50_source, "RPN.FPN_RPN_bbox_pred", x), atol=1e-3, rtol=1e-3)
    pooled = roi_align(maps["0"], [BOXES - torch.tensor([0.0, 0.0, 1.0, 1.0])], 7, 1 / 4, 2, False)
    hidden_box = linear(resnet50_source, "Box_Head.fc1", pooled.flatten(1)).relu()
    features = linear(resnet50_source, "Box_Head.fc2", hidden_box).relu()
    torch.testing.assert_close(resnet50.head(maps, [BOXES]), features, atol=1e-2, rtol=1e-3)


@torch.no_grad()
def test_motifs_detector_computes_the_same() -> None:
    """Softmax over two scores of an anchor becomes a sigmoid of one; ReLU6 and rows of six stay what they are."""
    source, network = motifs_vgg16(WIDTHS, HIDDEN, CLASSES, anchors=20, rpn=6), vgg16("motifs", style="crop")
    result = motifs_detector(source, network.state_dict(), where="file")
    assert result.ignored == ("rpn_head.anchors",) and result.unfilled == ()
    network.load_state_dict(result.state)
    images = 1000 * torch.rand(1, 3, 64, 96)
    maps = network.body(images)
    expected = vgg16_map(source, "features", images)
    torch.testing.assert_close(maps["0"], expected)
    hidden = convolve(source, "rpn_head.conv.0", expected).clamp(0, 6)
    assert (hidden == 6).any()
    rows = convolve(source, "rpn_head.conv.2", hidden)[0].permute(1, 2, 0).reshape(4, 6, 20, 6)
    (logits,), (deltas,) = network.rpn.head([maps["0"]])
    of_object = rows[..., :2].softmax(dim=-1)[..., 1]
    torch.testing.assert_close(logits[0].sigmoid().permute(1, 2, 0), of_object, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(deltas[0].permute(1, 2, 0).reshape(4, 6, 20, 4), rows[..., 2:], atol=1e-4, rtol=1e-4)
    pooled = network.head.pool({"0": expected}, [BOXES])
    check_second_stage(network, pooled, maps, source, ("roi_fmap.0", "roi_fmap.3", "score_fc", "bbox_fc"))


def test_detectrons_own_names_give_the_same_detector(resnet50_source: Source, resnet50: FasterRCNN) -> None:
    blobs = detectron_blobs(resnet50_source, DEPTHS)
    assert {"conv1_w", "res_conv1_bn_s", "res4_5_branch2b_bn_b", "res2_0_branch1_w", "fc7_b"} <= set(blobs)
    assert {"fpn_inner_res5_2_sum_w", "fpn_inner_res4_5_sum_lateral_b", "fpn_res2_2_sum_w"} <= set(blobs)
    blobs |= {"conv1_b": torch.zeros(64), "res2_0_branch2a_b": torch.zeros(64), "fc6_w_momentum": torch.ones(2)}
    blobs |= {"lr": torch.ones(1)}
    result = detectron_weights(blobs, "resnet50_fpn", resnet50.state_dict(), where="file")
    expected = reldn_detector(resnet50_source, resnet50.state_dict(), where="file").state
    assert result.ignored == ("conv1_b", "res2_0_branch2a_b", "fc6_w_momentum", "lr")
    assert list(result.state) == list(expected)
    assert all(torch.equal(result.state[name], expected[name]) for name in expected)


def test_a_bias_in_front_of_an_affine_layer_must_be_nothing(resnet50_source: Source, resnet50: FasterRCNN) -> None:
    blobs = detectron_blobs(resnet50_source, DEPTHS) | {"res2_0_branch2a_b": torch.full((64,), 0.1)}
    with pytest.raises(DataError, match="res2_0_branch2a_b 64: unknown"):
        detectron_weights(blobs, "resnet50_fpn", resnet50.state_dict(), where="file")


def vgg16_blobs() -> dict[str, Tensor]:
    """VGG16 as Detectron's ImageNet pickle has it, and a detector with RelDN's names and the same numbers."""
    source = reldn_vgg16(WIDTHS, HIDDEN, CLASSES, anchors=15)
    blobs, indices = {}, iter((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))
    for block, depth in enumerate((2, 2, 3, 3, 3), start=1):
        for i in range(1, depth + 1):
            index = next(indices)
            blobs[f"conv{block}_{i}_w"] = source[f"Conv_Body.convs.{index}.weight"]
            blobs[f"conv{block}_{i}_b"] = source[f"Conv_Body.convs.{index}.bias"]
    for name, head in (("fc6", "heads.0"), ("fc7", "heads.3")):
        blobs |= {f"{name}_w": source[f"Box_Head.{head}.weight"], f"{name}_b": source[f"Box_Head.{head}.bias"]}
    return blobs | {"fc8_w": torch.ones(1000, 4), "fc8_b": torch.ones(1000)}


@pytest.mark.parametrize("change", [None, flip_colours])
def test_imagenets_vgg16_fills_body_and_head_and_leaves_the_rest(change: Any, tmp_path: Path) -> None:
    network = vgg16("vgg16")
    parts = {n: v for n, v in network.state_dict().items() if n.startswith(("body.", "roi_heads.box_head."))}
    result = detectron_weights(vgg16_blobs(), "vgg16", parts, where="file", change=change)
    assert result.ignored == ("fc8_w", "fc8_b")
    torch.save(result.state, tmp_path / "vgg16.pt")
    assert load_weights(network, tmp_path / "vgg16.pt") == ("rpn", "roi_heads.box_predictor")
    source, images = reldn_vgg16(WIDTHS, HIDDEN, CLASSES, anchors=15), torch.rand(1, 3, 32, 32)
    seen = images.flip(1) if change else images
    torch.testing.assert_close(network.body(seen)["0"], vgg16_map(source, "Conv_Body.convs", images))


def test_other_categories_are_an_error_unless_the_last_layers_are_named() -> None:
    source, network = reldn_vgg16(WIDTHS, HIDDEN, 7, anchors=15), vgg16("vgg16")
    with pytest.raises(DataError, match="4 tensors don't fit") as caught:
        reldn_detector(source, network.state_dict(), where="file")
    assert "Box_Outs.cls_score.weight 8 x 9: roi_heads.box_predictor.cls_score.weight is 4 x 9" in str(caught.value)
    result = reldn_detector(
        source,
        network.state_dict(),
        where="file",
        ignored=[r"Box_Outs\..*"],
        unfilled=[r"roi_heads\.box_predictor\..*"],
    )
    assert len(result.ignored) == len(result.unfilled) == 4


def test_relation_models_are_no_detectors() -> None:
    source = reldn_vgg16(WIDTHS, HIDDEN, CLASSES, anchors=15)
    source.layer("RelDN.prd_cls_scores", 5, 9)
    with pytest.raises(DataError, match=r"2 tensors.*\n.*RelDN\.prd_cls_scores\.weight 5 x 9: unknown"):
        reldn_detector(source, vgg16("vgg16").state_dict(), where="file")
    for convert in (reldn_detector, motifs_detector):
        with pytest.raises(DataError, match=r"lacks .*another model's checkpoint"):
            convert({"a": torch.ones(1)}, where="file")


def test_resnext_101_of_the_papers_widths_fits_name_by_name() -> None:
    source = reldn_fpn((3, 4, 23, 3), 64, 4, classes=57, flat=True)
    result = reldn_detector(source, where="file")
    assert list(result.state) == list(detector_shapes("resnext101_64x4d_fpn", 57)) and not result.unfilled


def test_vgg16_of_the_papers_widths_has_the_shapes_of_the_files() -> None:
    source = reldn_vgg16((64, 128, 256, 512, 512), 4096, 150, anchors=15, flat=True)
    shapes = detector_shapes("vgg16", 150)
    assert sorted(tuple(v.shape) for v in source.values()) == sorted(tuple(v.shape) for v in shapes.values())
    motifs = detector_shapes("vgg16", 150, "motifs")
    assert motifs["rpn.head.cls_logits.weight"].shape == (20, 512, 1, 1)


def test_torchvisions_resnet_computes_the_same_with_frozen_statistics() -> None:
    torch.manual_seed(0)
    theirs = get_model("resnet18", weights=None).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    result = torchvision_weights(theirs.state_dict(), where="file")
    assert "fc.weight" in result.ignored and not result.unfilled
    network = build_detector(CLASSES, {"name": "resnet18_fpn"}, {"name": "small"}, {})
    network.load_state_dict(result.state, strict=False)
    images = torch.rand(1, 3, 64, 64)
    maps = network.body.pyramid.body(images)  # type: ignore[union-attr, operator]
    x = theirs.maxpool(functional.relu(theirs.bn1(theirs.conv1(images))))
    for i, layer in enumerate((theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4)):
        x = layer(x)
        torch.testing.assert_close(maps[str(i)], x, atol=1e-4, rtol=1e-3)


def test_torchvisions_vgg16_gives_body_and_head() -> None:
    source = Source()
    for name, value in reldn_vgg16(WIDTHS, HIDDEN, CLASSES, anchors=15).items():
        if name.startswith(("Conv_Body", "Box_Head")):
            source[name.replace("Conv_Body.convs", "features").replace("Box_Head.heads", "classifier")] = value
    source.layer("classifier.6", 1000, HIDDEN)
    network = vgg16("vgg16")
    parts = {n: v for n, v in network.state_dict().items() if n.startswith(("body.", "roi_heads.box_head."))}
    result = torchvision_weights(source, target=parts, where="file")
    assert result.ignored == ("classifier.6.weight", "classifier.6.bias")
    assert torch.equal(result.state["roi_heads.box_head.fc7.weight"], source["classifier.3.weight"])
    assert torch.equal(result.state["body.features.28.bias"], source["features.28.bias"])


def test_a_network_that_is_none_of_torchvisions_is_refused() -> None:
    with pytest.raises(DataError, match="those of none of"):
        torchvision_weights({"conv1.weight": torch.ones(1, 3, 7, 7)}, where="file")


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("broken_in",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: {"blobs": b, "cfg": "MODEL: {}"}])
def test_pickles_of_arrays_are_read(tmp_path: Path, protocol: int, wrap: Any) -> None:
    path = tmp_path / "model.pkl"
    blobs = OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3), n=np.ones(2, np.int64), s=np.float64(2))
    path.write_bytes(pickle.dumps(wrap(blobs), protocol=protocol))
    found = read_blobs(path)
    assert list(found) == ["a", "n"] and found["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    """Two floats as NumPy of Python 2 wrote them, byte strings and all."""
    content = (
        b"\x80\x02}q\x00U\x01wcnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08\x00\x00\x80?\x00\x00 \xc0tbs."
    )
    (tmp_path / "old.pkl").write_bytes(content)
    assert read_blobs(tmp_path / "old.pkl")["w"].tolist() == [1.0, -2.5]


def test_no_code_of_a_pickle_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in ({"a": np.ones(1), "b": Malicious()}, {"a": np.array([Malicious()], dtype=object)}):
        Path("evil.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(DataError, match=r"evil\.pkl: .*mkdir is no part of an array"):
            read_blobs("evil.pkl")
    assert not Path("broken_in").exists()


def test_files_that_are_no_pickles_of_arrays_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.pkl: no such file"):
        read_blobs(tmp_path / "none.pkl")
    good = pickle.dumps({"a": np.ones(100)})
    contents = {
        "cut": good[:200],
        "empty": b"",
        "text": b"<html>",
        "list": pickle.dumps([1]),
        "texts": pickle.dumps({}),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.pkl").write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}\.pkl: "):
            read_blobs(tmp_path / f"{name}.pkl")


def test_the_command_converts_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, source = vgg16("vgg16"), reldn_vgg16(WIDTHS, HIDDEN, CLASSES, anchors=15)
    torch.save({"model": dict(source), "step": 3}, tmp_path / "model_step3.pth")
    torch.save(network.state_dict(), tmp_path / "like.pt")
    arguments = ["reldn-detector", str(tmp_path / "model_step3.pth"), str(tmp_path / "out" / "detector.pt")]
    assert main([*arguments, "--like", str(tmp_path / "like.pt")]) == 0
    assert "detector.pt: 40 tensors" in capsys.readouterr().out
    assert load_weights(network, tmp_path / "out" / "detector.pt") == ()
    like = ["--like", str(tmp_path / "like.pt"), "--ignore", r"Box_Outs\..*", "--flip-colours"]
    assert main([*arguments, *like]) == 1
    error = capsys.readouterr().err
    assert "4 tensors don't fit" in error and "roi_heads.box_predictor.bbox_pred.bias 16: not in the source" in error
    assert main([*arguments, *like, "--unfilled", r"roi_heads\.box_predictor\..*"]) == 0
    out = capsys.readouterr().out
    assert out.count("left out: Box_Outs.") == out.count("not in the source: roi_heads.box_predictor.") == 4
    flipped = torch.load(tmp_path / "out" / "detector.pt", weights_only=True)["body.features.0.weight"]
    assert torch.equal(flipped, source["Conv_Body.convs.0.weight"].flip(1))
    assert main([*arguments, "--ignore", "("]) == 1
    assert "no regular expression" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["detector.pt"]


def test_every_kind_of_file_has_its_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each reads its own format: the message names what is wrong with the content."""
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "a.pth")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": np.ones(1)}))
    for kind, source, message in (
        ("torchvision", "a.pth", "none of"),
        ("motifs-detector", "a.pth", "lacks score_fc.weight"),
        ("reldn-detector", "a.pth", "lacks Box_Outs.cls_score.weight"),
        ("detectron", "a.pkl", "a 1: unknown"),
    ):
        assert main([kind, str(tmp_path / source), str(tmp_path / "out.pt")]) == 1
        assert message in capsys.readouterr().err
    assert main(["detectron", str(tmp_path / "a.pkl"), str(tmp_path / "out.pt"), "--body", "alexnet"]) == 1
    assert "alexnet" in capsys.readouterr().err
