"""Readers of the Semantic Boundaries data set (SBD, `benchmark_RELEASE`), which labels VOC images beyond VOC's own.

SBD's lists have nothing to do with VOC's: its train list holds many images of VOC2012's segmentation val set.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from data_modules.errors import DataError
from data_modules.voc_files import checked_labels, read_ids

SBD_REMEDY = "extract SBD's benchmark.tgz again so that benchmark_RELEASE/dataset/{cls,img,train.txt,val.txt} exist"


def read_sbd_ids(folder: Path) -> list[str]:
    """Return the ids of all images that SBD labels: those of its train list, then those of its val list.

    Args:
        folder: `benchmark_RELEASE/dataset`.

    Raises:
        DataError: A list is missing or damaged, or an image is in both.
    """
    train, val = (read_ids(folder / f"{split}.txt", SBD_REMEDY) for split in ("train", "val"))
    both = sorted(set(train) & set(val))
    if both:
        raise DataError(f"{folder / 'val.txt'}: {len(both)} ids are in train.txt too, {both[0]!r} first; {SBD_REMEDY}")
    return train + val


def read_sbd_labels(path: Path) -> NDArray[np.uint8]:
    """Read the label map of `cls/<id>.mat`: the field `Segmentation` of the struct `GTcls`.

    Returns:
        uint8 `[H, W]`, ids 0 to 20; SBD has no void border.

    Raises:
        DataError: The file is missing or damaged, or holds no such field or illegal ids.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; {SBD_REMEDY}")
    try:
        content = loadmat(path, variable_names=["GTcls"])
    except Exception as error:  # damaged bytes make scipy raise nearly anything, even NameError
        raise DataError(f"{path}: not a readable MATLAB v5 file ({error}); {SBD_REMEDY}") from error
    struct = content.get("GTcls")
    if struct is None or not struct.size or "Segmentation" not in (struct.dtype.names or ()):
        raise DataError(f"{path}: holds no struct 'GTcls' with a field 'Segmentation'; {SBD_REMEDY}")
    labels = struct.ravel()[0]["Segmentation"]
    if labels.ndim != 2 or labels.dtype != np.uint8:
        found = f"{labels.dtype} of shape {labels.shape}"
        raise DataError(f"{path}: GTcls.Segmentation: expected a uint8 map, found {found}; {SBD_REMEDY}")
    return checked_labels(np.ascontiguousarray(labels), path, SBD_REMEDY)
