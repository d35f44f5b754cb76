"""Readers of the Open Images Challenge's relationship CSV files.

They give boxes as fractions of the image, in the order XMin, XMax, YMin, YMax, and name classes by MIDs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_modules.errors import DataError

CSV_REMEDY = "fetch it again from the Open Images Challenge pages"
CORNERS = tuple(f"{side}{end}" for end in (1, 2) for side in ("XMin", "XMax", "YMin", "YMax"))
PREDICATE_COLUMNS = ("RelationshipLabel", "RelationLabel")  # of 2019, and of 2018
ATTRIBUTE = "is"  # its rows say that a box has an attribute; they relate nothing


@dataclass(frozen=True, slots=True)
class RelationshipRows:
    """The rows of a relationships CSV, those with "is" apart.

    Attributes:
        images: The I image ids, in order of first appearance.
        row_image: int64 `[M]`, the image of every relation.
        boxes: float64 `[M, 2, 4]`, subject's and object's x1, y1, x2, y2 as fractions of the image.
        triplets: int64 `[M, 3]`, 0-based (subject category, predicate, object category).
        attribute_image: int64 `[A]`, the image of every "is" row.
        attribute_boxes: float64 `[A, 4]`, fractions of the image.
        attributes: int64 `[A, 2]`, 0-based (object category, attribute).
    """

    images: list[str]
    row_image: NDArray[np.int64]
    boxes: NDArray[np.float64]
    triplets: NDArray[np.int64]
    attribute_image: NDArray[np.int64]
    attribute_boxes: NDArray[np.float64]
    attributes: NDArray[np.int64]


def read_descriptions(path: Path) -> dict[str, str]:
    """Read a description CSV: readable names by MID (or predicate), in the order of the file; it has no header.

    Raises:
        DataError: The file is missing, isn't two columns of text, or repeats an identifier.
    """
    table = _read_csv(path, header=None)
    if table.shape[1] != 2 or (table == "").any(axis=None):
        raise DataError(f"{path}: expected two columns, identifier and name; {CSV_REMEDY}")
    repeated = table[table[0].duplicated()]
    if len(repeated):
        raise DataError(f"{path}: row {repeated.index[0]}: {repeated.iloc[0, 0]!r} occurs twice; {CSV_REMEDY}")
    return dict(zip(table[0], table[1], strict=True))


def read_image_list(path: Path) -> list[str]:
    """Read a CSV of image ids, its one column named ImageID.

    Raises:
        DataError: The file is missing or has no such column.
    """
    table = _read_csv(path, header=0)
    if "ImageID" not in table:
        raise DataError(f"{path}: has no column 'ImageID'; {CSV_REMEDY}")
    return table["ImageID"].tolist()


def read_relationships(
    path: Path, classes: Sequence[str], predicates: Sequence[str], attributes: Sequence[str]
) -> RelationshipRows:
    """Read `challenge-2018-train-vrd.csv` or `challenge-2019-{train,validation}-vrd.csv`.

    Args:
        path: The file.
        classes: MIDs of the object classes; a position is a label.
        predicates: Identifiers of the predicates without "is"; likewise.
        attributes: MIDs of the attributes; likewise.

    Raises:
        DataError: The file is missing or lacks a column, a label is unknown, or a box isn't within the image or is
            inverted. The message names row and column.
    """
    table = _read_csv(path, header=0)
    predicate_column = next((c for c in PREDICATE_COLUMNS if c in table), PREDICATE_COLUMNS[0])
    for column in ("ImageID", "LabelName1", "LabelName2", *CORNERS, predicate_column):
        if column not in table:
            raise DataError(f"{path}: has no column {column!r}; {CSV_REMEDY}")
    numbers = table[list(CORNERS)].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    _check(path, table, CORNERS, ~((numbers >= 0) & (numbers <= 1)), "expected a fraction from 0 to 1")
    for low, high in (("XMin1", "XMax1"), ("YMin1", "YMax1"), ("XMin2", "XMax2"), ("YMin2", "YMax2")):
        inverted = numbers[:, CORNERS.index(low)] > numbers[:, CORNERS.index(high)]
        _check(path, table, (low,), inverted[:, None], f"inverted box, greater than {high}")
    is_attribute = (table[predicate_column] == ATTRIBUTE).to_numpy()
    rows, described = table[~is_attribute], table[is_attribute]
    columns = [
        _labels(path, rows, "LabelName1", classes),
        _labels(path, rows, predicate_column, predicates),
        _labels(path, rows, "LabelName2", classes),
    ]
    named = [_labels(path, described, "LabelName1", classes), _labels(path, described, "LabelName2", attributes)]
    row_image, images = pd.factorize(table["ImageID"])
    boxes = numbers.reshape(-1, 2, 4)[:, :, [0, 2, 1, 3]]  # XMin, XMax, YMin, YMax -> x1, y1, x2, y2
    return RelationshipRows(
        images=list(images),
        row_image=row_image[~is_attribute].astype(np.int64),
        boxes=boxes[~is_attribute],
        triplets=np.stack(columns, axis=1),
        attribute_image=row_image[is_attribute].astype(np.int64),
        attribute_boxes=boxes[is_attribute, 0],
        attributes=np.stack(named, axis=1),
    )


def _read_csv(path: Path, header: int | None) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path}: no such file; {CSV_REMEDY}")
    read: Callable[..., pd.DataFrame] = pd.read_csv
    try:
        return read(path, header=header, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors, also that of undecodable bytes
        raise DataError(f"{path}: not a readable CSV file ({str(error).strip()}); {CSV_REMEDY}") from error


def _check(path: Path, table: pd.DataFrame, columns: Sequence[str], wrong: NDArray[np.bool_], what: str) -> None:
    bad = np.argwhere(wrong)
    if len(bad):
        row, column = bad[0]
        value = table[columns[column]].iloc[row]
        raise DataError(f"{path}: row {row}, {columns[column]}: {what}, found {value!r}; {CSV_REMEDY}")


def _labels(path: Path, table: pd.DataFrame, column: str, known: Sequence[str]) -> NDArray[np.int64]:
    """Return the positions in `known` of the values of a column, int64 `[rows]`."""
    positions = pd.Index(known).get_indexer(pd.Index(table[column]))
    bad = np.flatnonzero(positions < 0)
    if bad.size:
        found = f"{table[column].iloc[bad[0]]!r} isn't in the description files"
        raise DataError(f"{path}: row {table.index[bad[0]]}, {column}: {found}; {CSV_REMEDY}")
    return positions.astype(np.int64)
