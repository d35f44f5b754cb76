from __future__ import annotations

import numpy as np

from data_modules.graph_rows import graphs_from_rows, slice_graphs


def test_rows_become_nodes_in_order_of_first_appearance() -> None:
    a, b = [1, 2, 3, 4], [5, 6, 7, 8]
    rows = [  # image, subject, object, triplet; not sorted by image
        (2, b, a, (3, 1, 0)),
        (0, a, a, (0, 2, 2)),  # one box under two categories
        (2, a, b, (0, 0, 3)),
        (2, b, a, (3, 1, 0)),  # an exact duplicate
        (0, a, a, (0, 2, 0)),  # a node related to itself
    ]
    image, subjects, objects, triplets = (np.array(column) for column in zip(*rows, strict=True))
    sizes = [(9, 9), None, (8, 8)]
    graphs = graphs_from_rows(["x", "y", "z"], sizes, image, subjects.astype("f4"), objects.astype("f4"), triplets)
    assert [g.image for g in graphs] == ["x", "y", "z"]
    assert [g.size_wh for g in graphs] == sizes
    assert graphs[0].boxes_xyxy.tolist() == [a, a]
    assert graphs[0].labels.tolist() == [0, 2]
    assert graphs[0].relations.tolist() == [[0, 2, 1], [0, 2, 0]]
    assert (graphs[1].boxes_xyxy.shape, graphs[1].labels.shape, graphs[1].relations.shape) == ((0, 4), (0,), (0, 3))
    assert graphs[2].boxes_xyxy.tolist() == [b, a]
    assert graphs[2].labels.tolist() == [3, 0]
    assert graphs[2].relations.tolist() == [[0, 1, 1], [1, 0, 0], [0, 1, 1]]
    for g in graphs:
        assert (g.boxes_xyxy.dtype, g.labels.dtype, g.relations.dtype) == (np.float32, np.int64, np.int64)


def test_rows_agree_with_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 12, 400)
    image[image == 7] = 6  # an image without rows
    subjects, objects = (rng.integers(0, 3, (400, 4)).astype(np.float32) for _ in range(2))
    triplets = rng.integers(0, 3, (400, 3))
    graphs = graphs_from_rows([str(i) for i in range(12)], [None] * 12, image, subjects, objects, triplets)
    for number, graph in enumerate(graphs):
        nodes: dict[tuple[float, ...], int] = {}
        relations = []
        for row in range(400):
            if image[row] == number:
                s, p, o = triplets[row].tolist()
                first = nodes.setdefault((*subjects[row].tolist(), s), len(nodes))
                relations.append([first, p, nodes.setdefault((*objects[row].tolist(), o), len(nodes))])
        assert [[*box, label] for box, label in zip(graph.boxes_xyxy.tolist(), graph.labels.tolist(), strict=True)] == [
            list(node) for node in nodes
        ]
        assert graph.relations.tolist() == relations


def test_no_rows_at_all() -> None:
    nothing = np.zeros((0, 4), dtype=np.float32)
    empty = np.zeros((0, 3), dtype=np.int64)
    (graph,) = graphs_from_rows(["x"], [None], np.zeros(0, dtype=np.int64), nothing, nothing, empty)
    assert (graph.boxes_xyxy.shape, graph.relations.shape) == ((0, 4), (0, 3))
    assert graphs_from_rows([], [], np.zeros(0, dtype=np.int64), nothing, nothing, empty) == []


def test_slices_share_the_tables_memory() -> None:
    boxes, labels = np.zeros((3, 4), dtype=np.float32), np.arange(3)
    relations, ranges = np.zeros((2, 3), dtype=np.int64), np.array([[1, 3], [0, 0]])
    graphs = slice_graphs(["a", "b"], [None, None], boxes, labels, ranges, relations, np.array([[0, 2], [0, 0]]))
    assert np.shares_memory(graphs[0].boxes_xyxy, boxes)
    assert graphs[0].labels.tolist() == [1, 2]
    assert [len(g.relations) for g in graphs] == [2, 0]
