"""How every generated world reaches the disk: whole or not at all, and only once."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_modules.errors import DataError


def write_world(root: str | Path, manifest: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """Have `write` fill a new folder, add `manifest.json`, and rename it to `root`; return that.

    The folder appears by one rename, so that no process ever sees half a world. A complete world of the same manifest
    is kept as it is; then `write` isn't called.

    Args:
        root: The world's folder; it may exist if it is empty or holds this very world.
        manifest: The generator, its version and every parameter that decides the content, as JSON reads them back.
        write: Writes everything but the manifest under the folder that it is given, which doesn't exist yet.

    Raises:
        DataError: `root` exists and holds anything else.
    """
    root = Path(root)
    if _is_complete(root, manifest):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.", ignore_cleanup_errors=True) as folder:
        partial = Path(folder) / "world"
        write(partial)
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
        try:
            partial.rename(root)
        except OSError:  # another process was faster
            if not _is_complete(root, manifest):
                raise
    return root


def _is_complete(root: Path, manifest: dict[str, Any]) -> bool:
    if not root.exists() or not any(root.iterdir()):
        return False
    path = root / "manifest.json"
    found = json.loads(path.read_text()) if path.is_file() else None
    if found != manifest:
        raise DataError(f"{root}: holds something else than the world {manifest}; remove it or name another folder")
    return True
