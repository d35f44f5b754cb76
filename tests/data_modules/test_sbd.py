from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csc_array

from data_modules.errors import DataError
from data_modules.sbd_files import read_sbd_ids, read_sbd_labels

LABELS = np.array([[0, 0, 3], [20, 3, 3]], dtype=np.uint8)


def write(path: Path, segmentation: Any = LABELS, struct: str = "GTcls", field: str = "Segmentation") -> Path:
    boundaries = np.empty((20, 1), dtype=object)
    boundaries.fill(csc_array(LABELS))
    savemat(path, {struct: {"Boundaries": boundaries, field: segmentation}})
    return path


def test_the_label_map_is_the_struct_s_segmentation(tmp_path: Path) -> None:
    labels = read_sbd_labels(write(tmp_path / "a.mat"))
    assert (labels.dtype, labels.tolist()) == (np.uint8, LABELS.tolist())
    assert labels.flags["C_CONTIGUOUS"]  # MATLAB's order is the other one


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"segmentation": np.array([[0, 21]], dtype=np.uint8)}, r"illegal ids \[21\], first at row 0, column 1"),
        ({"segmentation": LABELS.astype(np.float64)}, r"GTcls\.Segmentation: expected a uint8 map, found float64"),
        (
            {"segmentation": np.zeros((2, 2, 2), dtype=np.uint8)},
            r"GTcls\.Segmentation: expected a uint8 map, found uint8 of shape \(2, 2, 2\)",
        ),
        ({"struct": "GTinst"}, "holds no struct 'GTcls' with a field 'Segmentation'"),
        ({"field": "Labels"}, "holds no struct 'GTcls' with a field 'Segmentation'"),
    ],
)
def test_bad_contents_are_named(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.mat: {message}.*extract SBD's benchmark\.tgz again"):
        read_sbd_labels(write(tmp_path / "a.mat", **content))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mat")
    whole = path.read_bytes()
    for damaged in (b"", whole[:60], whole[:200], b"<html>not found</html>", whole[:130] + b"\xff" * 40 + whole[170:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.mat: (not a readable MATLAB v5 file|holds no struct)"):
            read_sbd_labels(path)
    savemat(path, {"GTcls": np.zeros((0, 0))})
    with pytest.raises(DataError, match="holds no struct"):
        read_sbd_labels(path)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.mat: no such file; extract SBD"):
        read_sbd_labels(path)


def test_the_lists_of_both_splits(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("2008_000002\n2010_001000\n")
    with pytest.raises(DataError, match=r"val\.txt: no such file; extract SBD"):
        read_sbd_ids(tmp_path)
    (tmp_path / "val.txt").write_text("2008_000001\n")
    assert read_sbd_ids(tmp_path) == ["2008_000002", "2010_001000", "2008_000001"]
    (tmp_path / "val.txt").write_text("2008_000001\n2010_001000\n")
    with pytest.raises(DataError, match=r"val\.txt: 1 ids are in train\.txt too, '2010_001000' first"):
        read_sbd_ids(tmp_path)
