from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from data_modules.errors import DataError
from data_modules.scene_graph import SceneGraph
from data_modules.synthetic.relation_classes import RelationKnobs
from data_modules.synthetic.relation_truth import read_truth
from data_modules.synthetic.vrd import GIF_STEM, write_vrd_world
from data_modules.vrd import VRDDataModule
from data_modules.vrd_files import open_image, read_image_order


def checksums(root: Path) -> dict[str, str]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> VRDDataModule:
    root = write_vrd_world(tmp_path_factory.mktemp("larger") / "vrd", train_images=400, with_images=False)
    return VRDDataModule(root, batch_size=8, seed=0, proposals="lu2016", image_size="box_extent")


def test_the_layout_is_the_release_s(vrd_world: Path) -> None:
    assert {p.name for p in (vrd_world / "json_dataset").iterdir()} == {
        "annotations_test.json",
        "annotations_train.json",
        "objects.json",
        "predicates.json",
    }
    variables = {
        "gt": {"gt_tuple_label": "uint8", "gt_sub_bboxes": "uint16", "gt_obj_bboxes": "uint16"},
        "objectDetRCNN": {"detection_labels": "uint8", "detection_bboxes": "int64", "detection_confs": "float64"},
        "relationship_det_result": {
            "rlp_labels_ours": "uint8",
            "rlp_confs_ours": "float32",
            "sub_bboxes_ours": "uint16",
            "obj_bboxes_ours": "uint16",
        },
    }
    for name, expected in variables.items():
        content = loadmat(vrd_world / "lu2016" / f"{name}.mat")
        assert {k for k in content if not k.startswith("__")} == set(expected)
        for variable, dtype in expected.items():
            cells = content[variable]
            assert (cells.shape, cells.dtype) == ((1, 24), object)
            for cell in cells.ravel():
                assert cell.dtype == dtype if cell.size else (cell.dtype, cell.shape) == (np.uint8, (0, 0))
    for name, count in (("objectListN", 20), ("relationListN", 12), ("imagePath", 24)):
        cells = loadmat(vrd_world / "lu2016" / f"{name}.mat")[name]
        assert (cells.shape, cells[0, 0].shape) == ((1, count), (1,))
    for split, count in (("train", 40), ("test", 24)):
        assert len(list((vrd_world / "sg_dataset" / f"sg_{split}_images").iterdir())) == count


def test_images_have_the_release_s_oddities(vrd_world: Path) -> None:
    order = read_image_order(vrd_world / "lu2016" / "imagePath.mat")
    folder = vrd_world / "sg_dataset" / "sg_test_images"
    assert f"{GIF_STEM}.jpg" in order
    assert not (folder / f"{GIF_STEM}.jpg").exists()
    assert Image.open(folder / f"{GIF_STEM}.gif").format == "GIF"
    assert sum(p.suffix == ".png" for p in (vrd_world / "sg_dataset" / "sg_train_images").iterdir()) == 1
    for name in order:
        image = open_image(folder, name)
        assert (max(image.size) == 1024) == name.endswith("_b.jpg")
        assert np.asarray(image).std() > 5  # something is drawn


def test_objects_are_drawn_where_the_annotations_say(vrd_world: Path) -> None:
    """Every object has colour that the grey ground hasn't, and only within its box where it stands alone."""
    module = VRDDataModule(vrd_world, batch_size=8, seed=0)
    annotated = {g.image: g.boxes_xyxy.astype(int).tolist() for g in [*module.train_graphs, *module.test_graphs]}
    checked = 0
    for index, scene in enumerate(read_truth(vrd_world)):
        graph, folder = scene.graph, f"sg_{'train' if index < 40 else 'test'}_images"
        pixels = np.asarray(open_image(vrd_world / "sg_dataset" / folder, graph.image)).astype(int)
        vivid = pixels.max(axis=2) - pixels.min(axis=2) > 60
        boxes = graph.boxes_xyxy.astype(int)
        assert {tuple(b) for b in annotated.get(graph.image, [])} <= {tuple(b) for b in boxes.tolist()}
        for x1, y1, x2, y2 in boxes.tolist():
            assert vivid[y1 - 1 : y2, x1 - 1 : x2].mean() > 0.2
            apart = (boxes[:, :2] > (x2 + 8, y2 + 8)).any(axis=1) | (boxes[:, 2:] < (x1 - 8, y1 - 8)).any(axis=1)
            if apart.sum() == len(boxes) - 1:
                left, top = max(x1 - 7, 0), max(y1 - 7, 0)
                rows, columns = np.nonzero(vivid[top : y2 + 6, left : x2 + 6])
                found = (columns.min() + left + 1, rows.min() + top + 1, columns.max() + left + 1, rows.max() + top + 1)
                # The rim is dark, and JPEG blurs colours.
                assert np.abs(np.array(found) - (x1, y1, x2, y2)).max() <= 5
                checked += 1
    assert checked > 30


