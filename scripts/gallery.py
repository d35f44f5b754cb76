"""Draw contact sheets of all data sets as their DataModules give them: of the generated worlds, or of real data.

Usage: python -m scripts.gallery [--out FOLDER] [--data-root FOLDER] [--only NAME ...] [--overview PATH]
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_modules.cifar import CIFARDataModule
from data_modules.coco import COCODataModule
from data_modules.errors import DataError
from data_modules.mit67 import MIT67DataModule
from data_modules.openimages import OpenImagesDataModule
from data_modules.synthetic.cifar import write_cifar_world
from data_modules.synthetic.coco import write_coco_world
from data_modules.synthetic.mit67 import write_mit67_world
from data_modules.synthetic.openimages import write_openimages_world
from data_modules.synthetic.sbd import write_sbd_world
from data_modules.synthetic.tiny_imagenet import write_tiny_imagenet_world
from data_modules.synthetic.vg150 import write_vg150_world
from data_modules.synthetic.vg200 import write_vg200_world
from data_modules.synthetic.vg_proposals import write_vg_proposals_world
from data_modules.synthetic.voc import write_voc_world
from data_modules.synthetic.vrd import write_vrd_world
from data_modules.tiny_imagenet import TinyImageNetDataModule
from data_modules.vg150 import VG150DataModule
from data_modules.vg200 import VG200DataModule
from data_modules.vg_proposals import VGProposalsDataModule
from data_modules.voc_detection import VOCDetectionDataModule
from data_modules.voc_segmentation import VOCSegmentationDataModule
from data_modules.vrd import VRDDataModule
from experiments.machine import Machine
from experiments.store import write_atomically
from scripts.gallery_data import (
    class_pictures,
    detection_pictures,
    noisy_pictures,
    relation_pictures,
    segmentation_pictures,
    words,
)
from scripts.gallery_draw import Picture
from scripts.gallery_sheet import Sheet, draw_overview, draw_sheet

OVERVIEW_BYTES = 300_000
ARROWS = (
    "Scored images, cut to where their boxes are. An arrow runs from the subject, whose colour it has, to the object; "
    "all annotated predicates of a pair stand on it."
)
NOISE = 0.5
Pictures = Callable[[Any, int], list[Picture]]


@dataclass(frozen=True)
class Entry:
    """One data set of the gallery.

    Attributes:
        name: Name of the sheet's file.
        title: Name of the data set.
        text: What is drawn.
        write: Writes its generated world.
        real: Where the real one lies under DATA_ROOT.
        module: The DataModule's class.
        options: Its arguments besides root, batch size and seed.
        without_images: Arguments to add where annotations are there but images aren't; None if there is no such way.
        pictures: Makes pictures of its batches.
        grid: Columns and rows of the sheet.
        cell_wh: Room for a picture in pixels.
    """

    name: str
    title: str
    text: str
    write: Callable[[Path], Path]
    real: str
    module: Callable[..., Any]
    options: dict[str, Any]
    pictures: Pictures
    grid: tuple[int, int]
    cell_wh: tuple[int, int]
    without_images: dict[str, Any] | None = None


def _relations(
    name: str,
    title: str,
    write: Callable[[Path], Path],
    real: str,
    module: Callable[..., Any],
    text: str = ARROWS,
    without_images: dict[str, Any] | None = None,
    **options: Any,
) -> Entry:
    options = {"images": "uint8"} | options
    grid, cell = (3, 3), (540, 405)
    absent = {"images": "none"} | (without_images or {})
    return Entry(name, title, text, write, real, module, options, relation_pictures, grid, cell, absent)


def _classes(
    name: str,
    title: str,
    write: Callable[[Path], Path],
    real: str,
    module: Callable[..., Any],
    text: str = "Test images and their classes.",
    pictures: Pictures = class_pictures,
    grid: tuple[int, int] = (10, 6),
    side: int = 128,
    **options: Any,
) -> Entry:
    return Entry(name, title, text, write, real, module, {"val_images": 0} | options, pictures, grid, (side, side))


ENTRIES = (
    _relations("vrd", "VRD", write_vrd_world, "vrd", VRDDataModule, without_images={"image_size": "box_extent"}),
    _relations("vg150", "VG150", write_vg150_world, "vg150", VG150DataModule, val_images=0),
    _relations("vg200", "VG200", write_vg200_world, "vg200", VG200DataModule),
    _relations(
        "vg_proposals",
        "Visual Genome, relation proposals",
        write_vg_proposals_world,
        "vg",
        VGProposalsDataModule,
        "Scored images, cut to where their boxes are. An arrow runs from the subject, whose colour it has, to the "
        "object of every related pair; there are no predicates.",
        source="json",
    ),
    _relations(
        "openimages",
        "Open Images VRD",
        write_openimages_world,
        "openimages-vrd",
        OpenImagesDataModule,
        without_images={"image_size": "nominal"},
    ),
    Entry(
        "voc_detection",
        "VOC2007 detection",
        "Test images and their objects; the boxes of difficult ones are dashed.",
        write_voc_world,
        "",
        VOCDetectionDataModule,
        {"short_side": 300, "long_side": 500, "pixels": "unit"},
        detection_pictures,
        (4, 3),
        (400, 320),
    ),
    Entry(
        "coco",
        "COCO",
        "Images of minival and their objects; the boxes of crowds are dashed.",
        write_coco_world,
        "coco",
        COCODataModule,
        {"short_side": 300, "long_side": 500, "pixels": "unit"},
        detection_pictures,
        (4, 3),
        (400, 320),
    ),
    Entry(
        "voc_segmentation",
        "VOC2012 segmentation and SBD",
        "Training images and their label maps: VOC's own, with a void border, and those that SBD adds.",
        write_sbd_world,
        "",
        VOCSegmentationDataModule,
        {"input_size": None, "pixels": "unit"},
        segmentation_pictures,
        (3, 4),
        (540, 260),
    ),
    _classes("cifar10", "CIFAR-10", lambda r: write_cifar_world(r, dataset=10), "", CIFARDataModule, dataset=10),
    _classes("cifar100", "CIFAR-100", write_cifar_world, "", CIFARDataModule, grid=(10, 10), dataset=100),
    _classes(
        "cifar100_noisy",
        "CIFAR-100 with noisy labels",
        write_cifar_world,
        "",
        CIFARDataModule,
        f"Training images. With probability {NOISE:g} a label is drawn anew within its group of five classes; an arrow "
        "leads from the clean label to the noisy one where they differ.",
        noisy_pictures,
        dataset=100,
        noise=NOISE,
        augment=False,
    ),
    _classes("tiny_imagenet", "Tiny ImageNet", write_tiny_imagenet_world, "", TinyImageNetDataModule),
    _classes("mit67", "MIT67", write_mit67_world, "mit67", MIT67DataModule, grid=(8, 5), side=160, size="crop224"),
)
OVERVIEW_ROWS = (
    ("vrd", "vg150", "vg200", "openimages"),
    ("vg_proposals", "voc_detection", "coco", "voc_segmentation"),
    ("cifar10", "cifar100", "cifar100_noisy", "tiny_imagenet", "mit67"),
)


def sheet_of(entry: Entry, root: Path, source: str, may_lack_images: bool = False) -> Sheet:
    """Read a data set and choose the pictures of its sheet.

    Args:
        entry: The data set.
        root: Its folder.
        source: What it is, for the sheet's heading.
        may_lack_images: Draw annotations on blank ground where images are missing.

    Raises:
        DataError: The data set is missing or damaged.
    """
    remark = ""
    try:
        pictures = _pictures(entry, root, {})
    except DataError:
        if not may_lack_images or entry.without_images is None:
            raise
        pictures = _pictures(entry, root, entry.without_images)
        remark = " The images are missing."
    return Sheet(entry.title, (f"{source}. {entry.text}{remark}",), tuple(pictures), entry.grid[0], entry.cell_wh)


def _pictures(entry: Entry, root: Path, options: dict[str, Any]) -> list[Picture]:
    module = entry.module(root, batch_size=32, seed=0, **(entry.options | options))
    return entry.pictures(module, entry.grid[0] * entry.grid[1])


def overview(sheets: dict[str, Sheet]) -> Image.Image:
    """Return one picture of all data sets: of each some pictures of its sheet."""
    shown: set[str] = set()
    return draw_overview([[(sheets[n].title, _chosen(sheets[n], shown)) for n in row] for row in OVERVIEW_ROWS])


def _chosen(sheet: Sheet, shown: set[str]) -> Sequence[Picture]:
    """Return six small pictures, two pairs, or one with something new in it: the worlds share their scenes."""
    if sheet.columns > 4:
        return sheet.pictures[:: max(1, len(sheet.pictures) // 6)][:6]
    if sheet.pictures[0].labels is not None:
        wide = [p for p in sheet.pictures if p.image.shape[1] > p.image.shape[0]] or sheet.pictures
        return sorted(wide, key=lambda p: -len(np.unique(p.labels)))[:2]
    best = max(sheet.pictures, key=lambda p: min(len(words(p) - shown), 4))  # the clearest come first
    shown |= words(best)
    return [best]


def jpeg(image: Image.Image, limit: int | None = None) -> bytes:
    """Return a JPEG, of the best quality that keeps it below so many bytes."""
    for quality in (92, 88, 84, 80, 75, 70, 65, 60, 50, 40):
        content = io.BytesIO()
        image.save(content, "JPEG", quality=quality, subsampling=0 if limit is None else 2, optimize=True)
        if limit is None or content.tell() < limit:
            break
    return content.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Write the sheets; return 1 if there is none, 0 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [entry.name for entry in ENTRIES]
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: gallery/ in GENERATED_DIR")
    parser.add_argument("--data-root", type=Path, metavar="FOLDER", help="draw the real data sets in this folder")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--overview", type=Path, metavar="PATH", help="also write the picture that the README shows")
    arguments = parser.parse_args(argv)
    if arguments.overview and (arguments.data_root or len(arguments.only) < len(names)):
        parser.error("--overview shows all generated worlds: leave out --data-root and --only")
    out = arguments.out or Machine.from_environment().generated / "gallery"
    out.mkdir(parents=True, exist_ok=True)
    sheets: dict[str, Sheet] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "VOC and SBD label")
        for entry in (e for e in ENTRIES if e.name in arguments.only):
            if arguments.data_root:
                try:
                    sheet = sheet_of(entry, arguments.data_root / entry.real, "Real data", may_lack_images=True)
                except DataError as error:
                    print(f"{entry.name}: left out: {error}")
                    continue
            else:
                sheet = sheet_of(entry, entry.write(Path(folder, entry.name)), "Generated world")
            sheets[entry.name] = sheet
            path = out / f"{entry.name}.jpg"
            write_atomically(path, jpeg(draw_sheet(sheet)))
            print(path)
    if arguments.overview:
        write_atomically(arguments.overview, jpeg(overview(sheets), OVERVIEW_BYTES))
        print(arguments.overview)
    return 0 if sheets else 1


if __name__ == "__main__":
    sys.exit(main())
