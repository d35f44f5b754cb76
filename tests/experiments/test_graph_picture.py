from __future__ import annotations

from typing import Any

import numpy as np

from experiments.graph_picture import BLANK, MARGIN, Graph, Triplet, draw_panels


def graph(**content: Any) -> Graph:
    values: dict[str, Any] = {"image": "a.png", "size_wh": (200, 100), "labels": (1, 2), "names": ("cup", "table")}
    boxes = np.array([[20.0, 10, 79, 59], [120, 40, 179, 89]])
    return Graph(**(values | {"boxes_xyxy": boxes, "scores": (0.5, 0.6), "triplets": ()} | content))


def near(drawn: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.asarray((np.abs(drawn.astype(int) - colour) < 6).all(axis=2))


def test_boxes_and_arrows_are_drawn_where_they_are() -> None:
    pixels = np.full((100, 200, 3), (200, 210, 220), np.uint8)
    title, ends = "a picture", (np.array([[20, 10, 80, 60], [120, 40, 180, 90]]) * 3.6).round().astype(int)
    plain, drawn = (
        np.asarray(draw_panels(pixels, [(title, g)]))
        for g in (graph(labels=(), names=(), scores=(), boxes_xyxy=np.zeros((0, 4))), graph())
    )
    area = near(plain, (200, 210, 220))
    top = int(np.flatnonzero(area.any(axis=1))[0])
    assert area[:, MARGIN : MARGIN + 720].any(axis=0).all() and area.any(axis=1).sum() == 360
    changed = (plain[top : top + 360, MARGIN : MARGIN + 720] != drawn[top : top + 360, MARGIN : MARGIN + 720]).any(
        axis=2
    )
    for x1, y1, x2, y2 in ends:
        middle = (y1 + y2) // 2, (x1 + x2) // 2
        columns, lines = np.flatnonzero(changed[middle[0]]), np.flatnonzero(changed[:, middle[1]])
        for edge in (x1, x2):
            assert np.abs(columns - edge).min() <= 1
        for edge in (y1, y2):
            assert np.abs(lines - edge).min() <= 1
        assert not changed[middle[0] + 40, middle[1] - 20]
    arrow = Triplet(0, 1, (1, 0, 2), ("cup", "on", "table"), 0.5, True)
    with_arrow = np.asarray(draw_panels(pixels, [(title, graph(triplets=(arrow,)))]))
    between = with_arrow[top : top + 360, MARGIN + 290 : MARGIN + 430]
    assert near(between, (0, 120, 90)).any()  # marked as right
    wrong = np.asarray(
        draw_panels(None, [(title, graph(triplets=(Triplet(0, 1, (1, 0, 2), ("cup", "on", "table"), 0.5, False),)))])
    )
    between = wrong[top : top + 360, MARGIN + 290 : MARGIN + 430]
    assert near(between, (190, 75, 0)).any() and near(between, (BLANK,) * 3).any()
    both = draw_panels(None, [(title, graph()), ("another", graph(size_wh=(100, 400)))])
    assert both.width > drawn.shape[1] + 250
