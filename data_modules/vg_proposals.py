"""Visual Genome for relation proposals: boxes of 150 classes and which ordered pairs of them are related."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from data_modules.errors import DataError
from data_modules.image_loading import check_choice
from data_modules.json_files import read_json
from data_modules.relation_data import Flip, Images
from data_modules.relation_module import RelationDataModule, Split
from data_modules.scene_graph import SceneGraph
from data_modules.vg150 import VG150DataModule
from data_modules.vg_files import CORRUPTED, IMAGE_REMEDY, JSON_REMEDY, read_image_data, read_vg150_names

PREDICATE = "related"  # the only one: annotations with different predicates are one pair
Box = tuple[int, int, int, int]


@dataclass
class AnnotatedImage:
    """What Visual Genome's own JSON says of one image, names as they were typed but for case and outer spaces.

    Attributes:
        objects: Name and box (x, y, width, height in pixels from 0) of every object.
        numbers: Position in `objects` by `object_id`, those of merged objects included.
        pairs: Positions of (subject, object), one row a relationship.
    """

    objects: list[tuple[str, Box]] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    pairs: list[tuple[int, int]] = field(default_factory=list)


def read_annotated_images(objects_path: Path, relationships_path: Path) -> dict[int, AnnotatedImage]:
    """Read `objects.json` and `relationships.json` of Visual Genome 1.2 or 1.4, by image number.

    An object that only `relationships.json` knows is added from there.

    Raises:
        DataError: A file is missing or isn't JSON, or a field is missing or of another type; the message names image
            and field.
    """
    images: dict[int, AnnotatedImage] = {}
    for number, entries in _entries(objects_path, "objects"):
        image = images.setdefault(number, AnnotatedImage())
        for index, entry in enumerate(entries):
            _add_object(image, entry, (objects_path, number, f"objects[{index}]"))
    for number, entries in _entries(relationships_path, "relationships"):
        image = images.setdefault(number, AnnotatedImage())
        for index, entry in enumerate(entries):
            ends = []
            for end in ("subject", "object"):
                where = (relationships_path, number, f"relationships[{index}].{end}")
                value = entry.get(end) if isinstance(entry, dict) else None
                object_id = value.get("object_id") if isinstance(value, dict) else None
                known = image.numbers.get(object_id) if type(object_id) is int else None
                ends.append(_add_object(image, value, where) if known is None else known)
            image.pairs.append((ends[0], ends[1]))
    return images


def commonest_names(images: list[AnnotatedImage], count: int) -> list[str]:
    """Return the `count` commonest object names, in alphabetical order; of equally common ones the first."""
    found = Counter(name for image in images for name, _ in image.objects)
    return sorted(sorted(found, key=lambda name: (-found[name], name))[:count])


def build_graph(
    name: str, size_wh: tuple[int, int], image: AnnotatedImage, labels: dict[str, int]
) -> tuple[SceneGraph, Counter[str]]:
    """Keep the objects with a label, cut at the image's borders, and each ordered pair of them once.

    Boxes become x1, y1, x2 = x1 + width - 1, y2 likewise, the last column and row included.

    Returns:
        The graph, and how many `boxes_cut` and `boxes_dropped` (nothing of them is in the image) there were.
    """
    nodes: dict[int, int] = {}
    boxes: list[Box] = []
    categories: list[int] = []
    counts: Counter[str] = Counter()
    width, height = size_wh
    for position, (category, (x, y, w, h)) in enumerate(image.objects):
        if category not in labels:
            continue
        whole = x, y, x + w - 1, y + h - 1
        box = max(x, 0), max(y, 0), min(whole[2], width - 1), min(whole[3], height - 1)
        if box[0] > box[2] or box[1] > box[3]:
            counts["boxes_dropped"] += 1
            continue
        counts["boxes_cut"] += box != whole
        nodes[position] = len(boxes)
        boxes.append(box)
        categories.append(labels[category])
    pairs = dict.fromkeys((nodes[s], 0, nodes[o]) for s, o in image.pairs if s in nodes and o in nodes)
    graph = SceneGraph(
        name,
        size_wh,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(categories, dtype=np.int64),
        np.array(list(pairs), dtype=np.int64).reshape(-1, 3),
    )
    return graph, counts


class VGProposalsDataModule(RelationDataModule):
    """Visual Genome with annotated pairs in place of predicates, 70 percent of the images for training.

    Boxes are in pixels of the image. Test images are those with relations.

    Args:
        root: Folder with the annotations, and for images `VG_100K/` and, if apart, `VG_100K_2/`.
        batch_size: Images a batch.
        seed: Seed of the order of training images and of what is drawn for them.
        source: The VG150 files with their split of 75,651 and 32,422 images, or Visual Genome's own `objects.json`,
            `relationships.json` and `image_data.json`, split by a draw.
        train_fraction: Fraction of the images drawn for training, from "json" (70 percent gives VG150's numbers).
        split_seed: Seed of that draw, apart from the seed of the run.
        max_objects: Number of classes from "json": the commonest names of the training images, unless
            `VG-SGG-dicts.json` is there and names them.
        keep_empty_train: Train on images without relations too, as "70k images" suggests.
        flip: Training images: as they are, doubled by mirrored ones, or each mirrored half of the time.
        images: "none" reads no image; "uint8" and the pixel scales of networks give `ImageRelationBatch`.
        image_sides: Short side of resized images in pixels, unless the long one would exceed the second number.
        num_workers: Loader processes, and threads that fill the cache.
        image_cache: Folder of the cache of decoded and resized images; None decodes the files in every epoch.
    """

    dataset = "Visual Genome, relation proposals"
    remedy = IMAGE_REMEDY
    clip_train = True  # the VG150 files hold boxes that reach a little outside; JSON boxes are cut when they are read

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        seed: int,
        source: Literal["vg150", "json"] = "vg150",
        train_fraction: float = 0.7,
        split_seed: int = 0,
        max_objects: int = 150,
        keep_empty_train: bool = True,
        flip: Flip = "none",
        images: Images = "none",
        image_sides: tuple[int, int] | None = None,
        num_workers: int = 0,
        image_cache: str | Path | None = None,
    ) -> None:
        super().__init__(root, batch_size, seed, flip, False, images, image_sides, num_workers, image_cache)
        check_choice("source", source, ("vg150", "json"))
        if not 0 < train_fraction < 1:
            raise ValueError(f"train_fraction={train_fraction}: expected a fraction between 0 and 1")
        self.source, self.train_fraction, self.split_seed = source, train_fraction, split_seed
        self.max_objects, self.keep_empty_train = max_objects, keep_empty_train
        self.column_offset = -1.0 if source == "json" else 0.0
        self._vg150 = VG150DataModule(
            root, batch_size, seed, val_images=0, box_frame="image", keep_empty_train=keep_empty_train
        )
        self._content: tuple[dict[int, tuple[int, int]], dict[int, AnnotatedImage]] | None = None
        self._cut: Counter[str] = Counter()

    def provenance(self) -> dict[str, Any]:
        """Describe the data for a run's record; from "json", `counts` says how many boxes were cut or dropped."""
        record = super().provenance()
        record["counts"] |= dict(self._cut)
        return record | {"source": self.source, "split": "VG-SGG.h5" if self.source == "vg150" else "drawn"}

    def _read_names(self) -> tuple[list[str], list[str]]:
        if self.source == "vg150":
            return self._vg150.object_names, [PREDICATE]
        if (self.root / "VG-SGG-dicts.json").exists():
            return read_vg150_names(self._file("VG-SGG-dicts.json"))[0], [PREDICATE]
        images = self._json()[1]
        return commonest_names([images[n] for n in self._drawn("train")], self.max_objects), [PREDICATE]

    def _read(self, split: Split) -> list[SceneGraph]:
        if split == "val":
            return []
        if self.source == "vg150":
            read = self._vg150.train_graphs if split == "train" else self._vg150.test_graphs
            self._files |= self._vg150.annotation_files
            return [replace(g, relations=_collapsed(g.relations)) for g in read]
        labels = {name: label for label, name in enumerate(self.object_names)}
        (sizes, images), graphs = self._json(), []
        for number in self._drawn(split):
            graph, cut = build_graph(f"{number}.jpg", sizes[number], images[number], labels)
            self._cut += cut
            if len(graph.relations) or (split == "train" and self.keep_empty_train and len(graph.labels)):
                graphs.append(graph)
        return graphs

    def _json(self) -> tuple[dict[int, tuple[int, int]], dict[int, AnnotatedImage]]:
        if self._content is None:
            sizes = read_image_data(self._file("image_data.json"))
            images = read_annotated_images(self._file("objects.json"), self._file("relationships.json"))
            unknown = sorted(set(images) - set(sizes) - set(CORRUPTED))
            if unknown:
                found = f"{len(unknown)} images aren't in image_data.json, as {unknown[0]}"
                raise DataError(f"{self.root / 'objects.json'}: {found}; {JSON_REMEDY}")
            self._content = sizes, {number: images.get(number, AnnotatedImage()) for number in sizes}
        return self._content

    def _drawn(self, split: Split) -> list[int]:
        numbers = np.array(list(self._json()[0]))
        order = np.random.default_rng(self.split_seed).permutation(len(numbers))
        first = round(self.train_fraction * len(order))
        chosen: list[int] = numbers[np.sort(order[:first] if split == "train" else order[first:])].tolist()
        return chosen

    def is_official(self) -> bool:
        """Tell whether these are the VG150 files; a drawn split is nobody's but ours."""
        return self.source == "vg150" and self._vg150.is_official()

    def _image_folders(self, split: Split) -> tuple[Path, ...]:
        return self.root / "VG_100K", self.root / "VG_100K_2"


def _collapsed(relations: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keep each (subject, object) once, in order of first appearance, with predicate 0."""
    _, first = np.unique(relations[:, ::2], axis=0, return_index=True)
    return np.asarray(relations[np.sort(first)] * np.array([1, 0, 1]), dtype=np.int64)


def _entries(path: Path, key: str) -> list[tuple[int, list[Any]]]:
    content = read_json(path, JSON_REMEDY)
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of images; {JSON_REMEDY}")
    result: dict[int, list[Any]] = {}
    for index, entry in enumerate(content):
        number = entry.get("image_id") if isinstance(entry, dict) else None
        if type(number) is not int or not isinstance(entry.get(key), list):
            raise DataError(f"{path}: entry {index}: expected image_id and a list {key!r}; {JSON_REMEDY}")
        if number in result:
            raise DataError(f"{path}: entry {index}: image_id {number} occurs twice; {JSON_REMEDY}")
        result[number] = entry[key]
    return list(result.items())


def _add_object(image: AnnotatedImage, entry: Any, where: tuple[Path, int, str]) -> int:
    if not isinstance(entry, dict):
        _fail(where, f"expected an object, found {entry!r}")
    names = entry.get("names") or [entry.get("name")]
    name = names[0] if isinstance(names, list) else None
    if not isinstance(name, str):
        _fail(where, f"expected a name or names, found {names!r}")
    box = tuple(entry.get(key) for key in "xywh")
    if not all(type(v) is int for v in box):
        _fail(where, f"expected whole numbers x, y, w, h, found {list(box)}")
    merged = entry.get("merged_object_ids", [])
    numbers = [entry.get("object_id"), *(merged if isinstance(merged, list) else [None])]
    if not all(type(n) is int for n in numbers):
        _fail(where, f"expected whole numbers object_id and merged_object_ids, found {numbers}")
    image.objects.append((name.strip().lower(), box))  # type: ignore[arg-type]
    for number in numbers:
        image.numbers.setdefault(number, len(image.objects) - 1)
    return len(image.objects) - 1


def _fail(where: tuple[Path, int, str], what: str) -> NoReturn:
    path, image, name = where
    raise DataError(f"{path}: image {image}: {name}: {what}; {JSON_REMEDY}")
