from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.cells import Deviation
from experiments.errors import ExperimentError
from experiments.published import COLUMNS
from experiments.spec import CellSpec, Registry, TableSpec, stem

BASE: dict[str, Any] = {
    "settings": {"method": "reldn", "data": {"proposals": "lu2016"}, "trainer": {"max_epochs": 8}},
    "profiles": {"smoke": {"trainer": {"max_epochs": 1, "limit_test_batches": 2}, "sampling": {"max_pairs": 4}}},
}
PRINTED = [  # row, column, group, value, source
    ("A", "k1/R@50", "G", "17.5", "ours_in_paper"),
    ("A", "k1/R@100", "G", "18.5", "ours_in_paper"),
    ("B", "k1/R@50", "G", "15.0", "baseline"),
    ("B", "k1/R@100", "G", "", "baseline"),
    ("C", "k1/R@50", "H", "3.0", "quoted"),
    ("C", "k1/R@100", "H", "4.0", "quoted"),
]
Load = Callable[..., TableSpec]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Return a loader of a small table of the paper `reldn` from a folder of its own."""

    def write_and_load(
        table: dict[str, Any], base: dict[str, Any] = BASE, kind: str = "table", **arguments: Any
    ) -> TableSpec:
        folder = tmp_path / "reldn"
        (folder / "published").mkdir(parents=True, exist_ok=True)
        lines = [
            f"reldn,1,{row},{column},{group},{value},,percent,{source},0"
            for row, column, group, value, source in PRINTED
        ]
        (folder / "published" / "table1.csv").write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")
        (folder / "base.yaml").write_text(yaml.safe_dump(base))
        (folder / f"{kind}1.yaml").write_text(yaml.safe_dump({"title": "T", "published": "table1.csv"} | table))
        (folder / "table2.yaml").write_text("title: another\n")
        return Registry(tmp_path).load("reldn", kind, "1", **arguments)

    return write_and_load


def cell_of(spec: TableSpec, row: str, column: str = "k1/R@50") -> CellSpec:
    found = [c for c in spec.cells if (c.published.row, c.published.column) == (row, column)]
    assert len(found) == 1
    return found[0]


def config_of(spec: TableSpec, row: str, stage: str, column: str = "k1/R@50") -> dict[str, Any]:
    """The config of a cell's first run, or of the run of another stage that it needs."""
    run = cell_of(spec, row, column).runs[0]
    return (run if run.stage_name == stage else run.needs["network"]).config


def test_later_layers_win(load: Load) -> None:
    """base <- column <- row <- substitute <- profile <- command line."""
    table: dict[str, Any] = {
        "columns": [{"column": "*@100", "set": {"trainer.batch_size": 2, "loss.margin": 0.3, "optimizer.lr": 0.2}}],
        "rows": [
            {"row": "A", "set": {"loss.margin": 0.4}, "substitute": {"reason": "why", "set": {"data.flip": True}}}
        ],
    }
    training = lambda spec, column: config_of(spec, "A", "reldn.training", column)  # noqa: E731
    spec = load(table)
    plain, hundred = training(spec, "k1/R@50"), training(spec, "k1/R@100")
    assert (plain["trainer"]["max_epochs"], hundred["trainer"]["max_epochs"]) == (8, 8)
    assert (plain["trainer"]["batch_size"], hundred["trainer"]["batch_size"]) == (1, 2)
    assert (plain["loss"]["margin"], hundred["loss"]["margin"]) == (0.4, 0.4)
    assert (plain["optimizer"]["lr"], hundred["optimizer"]["lr"]) == (0.01, 0.2)
    assert plain["data"]["flip"] is True
    table["rows"][0]["substitute"]["set"] = {"trainer.max_epochs": 5}
    assert training(load(table), "k1/R@50")["trainer"]["max_epochs"] == 5
    assert training(load(table, profile="smoke"), "k1/R@50")["trainer"]["max_epochs"] == 1
    override = {"trainer": {"max_epochs": 3}}
    assert training(load(table, profile="smoke", override=override), "k1/R@50")["trainer"]["max_epochs"] == 3