def test_the_same_parameters_give_the_same_bytes(vrd_world: Path, tmp_path: Path) -> None:
    again = write_vrd_world(tmp_path / "again", train_images=40, test_images=24)
    assert checksums(again) == checksums(vrd_world)
    without = write_vrd_world(tmp_path / "without", train_images=40, test_images=24, with_images=False)
    expected = {k: v for k, v in checksums(vrd_world).items() if k.startswith(("json", "lu", "truth"))}
    assert {k: v for k, v in checksums(without).items() if k != "manifest.json"} == expected
    other = checksums(write_vrd_world(tmp_path / "other", seed=1, train_images=40, test_images=24, with_images=False))
    assert other["json_dataset/annotations_train.json"] != expected["json_dataset/annotations_train.json"]


def test_more_images_leave_the_others_as_they_are(vrd_world: Path, tmp_path: Path) -> None:
    more = checksums(write_vrd_world(tmp_path / "more", train_images=45, test_images=26))
    few = checksums(vrd_world)
    images = [name for name in few if name.startswith("sg_dataset")]
    assert {name: more[name] for name in images} == {name: few[name] for name in images}
    annotations = [
        json.loads((r / "json_dataset" / "annotations_train.json").read_text()) for r in (vrd_world, tmp_path / "more")
    ]
    assert annotations[0].items() <= annotations[1].items()


def test_knobs_and_sizes_of_images_make_other_worlds(vrd_world: Path, tmp_path: Path) -> None:
    root = write_vrd_world(tmp_path / "w", train_images=9, test_images=5, side=320, knobs=RelationKnobs(clutter=0.0))
    sizes = {Image.open(p).size[1] for p in (root / "sg_dataset").rglob("*_o*.*")}
    assert sizes == {320}
    assert json.loads((root / "manifest.json").read_text())["clutter"] == 0
    with pytest.raises(DataError, match="holds something else than the world"):
        write_vrd_world(root, train_images=9, test_images=5, side=320)
    with pytest.raises(ValueError, match="side=0"):
        write_vrd_world(tmp_path / "x", side=0)


@pytest.mark.slow
def test_2000_images_take_seconds(tmp_path: Path) -> None:
    start = time.process_time()
    write_vrd_world(tmp_path / "w", train_images=1500, test_images=500)
    assert time.process_time() - start < 20


def test_a_complete_world_is_kept_and_anything_else_is_not_touched(tmp_path: Path) -> None:
    root = write_vrd_world(tmp_path / "w", train_images=4, test_images=4, with_images=False)
    changed = root / "json_dataset" / "objects.json"
    before = changed.stat().st_mtime_ns
    assert write_vrd_world(root, train_images=4, test_images=4, with_images=False) == root
    assert changed.stat().st_mtime_ns == before
    with pytest.raises(DataError, match=r"holds something else than the world .*'train_images': 5"):
        write_vrd_world(root, train_images=5, test_images=4, with_images=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="remove it or name another folder"):
        write_vrd_world(tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "w"]  # no temporary folder remains


def write_one(root: Path) -> dict[str, str]:
    return checksums(write_vrd_world(root, train_images=6, test_images=4))


def test_concurrent_writers_see_one_whole_world(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        seen = list(pool.map(write_one, [tmp_path / "w"] * 8))
    assert all(s == seen[0] for s in seen)
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


@pytest.mark.parametrize("wrong", [{"num_objects": 4}, {"num_predicates": 256}, {"test_images": 1}, {"seed": -1}])
def test_impossible_parameters_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="5 to 255 objects"):
        write_vrd_world(tmp_path / "w", **wrong)


def test_the_release_s_numbers_of_classes_are_possible(tmp_path: Path) -> None:
    root = write_vrd_world(
        tmp_path / "w", num_objects=100, num_predicates=70, train_images=60, test_images=4, with_images=False
    )
    module = VRDDataModule(root, batch_size=8, seed=0, proposals="lu2016", image_size="box_extent")
    assert (module.num_objects, module.num_predicates) == (100, 70)
    predicates = {int(p) for g in module.train_graphs for p in g.relations[:, 1]}
    assert len(predicates) > 40
    few = write_vrd_world(tmp_path / "few", num_objects=5, num_predicates=2, train_images=20, test_images=4)
    names = json.loads((few / "json_dataset" / "predicates.json").read_text())
    assert names == ["holding", "on"]
    assert len(VRDDataModule(few, batch_size=8, seed=0).train_graphs) > 5


