"""From a finished run to its model, which then ranks the triplets of one image at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules.relation_data import RelationItem, collate_items
from data_modules.relation_module import RelationDataModule
from data_modules.scene_graph import SceneGraph
from experiments.config import Config, merge
from experiments.errors import ExperimentError
from experiments.graph_picture import Graph, Triplet
from experiments.machine import Machine
from experiments.run import Context, build
from experiments.runs import Run
from lit_modules.metrics.vrd_matching import IOU_THRESHOLD, join_triplets, match_overlap, rank_triplets
from lit_modules.relation_scorer import RelationScorer, classified


class Ranker:
    """A finished run's model, which ranks the triplets of one image at a time as the run did.

    Args:
        run: A run that scores pairs; all it needs is done.
        machine: This machine's folders.
        per_pair: Triplets kept of each pair of boxes; 0 takes the smallest k that the run reports.
    """

    def __init__(self, run: Run, machine: Machine, per_pair: int = 0):
        torch.set_num_threads(run.config["trainer"]["threads"])
        built = build(run, context_of(run, machine))
        self.data: RelationDataModule = built[0]
        self.device = device_of(run)
        self.module: RelationScorer = built[1].to(self.device).eval()
        self.per_pair = per_pair or min(run.config["evaluation"]["ks"])
        self.module.ks = (self.per_pair,)

    @torch.inference_mode()
    def rank(self, item: RelationItem, top: int, truth: SceneGraph | None) -> Graph:
        """Return an image's boxes and its best triplets.

        Args:
            item: The image, as the run's data set gives it to the model.
            top: Length of the ranking.
            truth: Annotations in the frame of the boxes, which say what is right.
        """
        example = item[0]
        batch = collate_items([item]).to(self.device)
        if self.module.classifier is not None and len(batch.labels):
            batch = classified(batch, self.module.classifier)
        labels = tuple(batch.labels.tolist())
        objects, predicates = self.data.object_names, self.data.predicate_names
        triplets = []
        pairs = self.module.candidate_pairs(batch) if len(labels) > 1 else batch.relations[:0, :2]
        if len(pairs):
            (found,) = self.module.predict_pairs(batch)
            pair, slot = rank_triplets(found, self.per_pair, top)
            ranked, ends = found.triplets[pair, slot], pairs[torch.from_numpy(pair).to(pairs.device)].tolist()
            right = _right(ranked, found.subject_boxes_xyxy[pair], found.object_boxes_xyxy[pair], truth)
            for (s, p, o), rows, score, is_right in zip(
                ranked.tolist(), ends, found.scores[pair, slot].tolist(), right, strict=True
            ):
                names = objects[s], predicates[p], objects[o]
                triplets.append(Triplet(rows[0], rows[1], (s, p, o), names, score, is_right))
        return Graph(
            example.graph.image,
            example.size_wh,
            batch.boxes_xyxy.double().cpu().numpy(),
            labels,
            tuple(objects[label] for label in labels),
            tuple(batch.scores.tolist()),
            tuple(triplets),
        )


def for_any_images(run: Run) -> Run:
    """Return a run like this one that brings no boxes of its own, and whose candidates need no annotations."""
    changes: Config = {"data": {"proposals": "ground_truth"}}
    if run.config["evaluation"].get("pairs") == "gt_relations":
        changes["evaluation"] = {"pairs": "all"}
    needs = {key: need for key, need in run.needs.items() if need.stage.fits and key != "classifier"}
    return replace(run, config=merge(run.config, changes), needs=needs)


def context_of(run: Run, machine: Machine) -> Context:
    """Return what a builder gets beside the run.

    Raises:
        ExperimentError: The weights of something that it needs are not on this machine.
    """
    store = machine.store
    for need in run.needs.values():
        if not store.usable(need):
            lacking = f"{need.stage_name} {need.name}, which it needs, is not done on this machine"
            raise ExperimentError(f"run {run.name} of {run.paper}: {lacking}: give its table's command again")
    return Context.of(run, machine)


def device_of(run: Run) -> str:
    """Return where the run's config wants to be computed, as far as this machine can."""
    wants_gpu = run.config["trainer"]["accelerator"] in ("auto", "gpu", "cuda")
    return "cuda" if wants_gpu and torch.cuda.is_available() else "cpu"


def _right(
    triplets: NDArray[np.int64],
    subjects_xyxy: NDArray[np.float32],
    objects_xyxy: NDArray[np.float32],
    truth: SceneGraph | None,
) -> list[bool | None]:
    """Return for each triplet whether an annotated relation has its labels and overlaps both boxes by 0.5 or more."""
    if truth is None:
        return [None] * len(triplets)
    relations = truth.relations
    entry, row = join_triplets(
        np.zeros(len(triplets), np.int64), triplets, np.zeros(len(relations), np.int64), truth.triplets
    )
    ends = truth.boxes_xyxy[relations[row, 0]], truth.boxes_xyxy[relations[row, 2]]
    boxes = [b.astype(np.float64) for b in (subjects_xyxy[entry], objects_xyxy[entry], *ends)]
    right = np.zeros(len(triplets), dtype=bool)
    right[entry[match_overlap("relationship", *boxes) >= IOU_THRESHOLD]] = True
    return [bool(value) for value in right]