def test_cells_stand_in_print_order_and_added_rows_follow(load: Load) -> None:
    spec = load({"rows": [{"row": "ours", "group": "G", "columns": ["*@50"]}, {"row": "B"}], "missing": "needs data"})
    found = [(c.published.group, c.published.row, c.published.column, c.printed, len(c.runs)) for c in spec.cells]
    assert found == [(g, r, c, True, 3 if r == "B" else 0) for r, c, g, _, _ in PRINTED] + [
        ("G", "ours", "k1/R@50", False, 3)
    ]
    assert [c.missing for c in spec.cells] == ["needs data", "needs data", "", "", "", "", ""]
    added = spec.cells[-1].published
    assert (added.paper, added.table, added.unit, added.source, added.value) == ("reldn", "1", "percent", "added", None)


def test_a_row_may_have_several_entries_for_different_columns(load: Load) -> None:
    rows = [
        {"row": "A", "columns": ["*@50"], "set": {"loss.margin": 0.5}, "metric": "{column}/greedy"},
        {"row": "A", "columns": ["*@100"], "set": {"loss.margin": 0.7}},
    ]
    spec = load({"rows": rows})
    assert config_of(spec, "A", "reldn.training", "k1/R@50")["loss"]["margin"] == 0.5
    assert config_of(spec, "A", "reldn.training", "k1/R@100")["loss"]["margin"] == 0.7
    assert cell_of(spec, "A", "k1/R@50").metric == "k1/R@50/greedy"
    assert cell_of(spec, "A", "k1/R@100").metric == "k1/R@100"


def test_reasons_of_missing_cells_come_from_the_first_pattern_that_fits(load: Load) -> None:
    reasons = [{"row": "A", "column": "*@50", "reason": "one"}, {"group": "G", "reason": "two"}]
    spec = load({"missing_rows": reasons, "missing": "three"})
    assert [c.missing for c in spec.cells] == ["one", "two", "two", "two", "", ""]
    assert cell_of(load({"rows": []}), "A").missing == "not built yet"


def test_seeds(load: Load) -> None:
    table = {"rows": [{"row": "A"}, {"row": "B", "seeds": [7]}]}
    seeds = lambda spec: [[r.seed for r in cell_of(spec, row).runs] for row in "AB"]  # noqa: E731
    assert seeds(load(table)) == [[0, 1, 2], [7]]
    assert seeds(load(table, seeds=[4, 5])) == [[4, 5], [7]]  # what has one seed has no randomness
    assert seeds(load(table, profile="smoke")) == [[0], [7]]
    assert seeds(load(table | {"seeds": [1, 2]}, profile="smoke")) == [[1], [7]]


def test_an_override_is_a_deviation_of_those_rows_that_read_the_key(load: Load) -> None:
    rows: list[dict[str, Any]] = [{"row": "A"}, {"row": "B", "set": {"method": "frequency"}}]
    spec = load({"rows": rows}, override={"loss": {"margin": 0.9}, "evaluation": {"tops": [50]}})
    tops = Deviation("evaluation.tops", [50, 100], [50])
    assert cell_of(spec, "A").deviations == (tops, Deviation("loss.margin", 0.2, 0.9))
    assert cell_of(spec, "B").deviations == (tops,)
    assert cell_of(spec, "C").deviations == ()
    assert spec.overridden and not load({"rows": rows}).overridden
    assert cell_of(load({"rows": rows}), "A").deviations == ()


def test_what_cannot_change_a_result_is_no_deviation(load: Load) -> None:
    trainer = {"trainer": {"num_workers": 3, "checkpoint_seconds": 1.0, "accelerator": "cpu"}}
    changed, usual = (load({"rows": [{"row": "A"}]}, override=o) for o in (trainer, {}))
    assert cell_of(changed, "A").deviations == () and not changed.overridden  # its records may be committed
    assert [r.name for r in changed.runs] == [r.name for r in usual.runs]
    assert config_of(changed, "A", "reldn.training")["trainer"]["num_workers"] == 3