def meeting(graph: SceneGraph, s: int, o: int) -> bool:
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = graph.boxes_xyxy[[s, o]].tolist()
    return min(ax2, bx2) >= max(ax1, bx1) and min(ay2, by2) >= max(ay1, by1)


def test_the_world_needs_places_beside_classes(larger: VRDDataModule) -> None:
    """Two objects of one class take part differently in a relation, and their boxes say which does."""
    holding = larger.predicate_names.index("holding")
    twins = 0
    for graph in larger.train_graphs:
        for s, p, o in graph.relations.tolist():
            if p != holding or (graph.boxes_xyxy[s] == graph.boxes_xyxy[o]).all():
                continue
            assert meeting(graph, s, o)
            others = [n for n in range(len(graph.labels)) if graph.labels[n] == graph.labels[s] and n != s]
            twins += any(not meeting(graph, n, o) for n in others)
    assert twins >= 20


def test_classes_alone_say_much_but_not_all(larger: VRDDataModule) -> None:
    counts: Counter[tuple[int, int, int]] = Counter()
    predicates: Counter[int] = Counter()
    for graph in larger.train_graphs:
        counts.update((int(s), int(o), int(p)) for s, p, o in graph.triplets)
        predicates.update(graph.triplets[:, 1].tolist())
    rows = np.concatenate([g.triplets for g in larger.test_graphs]).tolist()
    commonest = predicates.most_common(1)[0][0]
    floor = np.mean([p == commonest for _, p, _ in rows])
    by_class = np.mean([p == max(range(12), key=lambda q: counts[s, o, q]) for s, p, o in rows])
    assert floor < 0.35
    assert floor + 0.1 < by_class < 0.8


def test_annotations_are_those_of_people(larger: VRDDataModule) -> None:
    graphs = larger.train_graphs
    relations = sum(len(g.relations) for g in graphs)
    duplicates = sum(len(g.relations) - len(np.unique(g.relations, axis=0)) for g in graphs)
    assert 0 < duplicates < 0.05 * relations
    pairs = [Counter(map(tuple, np.unique(g.relations, axis=0)[:, ::2].tolist())) for g in graphs]
    assert sum(n > 1 for c in pairs for n in c.values()) > 0.05 * relations  # two predicates
    assert any(len(np.unique(g.boxes_xyxy, axis=0)) < len(g.labels) for g in graphs)  # one box, two categories
    # A fact that always comes with its converse is annotated only now and then.
    left, right = (larger.predicate_names.index(name) for name in ("left of", "right of"))
    facts = [{(s, p, o) for s, p, o in g.relations.tolist()} for g in graphs]
    lefts = [(f, s, o) for f in facts for s, p, o in f if p == left]
    both = np.mean([(o, right, s) in f for f, s, o in lefts])
    assert 0.1 < both < 0.6
    assert len(graphs) < 400  # some images carry no relation at all


def test_proposals_miss_and_invent(larger: VRDDataModule) -> None:
    """Most annotated objects are found with their label, some are not; some detections fit no annotated object."""
    found = total = 0
    best_overlaps = []
    for graph, detections in zip(larger.test_graphs, larger.detections, strict=True):
        overlaps = np.zeros((len(graph.labels), len(detections.labels)))
        for i, a in enumerate(graph.boxes_xyxy.tolist()):
            for j, b in enumerate(detections.boxes_xyxy.tolist()):
                w = min(a[2], b[2]) - max(a[0], b[0]) + 1
                h = min(a[3], b[3]) - max(a[1], b[1]) + 1
                areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
                common = max(w, 0) * max(h, 0)
                overlaps[i, j] = common / (sum(areas) - common)
        right = (overlaps >= 0.5) & (graph.labels[:, None] == detections.labels)
        found, total = found + int(right.any(axis=1).sum()), total + len(graph.labels)
        best_overlaps += overlaps.max(axis=0).tolist() if overlaps.size else []
    assert 0.6 < found / total < 0.9
    assert np.mean(np.array(best_overlaps) < 0.3) > 0.02
    counts = [len(d.labels) for d in larger.detections]
    assert 0 in counts
    scores = np.concatenate([d.scores for d in larger.detections])
    assert scores.std() > 0.1
