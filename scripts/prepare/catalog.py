"""Every data set and every set of weights that the five papers need.

A checksum stands in an entry only where somebody publishes it; the modules of the entries say who. All else is recorded
at the first download and compared from then on.
"""

from __future__ import annotations

from scripts.prepare import image_sets, scene_graph_sets, weight_sets
from scripts.prepare.records import Dataset

CATALOG: dict[str, Dataset] = {
    entry.name: entry
    for module in (scene_graph_sets, image_sets, weight_sets)
    for entry in vars(module).values()
    if isinstance(entry, Dataset)
}


def find(name: str) -> Dataset:
    """Look an entry up; hyphens and underscores are the same.

    Raises:
        ValueError: There is none of this name.
    """
    try:
        return CATALOG[name.replace("-", "_")]
    except KeyError:
        raise ValueError(f"no data set {name!r}; there are {', '.join(CATALOG)}") from None
