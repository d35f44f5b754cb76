"""What share of one training step of RelDN goes into drawing pairs and into its losses."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from data_modules.scene_graph import ImageRelationBatch, RaggedImages, SceneGraph
from lit_modules import reldn
from lit_modules.reldn import RelDNTraining
from scripts.bench_measure import Measurement

TIMED = ("add_foreground", "label_pairs", "sample_pairs", "cross_entropy_per_image", "anchored_contrastive_losses")
MARK = 20.0  # under 5 % of the step
ANNOTATED, RELATIONS, NUM_OBJECTS, NUM_PREDICATES = 8, 12, 100, 70


@dataclass(frozen=True)
class StepSize:
    """One image, its boxes and the network.

    Attributes:
        name: As the table prints it.
        body: Name of the body.
        head: Name of the RoI heads.
        widths: Channels of the body; empty for its own.
        head_dim: Of the heads; 0 for their own.
        size_wh: Of the image, pixels.
        boxes: Annotated and proposed ones; each pair of them is a candidate.
        pairs: Drawn for the cross-entropy.
    """

    name: str
    body: str
    head: str
    widths: tuple[int, ...]
    head_dim: int
    size_wh: tuple[int, int]
    boxes: int = 24
    pairs: int = 512


PAPER = StepSize("VGG16, 800x1067", "vgg16", "vgg16", (), 0, (1067, 800))
NARROW = StepSize("VGG16 an eighth as wide, 800x1067", "vgg16", "vgg16", (8, 16, 32, 64, 64), 512, (1067, 800))
QUICK = StepSize("small body, 64x96", "small", "small", (4, 4, 8, 8), 8, (96, 64), boxes=10, pairs=64)


class GivenProposals:
    """Stands in for the detector's RPN, whose time would only make the share smaller."""

    def __init__(self, boxes_xyxy: Tensor):
        self.boxes_xyxy = boxes_xyxy

    def propose(self, *arguments: object) -> list[Tensor]:
        """Return the same boxes for the only image."""
        return [self.boxes_xyxy]


@dataclass
class Clock:
    """Seconds spent in some functions: processor time, or on a GPU time on the clock until its work is done."""

    device: torch.device
    spent: dict[str, float] = field(default_factory=dict)

    def now(self) -> float:
        """Return the time."""
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add the time of the block."""
        start = self.now()
        yield
        self.spent[name] = self.spent.get(name, 0.0) + self.now() - start

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time added at each call."""

        def wrapped(*arguments: Any, **options: Any) -> Any:
            with self.timing(name):
                return function(*arguments, **options)

        return wrapped


def step_batch(size: StepSize, seed: int = 0) -> tuple[ImageRelationBatch, Tensor]:
    """Return an image of noise with annotated boxes that all overlap, and many proposals `[n, 4]` that fit them."""
    draw = np.random.default_rng(seed)
    width, height = size.size_wh
    middle, extent = np.array([width, height, width, height]) / 2, np.array([-width, -height, width, height])
    own = (middle + extent * draw.uniform(0.1, 0.45, (ANNOTATED, 4))).astype(np.float32)
    proposals = np.repeat(own, 12, axis=0) + draw.uniform(-0.01, 0.01, (12 * ANNOTATED, 4)) * np.abs(extent)
    pairs = draw.permutation(np.argwhere(~np.eye(ANNOTATED, dtype=bool)))[:RELATIONS]
    relations = np.insert(pairs, 1, draw.integers(0, NUM_PREDICATES, RELATIONS), axis=1)
    labels = draw.integers(0, NUM_OBJECTS, ANNOTATED)
    image = torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))
    batch = ImageRelationBatch(
        boxes_xyxy=torch.from_numpy(own),
        labels=torch.from_numpy(labels),
        scores=torch.ones(ANNOTATED, dtype=torch.float64),
        image_index=torch.zeros(ANNOTATED, dtype=torch.int64),
        sizes_wh=torch.tensor([size.size_wh], dtype=torch.float32),
        relations=torch.from_numpy(relations),
        graphs=(SceneGraph("noise.jpg", size.size_wh, own, labels, relations),),
        images=RaggedImages.of([image]),
    )
    return batch, torch.from_numpy(proposals.astype(np.float32))


def step_module(size: StepSize) -> RelDNTraining:
    """Return RelDN with all of its modules and losses, with random weights."""
    body: dict[str, Any] = {"frozen_stages": 2 if size.body == "vgg16" else 0}
    if size.widths:
        body["channels" if size.body == "vgg16" else "widths"] = size.widths
    visual = {"body": size.body, "body_settings": body, "head": size.head}
    visual["head_settings"] = {"hidden_dim": size.head_dim} if size.head_dim else {}
    network = {"semantic": True, "spatial": True, "spatial_hidden_dim": 64, "visual": visual}
    bias = torch.zeros(NUM_OBJECTS, NUM_OBJECTS, NUM_PREDICATES + 1)
    torch.manual_seed(0)
    return RelDNTraining(
        {"frequency_bias": bias, **network},
        candidates="overlapping",
        max_pairs=size.pairs,
        max_positive_pairs=size.pairs,
        contrastive_positive_pairs=128,
        contrastive_negative_pairs=128,
        weights=(1.0, 0.5, 0.1),
        margin=0.2,
        reduction="official",
        optimizer={},
        max_boxes=size.boxes,
    ).train()


def one_step(module: RelDNTraining, batch: ImageRelationBatch, optimizer: torch.optim.Optimizer, clock: Clock) -> None:
    """Train once, with the time of each part in `clock.spent`.

    That of the losses' gradients ends where the gradient of the logits is complete.
    """
    begun: list[float] = []

    def watched(logits: Tensor) -> Tensor:
        def arrived(gradient: Tensor) -> None:
            clock.spent["gradient of the losses"] = clock.now() - begun[0]

        logits.register_hook(arrived)
        return logits

    forward = module.network.forward
    with ExitStack() as patches:
        for name in TIMED:
            patches.enter_context(patch.object(reldn, name, clock.timed(name, getattr(reldn, name))))
        patches.enter_context(patch.object(module.network, "forward", lambda *given: watched(forward(*given))))
        patches.enter_context(patch.object(module, "log"))  # there is no trainer
        with clock.timing("step"):
            optimizer.zero_grad()
            loss = module.training_step(batch, 0)["loss"]
            begun.append(clock.now())
            loss.backward()
            optimizer.step()


def measure_step(sizes: Sequence[StepSize], repeats: int, device: torch.device) -> list[Measurement]:
    """Measure the time in pair sampling and losses, forward and backward, with the whole step as the reference."""
    measurements = []
    for size in sizes:
        batch, proposals = step_batch(size)
        module = step_module(size).to(device)
        module._proposer = GivenProposals(proposals.to(device))  # type: ignore[assignment]
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-4, momentum=0.9)
        clocks = [Clock(device) for _ in range(repeats + 1)]
        for clock in clocks:
            one_step(module, batch.to(device), optimizer, clock)
        steps = [1000 * clock.spent.pop("step") for clock in clocks[1:]]  # the first warms up
        parts = [1000 * sum(clock.spent.values()) for clock in clocks[1:]]
        name = f"RelDN step, {size.name}, {size.pairs} pairs: sampling and losses"
        note = f"the whole step on the {'GPU' if device.type == 'cuda' else 'CPU'}"
        cost = statistics.median(parts), statistics.median(steps)
        measurements.append(Measurement(name, "ms", *cost, note, mark=MARK))
    return measurements
