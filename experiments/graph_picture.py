"""The graph that a model sees in one image: what is written of it, and a picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from experiments.drawing import GREY, INK, PAPER, Colour, draw_boxes, font, wrapped

PANEL_WH = (720, 560)  # room for a picture in pixels
MIN_WIDTH = 260  # of a panel, for its text
MARGIN, TEXT_SIZE = 16, 14
RIGHT, WRONG, BOX = (0, 120, 90), (190, 75, 0), (0, 90, 150)
SIGNS: dict[bool | None, tuple[str, Colour]] = {True: ("✓ ", RIGHT), False: ("✗ ", WRONG), None: ("", INK)}
ARROWS = 8  # more would hide one another
BLANK = 236  # grey of the ground where there is no image


@dataclass(frozen=True)
class Triplet:
    """A ranked triplet.

    Attributes:
        subject: Row of its box.
        object: Row of its box.
        labels: Of subject, predicate and object; a model that predicts all three may contradict the boxes' labels.
        names: What these labels mean.
        score: Any monotone scale: probabilities, of `vrd_tensor` logarithms.
        is_right: Whether an annotated relation has these labels and boxes that overlap by IoU 0.5 or more; None where
            nobody annotated the image.
    """

    subject: int
    object: int
    labels: tuple[int, int, int]
    names: tuple[str, str, str]
    score: float
    is_right: bool | None


@dataclass(frozen=True)
class Graph:
    """The boxes of one image and the best triplets.

    Attributes:
        image: Name.
        size_wh: Width and height in pixels of the frame that the boxes are in.
        boxes_xyxy: float `[N, 4]`, pixels; the last row and column belong to the box.
        labels: Of the N boxes.
        names: What these labels mean.
        scores: Confidences of the N boxes, 0 to 1.
        triplets: Best first.
    """

    image: str
    size_wh: tuple[float, float]
    boxes_xyxy: NDArray[np.float64]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    scores: tuple[float, ...]
    triplets: tuple[Triplet, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the graph as a JSON-like value."""
        boxes = self.boxes_xyxy.tolist()
        keys = ("box_xyxy", "label", "name", "score")
        triplets = []
        for t in self.triplets:
            entry: dict[str, Any] = {"score": t.score}
            for role, label, name in zip(("subject", "predicate", "object"), t.labels, t.names, strict=True):
                entry |= {role: name, f"{role}_label": label}
            for role, row in (("subject", t.subject), ("object", t.object)):
                entry |= {f"{role}_box": row, f"{role}_box_xyxy": boxes[row]}
            triplets.append(entry if t.is_right is None else {**entry, "is_right": t.is_right})
        rows = zip(boxes, self.labels, self.names, self.scores, strict=True)
        return {
            "image": self.image,
            "size_wh": list(self.size_wh),
            "boxes": [dict(zip(keys, row, strict=True)) for row in rows],
            "triplets": triplets,
        }


def draw_panels(image: NDArray[np.uint8] | None, panels: Sequence[tuple[str, Graph]]) -> Image.Image:
    """Return graphs of one image side by side, each under a title and over the list of its triplets.

    Args:
        image: uint8 `[H, W, 3]`, RGB, its frame scaled to any size; None draws on a blank ground.
        panels: Title and graph; at least one.
    """
    drawn = [_panel(image, title, graph) for title, graph in panels]
    titles = max(title.height for title, _, _ in drawn)
    width = sum(title.width + MARGIN for title, _, _ in drawn) + MARGIN
    height = max(picture.height + listing.height for _, picture, listing in drawn) + titles + 2 * MARGIN
    sheet, x = Image.new("RGB", (width, height), PAPER), MARGIN
    for title, picture, listing in drawn:
        sheet.paste(title, (x, MARGIN))
        sheet.paste(picture, (x, MARGIN + titles))
        sheet.paste(listing, (x, MARGIN + titles + picture.height))
        x += title.width + MARGIN
    return sheet


def _panel(image: NDArray[np.uint8] | None, title: str, graph: Graph) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Return title, picture and list of the triplets."""
    scale = min(room / side for room, side in zip(PANEL_WH, graph.size_wh, strict=True))
    size = max(1, round(graph.size_wh[0] * scale)), max(1, round(graph.size_wh[1] * scale))
    width = max(MIN_WIDTH, size[0])
    ground = Image.new("RGB", size, (BLANK, BLANK, BLANK))
    if image is not None:
        ground = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    lines = [(text, INK, True) for text in wrapped(title, width, TEXT_SIZE + 1, bold=True)]
    return _text(lines, width), _picture(ground, graph), _text(_listing(graph, width), width)


def _picture(ground: Image.Image, graph: Graph) -> Image.Image:
    shown: dict[tuple[int, int], list[int]] = {}  # numbers of the triplets of an ordered pair
    for number, triplet in enumerate(graph.triplets):
        pair = triplet.subject, triplet.object
        if pair in shown or len(shown) < ARROWS:
            shown.setdefault(pair, []).append(number)
    rows = sorted({row for pair in shown for row in pair}) or list(range(len(graph.names)))
    place = {row: position for position, row in enumerate(rows)}
    factors = np.array([*ground.size, *ground.size]) / np.tile(graph.size_wh, 2)
    edges = (graph.boxes_xyxy[rows].reshape(-1, 4) + np.array([0, 0, 1, 1])) * factors
    judged = any(t.is_right is not None for t in graph.triplets)
    arrows, inks = [], []
    for (subject, other), numbers in shown.items():
        first = graph.triplets[numbers[0]]
        sign, ink = SIGNS[first.is_right]
        more = "".join(f", {number + 1}" for number in numbers[1:4]) + ("…" if len(numbers) > 4 else "")
        arrows.append((place[subject], f"{sign}{numbers[0] + 1}{more} {first.names[1]}", place[other]))
        inks.append(ink)
    names = [graph.names[row] for row in rows]
    boxes = [BOX] * len(rows) if judged else []
    return draw_boxes(ground, edges, names, arrows, TEXT_SIZE - 1, (), boxes, inks if judged else ())


def _listing(graph: Graph, width: int) -> list[tuple[str, Colour, bool]]:
    if not graph.triplets:
        return [("no pair of boxes, no triplet", GREY, False)]
    lines = []
    for number, t in enumerate(graph.triplets, 1):
        sign, ink = SIGNS[t.is_right]
        text = f"{number}. {sign}{' – '.join(t.names)} ({t.score:.4g})"
        lines += [(part, ink, False) for part in wrapped(text, width, TEXT_SIZE)]
    return lines


def _text(lines: Sequence[tuple[str, Colour, bool]], width: int) -> Image.Image:
    step = TEXT_SIZE + 5
    image = Image.new("RGB", (width, step * len(lines) + 8), PAPER)
    draw = ImageDraw.Draw(image)
    for number, (text, colour, bold) in enumerate(lines):
        draw.text((0, 5 + step * number), text, fill=colour, font=font(TEXT_SIZE + bold, bold), anchor="la")
    return image
