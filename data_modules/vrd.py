"""The Visual Relationship Detection data set of Lu et al. (ECCV 2016) as a LightningDataModule."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from data_modules.collation import RelationExample, collate
from data_modules.errors import DataError
from data_modules.sampling import ResumableBatchSampler, steps_done
from data_modules.scene_graph import Detections, RelationBatch, SceneGraph
from data_modules.vrd_files import (
    estimate_size,
    image_size,
    read_annotations,
    read_image_order,
    read_lu_detections,
    read_names,
    with_image_size,
)

# SHA-256, observed on the official release.
OFFICIAL_SHA256 = {
    "json_dataset/annotations_test.json": "f3dc50010f4d3149ccc79a568c89ad46a617c9cb2c7f773d7ac0aed163eaf9c9",
    "json_dataset/annotations_train.json": "2e7404157ffc2022fb7230baf2ffd453d5a4dc5875cd5adbc688002a7d401d6c",
    "json_dataset/objects.json": "1c57d1730f9991ec8e11ee6dd42e05cb1497ced2126bb93feda91dd4fe627ef3",
    "json_dataset/predicates.json": "b16fc9f3ec075d0deb72cbaf251fdb39b9bc200624b8e51122f1c6e1b886287a",
    "lu2016/imagePath.mat": "d5de7298a960ee845b2108de1566f88469b50354ba793223c8408c93fc77b045",
    "lu2016/objectDetRCNN.mat": "3921a86d7ed55cbdc039f976f6f32c5140fc8e00c0e79dc2852d0c2bd8df6904",
}


class VRDDataModule(pl.LightningDataModule):
    """VRD, read from the release's own files.

    Training batches hold the annotated nodes (score 1) and their relations. Test batches hold the boxes to be scored,
    and the annotated graphs for the metrics; all images are kept, in the order of `imagePath.mat` if that is there.

    Args:
        root: Folder with `json_dataset/`, and where needed `lu2016/` and `sg_dataset/sg_{train,test}_images/`.
        batch_size: Images a batch.
        seed: Seed of the order of training images.
        proposals: Boxes scored at test time: the detections that Lu et al. released, or the annotated nodes.
        train_split: All training images, or all but the last `held_out_images`.
        eval_split: Images scored at test time: the test images, or the last `held_out_images` training images.
        held_out_images: Size of the held-out part, counted in the order of the JSON, images without relations included.
        keep_empty_train: Train on images without relations too.
        flip: Double the training images by mirrored ones.
        image_size: Where widths and heights come from: the image files' headers, or `estimate_size` from the boxes
            that the model gets (never from annotations that it doesn't get).
        min_score: Detections with a lower confidence, a fraction, are dropped.
        num_workers: Loader processes.

    Attributes:
        start_step: Training batches done before, over all epochs; None asks the attached trainer, which knows it from
            its checkpoint.

    Raises:
        ValueError: Held-out images are to be scored on detections that exist for the test images alone, or while they
            are trained on.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        seed: int,
        proposals: Literal["lu2016", "ground_truth"] = "ground_truth",
        train_split: Literal["all", "held_in"] = "all",
        eval_split: Literal["test", "held_out"] = "test",
        held_out_images: int = 500,
        keep_empty_train: bool = False,
        flip: bool = False,
        image_size: Literal["images", "box_extent"] = "images",
        min_score: float = 0.0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("proposals", proposals, ("lu2016", "ground_truth")),
            ("train_split", train_split, ("all", "held_in")),
            ("eval_split", eval_split, ("test", "held_out")),
            ("image_size", image_size, ("images", "box_extent")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: expected one of {allowed}")
        if eval_split == "held_out" and proposals != "ground_truth":
            raise ValueError(f"proposals={proposals!r} exist for the test images only; score held-out ground_truth")
        if eval_split == "held_out" and train_split != "held_in":
            raise ValueError("eval_split='held_out' would score images that are trained on: use train_split='held_in'")
        self.root = Path(root)
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.proposals, self.train_split, self.eval_split = proposals, train_split, eval_split
        self.held_out_images, self.keep_empty_train, self.flip = held_out_images, keep_empty_train, flip
        self.image_size, self.min_score = image_size, min_score
        self.start_step: int | None = None
        self._files: dict[str, Path] = {}
        self._is_set_up = False
        self._train: list[RelationExample] = []
        self._test: list[RelationExample] = []

    def setup(self, stage: str | None = None) -> None:
        """Read all files, whatever the stage; a second call does nothing.

        Raises:
            DataError: A file is missing, damaged or doesn't fit the others.
        """
        if self._is_set_up:
            return
        self._object_names = read_names(self._file("json_dataset/objects.json"))
        self._predicate_names = read_names(self._file("json_dataset/predicates.json"))
        train = self._annotations("train")
        kept = len(train)
        if self.train_split == "held_in":
            kept -= self.held_out_images
            if not 0 < kept < len(train):
                raise ValueError(f"held_out_images={self.held_out_images}: there are {len(train)} training images")
        self._train = [self._annotated(g) for g in train[:kept] if self.keep_empty_train or len(g.relations)]
        scored = train[kept:] if self.eval_split == "held_out" else self._annotations("test")
        self._test = self._detected(scored) if self.proposals == "lu2016" else [self._annotated(g) for g in scored]
        self._is_set_up = True

    @property
    def object_names(self) -> list[str]:
        """Names of the object categories; a name's position is its label."""
        self.setup()
        return self._object_names

    @property
    def predicate_names(self) -> list[str]:
        """Names of the predicates; a name's position is its label."""
        self.setup()
        return self._predicate_names

    @property
    def num_objects(self) -> int:
        """Number of object categories (100 in the release)."""
        return len(self.object_names)

    @property
    def num_predicates(self) -> int:
        """Number of predicates (70 in the release)."""
        return len(self.predicate_names)

    @property
    def train_graphs(self) -> list[SceneGraph]:
        """The graphs trained on, without mirrored ones."""
        self.setup()
        return [e.graph for e in self._train]

    @property
    def test_graphs(self) -> list[SceneGraph]:
        """The graphs that are scored."""
        self.setup()
        return [e.graph for e in self._test]

    @property
    def detections(self) -> list[Detections]:
        """The boxes that are scored, one record for each of `test_graphs`; annotated nodes have score 1."""
        self.setup()
        return [e.boxes for e in self._test]

    def train_dataloader(self) -> DataLoader[RelationBatch]:
        """Shuffled training batches from `start_step` on."""
        self.setup()
        examples = self._train + [e.flipped() for e in self._train if self.flip]
        trainer = self.trainer
        start_step = steps_done(trainer) if self.start_step is None else self.start_step
        sampler = ResumableBatchSampler(
            len(examples),
            self.batch_size,
            self.seed,
            start_step=start_step,
            limit=trainer.limit_train_batches if trainer else 1.0,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        if start_step:  # Lightning can't know that this loader goes on where the checkpoint ended
            warnings.filterwarnings("ignore", ".*your dataloader is not resumable")
        return self._loader(examples, batch_sampler=sampler)

    def test_dataloader(self) -> DataLoader[RelationBatch]:
        """Batches of the scored images in their order, all of them in every process."""
        self.setup()
        return self._loader(self._test, batch_size=self.batch_size)

    def provenance(self) -> dict[str, Any]:
        """Describe the data for a run's record: every file read with its checksum, and what was in it.

        Returns:
            `files` (name, bytes and sha256 of each), `official` (whether all of them are the release's own),
            and the number of images and relations on either side.
        """
        self.setup()
        files = []
        for name, path in self._files.items():
            content = path.read_bytes()
            files.append({"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
        return {
            "dataset": "VRD",
            "files": files,
            "official": all(OFFICIAL_SHA256[str(f["name"])] == f["sha256"] for f in files),
            "train_images": len(self.train_graphs),
            "train_relations": sum(len(g.relations) for g in self.train_graphs),
            "test_images": len(self._test),
            "test_relations": sum(len(g.relations) for g in self.test_graphs),
            "image_size": self.image_size,
        }

    def _file(self, name: str) -> Path:
        self._files[name] = self.root / name
        return self._files[name]

    def _annotations(self, split: str) -> list[SceneGraph]:
        path = self._file(f"json_dataset/annotations_{split}.json")
        graphs = read_annotations(path, len(self._object_names), len(self._predicate_names))
        order_name = "lu2016/imagePath.mat"
        if split == "test" and (self.proposals == "lu2016" or (self.root / order_name).exists()):
            order = read_image_order(self._file(order_name))
            if len(order) != len(graphs) or set(order) != set(graphs):
                unknown = sorted(set(order) ^ set(graphs))[:3]
                found = f"names {len(order)} images, {path} holds {len(graphs)}"
                raise DataError(f"{self.root / order_name}: {found}; in only one of them: {unknown}; take one release")
            graphs = {image: graphs[image] for image in order}
        if self.image_size == "box_extent":
            return list(graphs.values())
        folder = self.root / "sg_dataset" / f"sg_{split}_images"
        return [with_image_size(g, image_size(folder, g.image), path) for g in graphs.values()]

    def _annotated(self, graph: SceneGraph) -> RelationExample:
        nodes = Detections(graph.boxes_xyxy, graph.labels, np.ones(len(graph.labels)))
        size = graph.size_wh or estimate_size(graph.image, nodes.boxes_xyxy)
        return RelationExample(graph, nodes, size, graph.relations)

    def _detected(self, graphs: list[SceneGraph]) -> list[RelationExample]:
        path = self._file("lu2016/objectDetRCNN.mat")
        detections = read_lu_detections(path, len(self._object_names), len(graphs))
        examples = []
        for graph, found in zip(graphs, detections, strict=True):
            kept = found.scores >= self.min_score
            boxes = Detections(found.boxes_xyxy[kept], found.labels[kept], found.scores[kept])
            if graph.size_wh and (boxes.boxes_xyxy[:, 2:] > np.array(graph.size_wh)).any():
                raise DataError(f"{path}: image {graph.image!r}: a box reaches outside the image of {graph.size_wh}")
            size = graph.size_wh or estimate_size(graph.image, boxes.boxes_xyxy)
            examples.append(RelationExample(graph, boxes, size, np.zeros((0, 3), dtype=np.int64)))
        return examples

    def _loader(self, examples: list[RelationExample], **order: Any) -> DataLoader[RelationBatch]:
        # Its own generator, so that making an iterator doesn't advance the global random state.
        generator = torch.Generator().manual_seed(self.seed)
        workers = {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}
        return DataLoader(examples, collate_fn=collate, generator=generator, **workers, **order)  # type: ignore[arg-type]
