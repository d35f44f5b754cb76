"""VG150, the split of Visual Genome of Xu et al. (2017), and its test truth alone, as LightningDataModules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_modules.graph_rows import slice_graphs
from data_modules.image_loading import check_choice
from data_modules.json_files import read_name_list
from data_modules.relation_data import Flip, Images, in_frame
from data_modules.relation_module import Proposals, RelationDataModule, Split
from data_modules.reldn_files import RELDN_REMEDY, DetectionAnnotations
from data_modules.scene_graph import SceneGraph
from data_modules.vg_files import (
    BOX_SCALE,
    IMAGE_REMEDY,
    NPZ_REMEDY,
    ScenesTable,
    read_image_data,
    read_scenes,
    read_test_truth,
    read_vg150_names,
    read_zero_shot,
)

# What the public file holds: images, boxes, relations, images of either split, and those of them with relations.
OFFICIAL_COUNTS = {
    "images": 108_073,
    "boxes": 1_145_398,
    "relations": 622_705,
    "split_0": 75_651,
    "split_2": 32_422,
    "split_0_related": 62_723,
    "split_2_related": 26_446,
}


class VG150DataModule(RelationDataModule):
    """VG150 with the splits of neural-motifs: the first training images with relations are held out for validation.

    Test images, and training images unless told otherwise, are those with relations. Exact duplicates of relations are
    kept. All boxes of an image are nodes, whether they take part in a relation or not.

    RelDN's release holds the same data as JSON: boxes in pixels, images in the order of their numbers, so that other
    images are held out, and the nodes that take part in relations before the others.

    Args:
        root: Folder with `VG-SGG.h5`, `VG-SGG-dicts.json` and `image_data.json`, or with RelDN's `objects.json`,
            `predicates.json` and `{rel_annotations,detections}_{train,val}.json`; for images `VG_100K/`.
        batch_size: Images a batch.
        seed: Seed of the order of training images and of what is drawn for them.
        val_images: Held-out training images (5000 in neural-motifs; RelDN trains on all, 0).
        box_frame: Boxes and sizes in pixels of a frame whose longer side is 1024, as in neural-motifs, or of the image.
        keep_empty_train: Train on images without relations too.
        drop_apart_train: Leave out training relations between boxes that don't overlap, and images with no others, as
            neural-motifs does where boxes are detected.
        max_images: Use the first images of training and test alone; held-out ones are among them.
        one_predicate_per_pair: In training, keep a random one of several relations of one (subject, object) an epoch.
        flip: Training images: as they are, doubled by mirrored ones, or each mirrored half of the time.
        clip_train_boxes: Cut the boxes trained on at the image's borders, as neural-motifs does; scored ones never.
        images: "none" reads no image; "uint8" and the pixel scales of networks give `ImageRelationBatch`.
        image_sides: Short side of resized images in pixels, unless the long one would exceed the second number.
        num_workers: Loader processes, and threads that fill the cache.
        image_cache: Folder of the cache of decoded and resized images; None decodes the files in every epoch.
        annotations: The files of Xu et al., or those of RelDN's release, which need `box_frame="image"`.
        proposals: Boxes of held-out and test images: the annotated nodes, or detections (see `RelationDataModule`).
        proposals_file: Those detections.
        proposals_index: The annotations whose ids a COCO list of detections uses.
        min_score: Detections with a lower confidence, a fraction, are dropped.
    """

    dataset = "VG150"
    remedy = IMAGE_REMEDY

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        seed: int,
        val_images: int = 5000,
        box_frame: Literal["1024", "image"] = "1024",
        keep_empty_train: bool = False,
        drop_apart_train: bool = False,
        max_images: int | None = None,
        one_predicate_per_pair: bool = False,
        flip: Flip = "none",
        clip_train_boxes: bool = True,
        images: Images = "none",
        image_sides: tuple[int, int] | None = None,
        num_workers: int = 0,
        image_cache: str | Path | None = None,
        annotations: Literal["h5", "reldn_json"] = "h5",
        proposals: Proposals = "ground_truth",
        proposals_file: str | Path | None = None,
        proposals_index: str | Path | None = None,
        min_score: float = 0.0,
    ) -> None:
        super().__init__(
            root,
            batch_size,
            seed,
            flip,
            one_predicate_per_pair,
            images,
            image_sides,
            num_workers,
            image_cache,
            proposals,
            proposals_file,
            proposals_index,
            min_score,
        )
        check_choice("box_frame", box_frame, ("1024", "image"))
        check_choice("annotations", annotations, ("h5", "reldn_json"))
        if annotations == "reldn_json" and box_frame != "image":
            raise ValueError("annotations='reldn_json' holds boxes in pixels of the images: use box_frame='image'")
        if max_images is not None and max_images < 1:
            raise ValueError(f"max_images={max_images}: expected at least 1, or None for all")
        self.annotations, self.drop_apart_train, self.max_images = annotations, drop_apart_train, max_images
        self.val_images, self.keep_empty_train, self.clip_train = val_images, keep_empty_train, clip_train_boxes
        self.frame = BOX_SCALE if box_frame == "1024" else None
        # RelDN's code mirrors pixels counted from 0; neural-motifs' x2 = x1 + width is an edge.
        self.column_offset = -1.0 if annotations == "reldn_json" else 0.0
        self._table: ScenesTable | None = None
        self._sides: dict[str, list[SceneGraph]] = {}

    def provenance(self) -> dict[str, Any]:
        """Describe the data for a run's record, with the counts of the whole files read among `counts`."""
        record = super().provenance()
        record["counts"] |= {f"file_{name}": count for name, count in self._file_counts().items()}
        return record

    def is_official(self) -> bool:
        """Tell whether the counts of the files read are those of the public ones; no checksum of them is known."""
        counts = self._file_counts()
        if self.annotations == "reldn_json":
            counts = {name: count for name, count in counts.items() if name.endswith("_related")}
        return bool(counts) and all(OFFICIAL_COUNTS[name] == count for name, count in counts.items())

    def _read_names(self) -> tuple[list[str], list[str]]:
        if self.annotations == "h5":
            return read_vg150_names(self._file("VG-SGG-dicts.json"))
        objects, predicates = (read_name_list(self._file(f"{n}.json"), RELDN_REMEDY) for n in ("objects", "predicates"))
        return objects, predicates

    def _read(self, split: Split) -> list[SceneGraph]:
        side = [g for g in self._side("test" if split == "test" else "train") if len(g.labels)]
        related = [g for g in side if len(g.relations)][: self.max_images]
        if split == "test":
            return related
        if not 0 <= self.val_images < len(related):
            raise ValueError(f"val_images={self.val_images}: there are {len(related)} training images with relations")
        if split == "val":
            return related[: self.val_images]
        # All of them, unlike in neural-motifs: its detector trains on some images that relations are validated on.
        held_out = {g.image for g in related[: self.val_images]}
        kept = [g for g in (side[: self.max_images] if self.keep_empty_train else related) if g.image not in held_out]
        return [g for g in map(without_apart, kept) if len(g.relations)] if self.drop_apart_train else kept

    def _side(self, side: Literal["train", "test"]) -> list[SceneGraph]:
        if side not in self._sides and self.annotations == "reldn_json":
            name = "val" if side == "test" else "train"
            files = f"rel_annotations_{name}.json", f"detections_{name}.json"
            self._sides[side] = self._reldn_graphs(*files, all_boxes=True)
        elif side not in self._sides:
            sizes = read_image_data(self._file("image_data.json"))
            table = read_scenes(self._file("VG-SGG.h5"), len(sizes), self.num_objects, self.num_predicates)
            boxes, sizes_wh = table.boxes_xyxy, list(sizes.values())
            if self.frame is None:
                boxes = _in_pixels(table, sizes_wh)
            else:
                sizes_wh = [in_frame(size, self.frame) for size in sizes_wh]
            names = [f"{image}.jpg" for image in sizes]
            ranges = table.box_ranges, table.relations, table.relation_ranges
            graphs = slice_graphs(names, sizes_wh, boxes, table.labels, *ranges)
            for name, number in (("train", 0), ("test", 2)):
                self._sides[name] = [graphs[i] for i in np.flatnonzero(table.split == number)]
            self._table = table
        return self._sides[side]

    def _file_counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        if self._table is not None:
            counts |= {"images": len(self._table.split), "boxes": len(self._table.labels)}
            counts |= {"relations": len(self._table.relations)}
        for side, graphs in self._sides.items():
            number = 2 if side == "test" else 0
            counts |= {
                f"split_{number}": len(graphs),
                f"split_{number}_related": sum(len(g.relations) > 0 for g in graphs),
            }
        return counts

    def _index(self, split: Split) -> DetectionAnnotations:
        if self.annotations == "h5" or self.proposals_index is not None:
            return super()._index(split)
        return self._reldn_annotations(f"detections_{'val' if split == 'test' else 'train'}.json")

    def _image_folders(self, split: Split) -> tuple[Path, ...]:
        return self.root / "VG_100K", self.root / "VG_100K_2"


