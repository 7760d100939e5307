"""Read and write the manifest of a folder of samples: its recipe, and its shards with checksums."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linattn import reader
from linattn.names import short
from linattn.project import write_json
from linattn.reader import between, typed

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Describe one shard of a manifest."""

    file: str
    count: int = between(1)  # pictures
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Describe the part of a recipe by which pictures are found in shards."""

    shape: tuple[int, ...] = between(1)  # of a picture's latents
    shard: int = between(1)  # pictures in one file


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Describe what a manifest holds."""

    recipe: dict[str, Any]
    count: int = between(1)  # pictures in all shards
    shards: tuple[Entry, ...] = typed()


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
        if not path.is_file():
            raise ValueError("it is no file")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        _check(reader.read(Manifest, manifest, "it"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it and write the samples again, whole shards are "
            "kept"
        ) from None
    return manifest


def _check(manifest: Manifest) -> None:
    """Raise ValueError unless the shards are those that the recipe cuts the pictures into."""
    reader.read(Cut, {key: manifest.recipe.get(key) for key in ("shape", "shard")}, "recipe")
    size, last = manifest.recipe["shard"], len(manifest.shards) - 1
    for index, shard in enumerate(manifest.shards):
        if shard.file != (name := shard_name(index)):
            raise ValueError(f"shards[{index}].file is {short(shard.file)}; it must be {name}")
        if not re.fullmatch(r"[0-9a-f]{64}", shard.sha256):
            raise ValueError(f"shards[{index}].sha256 is {short(shard.sha256)}, no sha256")
        if shard.count > size or (index < last and shard.count < size):
            raise ValueError(
                f"shards[{index}].count is {shard.count}, and the recipe's shards hold {size}"
            )


def shard_name(index: int) -> str:
    """Return the name of a shard's file."""
    return f"shard-{index:05d}.safetensors"
