"""Write and read one shard: a file of latents with their labels or captions, and its recipe."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from linattn import digests, sealed
from linattn.conditions import Prompts
from linattn.samples import recipe as recipes
from linattn.samples.manifest import shard_name

REMEDY = "write the samples again, only that shard is drawn anew"


@dataclass(frozen=True)
class Shard:
    """Hold the latents of a shard in float16, and their prompts."""

    latents: Tensor  # (pictures, channels, height, width)
    prompts: Prompts


def path_in(folder: Path, index: int) -> Path:
    return folder / shard_name(index)


def write(path: Path, shard: Shard, recipe: Mapping[str, Any], first: int) -> None:
    """Write the shard that begins with picture `first`."""
    tensors = {"latents": shard.latents}
    metadata: dict[str, Any] = {"recipe": recipe, "first": first}
    if isinstance(shard.prompts, Tensor):
        tensors["labels"] = shard.prompts
    else:
        metadata["captions"] = list(shard.prompts)
    sealed.save(tensors, path, metadata)


class OpenShard:
    """Read single pictures of a shard from its file; its prompts are held.

    A shard of FLUX.1 at 1024 px holds half a gigabyte of latents, of which a batch needs a row. It
    is read and not mapped: a mapped file that another program cuts ends the process without a word.
    """

    def __init__(self, path: Path):
        note = sealed.check(path, REMEDY)
        self.recipe: dict[str, Any] = note["recipe"]
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            labels = file.get_tensor("labels") if "labels" in names else None
            self.prompts: Prompts = note["captions"] if labels is None else labels
        self.latents = sealed.Rows(path, "latents", REMEDY)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of all latents, (pictures, channels, height, width)."""
        return self.latents.shape

    def row(self, position: int) -> Tensor:
        """Return the latents of one picture in float32."""
        return torch.from_numpy(self.latents[position].astype(np.float32))


def held(path: Path, recipe: Mapping[str, Any], first: int, sha256: str | None) -> int:
    """Count the pictures of a shard that is undamaged and the one that would be drawn.

    A shard of another recipe is an error, and a damaged one a warning.
    """
    if not path.exists():
        return 0
    try:
        note = sealed.check(path, REMEDY)
        with safe_open(path, framework="pt") as file:
            shape = file.get_slice("latents").get_shape()
        intact = sha256 is None or sha256 == digests.of_file(path)
    except sealed.Damaged:
        intact = False
    if not intact:
        warnings.warn(f"{path} is damaged and is drawn again", stacklevel=3)
        return 0
    recipes.refuse_other(path, note["recipe"], recipe)
    fits = note["first"] == first and shape[1:] == list(recipe["shape"])
    return shape[0] if fits else 0
