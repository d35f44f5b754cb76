"""Draw pictures with boxes, relations, label maps and captions, and join them to sheets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's colours, which people with any colour vision tell apart; their black is left out.
COLOURS = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (240, 228, 66))
INK, GREY, PAPER, ALARM = (25, 25, 25), (95, 95, 95), (255, 255, 255), (180, 60, 0)
SMOOTH = 4  # lines are drawn so many times as large and scaled down
MAX_ARROWS = 4
SHORTEST_ARROW = 34.0  # pixels
PLACES = (0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74, 0.18)  # along an arrow, for its label
TINY = 64  # pixels
Rect = tuple[float, float, float, float]
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


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which matplotlib brings along: the same letters on every machine."""
    name = f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


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
        return _with_boxes(drawn, picture, boxes, text_size)
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


def box_colour(number: int) -> tuple[int, int, int]:
    """Return the colour of a picture's box."""
    return COLOURS[number % len(COLOURS)]


def _with_boxes(image: Image.Image, picture: Picture, boxes: NDArray[np.float64], text_size: int) -> Image.Image:
    overlay = Image.new("RGBA", (image.width * SMOOTH, image.height * SMOOTH))
    draw = ImageDraw.Draw(overlay)
    for wide, (number, box) in ((w, entry) for w in (True, False) for entry in enumerate(boxes * SMOOTH)):
        colour = (0, 0, 0, 110) if wide else (*box_colour(number), 255)
        _outline(draw, box, colour, (4 if wide else 2) * SMOOTH, bool(picture.dashed) and picture.dashed[number])
    curves = [_curve(boxes[s], boxes[o]) for s, _, o in picture.arrows]
    for curve in curves:
        _arrow(draw, curve * SMOOTH, (*PAPER, 255), 6 * SMOOTH)
    for curve, (subject, _, _) in zip(curves, picture.arrows, strict=True):
        _arrow(draw, curve * SMOOTH, (*box_colour(subject), 255), 3 * SMOOTH)
    result = Image.alpha_composite(image.convert("RGBA"), overlay.reduce(SMOOTH)).convert("RGB")
    draw = ImageDraw.Draw(result)
    # Labels cover one another least of all, and rather the middle of a large object than a small one or an arrow's end.
    taken: list[tuple[Rect, float]] = [(_around(point, 7), 0.5) for c in curves for point in (c[0], c[-1])]
    taken += [((x1, y1, x2, y2), 0.2) for x1, y1, x2, y2 in boxes.tolist() if min(x2 - x1, y2 - y1) < 5 * text_size]
    tags = [_tag(box, name, result.size, text_size, taken) for box, name in zip(boxes, picture.names, strict=True)]
    for number, (name, tag) in enumerate(zip(picture.names, tags, strict=True)):
        _chip(draw, tag, name, box_colour(number), text_size)
    for curve, (subject, name, _) in zip(curves, picture.arrows, strict=True):
        if name:
            places = [curve[round(t * (len(curve) - 1))].tolist() for t in PLACES]
            width, height = _extent(name, text_size)
            shifts = [shift * height - height / 2 for shift in (0, -1, 1, -2, 2, -3, 3)]
            wanted = [(x - width / 2, y + shift) for shift in shifts for x, y in places]
            rect = _free(wanted, (width, height), result.size, taken)
            _chip(draw, rect, name, PAPER, text_size, box_colour(subject))
    return result


def _outline(
    draw: ImageDraw.ImageDraw, box: NDArray[np.float64], colour: tuple[int, ...], width: int, dashed: bool
) -> None:
    x1, y1, x2, y2 = box.tolist()
    half = width / 2
    for a, b in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))):
        length = abs(b[0] - a[0]) + abs(b[1] - a[1])
        count = max(1, round(length / (14 * SMOOTH))) if dashed else 1
        for part in range(count):
            first, last = part / count, (part + (0.55 if dashed else 1)) / count
            xs = sorted(a[0] + t * (b[0] - a[0]) for t in (first, last))
            ys = sorted(a[1] + t * (b[1] - a[1]) for t in (first, last))
            draw.rectangle((xs[0] - half, ys[0] - half, xs[1] + half - 1, ys[1] + half - 1), fill=colour)


