"""The typed config of every paper whose models are built: a key that is not here does not exist.

Only plain types, so that planning imports neither torch nor a data set. Keys under `HASHLESS` cannot change a result
and stay out of a run's name. A key that came later stands under `NEUTRAL` with the value that does what was done before
it came; at that value it stays out of the name too, so that earlier runs keep theirs. Where a paper or its official
code leaves something open, the key exists here and the default is the one that produced the printed numbers, or,
where that is unknown, the paper's text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

HASHLESS = frozenset({"trainer.num_workers", "trainer.accelerator", "trainer.checkpoint_seconds", "data.image_cache"})
NEUTRAL: dict[str, Any] = {
    "data.nms": 1.0,
    "data.box_source": "",
    "data.subset": "full",
    "data.world.version": 0,
    "model.trained": True,
    "evaluation.labels": "boxes",
    "evaluation.protocol": "recall",
    "evaluation.rare": [],
    "evaluation.present_only": False,
}


@dataclass
class WorldConfig:
    """The generated world that stands in for the data in the profiles `demo` and `smoke`; seed -1 means real data.

    `version` is the generator's: runs on what another version generated are other runs. `knobs` are those of
    `RelationKnobs` that are not at their defaults.
    """

    version: int = 0
    seed: int = -1
    train_images: int = 0
    test_images: int = 0
    num_objects: int = 0
    num_predicates: int = 0
    knobs: dict[str, float] = field(default_factory=dict)


@dataclass
class RelationDataConfig:
    """Which relation data a model sees, and which boxes."""

    dataset: str = "vrd"  # | vg150 | vg200 | openimages
    subset: str = "full"  # | mini: RelDN's smaller lists of Open Images
    box_source: str = ""  # files of annotations: openimages: csv2018 | csv2019 | reldn; vg150: reldn_json; else its own
    proposals: str = "faster_rcnn_imagenet"  # | faster_rcnn_coco | lu2016 | ground_truth
    train_boxes: str = "proposals"  # of the training pairs: proposals | ground_truth | ground_truth_then_proposals
    train_split: str = "all"  # | held_in: without the last 500 training images
    eval_split: str = "test"  # | held_out: the last 500 training images | special: 100 confusable ones of Open Images
    image_size: str = "images"  # | box_extent: estimated from the boxes, for use without image files
    flip: bool = False
    min_score: float = 0.0
    nms: float = 1.0  # detections that overlap a better one of their class by more are dropped; 1: none
    image_cache: str = ""  # folder for decoded and resized images; empty: decode them in every epoch
    world: WorldConfig = field(default_factory=WorldConfig)


@dataclass
class TrainerConfig:
    """Schedule and execution. With one thread sums have one order: results don't depend on the machine's cores."""

    max_epochs: int = 1
    batch_size: int = 1
    limit_train_batches: int = -1  # -1: all
    limit_test_batches: int = -1
    gradient_clip_norm: float = 0.0  # 0: none
    threads: int = 1
    num_workers: int = 0
    accelerator: str = "auto"
    checkpoint_seconds: float = 5.0  # at least; longer where saving would take over 5 % of the time


@dataclass
class OptimizerConfig:
    """An optimiser and its step schedule. `drops` are fractions of the schedule at which the rate falls tenfold."""

    name: str = "sgd"  # | adamw
    lr: float = 0.01
    backbone_lr_factor: float = 1.0  # of the predicate backbone, a copy of the detector
    momentum: float = 0.9
    weight_decay: float = 1e-4
    bias_lr_factor: float = 1.0
    bias_weight_decay: bool = True
    warmup_steps: int = 0
    warmup_factor: float = 0.333333
    drops: list[float] = field(default_factory=list)


@dataclass
class PairEvaluationConfig:
    """How pairs are scored and which recalls are reported."""

    pairs: str = "all"  # candidate pairs: all | overlapping | gt_relations
    ks: list[int] = field(default_factory=lambda: [1, 10, 70])
    free_k: str = "max"  # max over ks (official RelDN) | cross_validated (vrd_tensor)
    tops: list[int] = field(default_factory=lambda: [50, 100])
    labels: str = "boxes"  # | detector: annotated boxes with the labels that the detector gives them (SGCls)
    protocol: str = "recall"  # | openimages: RelDN's recall and average precisions
    rare: list[str] = field(default_factory=list)  # predicates that its measures with a star leave out
    present_only: bool = False  # its means are over predicates that occur
    matching: str = "greedy"  # headline rule: greedy (Lu et al.) | multi (RelDN, neural-motifs)


@dataclass
class BackboneConfig:
    """The detector's body and RoI head, which the relation model starts from, and the pixels that they take."""

    body: str = "vgg16"  # | resnext101_64x4d_fpn | small | small_fpn
    widths: list[int] = field(default_factory=list)  # channels of a small body; empty: its own
    frozen_stages: int = 2  # conv1 and conv2 of VGG16; the stem and the first stage of a ResNeXt
    head: str = "vgg16"  # | two_fc (1024 wide, for pyramids) | small
    head_dim: int = 0  # 0: the head's own
    roi_align: str = "detectron"  # | edges | half_pixel | crop: which points of the map belong to a box
    pixels: str = "detectron"  # | torchvision | unit: colour order, mean and scale
    short_side: int = 800
    long_side: int = 1333
    weights: str = ""  # file under DATA_ROOT that the body, or the whole detector, starts from; empty: random


