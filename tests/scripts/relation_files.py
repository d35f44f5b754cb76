"""Trained relation models as others save them, with random numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tests.scripts.detector_files import Source, linear, motifs_vgg16, reldn_vgg16


class Drawn(Source):
    """Random numbers, of which variances are positive."""

    def draw(self, name: str, *shape: int) -> None:
        super().draw(name, *shape)
        if name.endswith("running_var"):
            self[name] = self[name].abs() + 0.5


def motifnet(
    widths: tuple[int, ...],
    head: int,
    classes: int,
    predicates: int,
    hidden: int,
    layers: tuple[int, int],
    words: tuple[int, int] = (3, 2),
    anchors: int = 20,
    rpn: int = 6,
) -> Source:
    """A MotifNet of neural-motifs; layers of object and edge context may both be 0."""
    source = Drawn()
    for name, value in motifs_vgg16(widths, head, classes, anchors, rpn).items():
        source[f"detector.{name}"] = value
    source.draw("context.obj_embed.weight", classes + 1, words[0])
    source.draw("context.obj_embed2.weight", classes + 1, words[0])
    source.layer("context.pos_embed.0", 4)
    source.draw("context.pos_embed.0.running_mean", 4)
    source.draw("context.pos_embed.0.running_var", 4)
    source.layer("context.pos_embed.1", 128, 4)
    dim = head + words[0] + 128
    for name, count, inputs in (("obj", layers[0], dim), ("edge", layers[1], words[0] + hidden)):
        if count:
            size = sum(6 * hidden * (inputs if i == 0 else hidden) + 5 * hidden**2 for i in range(count))
            source.draw(f"context.{name}_ctx_rnn.weight", size)
            source.draw(f"context.{name}_ctx_rnn.bias", 5 * hidden * count)
    if layers[0]:
        source.draw("context.decoder_rnn.obj_embed.weight", classes + 2, words[1])
        source.layer("context.decoder_rnn.input_linearity", 6 * hidden, hidden + words[1])
        source.layer("context.decoder_rnn.state_linearity", 5 * hidden, hidden)
        source.layer("context.decoder_rnn.out", classes + 1, hidden)
        source.layer("post_lstm", 2 * head, hidden)
    else:
        source.layer("context.decoder_lin", classes + 1, dim)
        source.draw("post_emb.weight", classes + 1, 2 * head)
    channels = widths[-1]
    for place, (out, ins, side) in ((0, (channels // 2, 2, 7)), (4, (channels, channels // 2, 3))):
        source.layer(f"union_boxes.conv.{place}", out, ins, side, side)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            source.draw(f"union_boxes.conv.{place + 2}.{kind}", out)
    for name in ("roi_fmap.1", "roi_fmap_obj"):
        source.layer(f"{name}.0", head, channels * 49)
        source.layer(f"{name}.3", head, head)
    source.layer("rel_compress", predicates + 1, head)
    source.draw("freq_bias.obj_baseline.weight", (classes + 1) ** 2, predicates + 1)
    return source


def cut_recurrent(source: Source, name: str, hidden: int, inputs: int) -> dict[str, np.ndarray]:
    """A flat stack of layers with the names that `reference_motifs` reads: walks through it as the kernel does."""
    weight, bias = source[f"{name}.weight"].double(), source[f"{name}.bias"].double()
    state, at, layer = {}, 0, 0
    while at < len(weight):
        for part, rows, gates in (("input", inputs if layer == 0 else hidden, 6), ("state", hidden, 5)):
            count = rows * gates * hidden
            state[f"cells.{layer}.{part}.weight"] = weight[at : at + count].view(rows, gates * hidden).T.numpy()
            at += count
        state[f"cells.{layer}.state.bias"] = bias[5 * hidden * layer :][: 5 * hidden].numpy()
        layer += 1
    return state


def union_masks(source: Source, drawn: Tensor) -> Tensor:
    """The convolutions over drawn rectangles `[E, 2, 27, 27]`, batch norms by their running statistics."""

    def norm(place: int, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            source[f"union_boxes.conv.{place}.{kind}"][:, None, None]
            for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    weights = [source[f"union_boxes.conv.{place}.{kind}"] for place in (0, 4) for kind in ("weight", "bias")]
    x = norm(2, functional.conv2d(drawn - 0.5, weights[0], weights[1], 2, 3).relu())
    return norm(6, functional.conv2d(functional.max_pool2d(x, 3, 2, 1), weights[2], weights[3], 1, 1).relu())


def reldn(
    widths: tuple[int, ...], head: int, classes: int, predicates: int, own_heads: bool = True, spatial: bool = True
) -> Source:
    """RelDN with VGG16."""
    source = reldn_vgg16(widths, head, classes, anchors=15)
    source.layer("Prd_RCNN.Box_Head.heads.0", head, widths[-1] * 49)
    source.layer("Prd_RCNN.Box_Head.heads.3", head, head)
    for name in [n for n in source if n.startswith("Conv_Body.")]:
        source.draw(f"Prd_RCNN.{name}", *source[name].shape)
    columns = predicates + 1
    for index, (outs, ins) in ((0, (3 * head // 2, 3 * head)), (2, (head, 3 * head // 2))):
        source.layer(f"RelDN.prd_cls_feats.{index}", outs, ins)
    source.layer("RelDN.prd_cls_scores", columns, head)
    source.draw("RelDN.freq_bias.rel_baseline.weight", classes**2, columns)
    if spatial:
        source.layer("RelDN.spt_cls_feats.0", 64, 28)
        source.layer("RelDN.spt_cls_feats.2", 64, 64)
        source.layer("RelDN.spt_cls_scores", columns, 64)
    if own_heads:
        for side in ("S", "O"):
            source.layer(f"{side}_Head.heads.0", head, widths[-1] * 49)
            source.layer(f"{side}_Head.heads.3", head, head)
        for side in ("sbj", "obj"):
            source.layer(f"RelDN.prd_{side}_scores", columns, head)
    return source


def two_layers(source: Source, first: str, second: str, pooled: Tensor, last_relu: bool) -> Tensor:
    """A RoI head's layers on pooled boxes."""
    features = linear(source, second, linear(source, first, pooled.flatten(1)).relu())
    return features.relu() if last_relu else features


def softmax_rows(x: Tensor) -> Tensor:
    """Of each row."""
    e = torch.exp(x - x.amax(dim=1, keepdim=True))
    return e / e.sum(dim=1, keepdim=True)
