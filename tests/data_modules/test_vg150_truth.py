from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_modules.scene_graph import SceneGraph
from data_modules.vg150 import VG150TestTruthDataModule


def write_truth(folder: Path, images: int = 20) -> Path:
    """A test truth in the converted form."""
    rng = np.random.default_rng(0)
    offset = np.concatenate([[0], np.cumsum(rng.integers(1, 5, images))])
    corners = rng.integers(0, 50, (offset[-1], 2, 2, 2)).cumsum(axis=2).reshape(-1, 8)
    np.savez(
        folder / "vg150_test_gt.npz",
        image_id=np.arange(images) + 5,
        hw=np.full((images, 2), 100),
        offset=offset,
        spo_labels=rng.integers(0, 3, (offset[-1], 3)).astype(np.int16),
        so_boxes=corners.astype(np.float32),
    )
    for name in ("objects", "predicates"):
        (folder / f"{name}.json").write_text(json.dumps(["a", "b", "c"]))
    torch.save(torch.tensor([[1, 2, 3]]), folder / "zeroshot_triplet.pytorch")
    return folder


def test_the_test_truth_alone(tmp_path: Path) -> None:
    module = VG150TestTruthDataModule(write_truth(tmp_path), batch_size=64, seed=0)
    module.setup()
    assert len(module.test_graphs) == 20
    assert module.train_graphs == []
    assert module.val_dataloader() == []
    assert module.zero_shot_triplets.tolist() == [[0, 2, 1]]
    (batch,) = module.test_dataloader()
    assert batch.sizes_wh.tolist() == [[100, 100]] * 20
    record = module.provenance()
    assert (record["dataset"], record["official"]) == ("VG150 test truth", False)
    assert "zeroshot_triplet.pytorch" in [f["name"] for f in record["files"]]


def test_the_test_truth_divided_by_image(tmp_path: Path) -> None:
    write_truth(tmp_path)

    def divided(**options: Any) -> VG150TestTruthDataModule:
        return VG150TestTruthDataModule(tmp_path, 4, train_fraction=0.7, **({"seed": 0} | options))

    def names(graphs: list[SceneGraph]) -> list[str]:
        return [g.image for g in graphs]

    module = divided()
    train, test = names(module.train_graphs), names(module.test_graphs)
    assert (len(train), len(test), len({*train, *test})) == (14, 6, 20)
    assert names(divided(seed=9).train_graphs) == train
    assert names(divided(split_seed=1).train_graphs) != train
    assert module.provenance()["dataset"] == "VG150 test truth, 0.7 of its images drawn for training"
    assert sum(len(b.graphs) for b in module.train_dataloader()) == 14
    with pytest.raises(ValueError, match="train_fraction=1"):
        VG150TestTruthDataModule(tmp_path, 4, 0, train_fraction=1.0)


@pytest.mark.real_data
def test_the_real_test_truth_has_the_known_counts(data_root: Path) -> None:
    module = VG150TestTruthDataModule(data_root / "vg150-test", batch_size=256, seed=0)
    graphs = module.test_graphs
    rows = sum(len(g.relations) for g in graphs)
    distinct = sum(len(np.unique(g.relations, axis=0)) for g in graphs)
    assert (len(graphs), rows, rows - distinct) == (26_446, 183_642, 31_416)
    assert (module.num_objects, module.num_predicates) == (150, 50)
    unseen = {tuple(t) for t in module.zero_shot_triplets.tolist()}
    assert len(unseen) == 5_971
    found = [t for g in graphs for t in map(tuple, g.triplets.tolist()) if t in unseen]
    assert set(found) == unseen  # so the order of columns and the base are right
    assert len(found) == 8_845
    names = json.loads((data_root / "vg150-test" / "VG-SGG-dicts-with-attri.json").read_text())
    assert module.object_names == [names["idx_to_label"][str(i + 1)] for i in range(150)]
    assert all((g.boxes_xyxy[:, :2] <= g.boxes_xyxy[:, 2:]).all() for g in graphs)
    assert module.provenance()["counts"] == {
        "test_images": 26_446,
        "test_objects": 192_746,
        "test_relations": 183_642,
        "boxes_outside_image": 119,
    }
    batches = list(module.test_dataloader())
    assert sum(len(b.relations) for b in batches) == 183_642
    assert max(int(b.labels.max()) for b in batches) == 149
