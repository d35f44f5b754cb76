"""From a run's config to its DataModule and LightningModule; the only place that knows both sides' arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_modules.openimages import OpenImagesDataModule
from data_modules.relation_module import RelationDataModule
from data_modules.scene_graph import SceneGraph
from data_modules.vrd_files import read_lu_predictions
from experiments.build_data import relation_data
from experiments.build_detector import body_settings, head_settings, trained_detector, weights
from experiments.config import Config
from experiments.errors import ExperimentError
from experiments.run import Context
from experiments.runs import Run
from lit_modules.frequency import FrequencyPrior, PrecomputedTriplets
from lit_modules.functional.boxes import all_pairs, overlapping_pairs
from lit_modules.functional.frequency import (
    frequency_bias,
    pair_counts,
    predicate_counts,
    predicate_probabilities,
    triplet_log_prior,
)
from lit_modules.layers.faster_rcnn import FasterRCNN
from lit_modules.layers.reldn import RelDNNetwork
from lit_modules.layers.triplet import TripletNetwork
from lit_modules.metrics.openimages import OpenImagesScore
from lit_modules.reldn import RelDNScoring, RelDNTraining
from lit_modules.vrd_tensor import PairSelector, SelectorTraining, TripletScoring, TripletTraining

Built = tuple[RelationDataModule, pl.LightningModule]


def frequency_scoring(run: Run, context: Context) -> Built:
    """Build the frequency prior."""
    data = relation_data(run, context)
    background = _background_counts(data, run.config["frequency"]["counted_pairs"])
    probabilities = predicate_probabilities(
        _foreground_counts(data), background if run.config["frequency"]["background"] else None
    )
    return data, FrequencyPrior(probabilities, **evaluation(run, context, data))


def precomputed_scoring(run: Run, context: Context) -> Built:
    """Build the scoring of released triplets."""
    data = relation_data(run, context)
    predictions = read_lu_predictions(data.root / run.config["precomputed"]["file"], len(data.test_graphs))
    return data, PrecomputedTriplets(predictions, **evaluation(run, context, data))


def triplet_training(run: Run, context: Context) -> Built:
    """Build the training of the triplet network."""
    data = relation_data(run, context)
    proposes = run.config["data"]["train_boxes"] != "ground_truth"
    detector = trained_detector(run, context, data) if "detector" in run.needs else None
    module = TripletTraining(
        _triplet_network(run, data),
        run.config["loss"]["reduction"],
        run.config["optimizer"],
        _for_proposals(run, detector) if proposes else None,
    )
    if "first" in run.needs:
        module.network.load_state_dict(weights(context, "first", "network."))
    elif detector is not None:
        module.network.start_from(detector.body.state_dict(), detector.head.state_dict())
    return data, module


def selector_training(run: Run, context: Context) -> Built:
    """Build the training of X_sel on the frozen triplet network."""
    data = relation_data(run, context)
    state = weights(context, "triplet", "network.")
    selector = run.config["selector"]
    optimizer = run.config["optimizer"] | {"lr": selector["lr"]}
    return data, SelectorTraining(_triplet_network(run, data), state, selector["hidden_dim"], optimizer)


def triplet_scoring(run: Run, context: Context) -> Built:
    """Build the ranking of triplets."""
    data = relation_data(run, context)
    settings = run.config["scoring"]
    network = TripletNetwork(**_triplet_network(run, data))
    network.load_state_dict(weights(context, "triplet", "network."))
    selector = None
    if settings["selector"]:
        hidden_dim = run.needs["selector"].config["selector"]["hidden_dim"]
        selector = PairSelector(network.pair_dim, hidden_dim)
        selector.load_state_dict(weights(context, "selector", "selector."))
    log_prior = triplet_log_prior(_foreground_counts(data)) if settings["prior"] else None
    return data, TripletScoring(
        network,
        selector,
        log_prior,
        settings["renormalise_prior"],
        settings["labels_from"],
        **evaluation(run, context, data),
    )


def reldn_training(run: Run, context: Context) -> Built:
    """Build the training of RelDN."""
    data = relation_data(run, context)
    sampling, loss = run.config["sampling"], run.config["loss"]
    detector = trained_detector(run, context, data) if "detector" in run.needs else None
    proposes = run.config["data"]["train_boxes"] != "ground_truth"
    return data, RelDNTraining(
        _reldn_network(run, data),
        candidates=sampling["pairs"],
        max_pairs=sampling["max_pairs"],
        max_positive_pairs=sampling["max_positive_pairs"],
        contrastive_positive_pairs=sampling["contrastive_positive_pairs"],
        contrastive_negative_pairs=sampling["contrastive_negative_pairs"],
        weights=tuple(
            loss[f"{kind}_weight"] for kind in ("class_agnostic", "entity_class_aware", "predicate_class_aware")
        ),
        margin=loss["margin"],
        reduction=loss["reduction"],
        optimizer=run.config["optimizer"],
        start=(detector.body.state_dict(), detector.head.state_dict()) if detector else None,
        detector=_for_proposals(run, detector) if proposes else None,
        max_boxes=sampling.get("boxes", 0),
    )


def reldn_scoring(run: Run, context: Context) -> Built:
    """Build the ranking of RelDN's triplets."""
    data = relation_data(run, context)
    network = RelDNNetwork(**_reldn_network(run, data))
    if "network" in run.needs:
        network.load_state_dict(weights(context, "network", "network."))
    normalisation = run.config["model"]["test_box_normalisation"]
    return data, RelDNScoring(network, normalisation, **evaluation(run, context, data))