def _curve(subject: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points `[P, 2]` from the middle of one box to that of another, bent so that there and back differ."""
    (a, b), t = ((box[:2] + box[2:]) / 2 for box in (subject, other)), np.linspace(0, 1, 129)[:, None]
    along = b - a
    bent = (a + b) / 2 + 0.16 * np.array([along[1], -along[0]])
    points = (1 - t) ** 2 * a + 2 * t * (1 - t) * bent + t**2 * b
    inside = np.array([(p >= other[:2] + 4).all() and (p <= other[2:] - 4).all() for p in points])
    long_enough = np.hypot(*(points - a).T) > SHORTEST_ARROW
    if inside[0] or not (inside & long_enough).any():
        return np.asarray(points)
    # Into the other box from outside: its border is enough, and what is in it stays free.
    return np.asarray(points[: int((inside & long_enough).argmax()) + 1])


def _arrow(draw: ImageDraw.ImageDraw, curve: NDArray[np.float64], colour: tuple[int, ...], width: float) -> None:
    thin = 3 * SMOOTH
    head, radius = 12 * SMOOTH + (width - thin) / 2, 3 * SMOOTH + (width - thin) / 2
    end = curve[-1]
    away = np.linalg.norm(curve - end, axis=1)
    shaft = curve[away > 0.8 * head]
    if len(shaft) > 1:
        draw.line([tuple(p) for p in shaft.tolist()], fill=colour, width=round(width), joint="curve")
        back = end - shaft[-1]
        back = back / max(float(np.linalg.norm(back)), 1e-9)
        side = np.array([-back[1], back[0]])
        tip = end + back * (width - thin) / 2
        corners = (tip, tip - head * back + 0.5 * head * side, tip - head * back - 0.5 * head * side)
        draw.polygon([tuple(c) for c in np.array(corners).tolist()], fill=colour)
    x, y = curve[0].tolist()
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _around(point: NDArray[np.float64], radius: float) -> Rect:
    x, y = point.tolist()
    return x - radius, y - radius, x + radius, y + radius


def _tag(
    box: NDArray[np.float64], name: str, size: tuple[int, int], text_size: int, taken: list[tuple[Rect, float]]
) -> Rect:
    x1, y1, x2, y2 = box.tolist()
    width, height = _extent(name, text_size)
    left, right = (x1 - 1, x2 - width + 1)
    wanted = [(left, y1 - height), (right, y1 - height), (left, y2), (right, y2), (left, y1), (right, y1)]
    wanted += [(left, y2 - height), (right, y2 - height), ((x1 + x2 - width) / 2, y1), ((x1 + x2 - width) / 2, y2)]
    return _free(wanted, (width, height), size, taken)


def _free(
    wanted: Sequence[tuple[float, float]],
    extent: tuple[int, int],
    size: tuple[int, int],
    taken: list[tuple[Rect, float]],
) -> Rect:
    """Return the place for a label that covers least, earlier ones of `wanted` rather than later ones, and take it."""
    best: tuple[float, Rect] | None = None
    for rank, (x, y) in enumerate(wanted):
        x, y = min(max(round(x), 0), max(size[0] - extent[0], 0)), min(max(round(y), 0), max(size[1] - extent[1], 0))
        rect = (x, y, x + extent[0], y + extent[1])
        covered = 4 * rank + sum(  # square pixels
            weight
            * max(0.0, min(rect[2], r[2]) - max(rect[0], r[0]))
            * max(0.0, min(rect[3], r[3]) - max(rect[1], r[1]))
            for r, weight in taken
        )
        if best is None or covered < best[0]:
            best = covered, rect
    assert best is not None
    taken.append((best[1], 1.0))
    return best[1]


def _extent(text: str, text_size: int) -> tuple[int, int]:
    return round(font(text_size).getlength(text)) + 8, text_size + 5


def _chip(
    draw: ImageDraw.ImageDraw,
    rect: Rect,
    text: str,
    colour: tuple[int, int, int],
    text_size: int,
    border: tuple[int, int, int] | None = None,
) -> None:
    dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 140
    corners, width = (rect[0], rect[1], rect[2] - 1, rect[3] - 1), 1 if border is None else 2
    draw.rounded_rectangle(corners, 4, fill=colour, outline=border or (colour if dark else INK), width=width)
    middle = (rect[0] + rect[2]) / 2, (rect[1] + rect[3]) / 2
    draw.text(middle, text, fill=PAPER if dark else INK, font=font(text_size), anchor="mm")


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
        extent = _extent(names[label], text_size)
        x, y = columns[nearest] - extent[0] / 2, rows[nearest] - extent[1] / 2
        rect = _free([(x, y + s * extent[1]) for s in (0, 1, -1, 2, -2)], extent, drawn.size, taken)
        _chip(draw, rect, names[label], colours[label], text_size)
    return drawn
