"""Draws of Open Images that stand in for lists that RelDN's authors did not publish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_modules.scene_graph import SceneGraph

CONFUSABLE_IMAGES = 100
CONFUSABLE_PREDICATES = ("at", "holds", "plays", "interacts with", "wears")  # all that the paper's 100 images have


def draw_images(graphs: Sequence[SceneGraph], count: int, rng: np.random.Generator) -> list[SceneGraph]:
    """Draw `count` graphs at random, but so that every category and predicate among `graphs` occurs.

    Raises:
        ValueError: There are fewer graphs, or too few are wanted for that.
    """
    if not 0 < count <= len(graphs):
        raise ValueError(f"{count} images are to be drawn of {len(graphs)}")
    order = rng.permutation(len(graphs)).tolist()
    holders: dict[tuple[str, Any], list[int]] = {}
    for i in order:
        _, predicates, _ = graphs[i].triplets.T
        for kind, labels in (("object", graphs[i].labels), ("predicate", predicates)):
            for label in set(labels.tolist()):
                holders.setdefault((kind, label), []).append(i)
    chosen: dict[int, None] = {}
    for images in sorted(holders.values(), key=len):  # the rarest first
        if not any(i in chosen for i in images):
            chosen[images[0]] = None
    if len(chosen) > count:
        raise ValueError(f"{count} images can't hold every category and predicate; at least {len(chosen)} can")
    return [graphs[i] for i in sorted(list(dict.fromkeys([*chosen, *order]))[:count])]


def draw_confusable(
    graphs: Sequence[SceneGraph], predicates: Sequence[int], count: int, rng: np.random.Generator
) -> list[SceneGraph]:
    """Draw up to `count` graphs in which a relation's ends are easily confused.

    These are graphs in which two objects have one category, or two relations of different pairs one predicate.

    Args:
        graphs: All graphs.
        predicates: The only predicates that a drawn graph may have; none says nothing.
        count: How many are wanted.
        rng: Which of more it is.
    """
    fit = [graph for graph in graphs if _is_confusable(graph) and _has_only(graph, predicates)]
    chosen = sorted(rng.permutation(len(fit))[:count].tolist())
    return [fit[i] for i in chosen]


def _is_confusable(graph: SceneGraph) -> bool:
    if len(set(graph.labels.tolist())) < len(graph.labels):
        return True
    pairs = {(p, s, o) for s, p, o in graph.relations.tolist()}
    return len({p for p, _, _ in pairs}) < len(pairs)


def _has_only(graph: SceneGraph, predicates: Sequence[int]) -> bool:
    return not predicates or set(graph.relations[:, 1].tolist()) <= set(predicates)