def test_a_substitute_deviates_in_the_keys_that_its_runs_read(load: Load) -> None:
    """`data.proposals` is read when testing, `train_boxes` when training, `precomputed` by neither."""
    changes = {"data": {"proposals": "ground_truth", "train_boxes": "ground_truth"}, "precomputed.file": "x.mat"}
    spec = load(
        {"rows": [{"row": "A", "set": {"loss.margin": 0.4}, "substitute": {"reason": "no images", "set": changes}}]}
    )
    assert cell_of(spec, "A").deviations == (
        Deviation("data.proposals", "lu2016", "ground_truth"),
        Deviation("data.train_boxes", "proposals", "ground_truth"),
    )
    assert spec.notes == ("A: no images",)


def test_another_method_in_the_paper_s_row_is_a_deviation(load: Load) -> None:
    spec = load({"rows": [{"row": "A"}]}, override={"method": "frequency"})
    assert cell_of(spec, "A").runs[0].stage_name == "frequency"
    assert cell_of(spec, "A").deviations == (Deviation("method", "reldn", "frequency"),)


def test_a_profile_s_settings_are_deviations(load: Load) -> None:
    spec = load({"rows": [{"row": "A"}, {"row": "B", "set": {"method": "frequency"}}]}, profile="smoke")
    keys = lambda row: [d.key for d in cell_of(spec, row).deviations]  # noqa: E731
    assert keys("A") == ["sampling.max_pairs", "trainer.limit_test_batches", "trainer.max_epochs"]
    assert keys("B") == ["trainer.limit_test_batches"]


def test_notes_name_their_rows_once(load: Load) -> None:
    substitute = {"reason": "no images", "set": {"data.flip": True}}
    rows = [{"row": "A", "substitute": substitute, "note": "said of A"}, {"row": "B", "substitute": substitute}]
    assert load({"rows": rows, "columns": [{"column": "*@100", "set": {"loss.margin": 0.3}}]}).notes == (
        "A; B: no images",
        "A: said of A",
    )


