"""Lay out pictures on sheets: a grid of them under a title, and the overview of all data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from experiments.drawing import GREY, INK, PAPER, font, wrapped
from scripts.gallery_draw import Line, Picture, draw_picture

MARGIN, GAP = 28, 18


@dataclass(frozen=True)
class Sheet:
    """The pictures of one data set.

    Attributes:
        title: Name of the data set.
        lines: What is shown, and how to read it.
        pictures: What to draw.
        columns: Pictures in a row.
        cell_wh: Room for a picture in pixels, without its caption.
    """

    title: str
    lines: tuple[str, ...]
    pictures: tuple[Picture, ...]
    columns: int
    cell_wh: tuple[int, int]


def draw_sheet(sheet: Sheet, text_size: int = 13) -> Image.Image:
    """Return the sheet."""
    width = 2 * MARGIN + sheet.columns * sheet.cell_wh[0] + (sheet.columns - 1) * GAP
    parts = [sheet.pictures[i : i + sheet.columns] for i in range(0, len(sheet.pictures), sheet.columns)]
    rows = [_cells(part, sheet.cell_wh, text_size) for part in parts]
    heading = [line for text in sheet.lines for line in wrapped(text, width - 2 * MARGIN, 15)]
    top = MARGIN + 36 + 21 * len(heading) + 14
    heights = [max(cell.height for cell in row) for row in rows]
    result = Image.new("RGB", (width, top + sum(heights) + GAP * (len(rows) - 1) + MARGIN), PAPER)
    draw = ImageDraw.Draw(result)
    draw.text((MARGIN, MARGIN), sheet.title, fill=INK, font=font(26, bold=True), anchor="lt")
    for number, text in enumerate(heading):
        draw.text((MARGIN, MARGIN + 36 + 21 * number), text, fill=GREY, font=font(15), anchor="lt")
    y = top
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            result.paste(cell, (MARGIN + column * (sheet.cell_wh[0] + GAP), y))
        y += height + GAP
    return result


def draw_overview(rows: Sequence[Sequence[tuple[str, Sequence[Picture]]]], width: int = 1500) -> Image.Image:
    """Return a picture of all data sets: a title and one picture each, or six small ones."""
    parts = []
    for row in rows:
        room = (width - 2 * MARGIN - GAP * (len(row) - 1)) // len(row)
        parts.append([_panel(title, pictures, room) for title, pictures in row])
    heights = [max(panel.height for panel in row) for row in parts]
    result = Image.new("RGB", (width, 2 * MARGIN + sum(heights) + GAP * (len(parts) - 1)), PAPER)
    y = MARGIN
    for panels, height in zip(parts, heights, strict=True):
        x = MARGIN
        for panel in panels:
            result.paste(panel, (x, y))
            x += panel.width + GAP
        y += height + GAP
    return result


def _panel(title: str, pictures: Sequence[Picture], width: int) -> Image.Image:
    if len(pictures) <= 2:  # one below the other
        room = width, round(0.72 * width / len(pictures)) - 3
        drawn = [draw_picture(picture, room, 14 if len(pictures) == 1 else 11) for picture in pictures]
        rows = [[image] for image in drawn]
    else:
        side = (width - 20) // 3
        rows = [_cells(pictures[i : i + 3], (side, side), 11) for i in range(0, len(pictures), 3)]
    heights = [max(image.height for image in row) for row in rows]
    panel = Image.new("RGB", (width, 28 + sum(heights) + 6 * (len(rows) - 1)), PAPER)
    ImageDraw.Draw(panel).text((0, 0), title, fill=INK, font=font(17, bold=True), anchor="lt")
    y = 28
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            panel.paste(image, (column * (image.width + 10), y))
        y += height + 6
    return panel


def _cells(pictures: Sequence[Picture], size_wh: tuple[int, int], text_size: int) -> list[Image.Image]:
    """Return pictures with their captions, all captions of the row on one line."""
    drawn = [draw_picture(picture, size_wh, text_size) for picture in pictures]
    height = max(image.height for image in drawn)
    return [_cell(*both, height, size_wh[0], text_size) for both in zip(pictures, drawn, strict=True)]


def _cell(picture: Picture, drawn: Image.Image, height: int, width: int, text_size: int) -> Image.Image:
    lines: list[Line] = [
        (part, colour, bold) for text, colour, bold in picture.caption for part in wrapped(text, width, text_size, bold)
    ]
    step = text_size + 4
    cell = Image.new("RGB", (width, height + (5 + step * len(lines) if lines else 0)), PAPER)
    cell.paste(drawn, ((width - drawn.width) // 2, (height - drawn.height) // 2))
    draw = ImageDraw.Draw(cell)
    for number, (text, colour, bold) in enumerate(lines):
        place = width // 2, height + 4 + step * number
        draw.text(place, text, fill=colour, font=font(text_size, bold), anchor="ma")
    return cell