def evaluation(run: Run, context: Context, data: RelationDataModule) -> Config:
    """Return the arguments of `RelationScorer`.

    Raises:
        ExperimentError: Settings contradict each other.
    """
    settings = run.config["evaluation"]
    if settings.get("pairs") == "gt_relations" and data.proposals != "ground_truth":
        raise ExperimentError("evaluation.pairs=gt_relations needs annotated boxes: set data.proposals=ground_truth")
    free_k = _chosen_k(run, context.records["choice"]) if "choice" in context.records else 0
    openimages = None
    if settings["protocol"] == "openimages":
        if len(settings["ks"]) != 1 or len(settings["tops"]) != 1:
            raise ExperimentError(
                "evaluation.protocol=openimages takes one of evaluation.ks and one of evaluation.tops"
            )
        names = [name.replace("_", " ") for name in data.predicate_names]
        is_generated = run.config["data"]["world"]["seed"] >= 0
        openimages = OpenImagesScore(
            names,
            rare=[name for name in settings["rare"] if name in names or not is_generated],
            present_only=settings["present_only"],
            k=settings["ks"][0],
            top=settings["tops"][0],
        )
    classifier = trained_detector(run, context, data, "classifier").eval() if "classifier" in run.needs else None
    return {
        "classifier": classifier,
        "openimages": openimages,
        "pairs": settings.get("pairs", "all"),
        "ks": settings["ks"],
        "tops": settings["tops"],
        "matching": settings["matching"],
        "free_k": free_k,
        "train_triplets": _triplets(data),
    }


def _triplet_network(run: Run, data: RelationDataModule) -> Config:
    model = {key: value for key, value in run.config["model"].items() if key not in ("visual", "pool_size")}
    visual = None
    if run.config["model"]["visual"]:
        body = body_settings(run.config["backbone"])
        pooling = {"pool_size": run.config["model"]["pool_size"], "style": run.config["backbone"]["roi_align"]}
        visual = {"body": body.pop("name"), "body_settings": body, "sampling_ratio": 0, **pooling}
    return {"num_objects": data.num_objects, "num_predicates": data.num_predicates, "visual": visual, **model}


def _reldn_network(run: Run, data: RelationDataModule) -> Config:
    others = ("visual", "skips", "trained", "test_box_normalisation")
    model = {key: value for key, value in run.config["model"].items() if key not in others}
    background = _background_counts(data, "overlapping")
    visual = None
    if run.config["model"]["visual"]:
        body, head = body_settings(run.config["backbone"]), head_settings(run.config["backbone"])
        names = {"body": body.pop("name"), "head": head.pop("name"), "skips": run.config["model"]["skips"]}
        visual = {**names, "body_settings": body, "head_settings": head}
    bias = frequency_bias(_foreground_counts(data), background)
    return {"frequency_bias": bias, "visual": visual, **model}


def _counted_graphs(data: RelationDataModule) -> list[SceneGraph]:
    """Return the graphs that frequencies are counted on: RelDN counts all of Open Images for its mini lists too."""
    return data.full_train_graphs if isinstance(data, OpenImagesDataModule) else data.train_graphs


def _triplets(data: RelationDataModule) -> NDArray[np.int64]:
    return np.concatenate([graph.triplets for graph in _counted_graphs(data)])


def _foreground_counts(data: RelationDataModule) -> Tensor:
    return predicate_counts(_triplets(data), data.num_objects, data.num_predicates)


def _background_counts(data: RelationDataModule, counted: str) -> Tensor:
    """Count the ordered node pairs of the training images by their labels.

    `overlapping` counts pairs whose boxes overlap, and all pairs of an image in which none do.
    """
    if counted not in ("all", "overlapping"):
        raise ExperimentError(f"frequency.counted_pairs={counted}: expected all or overlapping")
    labels: list[Any] = []
    for graph in _counted_graphs(data):
        pairs = all_pairs(len(graph.labels))
        if counted == "overlapping":
            touching = overlapping_pairs(torch.from_numpy(graph.boxes_xyxy))
            pairs = touching if len(touching) else pairs
        labels.append(graph.labels[pairs.numpy()])
    return pair_counts(np.concatenate(labels), data.num_objects)


def _for_proposals(run: Run, detector: FasterRCNN | None) -> FasterRCNN:
    """Return the detector that proposes training boxes.

    Raises:
        ExperimentError: There is none, because the model does not see pixels.
    """
    if detector is None:
        boxes = run.config["data"]["train_boxes"]
        raise ExperimentError(f"data.train_boxes={boxes}: a model without pixels takes data.train_boxes=ground_truth")
    return detector


def _chosen_k(run: Run, record: Config) -> int:
    """Return the k with the best held-out recall at the first N; the smallest of equals."""
    top = run.config["evaluation"]["tops"][0]
    by_k: dict[int, float] = {
        k: record["metrics"][f"relationship_k{k}/R@{top}"] for k in run.config["evaluation"]["ks"]
    }
    return max(by_k, key=lambda k: (by_k[k], -k))
