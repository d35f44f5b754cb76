"""The Visual Relationship Detection data set of Lu et al. (ECCV 2016) as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl

from data_modules.errors import DataError
from data_modules.image_loading import check_choice, describe_file
from data_modules.json_files import read_name_list
from data_modules.relation_data import ImageReader, Images
from data_modules.relation_module import RelationDataModule, Split
from data_modules.reldn_files import RELDN_REMEDY, DetectionAnnotations, read_vrd_file_names
from data_modules.scene_graph import Detections, SceneGraph
from data_modules.vrd_files import (
    IMAGE_REMEDY,
    estimate_size,
    find_image,
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
# Images and relations of either side, images without relations included: RelDN's conversion keeps them all.
OFFICIAL_COUNTS = {"train": (4000, 30_355), "test": (1000, 7638)}
_LISTS = ("objects", "predicates")
_RELDN_SIDES = {"train": "train", "test": "val"}  # RelDN's tools call the test images val


@dataclass(frozen=True)
class VRDImageReader(ImageReader):
    """An image reader that knows under which other names annotated images may lie in their folder.

    Attributes:
        file_names: File names by annotated names; None seeks the annotated name, and its stem with another suffix.
    """

    file_names: Mapping[str, str] | None = None

    def _path(self, name: str) -> Path:
        return find_image(self.folders[0], name if self.file_names is None else self.file_names[name])


class VRDDataModule(RelationDataModule):
    """VRD, read from the release's own files or from what RelDN's tools make of them.

    Training batches hold the annotated nodes (score 1) and their relations. Test batches hold the boxes to be scored,
    and the annotated graphs for the metrics; all images are kept, in the order of `imagePath.mat` if that is there.

    Args:
        root: Folder with `json_dataset/`, and where needed `lu2016/` and `sg_dataset/sg_{train,test}_images/`; or with
            RelDN's `objects.json`, `predicates.json`, `{train,val}_fname_mapping.json`,
            `{new_annotations,detections}_{train,val}.json`, and where needed `{train,val}_images/`.
        batch_size: Images a batch.
        seed: Seed of the order of training images.
        proposals: Boxes scored at test time: the detections that Lu et al. released, the annotated nodes, or those of
            `proposals_file`.
        train_split: All training images, or all but the last `held_out_images`.
        eval_split: Images scored at test time: the test images, or the last `held_out_images` training images.
        held_out_images: Size of the held-out part, counted in the order of the JSON (RelDN's: of the file names),
            images without relations included.
        keep_empty_train: Train on images without relations too.
        flip: Double the training images by mirrored ones.
        image_size: Where widths and heights come from: the image files' headers, or `estimate_size` from the boxes
            that the model gets (never from annotations that it doesn't get). RelDN's JSON states them.
        min_score: Detections with a lower confidence, a fraction, are dropped.
        num_workers: Loader processes, and threads that fill the cache.
        annotations: The release's JSON, or that of RelDN's tools. Images have the release's names in either case.
        images: "none" reads no image; "uint8" and the pixel scales of networks give `ImageRelationBatch`.
        image_sides: Short side of resized images in pixels, unless the long one would exceed the second number.
        image_cache: Folder of the cache of decoded and resized images; None decodes the files in every epoch.
        proposals_file: Detections, see `RelationDataModule`.
        proposals_index: The annotations whose ids a COCO list of detections uses; None takes RelDN's if those are read.

    Attributes:
        start_step: Training batches done before, over all epochs; None asks the attached trainer, which knows it from
            its checkpoint.

    Raises:
        ValueError: Held-out images are to be scored on detections that exist for the test images alone, or while they
            are trained on, or pixels are wanted of images whose sizes are estimated.
    """

    dataset = "VRD"
    remedy = IMAGE_REMEDY
    column_offset = 1.0
    all_proposals = ("lu2016", "ground_truth", "file")
    # There is none, and Lightning warns of a loader that a model has no use for.
    val_dataloader = pl.LightningDataModule.val_dataloader

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        seed: int,
        proposals: Literal["lu2016", "ground_truth", "file"] = "ground_truth",
        train_split: Literal["all", "held_in"] = "all",
        eval_split: Literal["test", "held_out"] = "test",
        held_out_images: int = 500,
        keep_empty_train: bool = False,
        flip: bool = False,
        image_size: Literal["images", "box_extent"] = "images",
        min_score: float = 0.0,
        num_workers: int = 0,
        annotations: Literal["release", "reldn_json"] = "release",
        images: Images = "none",
        image_sides: tuple[int, int] | None = None,
        image_cache: str | Path | None = None,
        proposals_file: str | Path | None = None,
        proposals_index: str | Path | None = None,
    ) -> None:
        super().__init__(
            root,
            batch_size,
            seed,
            "double" if flip else "none",
            False,
            images,
            image_sides,
            num_workers,
            image_cache,
            proposals,
            proposals_file,
            proposals_index,
            min_score,
        )
        check_choice("train_split", train_split, ("all", "held_in"))
        check_choice("eval_split", eval_split, ("test", "held_out"))
        check_choice("image_size", image_size, ("images", "box_extent"))
        check_choice("annotations", annotations, ("release", "reldn_json"))
        if eval_split == "held_out" and proposals == "lu2016":
            raise ValueError(f"proposals={proposals!r} exist for the test images only; score held-out ground_truth")
        if eval_split == "held_out" and train_split != "held_in":
            raise ValueError("eval_split='held_out' would score images that are trained on: use train_split='held_in'")
        if image_size == "box_extent" and (images != "none" or annotations == "reldn_json"):
            raise ValueError("image_size='box_extent' is for use without images: their sizes are known, use 'images'")
        self.train_split, self.eval_split, self.annotations = train_split, eval_split, annotations
        self.held_out_images, self.keep_empty_train, self.image_size = held_out_images, keep_empty_train, image_size
        self._sides: dict[str, list[SceneGraph]] = {}

    def provenance(self) -> dict[str, Any]:
        """Describe the data for a run's record: every file read with its checksum, and what was in it.

        Returns:
            What `RelationDataModule.provenance` says, and beside it, under the names of earlier records, the number of
            images and relations on either side, and where image sizes come from.
        """
        self.setup()
        record = super().provenance()
        names = [f"{side}_{counted}" for side in ("train", "test") for counted in ("images", "relations")]
        return record | {name: record["counts"][name] for name in names} | {"image_size": self.image_size}

    def is_official(self) -> bool:
        """Tell whether all files are the release's own, or, of RelDN's conversion, whether the counts are."""
        if self.annotations == "reldn_json":
            counts = {
                side: (len(graphs), sum(len(g.relations) for g in graphs)) for side, graphs in self._sides.items()
            }
            return bool(counts) and all(OFFICIAL_COUNTS[side] == count for side, count in counts.items())
        files = [describe_file(name, path) for name, path in self._files.items()]
        return bool(files) and all(OFFICIAL_SHA256[f["name"]] == f["sha256"] for f in files)

    def _read_names(self) -> tuple[list[str], list[str]]:
        if self.annotations == "reldn_json":
            objects, predicates = (read_name_list(self._file(f"{n}.json"), RELDN_REMEDY) for n in _LISTS)
        else:
            objects, predicates = (read_names(self._file(f"json_dataset/{n}.json")) for n in _LISTS)
        return objects, predicates

    def _read(self, split: Split) -> list[SceneGraph]:
        if split == "val":
            return []
        if split == "test" and self.eval_split == "test":
            return self._side("test")
        whole = self._side("train")
        kept = len(whole)
        if self.train_split == "held_in":
            kept -= self.held_out_images
            if not 0 < kept < len(whole):
                raise ValueError(f"held_out_images={self.held_out_images}: there are {len(whole)} training images")
        if split == "test":
            return whole[kept:]
        return [g for g in whole[:kept] if self.keep_empty_train or len(g.relations)]

    def _side(self, side: Literal["train", "test"]) -> list[SceneGraph]:
        if side not in self._sides:
            graphs = self._converted(side) if self.annotations == "reldn_json" else self._released(side)
            order_name = "lu2016/imagePath.mat"
            if side == "test" and (self.proposals == "lu2016" or (self.root / order_name).exists()):
                order = read_image_order(self._file(order_name))
                if len(order) != len(graphs) or set(order) != set(graphs):
                    unknown = sorted(set(order) ^ set(graphs))[:3]
                    source = "new_annotations_val" if self.annotations == "reldn_json" else "annotations_test"
                    found = f"names {len(order)} images, {source}.json holds {len(graphs)}"
                    raise DataError(
                        f"{self.root / order_name}: {found}; in only one of them: {unknown}; take one release"
                    )
                graphs = {image: graphs[image] for image in order}
            self._sides[side] = list(graphs.values())
        return self._sides[side]

    def _released(self, side: str) -> dict[str, SceneGraph]:
        path = self._file(f"json_dataset/annotations_{side}.json")
        graphs = read_annotations(path, self.num_objects, self.num_predicates)
        if self.image_size == "box_extent":
            return graphs
        folder = self._folder(side)
        return {name: with_image_size(g, image_size(folder, name), path) for name, g in graphs.items()}

    def _converted(self, side: str) -> dict[str, SceneGraph]:
        relations, detections = (f"{name}_{_RELDN_SIDES[side]}.json" for name in ("new_annotations", "detections"))
        graphs = self._reldn_graphs(relations, detections, all_boxes=False)
        path = self._file(f"{_RELDN_SIDES[side]}_fname_mapping.json")
        names = read_vrd_file_names(path)
        unknown = next((g.image for g in graphs if g.image not in names), None)
        if unknown is not None:
            raise DataError(f"{path}: names no image that became {unknown!r}; {RELDN_REMEDY}")
        return {names[g.image]: replace(g, image=names[g.image]) for g in graphs}

    def _read_detections(self, split: Split) -> list[Detections]:
        if self.proposals == "file":
            return super()._read_detections(split)
        path, graphs = self._file("lu2016/objectDetRCNN.mat"), self._split(split)
        result = []
        for graph, found in zip(graphs, read_lu_detections(path, self.num_objects, len(graphs)), strict=True):
            kept = found.scores >= self.min_score
            boxes = Detections(found.boxes_xyxy[kept], found.labels[kept], found.scores[kept])
            if graph.size_wh and (boxes.boxes_xyxy[:, 2:] > graph.size_wh).any():
                raise DataError(f"{path}: image {graph.image!r}: a box reaches outside the image of {graph.size_wh}")
            result.append(boxes)
        return result

    def _index(self, split: Split) -> DetectionAnnotations:
        if self.annotations == "release" or self.proposals_index is not None:
            return super()._index(split)
        return self._reldn_annotations(f"detections_{_RELDN_SIDES[self._side_of(split)]}.json")

    def _index_names(self, split: Split) -> dict[str, str]:
        path = self.root / f"{_RELDN_SIDES[self._side_of(split)]}_fname_mapping.json"
        return read_vrd_file_names(path) if path.exists() else {}

    def _sizes(self, split: Split) -> list[tuple[float, float]]:
        graphs, detections = self._split(split), self._boxes(split)
        boxes = [found.boxes_xyxy for found in (graphs if detections is None else detections)]
        return [g.size_wh or estimate_size(g.image, b) for g, b in zip(graphs, boxes, strict=True)]

    def _side_of(self, split: Split) -> str:
        return "test" if split == "test" and self.eval_split == "test" else "train"

    def _folder(self, side: str) -> Path:
        if self.annotations == "reldn_json":
            return self.root / f"{_RELDN_SIDES[side]}_images"
        return self.root / "sg_dataset" / f"sg_{side}_images"

    def _image_folders(self, split: Split) -> tuple[Path, ...]:
        return (self._folder(self._side_of(split)),)

    def _reader(self, split: Split) -> ImageReader:
        names = None
        if self.annotations == "reldn_json":
            names = {annotated: file for file, annotated in self._index_names(split).items()}
        return VRDImageReader(
            self._image_folders(split), self.images, self.image_sides, None, self.remedy, file_names=names
        )
