"""RelDN's trained relation models (`model_step*.pth` of ContrastiveLosses4VRD) as states of our `RelDNNetwork`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from data_modules.errors import DataError
from lit_modules.layers.reldn import RelDNNetwork
from scripts.convert.faster_rcnn_checkpoints import RELDN_FPN, body_rules, head_rules
from scripts.convert.mapping import Change, Conversion, Rule, convert

OF_THE_DETECTOR = (r"RPN\..*", r"Box_Outs\..*")


def reldn_model(
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor] | None = None,
    *,
    where: str,
    ignored: Sequence[str] = (),
    unfilled: Sequence[str] = (),
    change: Change | None = None,
) -> Conversion:
    """Convert a RelDN, fed with BGR pixels less Detectron's mean; `reldn_detector` converts the detector in its file.

    Where the file has no heads for subject and object, which the official code then leaves to the detector's, ours get
    copies of that.

    Args:
        source: Tensors of `model_step*.pth`.
        target: State of our `RelDNNetwork`; None for the paper's widths, the rest told by names and shapes.
        where: The file, for errors.
        ignored: See `convert`; the RPN and the detector's outputs are ignored anyway, and its RoI head where the
            relations have their own.
        unfilled: See `convert`.
        change: `flip_colours` for RGB pixels.

    Raises:
        DataError: Tensors don't fit; all of them are named.
    """
    if target is None:
        target = _shapes(source, where)
    skipped = [*OF_THE_DETECTOR, *([r"Box_Head\..*"] if _has(source, "S_Head.") else []), *ignored]
    return convert(source, target, reldn_model_rules(source, change), ignored=skipped, unfilled=unfilled, where=where)


def reldn_model_rules(source: Mapping[str, Tensor], change: Change | None = None) -> list[Rule]:
    """Rules for the three modules of RelDN and the two bodies of the visual one."""
    own_heads = _has(source, "S_Head.")
    subject, obj = ("S_Head", "O_Head") if own_heads else ("Box_Head", "Box_Head")
    return [
        *body_rules("Conv_Body", "visual.detector.body", change),
        *body_rules("Prd_RCNN.Conv_Body", "visual.relation_body", change),
        *head_rules(subject, "visual.subject_head"),
        *head_rules(obj, "visual.object_head"),
        *head_rules("Prd_RCNN.Box_Head", "visual.relation_head"),
        Rule(r"RelDN\.prd_cls_feats\.([02])\.(\w+)", r"visual.fusion.\1.\2"),
        Rule(r"RelDN\.prd_cls_scores\.(\w+)", r"visual.fusion.4.\1"),
        Rule(r"RelDN\.prd_sbj_scores\.(\w+)", r"visual.subject_skip.\1"),
        Rule(r"RelDN\.prd_obj_scores\.(\w+)", r"visual.object_skip.\1"),
        Rule(r"RelDN\.spt_cls_feats\.([02])\.(\w+)", r"spatial.\1.\2"),
        Rule(r"RelDN\.spt_cls_scores\.(\w+)", r"spatial.4.\1"),
        Rule(r"RelDN\.freq_bias\.rel_baseline\.weight", "semantic.weight"),
    ]


def _shapes(source: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    for name in ("RelDN.prd_cls_scores.weight", "Box_Outs.cls_score.weight"):
        if name not in source:
            raise DataError(f"{where}: lacks {name}: not RelDN's checkpoint? it holds {list(source)[:5]}")
    is_vgg = _has(source, "Conv_Body.convs.")
    spatial = source.get("RelDN.spt_cls_feats.0.weight")
    classes, columns = len(source["Box_Outs.cls_score.weight"]) - 1, len(source["RelDN.prd_cls_scores.weight"])
    with torch.device("meta"):
        network = RelDNNetwork(
            torch.empty(classes, classes, columns),
            semantic="RelDN.freq_bias.rel_baseline.weight" in source,
            spatial=spatial is not None,
            spatial_hidden_dim=len(spatial) if spatial is not None else 1,
            visual={
                "body": "vgg16" if is_vgg else RELDN_FPN,
                "body_settings": {},
                "head": "vgg16" if is_vgg else "two_fc",
                "head_settings": {},
                "skips": "RelDN.prd_sbj_scores.weight" in source,
            },
        )
    return network.state_dict()


def _has(source: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in source)