def test_a_figure_has_its_series_as_cells(load: Load) -> None:
    series = [{"row": "gamma=1", "columns": ["epoch 1", "epoch 2"], "group": "error", "unit": "fraction"}]
    spec = load(
        {"published": None, "series": series, "rows": [{"row": "gamma=1", "columns": ["epoch 2"]}]}, kind="figure"
    )
    assert [(c.published.table, c.published.column, c.published.unit, c.printed, len(c.runs)) for c in spec.cells] == [
        ("1", "epoch 1", "fraction", False, 0),
        ("1", "epoch 2", "fraction", False, 3),
    ]
    assert spec.stem == "figure1"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rowz": []}, "rowz"),
        ({"rows": [{"row": "A", "sett": {}}]}, "sett"),
        ({"rows": [{"row": "A", "seeds": ["x"]}]}, "seeds"),
        ({"rows": [{"row": "A", "set": {"loss.marign": 1}}]}, "'loss.marign'; there is: loss.class_agnostic_weight,"),
        ({"rows": [{"row": "A", "set": {"loss.margin": "x"}}]}, "row A of reldn: loss.margin: "),
        ({"rows": [{"row": "A", "substitute": {"reason": "r", "set": {"lozz.m": 1}}}]}, "substitute of row A"),
        ({"rows": [{"row": "A", "columns": ["k2/*"]}]}, "unknown column .*'k2/[*]'; there is: k1/R@100, k1/R@50"),
        (
            {"rows": [{"row": "new", "group": "G", "columns": ["x"]}]},
            "unknown column .*'x'; there is: k1/R@100, k1/R@50",
        ),
        ({"rows": [{"row": "A", "group": "g"}]}, "unknown group .*'g'; there is: G, H"),
        (
            {"rows": [{"row": "A", "set": {"method": "relnd"}}]},
            "unknown method of reldn: 'relnd'; there is: detections, detector, frequency,",
        ),
        ({"rows": [{"row": "A", "set": {"method": "vrd_tensor"}}]}, "unknown method of reldn: 'vrd_tensor'"),
        ({"rows": [{"row": "A"}, {"row": "A", "group": "G"}]}, "two entries for the row 'A', column 'k1/R@50'"),
        (
            {"rows": [{"row": "A"}], "columns": [{"column": "R@50"}]},
            "unknown column under `columns` .*'R@50'; there is: k1",
        ),
        (
            {"rows": [{"row": "A"}], "columns": [{"column": "*", "set": {"x": 1}}]},
            "'x'; there is: backbone, data, detector, evaluation",
        ),
        (
            {"missing_rows": [{"row": "D*", "reason": "r"}]},
            "unknown row under `missing_rows` .*'D[*]'; there is: A, B, C",
        ),
        ({"missing_rows": [{"column": "k9", "reason": "r"}]}, "unknown column under `missing_rows`"),
        ({"missing_rows": [{"group": "k", "reason": "r"}]}, "unknown group under `missing_rows`"),
        ({"compare": [["A", "D"]]}, "unknown row under `compare` .*'D'; there is: A, B, C"),
        ({"compare": [["A", "B", "C"]]}, "`compare` takes pairs"),
        ({"published": "table9.csv"}, r"table9\.csv: no such file"),
    ],
)
def test_a_mistake_in_a_table_s_file_is_one_error_that_lists_what_exists(
    load: Load, table: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExperimentError, match=message):
        load(table)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"setting": {}}, r"unknown key in base.yaml: 'setting'; there is: profiles, settings"),
        ({"settings": {"x": 1}}, "unknown key in base.yaml of reldn: 'x'"),
        ({"settings": {}, "profiles": {"smoke": {"y": {"z": 1}}}}, "unknown key in profile smoke of reldn: 'y'"),
        ({"settings": {}}, "no settings for the profile 'smoke'"),
    ],
)
def test_a_mistake_in_the_base_file_is_one_error(load: Load, base: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        load({"rows": [{"row": "A"}]}, base, profile="smoke")


def test_unknown_paper_table_profile_and_key_list_what_exists(load: Load, tmp_path: Path) -> None:
    load({"rows": [{"row": "A"}]})
    registry = Registry(tmp_path)
    for arguments, message in (
        (("relnd", "table", "1"), "unknown paper 'relnd'; there is: reldn"),
        (("reldn", "table", "9"), "unknown table 'reldn-9'; there is: reldn-1, reldn-2"),
        (("reldn", "figure", "1"), "unknown figure 'reldn-1'; there is: nothing"),
        (("reldn", "table", "1", "quick"), "unknown profile 'quick'; there is: demo, paper, smoke"),
    ):
        with pytest.raises(ExperimentError) as error:
            registry.load(*arguments)
        assert str(error.value) == message
    with pytest.raises(ExperimentError, match=r"the command line of reldn: 'trainer.epochs'; there is: trainer.acc"):
        registry.load("reldn", "table", "1", override={"trainer": {"epochs": 3}})
    with pytest.raises(ExperimentError, match=r"table2.yaml of reldn has no runs yet, so there is nothing to override"):
        registry.load("reldn", "table", "2", override={"trainer": {"max_epochs": 3}})


def test_a_paper_without_a_schema_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "nova"
    folder.mkdir()
    (folder / "table1.yaml").write_text("title: T\nrows: [{row: A}]\n")
    with pytest.raises(ExperimentError, match=r"unknown config schema 'nova'; there is: .*reldn"):
        Registry(tmp_path).load("nova", "table", "1")


def test_tables_are_listed_by_number_with_ablations_before_figures(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for name in ("figure2", "table10", "table_ablation", "table2", "figure10", "base"):
        (tmp_path / "p" / f"{name}.yaml").write_text("title: T\n")
    found = Registry(tmp_path).tables("p")
    assert found == [("table", "2"), ("table", "10"), ("table", "ablation"), ("figure", "2"), ("figure", "10")]
    assert [stem(*table) for table in found] == ["table2", "table10", "table_ablation", "figure2", "figure10"]
