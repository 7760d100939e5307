"""Read and write the manifest of a folder of samples: its recipe, and its shards with checksums."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from linattn.project import write_json

MANIFEST = "manifest.json"
KEYS = {"recipe", "count", "shards"}


def path_in(folder: Path) -> Path:
    return folder / MANIFEST


def write(
    folder: Path, recipe: Mapping[str, Any], count: int, shards: Sequence[Mapping[str, Any]]
) -> None:
    write_json(path_in(folder), {"recipe": recipe, "count": count, "shards": shards})


def read(folder: Path) -> dict[str, Any] | None:
    """Return the manifest, or None where the folder has none."""
    path = path_in(folder)
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text())
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not manifest.keys() >= KEYS:
        raise ValueError(
            f"{path} is damaged; delete it and write the samples again, whole shards are kept"
        )
    return manifest
