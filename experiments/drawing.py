"""Draw boxes, relations and captions on pictures; shared with the gallery of data sets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's colours, which people with any colour vision tell apart; their black is left out.
COLOURS = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (240, 228, 66))
INK, GREY, PAPER, ALARM = (25, 25, 25), (95, 95, 95), (255, 255, 255), (180, 60, 0)
SMOOTH = 4  # lines are drawn so many times as large and scaled down
SHORTEST_ARROW = 34.0  # pixels
PLACES = (0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74, 0.18)  # along an arrow, for its label
Rect = tuple[float, float, float, float]
Colour = tuple[int, int, int]


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which matplotlib brings along: the same letters on every machine."""
    name = f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def wrapped(text: str, width: int, text_size: int, bold: bool = False) -> list[str]:
    """Return the text in lines that are no wider than so many pixels, broken between words."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font(text_size, bold).getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def box_colour(number: int) -> Colour:
    """Return the colour of a picture's box."""
    return COLOURS[number % len(COLOURS)]


def draw_boxes(
    image: Image.Image,
    boxes_xyxy: NDArray[np.float64],
    names: Sequence[str],
    arrows: Sequence[tuple[int, str, int]],
    text_size: int,
    dashed: Sequence[bool] = (),
    box_colours: Sequence[Colour] = (),
    arrow_colours: Sequence[Colour] = (),
) -> Image.Image:
    """Return a picture with boxes, arrows between them and their names.

    Args:
        image: RGB.
        boxes_xyxy: float `[N, 4]`, edges in pixels of the picture.
        names: What is written at the N boxes.
        arrows: Subject box, name, object box; at most one for an ordered pair.
        text_size: Of the names, pixels.
        dashed: Which of the N boxes are drawn with dashes; none where empty.
        box_colours: Of the N boxes; empty gives each another one.
        arrow_colours: Of the arrows; empty gives each that of its subject.
    """
    box_colours = box_colours or [box_colour(number) for number in range(len(boxes_xyxy))]
    arrow_colours = arrow_colours or [box_colours[subject] for subject, _, _ in arrows]
    overlay = Image.new("RGBA", (image.width * SMOOTH, image.height * SMOOTH))
    draw = ImageDraw.Draw(overlay)
    for wide, (number, box) in ((w, entry) for w in (True, False) for entry in enumerate(boxes_xyxy * SMOOTH)):
        colour = (0, 0, 0, 110) if wide else (*box_colours[number], 255)
        _outline(draw, box, colour, (4 if wide else 2) * SMOOTH, bool(dashed) and dashed[number])
    curves = [_curve(boxes_xyxy[s], boxes_xyxy[o]) for s, _, o in arrows]
    for curve in curves:
        _arrow(draw, curve * SMOOTH, (*PAPER, 255), 6 * SMOOTH)
    for curve, ink in zip(curves, arrow_colours, strict=True):
        _arrow(draw, curve * SMOOTH, (*ink, 255), 3 * SMOOTH)
    result = Image.alpha_composite(image.convert("RGBA"), overlay.reduce(SMOOTH)).convert("RGB")
    draw = ImageDraw.Draw(result)
    # Labels cover one another least of all, and rather the middle of a large object than a small one or an arrow's end.
    taken: list[tuple[Rect, float]] = [(_around(point, 7), 0.5) for c in curves for point in (c[0], c[-1])]
    taken += [(tuple(box), 0.2) for box in boxes_xyxy.tolist() if min(box[2] - box[0], box[3] - box[1]) < 5 * text_size]
    tags = [_tag(box, name, result.size, text_size, taken) for box, name in zip(boxes_xyxy, names, strict=True)]
    for name, tag, ink in zip(names, tags, box_colours, strict=True):
        chip(draw, tag, name, ink, text_size)
    for curve, (_, name, _), ink in zip(curves, arrows, arrow_colours, strict=True):
        if name:
            places = [curve[round(t * (len(curve) - 1))].tolist() for t in PLACES]
            width, height = text_extent(name, text_size)
            shifts = [shift * height - height / 2 for shift in (0, -1, 1, -2, 2, -3, 3)]
            wanted = [(x - width / 2, y + shift) for shift in shifts for x, y in places]
            rect = free_place(wanted, (width, height), result.size, taken)
            chip(draw, rect, name, PAPER, text_size, ink)
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
    width, height = text_extent(name, text_size)
    left, right = (x1 - 1, x2 - width + 1)
    wanted = [(left, y1 - height), (right, y1 - height), (left, y2), (right, y2), (left, y1), (right, y1)]
    wanted += [(left, y2 - height), (right, y2 - height), ((x1 + x2 - width) / 2, y1), ((x1 + x2 - width) / 2, y2)]
    return free_place(wanted, (width, height), size, taken)


def free_place(
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


def text_extent(text: str, text_size: int) -> tuple[int, int]:
    """Return width and height in pixels of a label."""
    return round(font(text_size).getlength(text)) + 8, text_size + 5


def chip(
    draw: ImageDraw.ImageDraw,
    rect: Rect,
    text: str,
    colour: Colour,
    text_size: int,
    border: Colour | None = None,
) -> None:
    """Draw a label at its place, in ink that is legible on `colour`."""
    dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 140
    corners, width = (rect[0], rect[1], rect[2] - 1, rect[3] - 1), 1 if border is None else 2
    draw.rounded_rectangle(corners, 4, fill=colour, outline=border or (colour if dark else INK), width=width)
    middle = (rect[0] + rect[2]) / 2, (rect[1] + rect[3]) / 2
    draw.text(middle, text, fill=PAPER if dark else INK, font=font(text_size), anchor="mm")
