from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_modules.openimages import OpenImagesDataModule
from data_modules.openimages_draws import draw_confusable, draw_images
from data_modules.scene_graph import SceneGraph
from data_modules.synthetic.openimages import write_openimages_world


def test_drawing_images_holds_every_class_or_says_that_it_cannot() -> None:
    def graph(label: int) -> SceneGraph:
        return SceneGraph(str(label), None, np.zeros((1, 4), np.float32), np.array([label]), np.array([[0, 0, 0]]))

    graphs = [graph(0)] * 500 + [graph(1), graph(2)]
    for seed in range(5):
        drawn = draw_images(graphs, 10, np.random.default_rng(seed))
        assert Counter(g.image for g in drawn) == {"0": 8, "1": 1, "2": 1}
    with pytest.raises(ValueError, match="2 images can't hold every category and predicate; at least 3 can"):
        draw_images(graphs, 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="600 images are to be drawn of 502"):
        draw_images(graphs, 600, np.random.default_rng(0))


def test_confusable_images_stand_in_for_those_that_were_picked_by_hand(tmp_path: Path) -> None:
    root = write_openimages_world(tmp_path / "world", train_images=20, test_images=60, with_images=False)
    whole = OpenImagesDataModule(root, batch_size=2, seed=0, source="reldn").test_graphs
    drawn = OpenImagesDataModule(root, batch_size=2, seed=5, source="reldn", scored="confusable").test_graphs
    kept = [
        g
        for g in whole
        if len(set(g.labels.tolist())) < len(g.labels)
        or any(a[1] == b[1] and a != b for a in g.relations.tolist() for b in g.relations.tolist())
    ]
    assert [g.image for g in drawn] == [g.image for g in kept] and 0 < len(kept) < len(whole)
    rng = np.random.default_rng(0)
    few = draw_confusable(whole, [0, 1], 3, rng)
    assert 0 < len(few) <= 3 and all(set(g.relations[:, 1].tolist()) <= {0, 1} for g in few)
    with pytest.raises(ValueError, match="scored='hard'"):
        OpenImagesDataModule(root, batch_size=2, seed=0, scored="hard")  # type: ignore[arg-type]
