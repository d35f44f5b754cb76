"""Neural-motifs' trained relation models (`motifnet-sgcls.tar`, `motifnet-sgdet.tar`) as states of our parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from data_modules.errors import DataError
from lit_modules.detector import build_detector
from lit_modules.layers.backbones import build_roi_head
from lit_modules.layers.motifs import MotifsNetwork, UnionMasks
from lit_modules.layers.proposals import PRESETS
from scripts.convert.faster_rcnn_checkpoints import motifs_rules
from scripts.convert.mapping import Change, Conversion, Rule, convert

NEEDED = ("detector.score_fc.weight", "context.obj_embed.weight", "roi_fmap_obj.3.weight", "rel_compress.weight")
RECURRENT = {"context.obj_ctx_rnn": "network.context.object_lstm", "context.edge_ctx_rnn": "network.context.edge_lstm"}


def motifs_parts(
    num_objects: int,
    body: Mapping[str, Any],
    head: Mapping[str, Any],
    settings: Mapping[str, Any],
    network: Mapping[str, Any],
) -> nn.ModuleDict:
    """Build what a MotifNet of pixels consists of.

    Args:
        num_objects: Categories, without background.
        body: Name and arguments for `build_body`.
        head: Name and arguments for `build_roi_head`.
        settings: Of the detector, for instance `PRESETS["motifs"]`.
        network: Arguments of `MotifsNetwork`.

    Returns:
        `detector`; the two copies of its RoI head that are trained with the relations, `object_head` for boxes and
        `union_head` for unions (without the last ReLU); `union_masks`, to be added to what `union_head.pool` returns;
        and `network`.
    """
    detector = build_detector(num_objects, body, head, settings)
    options = {key: value for key, value in head.items() if key != "name"}
    heads = [build_roi_head(head["name"], detector.body, **options | {"last_relu": relu}) for relu in (True, False)]
    return nn.ModuleDict(
        {
            "detector": detector,
            "object_head": heads[0],
            "union_head": heads[1],
            "union_masks": UnionMasks(detector.body.out_channels, heads[1].pool.size),
            "network": MotifsNetwork(**network),
        }
    )


def motifs_model(
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor] | None = None,
    *,
    where: str,
    ignored: Sequence[str] = (),
    unfilled: Sequence[str] = (),
) -> Conversion:
    """Convert a MotifNet of neural-motifs or of its fork by lml, whose pixels are torchvision's.

    One file serves PredCls and SGCls; the RoI style is `crop`. The rows of the frequency table for background, which no
    pair can have, are left out.

    Args:
        source: Its tensors.
        target: State of `motifs_parts`; None for the paper's widths, the rest told by the shapes.
        where: The file, for errors.
        ignored: See `convert`; the anchors, which we compute, are ignored anyway.
        unfilled: See `convert`; batch norms' counters, which the official PyTorch 0.3 didn't know, are anyway.

    Raises:
        DataError: Tensors don't fit; all of them are named.
    """
    if target is None:
        target = _shapes(source, where)
    skipped = [r"detector\.rpn_head\.anchors", r".*\.num_batches_tracked", *ignored]
    empty = [r".*\.num_batches_tracked", *unfilled]
    return convert(source, target, motifs_model_rules(source), ignored=skipped, unfilled=empty, where=where)


def motifs_model_rules(source: Mapping[str, Tensor]) -> list[Rule]:
    """Rules for all tensors; how the recurrent layers' flat ones are cut follows from the source's shapes."""
    context = r"network.context"
    decoder = r"context\.decoder_rnn"
    rules = [
        *motifs_rules(r"detector\.", "detector."),
        Rule(r"roi_fmap_obj\.0\.(\w+)", r"object_head.fc6.\1"),
        Rule(r"roi_fmap_obj\.3\.(\w+)", r"object_head.fc7.\1"),
        Rule(r"roi_fmap\.1\.0\.(\w+)", r"union_head.fc6.\1"),
        Rule(r"roi_fmap\.1\.3\.(\w+)", r"union_head.fc7.\1"),
        Rule(r"union_boxes\.conv\.(\d+\.\w+)", r"union_masks.conv.\1"),
        Rule(r"context\.obj_embed\.weight", rf"{context}.object_embedding.weight"),
        Rule(r"context\.obj_embed2\.weight", rf"{context}.edge_embedding.weight"),
        Rule(r"context\.pos_embed\.([01]\.\w+)", rf"{context}.position.\1"),
        Rule(rf"{decoder}\.obj_embed\.weight", rf"{context}.decoder.embedding.weight"),
        Rule(rf"{decoder}\.input_linearity\.(\w+)", rf"{context}.decoder.cell.input.\1"),
        Rule(rf"{decoder}\.state_linearity\.(\w+)", rf"{context}.decoder.cell.state.\1"),
        Rule(rf"{decoder}\.out\.(\w+)", rf"{context}.decoder.output.\1"),
        Rule(r"context\.decoder_lin\.(\w+)", rf"{context}.classifier.\1"),
        Rule(r"post_(?:lstm|emb)\.(\w+)", r"network.edge_ends.\1"),
        Rule(r"rel_compress\.(\w+)", r"network.predicates.\1"),
        Rule(r"freq_bias\.obj_baseline\.weight", "network.frequency.weight", _without_background),
    ]
    for name, ours in RECURRENT.items():
        if f"{name}.bias" in source and f"{name}.weight" in source:
            rules += _recurrent_rules(name, ours, len(source[f"{name}.weight"]), *_recurrent_size(source, name))
    return rules


def _recurrent_size(source: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """Width H and number of layers: the bias is 5 H long for each, and H is known from what follows."""
    decoder, ends = source.get("context.decoder_rnn.state_linearity.weight"), source.get("post_lstm.weight")
    hidden = decoder.shape[1] if decoder is not None else ends.shape[1] if ends is not None else 1
    return hidden, len(source[f"{name}.bias"]) // (5 * hidden)


def _recurrent_rules(name: str, ours: str, length: int, hidden: int, layers: int) -> list[Rule]:
    """Cut flat tensors: for each layer the maps of its input `[in, 6 H]` and of its state `[H, 5 H]`, and a bias."""
    escaped, state = name.replace(".", r"\."), 5 * hidden**2
    first = (length - layers * state - (layers - 1) * 6 * hidden**2) // (6 * hidden)  # the first layer's input
    rules, start = [], 0
    for layer in range(layers):
        inputs = first if layer == 0 else hidden
        cell, middle = f"{ours}.cells.{layer}", start + 6 * hidden * inputs
        last = length if layer == layers - 1 else middle + state  # so that no number is left over unseen
        rules += [
            Rule(rf"{escaped}\.weight", f"{cell}.input.weight", _cut(start, middle, inputs)),
            Rule(rf"{escaped}\.weight", f"{cell}.state.weight", _cut(middle, last, hidden)),
            Rule(rf"{escaped}\.bias", f"{cell}.state.bias", _cut(5 * hidden * layer, 5 * hidden * (layer + 1), None)),
        ]
        start = last
    return rules


def _cut(start: int, end: int, rows: int | None) -> Change:
    """Part of a flat tensor, as a transposed matrix if it has `rows`."""
    return lambda flat: flat[start:end] if rows is None else flat[start:end].reshape(rows, -1).T


def _without_background(table: Tensor) -> Tensor:
    classes = isqrt(len(table))
    return table.reshape(classes, classes, -1)[1:, 1:].flatten(0, 1)


def _shapes(source: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    missing = [name for name in NEEDED if name not in source]
    if missing:
        raise DataError(f"{where}: lacks {missing}: not a MotifNet's checkpoint? it holds {list(source)[:5]}")
    columns, words = source["context.obj_embed.weight"].shape
    predicates, union_dim = source["rel_compress.weight"].shape
    decoder = source.get("context.decoder_rnn.obj_embed.weight")
    layers = {name: _recurrent_size(source, name) for name in RECURRENT if f"{name}.bias" in source}
    with torch.device("meta"):
        bias = torch.empty(columns - 1, columns - 1, predicates) if "freq_bias.obj_baseline.weight" in source else None
        network = {
            "num_predicates": predicates - 1,
            "feature_dim": len(source["roi_fmap_obj.3.weight"]),
            "union_dim": union_dim,
            "object_embeddings": torch.empty(columns, words),
            "decoder_embeddings": torch.empty(columns + 1, 1 if decoder is None else decoder.shape[1]),
            "frequency_bias": bias,
            "hidden_dim": next((hidden for hidden, _ in layers.values()), 1),
            "object_layers": layers.get("context.obj_ctx_rnn", (0, 0))[1],
            "edge_layers": layers.get("context.edge_ctx_rnn", (0, 0))[1],
        }
        parts = motifs_parts(columns - 1, {"name": "vgg16"}, {"name": "vgg16"}, PRESETS["motifs"], network)
    return dict(parts.state_dict())
