"""From a run's config to its DataModule and LightningModule; the only place that knows both sides' arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_modules.synthetic.vrd import write_vrd_world
from data_modules.vrd import VRDDataModule
from data_modules.vrd_files import read_lu_predictions
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
from lit_modules.layers.reldn import RelDNNetwork
from lit_modules.layers.triplet import TripletNetwork
from lit_modules.reldn import RelDNScoring, RelDNTraining
from lit_modules.vrd_tensor import PairSelector, SelectorTraining, TripletScoring, TripletTraining

Built = tuple[VRDDataModule, pl.LightningModule]

TEST_BATCH = 16  # images; results do not depend on it


def frequency_scoring(run: Run, context: Context) -> Built:
    """Build the frequency prior."""
    data = _relation_data(run, context)
    background = _background_counts(data, run.config["frequency"]["counted_pairs"])
    probabilities = predicate_probabilities(
        _foreground_counts(data), background if run.config["frequency"]["background"] else None
    )
    return data, FrequencyPrior(probabilities, **_evaluation(run, context, data))


def precomputed_scoring(run: Run, context: Context) -> Built:
    """Build the scoring of released triplets."""
    data = _relation_data(run, context)
    predictions = read_lu_predictions(data.root / run.config["precomputed"]["file"], len(data.test_graphs))
    return data, PrecomputedTriplets(predictions, **_evaluation(run, context, data))


def triplet_training(run: Run, context: Context) -> Built:
    """Build the training of the triplet network."""
    data = _relation_data(run, context)
    loss = run.config["loss"]["reduction"]
    return data, TripletTraining(_triplet_network(run, data), loss, run.config["optimizer"])


def selector_training(run: Run, context: Context) -> Built:
    """Build the training of X_sel on the frozen triplet network."""
    data = _relation_data(run, context)
    state = _weights(context, "triplet", "network.")
    selector = run.config["selector"]
    optimizer = run.config["optimizer"] | {"lr": selector["lr"]}
    return data, SelectorTraining(_triplet_network(run, data), state, selector["hidden_dim"], optimizer)


def triplet_scoring(run: Run, context: Context) -> Built:
    """Build the ranking of triplets."""
    data = _relation_data(run, context)
    settings = run.config["scoring"]
    network = TripletNetwork(**_triplet_network(run, data))
    network.load_state_dict(_weights(context, "triplet", "network."))
    selector = None
    if settings["selector"]:
        hidden_dim = run.needs["selector"].config["selector"]["hidden_dim"]
        selector = PairSelector(network.pair_dim, hidden_dim)
        selector.load_state_dict(_weights(context, "selector", "selector."))
    log_prior = triplet_log_prior(_foreground_counts(data)) if settings["prior"] else None
    return data, TripletScoring(
        network,
        selector,
        log_prior,
        settings["renormalise_prior"],
        settings["labels_from"],
        **_evaluation(run, context, data),
    )


def reldn_training(run: Run, context: Context) -> Built:
    """Build the training of RelDN."""
    data = _relation_data(run, context)
    sampling, loss = run.config["sampling"], run.config["loss"]
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
    )


def reldn_scoring(run: Run, context: Context) -> Built:
    """Build the ranking of RelDN's triplets."""
    data = _relation_data(run, context)
    network = RelDNNetwork(**_reldn_network(run, data))
    network.load_state_dict(_weights(context, "network", "network."))
    normalisation = run.config["model"]["test_box_normalisation"]
    return data, RelDNScoring(network, normalisation, **_evaluation(run, context, data))


