"""From a run's config to the baseline VTransE."""

from __future__ import annotations

from experiments.build import Built, evaluation
from experiments.build_data import relation_data
from experiments.build_detector import body_settings, head_settings, trained_detector, weights
from experiments.config import Config
from experiments.run import Context
from experiments.runs import Run
from lit_modules.layers.vtranse import VTransENetwork
from lit_modules.vtranse import VTransEScoring, VTransETraining


def vtranse_training(run: Run, context: Context) -> Built:
    """Build the training of VTransE on annotated boxes."""
    data = relation_data(run, context)
    detector = trained_detector(run, context, data) if "detector" in run.needs else None
    settings = run.config["vtranse"]
    return data, VTransETraining(
        _network(run, data.num_objects, data.num_predicates),
        {"name": "adamw", "momentum": 0.9, "lr": settings["lr"], "weight_decay": settings["weight_decay"]},
        (detector.body.state_dict(), detector.head.state_dict()) if detector else None,
    )


def vtranse_scoring(run: Run, context: Context) -> Built:
    """Build the ranking of VTransE's triplets."""
    data = relation_data(run, context)
    network = VTransENetwork(**_network(run, data.num_objects, data.num_predicates))
    network.load_state_dict(weights(context, "network", "network."))
    return data, VTransEScoring(network, run.config["vtranse"]["scores"], **evaluation(run, context, data))


def _network(run: Run, num_objects: int, num_predicates: int) -> Config:
    visual = None
    if run.config["model"]["visual"]:
        body, head = body_settings(run.config["backbone"]), head_settings(run.config["backbone"])
        visual = {"body": body.pop("name"), "head": head.pop("name"), "body_settings": body, "head_settings": head}
    dim = run.config["vtranse"]["embedding_dim"]
    return {"num_objects": num_objects, "num_predicates": num_predicates, "embedding_dim": dim, "visual": visual}
