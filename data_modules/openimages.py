"""Open Images VRD as a LightningDataModule, from the challenge's CSV files or RelDN's JSON files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_modules.errors import DataError
from data_modules.graph_rows import graphs_from_rows
from data_modules.image_loading import check_choice, describe_file, header_size
from data_modules.json_files import read_name_list
from data_modules.openimages_draws import CONFUSABLE_IMAGES, CONFUSABLE_PREDICATES, draw_confusable, draw_images
from data_modules.openimages_files import (
    ATTRIBUTE,
    CSV_REMEDY,
    RelationshipRows,
    read_descriptions,
    read_image_list,
    read_relationships,
)
from data_modules.relation_data import Flip, Images
from data_modules.relation_module import Proposals, RelationDataModule, Split
from data_modules.reldn_files import RELDN_REMEDY, DetectionAnnotations
from data_modules.scene_graph import SceneGraph

IMAGE_REMEDY = "fetch the images of Open Images into train/ and validation/ (those of RelDN's files all into train/)"
NOMINAL_SIDE = 1024  # of the square that boxes are spread over where image sizes are unknown
# SHA-256, observed on the official files; that of the training files isn't known.
OFFICIAL_SHA256 = {
    "challenge-2019-attributes-description.csv": "23a6d9f88d86cbbb51f280c9df25494da58ccee8007b16a4474876561c126209",
    "challenge-2019-classes-vrd.csv": "591825ccdb2b2d7b4e822a742078d1c175d366da25ea01e846ad3c1764a1d09a",
    "challenge-2019-relationships-description.csv": "7650a4599c0bfb4aa9cef192b0a9f2e2d3b71ad6f38fe488e2c50eaed13d2cdb",
    "challenge-2019-validation-vrd.csv": "60f93bca189b839f644e185e1b204e53940043dea47211c1b43e9ab989eed12a",
}
# Images of RelDN's own training and validation lists, as the paper says.
RELDN_IMAGES = {"full": {"train": 53_953, "test": 3_234}, "mini": {"train": 4_500, "test": 1_000}}


@dataclass(frozen=True, slots=True)
class BoxAttributes:
    """The "is" rows of a split: what single boxes look like.

    Attributes:
        images: The image file of each of A rows.
        boxes_xyxy: float32 `[A, 4]`, pixels of the same frame as the graphs' boxes.
        labels: int64 `[A]`, 0-based object categories.
        attributes: int64 `[A]`, 0-based, positions in `attribute_names`.
    """

    images: tuple[str, ...]
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    attributes: NDArray[np.int64]


class OpenImagesDataModule(RelationDataModule):
    """Relations between objects in Open Images; images that have none are left out, and "is" rows are kept apart.

    Args:
        root: Folder with the CSV files, or with RelDN's JSON files in `rel/`; for images `train/` and `validation/`.
        batch_size: Images a batch.
        seed: Seed of the order of training images and of what is drawn for them.
        source: "csv2019" scores `challenge-2019-validation-vrd.csv`, "csv2018" the images of
            `challenge-2018-train-vrd.csv` that `challenge-2018-image-ids-valset-vrd.csv` lists, "reldn"
            `rel_only_annotations_val.json`.
        subset: All images, or RelDN's "mini": its own lists from "reldn", otherwise a new draw.
        scored: All of the scored images, or up to 100 "confusable" ones (see `draw_confusable`), in place of the 100
            that RelDN's authors picked by hand and never named.
        mini_images: Training and scored images in such a draw.
        split_seed: Seed of that draw, apart from the seed of the run.
        image_size: Where widths and heights come from with CSV files: the image files' headers, or "nominal", a square
            over which the boxes are spread (overlaps stay what they are, but for the "+1" of widths).
        all_boxes: From "reldn", let all annotated boxes be nodes, not only those that take part in relations.
        one_predicate_per_pair: In training, keep a random one of several relations of one (subject, object) an epoch.
        flip: Training images: as they are, doubled by mirrored ones, or each mirrored half of the time.
        images: "none" reads no image; "uint8" and the pixel scales of networks give `ImageRelationBatch`.
        image_sides: Short side of resized images in pixels, unless the long one would exceed the second number.
        num_workers: Loader processes, and threads that fill the cache.
        image_cache: Folder of the cache of decoded and resized images; None decodes the files in every epoch.
        proposals: Boxes of scored images: the annotated nodes, or detections (see `RelationDataModule`).
        proposals_file: Those detections.
        proposals_index: The annotations whose ids a COCO list of detections uses; None takes RelDN's
            `rel/detections_val.json` from "reldn".
        min_score: Detections with a lower confidence, a fraction, are dropped.
    """

    remedy = IMAGE_REMEDY

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        seed: int,
        source: Literal["csv2019", "csv2018", "reldn"] = "csv2019",
        subset: Literal["full", "mini"] = "full",
        scored: Literal["all", "confusable"] = "all",
        mini_images: tuple[int, int] = (4500, 1000),
        split_seed: int = 0,
        image_size: Literal["images", "nominal"] = "images",
        all_boxes: bool = False,
        one_predicate_per_pair: bool = False,
        flip: Flip = "none",
        images: Images = "none",
        image_sides: tuple[int, int] | None = None,
        num_workers: int = 0,
        image_cache: str | Path | None = None,
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
        check_choice("source", source, ("csv2019", "csv2018", "reldn"))
        check_choice("subset", subset, ("full", "mini"))
        check_choice("scored", scored, ("all", "confusable"))
        check_choice("image_size", image_size, ("images", "nominal"))
        if all_boxes and source != "reldn":
            raise ValueError("all_boxes=True: the relationships CSV files hold related boxes only; use source='reldn'")
        self.source, self.subset, self.image_size, self.all_boxes = source, subset, image_size, all_boxes
        self.mini_images, self.split_seed, self.scored = mini_images, split_seed, scored
        self.year = "2018" if source == "csv2018" else "2019"
        drawn = subset == "mini" and source != "reldn"
        self.dataset = f"Open Images VRD ({source}{', re-sampled mini' if drawn else ', mini' * (subset == 'mini')})"
        # RelDN's code mirrors pixels counted from 0; fractions are those of edges.
        self.column_offset = -1.0 if source == "reldn" else 0.0
        self.frame = 0 if image_size == "nominal" and source != "reldn" else None
        self._full: dict[str, list[SceneGraph]] = {}
        self._attributes: dict[str, BoxAttributes] = {}
        self._rows: dict[str, RelationshipRows] = {}

    @property
    def full_train_graphs(self) -> list[SceneGraph]:
        """All training graphs, also for the "mini" subset: RelDN counts its frequencies on these."""
        return self._all("train")

    @property
    def attribute_names(self) -> list[str]:
        """Names of the attributes; a name's position is its label. Only the CSV files have attributes."""
        return list(self._description("attributes-description").values())

    @property
    def train_attributes(self) -> BoxAttributes:
        """The "is" rows of the training images, not thinned out for "mini"."""
        self._all("train")
        return self._attributes["train"]

    @property
    def test_attributes(self) -> BoxAttributes:
        """The "is" rows of the scored images, likewise."""
        self._all("test")
        return self._attributes["test"]

    def is_official(self) -> bool:
        """Tell whether the files are the published ones, by checksums, RelDN's lists by their numbers of images.

        False where no checksum is known (the training CSV files), and for a "mini" that is a new draw.
        """
        if self.source == "reldn":
            counts = {split: len(graphs) for split, graphs in self._graphs.items() if split != "val"}
            return bool(counts) and all(RELDN_IMAGES[self.subset][split] == count for split, count in counts.items())
        files = [describe_file(name, path) for name, path in self._files.items()]
        return self.subset == "full" and all(OFFICIAL_SHA256.get(f["name"]) == f["sha256"] for f in files)

    def _read_names(self) -> tuple[list[str], list[str]]:
        if self.source == "reldn":
            objects = self._reldn_annotations("rel/detections_train.json").names
            return objects, read_name_list(self._file("rel/rel_9_predicates.json"), RELDN_REMEDY)
        predicates = [name for name in self._description("relationships-description") if name != ATTRIBUTE]
        return list(self._description("classes-vrd").values()), predicates

    def _read(self, split: Split) -> list[SceneGraph]:
        graphs = self._read_subset(split)
        if split != "test" or self.scored == "all":
            return graphs
        named = [name.replace("_", " ") for name in self.predicate_names]
        allowed = [label for label, name in enumerate(named) if name in CONFUSABLE_PREDICATES]
        return draw_confusable(graphs, allowed, CONFUSABLE_IMAGES, np.random.default_rng([self.split_seed, 2]))

    def _read_subset(self, split: Split) -> list[SceneGraph]:
        if split == "val":
            return []
        if self.source == "reldn":
            return self._read_reldn(split, "_mini" if self.subset == "mini" else "")
        graphs = self._all(split)
        if self.subset == "full":
            return graphs
        train = split == "train"
        rng = np.random.default_rng([self.split_seed, 0 if train else 1])
        return draw_images(graphs, self.mini_images[0 if train else 1], rng)

    def _all(self, split: Split) -> list[SceneGraph]:
        if split not in self._full:
            if self.source == "reldn":
                self._full[split] = self._read_reldn(split, "")
            else:
                self._full[split], self._attributes[split] = self._read_csv(split)
        return self._full[split]

    def _read_reldn(self, split: Split, suffix: str) -> list[SceneGraph]:
        side = "val" if split == "test" else "train"
        files = f"rel/rel_only_annotations_{side}{suffix}.json", f"rel/detections_{side}.json"
        return [g for g in self._reldn_graphs(*files, self.all_boxes) if len(g.relations)]

    def _index(self, split: Split) -> DetectionAnnotations:
        if self.source != "reldn" or self.proposals_index is not None:
            return super()._index(split)
        return self._reldn_annotations("rel/detections_val.json")

    def _read_csv(self, split: Split) -> tuple[list[SceneGraph], BoxAttributes]:
        rows = self._csv_rows(split)
        wanted = np.ones(len(rows.images), dtype=bool)
        if self.year == "2018":
            path = self._file("challenge-2018-image-ids-valset-vrd.csv")
            held_out = np.isin(rows.images, read_image_list(path))
            if not held_out.any():
                raise DataError(f"{path}: lists no image of challenge-2018-train-vrd.csv; {CSV_REMEDY}")
            wanted = held_out if split == "test" else ~held_out
        images = [f"{image}.jpg" for image in rows.images]
        sizes = self._header_sizes(images, wanted, split)
        scales = np.array([[*size, *size] for size in sizes], dtype=np.float64).reshape(-1, 1, 4)
        boxes = (rows.boxes * scales[rows.row_image]).astype(np.float32)
        known = sizes if self.frame is None else [None] * len(images)
        kept = wanted[rows.row_image]
        graphs = graphs_from_rows(
            images, known, rows.row_image[kept], boxes[kept, 0], boxes[kept, 1], rows.triplets[kept]
        )
        described = wanted[rows.attribute_image]
        owner = rows.attribute_image[described]
        attributes = BoxAttributes(
            tuple(images[i] for i in owner),
            (rows.attribute_boxes[described] * scales[owner, 0]).astype(np.float32),
            *rows.attributes[described].T,
        )
        return [g for g in graphs if len(g.relations)], attributes

    def _csv_rows(self, split: Split) -> RelationshipRows:
        name = f"challenge-2019-{'validation' if split == 'test' else 'train'}-vrd.csv"
        name = "challenge-2018-train-vrd.csv" if self.year == "2018" else name
        if name not in self._rows:
            lists = [list(self._description(kind)) for kind in ("classes-vrd", "attributes-description")]
            self._rows[name] = read_relationships(self._file(name), lists[0], self.predicate_names, lists[1])
        return self._rows[name]

    def _header_sizes(self, images: Sequence[str], wanted: NDArray[np.bool_], split: Split) -> list[tuple[int, int]]:
        sizes = [(NOMINAL_SIDE, NOMINAL_SIDE)] * len(images)
        if self.frame is None:
            folders = self._image_folders(split)
            for i in tqdm(np.flatnonzero(wanted).tolist(), "reading image sizes", disable=None, leave=False):
                candidates = [folder / images[i] for folder in folders]
                path = next((p for p in candidates if p.is_file()), candidates[0])
                sizes[i] = header_size(path, f'{IMAGE_REMEDY}, or use image_size="nominal"')
        return sizes

    def _description(self, kind: str) -> dict[str, str]:
        return read_descriptions(self._file(f"challenge-{self.year}-{kind}.csv"))

    def _frames(self, split: Split) -> Sequence[tuple[float, float]]:
        return [graph.size_wh or (NOMINAL_SIDE, NOMINAL_SIDE) for graph in self._split(split)]

    def _image_folders(self, split: Split) -> tuple[Path, ...]:
        folders = self.root / "train", self.root / "validation"
        return folders[::-1] if split == "test" and self.source == "csv2019" else folders
