"""Draw pictures with boxes, relations, label maps and captions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from experiments.drawing import COLOURS, PAPER, Rect, chip, draw_boxes, free_place, text_extent

MAX_ARROWS = 4
TINY = 64  # pixels
Line = tuple[str, tuple[int, int, int], bool]  # text, colour, bold


@dataclass(frozen=True)
class Picture:
    """One image and what is annotated in it.

    Attributes:
        image: uint8 `[H, W, 3]`, RGB.
        caption: Lines below the picture; each is wrapped to its width.
        boxes_xyxy: float `[N, 4]`, edges in pixels of the image.
        names: What is written at the N boxes.
        dashed: Which of the N boxes are drawn with dashes.
        arrows: Subject box, names, object box; at most one for an ordered pair. It has the colour of its subject.
        left_out: How many arrows would be too many.
        labels: A label map uint8 `[H, W]`, drawn over a second copy of the image: 0 is nothing, 255 void.
        label_names: Names of the ids in it.
    """

    image: NDArray[np.uint8]
    caption: tuple[Line, ...] = ()
    boxes_xyxy: NDArray[np.float64] | None = None
    names: tuple[str, ...] = ()
    dashed: tuple[bool, ...] = ()
    arrows: tuple[tuple[int, str, int], ...] = ()
    left_out: int = 0
    labels: NDArray[np.uint8] | None = None
    label_names: tuple[str, ...] = ()


def draw_picture(picture: Picture, size_wh: tuple[int, int], text_size: int) -> Image.Image:
    """Return the picture with its annotations, as large as fits into a width and height in pixels."""
    height, width = picture.image.shape[:2]
    copies = 1 if picture.labels is None else 2
    gap = 6 * (copies - 1)
    scale = min((size_wh[0] - gap) / (copies * width), size_wh[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(picture.image)
    if width <= TINY:  # its pixels stay squares
        image = image.resize((width * ceil(scale), height * ceil(scale)), Image.Resampling.NEAREST)
    drawn = image.resize(size, Image.Resampling.LANCZOS)
    if picture.labels is not None:
        both = Image.new("RGB", (2 * size[0] + gap, size[1]), PAPER)
        both.paste(drawn, (0, 0))
        both.paste(_with_labels(drawn, picture.labels, picture.label_names, text_size), (size[0] + gap, 0))
        return both
    if picture.boxes_xyxy is not None:
        boxes = picture.boxes_xyxy * (np.array([*size, *size]) / (width, height, width, height))
        return draw_boxes(drawn, boxes, picture.names, picture.arrows, text_size, picture.dashed)
    return drawn


def zoomed(picture: Picture, aspect: float) -> Picture:
    """Return the part of a picture that its boxes are in, width over height being `aspect` if the image allows it."""
    if picture.boxes_xyxy is None or not len(picture.boxes_xyxy):
        return picture
    limits = np.array(picture.image.shape[1::-1])
    low, high = picture.boxes_xyxy[:, :2].min(axis=0), picture.boxes_xyxy[:, 2:].max(axis=0)
    size = np.maximum(high - low + 0.16 * limits.max(), 0.45 * limits.max())
    size = np.minimum([max(size[0], aspect * size[1]), max(size[1], size[0] / aspect)], limits)
    corner = np.clip((low + high - size) / 2, 0, limits - size).round().astype(int)
    (x1, y1), (x2, y2) = corner, np.minimum(corner + size.round().astype(int), limits)
    boxes = picture.boxes_xyxy - np.tile(corner, 2)
    return replace(picture, image=picture.image[y1:y2, x1:x2], boxes_xyxy=boxes)


def _with_labels(image: Image.Image, labels: NDArray[np.uint8], names: tuple[str, ...], text_size: int) -> Image.Image:
    ids = np.asarray(Image.fromarray(labels).resize(image.size, Image.Resampling.NEAREST))
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float64)
    classes = [int(c) for c in np.unique(labels) if c not in (0, 255)]
    result = np.where((ids == 0)[..., None], grey * 0.55 + 90, grey)
    colours: dict[int, tuple[int, int, int]] = {}
    for label in classes:  # a class has its colour, unless another class of the picture has that already
        order = [COLOURS[(label - 1 + step) % len(COLOURS)] for step in range(len(COLOURS))]
        colours[label] = next((colour for colour in order if colour not in colours.values()), order[0])
        where = ids == label
        result[where] = 0.35 * grey[where] + 0.65 * np.array(colours[label])
    result[ids == 255] = 255
    drawn = Image.fromarray(result.clip(0, 255).astype(np.uint8))
    draw, taken = ImageDraw.Draw(drawn), list[tuple[Rect, float]]()
    for label in classes:
        rows, columns = np.nonzero(ids == label)
        nearest = np.hypot(rows - rows.mean(), columns - columns.mean()).argmin()  # a pixel of the class itself
        extent = text_extent(names[label], text_size)
        x, y = columns[nearest] - extent[0] / 2, rows[nearest] - extent[1] / 2
        rect = free_place([(x, y + s * extent[1]) for s in (0, 1, -1, 2, -2)], extent, drawn.size, taken)
        chip(draw, rect, names[label], colours[label], text_size)
    return drawn