class VG150TestTruthDataModule(RelationDataModule):
    """The VG150 test truth alone, from a converted npz: what can be had without the 300 MB of annotations.

    It holds the boxes that take part in relations, in original pixels, and no training image. Experiments that need
    some may divide the test images; their results compare with nothing that is published, and provenance says so.

    Args:
        root: Folder with `vg150_test_gt.npz`, `objects.json`, `predicates.json` and `zeroshot_triplet.pytorch`.
        batch_size: Images a batch.
        seed: Seed of the order of training images and of what is drawn for them.
        train_fraction: Fraction of the test images that becomes training images, drawn with `split_seed`.
        split_seed: Seed of that draw, apart from the seed of the run.
        one_predicate_per_pair: In training, keep a random one of several relations of one (subject, object) an epoch.
        flip: Training images: as they are, doubled by mirrored ones, or each mirrored half of the time.
        images: "none" reads no image; otherwise they are sought in `VG_100K/`.
        image_sides: Short side of resized images in pixels, unless the long one would exceed the second number.
        num_workers: Loader processes, and threads that fill the cache.
        image_cache: Folder of the cache of decoded and resized images; None decodes the files in every epoch.
    """

    dataset = "VG150 test truth"
    remedy = IMAGE_REMEDY

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        seed: int,
        train_fraction: float = 0.0,
        split_seed: int = 0,
        one_predicate_per_pair: bool = False,
        flip: Flip = "none",
        images: Images = "none",
        image_sides: tuple[int, int] | None = None,
        num_workers: int = 0,
        image_cache: str | Path | None = None,
    ) -> None:
        super().__init__(
            root, batch_size, seed, flip, one_predicate_per_pair, images, image_sides, num_workers, image_cache
        )
        if not 0 <= train_fraction < 1:
            raise ValueError(f"train_fraction={train_fraction}: expected a fraction from 0 to below 1")
        self.train_fraction, self.split_seed = train_fraction, split_seed
        if train_fraction:
            self.dataset = f"VG150 test truth, {train_fraction:g} of its images drawn for training"
        self._truth: list[SceneGraph] | None = None

    @property
    def zero_shot_triplets(self) -> NDArray[np.int64]:
        """int64 `[Z, 3]`, 0-based (subject category, predicate, object category) that never occur in VG150's train."""
        return read_zero_shot(self._file("zeroshot_triplet.pytorch"), self.num_objects, self.num_predicates)

    def _read_names(self) -> tuple[list[str], list[str]]:
        objects, predicates = (read_name_list(self._file(f"{n}.json"), NPZ_REMEDY) for n in ("objects", "predicates"))
        return objects, predicates

    def _read(self, split: Split) -> list[SceneGraph]:
        if self._truth is None:
            path = self._file("vg150_test_gt.npz")
            self._truth = read_test_truth(path, self.num_objects, self.num_predicates)
        order = np.random.default_rng(self.split_seed).permutation(len(self._truth))
        drawn = round(self.train_fraction * len(order))
        chosen = {"train": order[:drawn], "val": order[:0], "test": order[drawn:]}[split]
        return [self._truth[i] for i in np.sort(chosen)]

    def is_official(self) -> bool:
        """Return False: the npz is a converted form."""
        return False

    def _image_folders(self, split: Split) -> tuple[Path, ...]:
        return self.root / "VG_100K", self.root / "VG_100K_2"


def without_apart(graph: SceneGraph) -> SceneGraph:
    """Return the graph without relations between boxes that have no pixel of their frame in common."""
    ends = graph.boxes_xyxy[graph.relations[:, ::2]]
    shared = ends[:, :, 2:].min(axis=1) - ends[:, :, :2].max(axis=1) + 1
    return replace(graph, relations=graph.relations[(shared > 0).all(axis=1)])


def _in_pixels(table: ScenesTable, sizes_wh: list[tuple[int, int]]) -> NDArray[np.float32]:
    """Return all boxes in pixels of their images: box / 1024 * max(w, h)."""
    sides = np.array(sizes_wh, dtype=np.float32).max(axis=1)
    scales = np.ones(len(table.labels), dtype=np.float32)
    for (first, end), side in zip(table.box_ranges.tolist(), sides.tolist(), strict=True):
        scales[first:end] = side / BOX_SCALE
    return table.boxes_xyxy * scales[:, None]
