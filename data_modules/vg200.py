"""VG200, the split of Visual Genome of VTransE (Zhang et al. 2017), as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_modules.errors import DataError
from data_modules.graph_rows import graphs_from_rows
from data_modules.relation_data import Flip, Images
from data_modules.relation_module import Proposals, RelationDataModule, Split
from data_modules.scene_graph import SceneGraph
from data_modules.vg_files import IMAGE_REMEDY, read_image_data

REMEDY = "fetch vg1_2_meta.h5 of VTransE (Zhang et al. 2017) again"
# Images of train and test, as third parties counted the public file.
OFFICIAL_IMAGES = {"train": 73_794, "test": 25_858}


def read_meta_names(path: Path) -> tuple[list[str], list[str]]:
    """Read the names of objects (without background, number 0) and predicates from `vg1_2_meta.h5`.

    Raises:
        DataError: The file is missing or damaged, or holds no names numbered without gaps.
    """
    with _opened(path) as file:
        objects, predicates = (_names(file, f"meta/{kind}/idx2name", path) for kind in ("cls", "pre"))
    return objects[1:], predicates


def read_meta_split(
    path: Path,
    split: Literal["train", "test"],
    sizes_wh: dict[int, tuple[int, int]],
    num_objects: int,
    num_predicates: int,
) -> list[SceneGraph]:
    """Read the images of a split from `vg1_2_meta.h5`, in the order of their numbers.

    Objects are numbered from 1 in the file (0 is background), predicates from 0. Boxes are used as they are, also the
    few of the public file that reach outside their images. Image names are the file
    names in `meta/imid2path`, whose folder may be either of Visual Genome's two.

    Args:
        path: The file.
        split: Train or test.
        sizes_wh: Widths and heights in pixels by image number.
        num_objects: Number of object categories, without background.
        num_predicates: Number of predicates.

    Raises:
        DataError: The file is missing or damaged, an image lacks a data set, a name or a size, its data sets don't fit
            each other, a label is out of range or a box inverted.
    """
    with _opened(path) as file:
        group = file.get(f"gt/{split}")
        paths = file.get("meta/imid2path")
        for name, found in ((f"gt/{split}", group), ("meta/imid2path", paths)):
            if not isinstance(found, h5py.Group):
                raise DataError(f"{path}: holds no group {name!r}; {REMEDY}")
        if not all(key.isdecimal() for key in group):
            raise DataError(f"{path}: gt/{split}: expected image numbers, found {next(iter(group))!r}; {REMEDY}")
        images = sorted(group, key=int)
        parts: dict[str, list[NDArray[Any]]] = {"sub_boxes": [], "obj_boxes": [], "rlp_labels": []}
        names = []
        for image in tqdm(images, f"reading VG200 {split}", disable=None, leave=False):
            for name, rows in parts.items():
                rows.append(_rows(group.id, f"{image}/{name}", 3 if name == "rlp_labels" else 4, split, path))
            if len({len(rows[-1]) for rows in parts.values()}) > 1:
                found = ", ".join(f"{len(rows[-1])} {name}" for name, rows in parts.items())
                raise DataError(f"{path}: gt/{split}/{image}: {found}; {REMEDY}")
            names.append(Path(_text(paths, image, f"meta/imid2path/{image}", path)).name)
    missing = [image for image in images if int(image) not in sizes_wh]
    if missing:
        raise DataError(f"{path}: gt/{split}: image_data.json has no size of {missing[:3]}; take one release of both")
    owner = np.repeat(np.arange(len(images)), [len(rows) for rows in parts["rlp_labels"]])
    subjects, objects, labels = (
        _joined(parts[n], w) for n, w in (("sub_boxes", 4), ("obj_boxes", 4), ("rlp_labels", 3))
    )
    lowest, limits = np.array([1, 0, 1]), np.array([num_objects + 1, num_predicates, num_objects + 1])
    bad = np.flatnonzero(((labels < lowest) | (labels >= limits)).any(axis=1))
    if bad.size:
        found = f"labels below {limits.tolist()} and from {lowest.tolist()}, found {labels[bad[0]].tolist()}"
        raise DataError(f"{path}: gt/{split}/{images[owner[bad[0]]]}: rlp_labels: expected {found}; {REMEDY}")
    for name, boxes in (("sub_boxes", subjects), ("obj_boxes", objects)):
        bad = np.flatnonzero(~(np.isfinite(boxes).all(axis=1) & (boxes[:, :2] <= boxes[:, 2:]).all(axis=1)))
        if bad.size:
            found = f"inverted box x1,y1,x2,y2 = {boxes[bad[0]].tolist()}"
            raise DataError(f"{path}: gt/{split}/{images[owner[bad[0]]]}: {name}: {found}; {REMEDY}")
    triplets = labels.astype(np.int64) - lowest
    sizes = [sizes_wh[int(image)] for image in images]
    return graphs_from_rows(names, sizes, owner, subjects.astype(np.float32), objects.astype(np.float32), triplets)


class VG200DataModule(RelationDataModule):
    """VG200: 200 objects, 100 predicates, boxes that take part in relations, in original pixels.

    Args:
        root: Folder with `vg1_2_meta.h5`, `image_data.json`, and for images `VG_100K/` and, if apart, `VG_100K_2/`.
        batch_size: Images a batch.
        seed: Seed of the order of training images and of what is drawn for them.
        val_images: Held-out training images, the first of the file.
        one_predicate_per_pair: In training, keep a random one of several relations of one (subject, object) an epoch.
        flip: Training images: as they are, doubled by mirrored ones, or each mirrored half of the time.
        images: "none" reads no image; "uint8" and the pixel scales of networks give `ImageRelationBatch`.
        image_sides: Short side of resized images in pixels, unless the long one would exceed the second number.
        num_workers: Loader processes, and threads that fill the cache.
        image_cache: Folder of the cache of decoded and resized images; None decodes the files in every epoch.
        proposals: Boxes of held-out and test images: the annotated nodes, or detections (see `RelationDataModule`).
        proposals_file: Those detections.
        proposals_index: The annotations whose ids a COCO list of detections uses.
        min_score: Detections with a lower confidence, a fraction, are dropped.
    """

    dataset = "VG200"
    remedy = IMAGE_REMEDY

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        seed: int,
        val_images: int = 0,
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
        self.val_images = val_images
        self._whole: dict[str, list[SceneGraph]] = {}

    def _read_names(self) -> tuple[list[str], list[str]]:
        return read_meta_names(self._file("vg1_2_meta.h5"))

    def _read(self, split: Split) -> list[SceneGraph]:
        side: Literal["train", "test"] = "test" if split == "test" else "train"
        if side not in self._whole:
            sizes = read_image_data(self._file("image_data.json"), skip_corrupted=False)
            path = self._file("vg1_2_meta.h5")
            self._whole[side] = read_meta_split(path, side, sizes, self.num_objects, self.num_predicates)
        graphs = [g for g in self._whole[side] if len(g.relations)]
        if split == "test":
            return graphs
        if not 0 <= self.val_images < len(graphs):
            raise ValueError(f"val_images={self.val_images}: there are {len(graphs)} training images with relations")
        return graphs[: self.val_images] if split == "val" else graphs[self.val_images :]

    def is_official(self) -> bool:
        """Tell whether the numbers of images are those of the public file; no checksum of it is known."""
        counts = {side: len(graphs) for side, graphs in self._whole.items()}
        return bool(counts) and all(OFFICIAL_IMAGES[side] == count for side, count in counts.items())

    def _image_folders(self, split: Split) -> tuple[Path, ...]:
        return self.root / "VG_100K", self.root / "VG_100K_2"


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file and turn what h5py raises for damaged ones into DataErrors."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; {REMEDY}")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise DataError(f"{path}: not a readable HDF5 file ({error}); {REMEDY}") from error


def _names(file: h5py.File, name: str, path: Path) -> list[str]:
    group = file.get(name)
    if not isinstance(group, h5py.Group) or sorted(group) != sorted(map(str, range(len(group)))):
        raise DataError(f"{path}: {name}: expected names numbered from 0 without gaps; {REMEDY}")
    return [_text(group, str(i), f"{name}/{i}", path) for i in range(len(group))]


def _text(group: h5py.Group, key: str, name: str, path: Path) -> str:
    entry = group.get(key)
    value = entry[()] if isinstance(entry, h5py.Dataset) and entry.shape == () else None
    text = value.decode() if isinstance(value, bytes) else value
    if not isinstance(text, str) or not text:
        raise DataError(f"{path}: {name}: expected a name, found {value!r}; {REMEDY}")
    return text


def _rows(group: h5py.h5g.GroupID, name: str, width: int, split: str, path: Path) -> NDArray[Any]:
    # The low-level interface reads three data sets of each of 100,000 images several times as fast.
    try:
        dataset = h5py.h5d.open(group, name.encode())
    except KeyError as error:
        raise DataError(f"{path}: holds no data set 'gt/{split}/{name}'; {REMEDY}") from error
    shape, dtype = dataset.shape, dataset.dtype
    if 0 in shape:
        return np.zeros((0, width))
    if len(shape) != 2 or shape[1] != width or dtype.kind not in "iuf":
        raise DataError(f"{path}: gt/{split}/{name}: expected {width} numeric columns, found {dtype} {shape}; {REMEDY}")
    values = np.empty(shape, dtype)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values


def _joined(parts: list[NDArray[Any]], width: int) -> NDArray[np.float64]:
    # uint16 arithmetic would wrap around.
    return np.concatenate([np.zeros((0, width)), *parts]).astype(np.float64)