@dataclass
class DetectorConfig:
    """Training of the detector, a run that relation models need; its proposals and detections."""

    preset: str = "vgg16"  # | fpn | motifs: sampling and selection of boxes
    anchor_sizes: list[float] = field(default_factory=list)  # sides in pixels; empty: the preset's
    max_epochs: int = 10
    batch_size: int = 8
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    bias_lr_factor: float = 2.0
    warmup_steps: int = 500
    drops: list[float] = field(default_factory=lambda: [0.666667, 0.888889])
    one_label_per_box: bool = True  # of annotated objects with equal boxes the first, as RelDN's conversion of VRD


@dataclass
class FrequencyConfig:
    """The count-only predictor: P(p|s,o) = count / (sum of counts + background pairs + 1), or without background."""

    background: bool = True
    counted_pairs: str = "all"  # training pairs without a relation: all | overlapping


@dataclass
class PrecomputedConfig:
    """Triplets that somebody else predicted and released."""

    file: str = "lu2016/relationship_det_result.mat"


@dataclass
class VTransEConfig:
    """The baseline VTransE; both papers quote its numbers and leave its settings to its own."""

    embedding_dim: int = 500
    lr: float = 1e-5  # of AdamW
    weight_decay: float = 1e-4
    scores: str = "sum"  # of the probabilities of subject, predicate and object | product


@dataclass
class TripletModelConfig:
    """CP-decomposed triplet network (Dupty et al. 2020)."""

    rank: int = 5
    visual: bool = True  # RoI-aligned features of subject, object and union box
    pool_size: int = 7  # cells on each side of a pooled box
    labels: bool = False  # learned embeddings of the subject's and object's label stand in for the visual features
    embedding_dim: int = 100
    mask_frame: str = "image"  # | union: the rectangle that the two spatial masks show
    mask_size: int = 64
    mask_channels: list[int] = field(default_factory=lambda: [96, 128])
    spatial_dim: int = 512
    hidden_dim: int = 4096
    dropout: float = 0.5
    init_std: float = 0.01  # of the last layer; equal components would stay equal


@dataclass
class TripletLossConfig:
    """Reduction of the negative log-likelihood over the pairs of a batch."""

    reduction: str = "sum"  # | mean


@dataclass
class PairSelectorConfig:
    """X_sel: is this pair annotated? Trained on the frozen triplet network's features, equal numbers of both kinds."""

    hidden_dim: int = 4096
    lr: float = 1e-4


@dataclass
class TripletScoringConfig:
    """Which factors of eq. (7) make a triplet's score."""

    selector: bool = True
    prior: bool = True
    renormalise_prior: bool = False
    labels_from: str = "joint"  # | detector: labels fixed, only the predicate slice is ranked


@dataclass
class VrdTensorConfig:
    """Visual Relationship Detection with Low-Rank Non-Negative Tensor Decomposition."""

    method: str = "vrd_tensor"
    data: RelationDataConfig = field(default_factory=RelationDataConfig)
    model: TripletModelConfig = field(default_factory=TripletModelConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    loss: TripletLossConfig = field(default_factory=TripletLossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    selector: PairSelectorConfig = field(default_factory=PairSelectorConfig)
    scoring: TripletScoringConfig = field(default_factory=TripletScoringConfig)
    frequency: FrequencyConfig = field(default_factory=FrequencyConfig)
    precomputed: PrecomputedConfig = field(default_factory=PrecomputedConfig)
    vtranse: VTransEConfig = field(default_factory=VTransEConfig)
    evaluation: PairEvaluationConfig = field(default_factory=PairEvaluationConfig)


@dataclass
class RelDNModelConfig:
    """Which modules add their logits (RelDN, Section 4)."""

    semantic: bool = True
    visual: bool = True
    spatial: bool = True
    spatial_hidden_dim: int = 64
    trained: bool = True  # False: the semantic module as it begins, the counts of the training set
    skips: bool = True  # the visual module's linear layers from the subject and the object alone
    test_box_normalisation: str = "original"  # | resized: the official test code divides by the resized image's sides


@dataclass
class PairSamplingConfig:
    """Training pairs of one image; the defaults are the official code's (the text says 512 pairs, 128 positive)."""

    pairs: str = "overlapping"
    max_pairs: int = 2048
    max_positive_pairs: int = 512
    contrastive_positive_pairs: int = 128
    contrastive_negative_pairs: int = 128
    boxes: int = 128  # annotated boxes and proposals that fit them, an image


@dataclass
class ContrastiveLossConfig:
    """Weights (0 switches a loss off), margins and reduction of the losses L1, L2, L3 beside the cross-entropy L0."""

    class_agnostic_weight: float = 1.0
    entity_class_aware_weight: float = 0.5
    predicate_class_aware_weight: float = 0.1
    margin: float = 0.2
    reduction: str = "official"  # | paper


@dataclass
class RelDNConfig:
    """Graphical Contrastive Losses for Scene Graph Parsing."""

    method: str = "reldn"
    data: RelationDataConfig = field(default_factory=RelationDataConfig)
    model: RelDNModelConfig = field(default_factory=RelDNModelConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    sampling: PairSamplingConfig = field(default_factory=PairSamplingConfig)
    loss: ContrastiveLossConfig = field(default_factory=ContrastiveLossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    frequency: FrequencyConfig = field(default_factory=FrequencyConfig)
    precomputed: PrecomputedConfig = field(default_factory=PrecomputedConfig)
    vtranse: VTransEConfig = field(default_factory=VTransEConfig)
    evaluation: PairEvaluationConfig = field(default_factory=PairEvaluationConfig)


SCHEMAS: dict[str, type] = {"vrd_tensor": VrdTensorConfig, "reldn": RelDNConfig}