def _relation_data(run: Run, context: Context) -> VRDDataModule:
    settings: Config = run.config["data"]
    if settings["dataset"] != "vrd":
        raise ExperimentError(f"data.dataset={settings['dataset']}: only vrd has a DataModule so far")
    proposals = settings.get("proposals", "ground_truth")
    if proposals not in ("lu2016", "ground_truth"):
        raise ExperimentError(
            f"data.proposals={proposals}: our own detector is not built yet; use data.proposals=lu2016 or ground_truth"
        )
    if run.stage.fits and settings["train_boxes"] != "ground_truth":
        raise ExperimentError(
            f"data.train_boxes={settings['train_boxes']}: there are no proposals for training images yet; "
            "use data.train_boxes=ground_truth"
        )
    if run.config.get("model", {}).get("visual"):
        raise ExperimentError("model.visual=true: the visual branch is not built yet; use model.visual=false")
    world = settings["world"]
    if world["seed"] >= 0:
        root = context.machine.generated / f"vrd-{'-'.join(str(v) for v in world.values())}"
        write_vrd_world(root, **world, with_images=False)
    else:
        root = context.machine.data("vrd")
    trainer = run.config["trainer"]
    data = VRDDataModule(
        root,
        batch_size=trainer["batch_size"] if run.stage.fits else TEST_BATCH,
        seed=run.seed,
        proposals=proposals,
        train_split=settings["train_split"],
        eval_split=settings.get("eval_split", "test"),
        held_out_images=_held_out(world),
        flip=settings.get("flip", False),
        image_size=settings["image_size"],
        min_score=settings.get("min_score", 0.0),
    )
    data.setup()
    return data


def _held_out(world: Config) -> int:
    """Return the number of held-out training images: 500 of VRD's 4,000, an eighth of a generated world's."""
    return 500 if world["seed"] < 0 else int(world["train_images"]) // 8


def _evaluation(run: Run, context: Context, data: VRDDataModule) -> Config:
    settings = run.config["evaluation"]
    if settings.get("pairs") == "gt_relations" and data.proposals != "ground_truth":
        raise ExperimentError("evaluation.pairs=gt_relations needs annotated boxes: set data.proposals=ground_truth")
    free_k = _chosen_k(run, context.records["choice"]) if "choice" in context.records else 0
    return {
        "pairs": settings.get("pairs", "all"),
        "ks": settings["ks"],
        "tops": settings["tops"],
        "matching": settings["matching"],
        "free_k": free_k,
        "train_triplets": _triplets(data),
    }


def _triplet_network(run: Run, data: VRDDataModule) -> Config:
    model = {key: value for key, value in run.config["model"].items() if key not in ("visual", "labels")}
    if not run.config["model"]["labels"]:
        raise ExperimentError("the triplet network has no input: set model.labels=true (or, once built, model.visual)")
    return {"num_objects": data.num_objects, "num_predicates": data.num_predicates, **model}


def _reldn_network(run: Run, data: VRDDataModule) -> Config:
    model = {k: v for k, v in run.config["model"].items() if k not in ("visual", "test_box_normalisation")}
    background = _background_counts(data, "overlapping")
    return {"frequency_bias": frequency_bias(_foreground_counts(data), background), **model}


def _triplets(data: VRDDataModule) -> NDArray[np.int64]:
    return np.concatenate([graph.triplets for graph in data.train_graphs])


def _foreground_counts(data: VRDDataModule) -> Tensor:
    return predicate_counts(_triplets(data), data.num_objects, data.num_predicates)


def _background_counts(data: VRDDataModule, counted: str) -> Tensor:
    """Count the ordered node pairs of the training images by their labels.

    `overlapping` counts pairs whose boxes overlap, and all pairs of an image in which none do.
    """
    if counted not in ("all", "overlapping"):
        raise ExperimentError(f"frequency.counted_pairs={counted}: expected all or overlapping")
    labels: list[Any] = []
    for graph in data.train_graphs:
        pairs = all_pairs(len(graph.labels))
        if counted == "overlapping":
            touching = overlapping_pairs(torch.from_numpy(graph.boxes_xyxy))
            pairs = touching if len(touching) else pairs
        labels.append(graph.labels[pairs.numpy()])
    return pair_counts(np.concatenate(labels), data.num_objects)


def _weights(context: Context, need: str, prefix: str) -> dict[str, Tensor]:
    """Return the part of a needed run's weights whose names begin with `prefix`, without it.

    Raises:
        ExperimentError: The checkpoint is missing or unreadable.
    """
    path = context.checkpoints[need]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ExperimentError(
            f"{path}: not a readable checkpoint ({error}); delete its folder and try again"
        ) from error
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _chosen_k(run: Run, record: Config) -> int:
    """Return the k with the best held-out recall at the first N; the smallest of equals."""
    top = run.config["evaluation"]["tops"][0]
    by_k: dict[int, float] = {
        k: record["metrics"][f"relationship_k{k}/R@{top}"] for k in run.config["evaluation"]["ks"]
    }
    return max(by_k, key=lambda k: (by_k[k], -k))
