"""Write and read self-generated data: latents the teacher drew, with their labels or captions, in
shards.

- Picture i and its label or caption depend on (seed, i) alone, so a later call for more pictures
  only adds shards.
- Captions are those of the world's scenes, which show one thing and two things in turn, or the
  caller's, which repeat from the first on. Any model that reads text can draw either.
- Every shard names the recipe it was drawn by. A shard is written under a draft name and renamed,
  so a kill leaves no half shard. An undamaged shard of the same recipe is kept. The manifest is
  written last, so its presence means that all shards are there.
- The manifest holds a checksum for every shard. A damaged shard is named, and writing again draws
  only that shard.
- Latents are float16. The autoencoder's latents have deviation 1, and its own error is 100 times
  the rounding error.
"""

import json
import os
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from linattn import digests, sampling, seeds, world
from linattn.conditions import Asked, Conditions, Labels
from linattn.project import write_json

MANIFEST = "manifest.json"
FORMAT = 1


def write(
    teacher: Any,
    folder: str | Path,
    count: int,
    seed: int = 0,
    *,
    captions: Sequence[str] | None = None,
    shard: int = 256,
    size: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str = "card",
    batch: int = 64,
    progress: Any = None,
) -> "Samples":
    """Draw the missing ones of `count` pictures, and call `progress(done, count)` after every
    shard.

    `captions` replaces the world's for a teacher that reads text: picture i gets caption i modulo
    their number.
    """
    folder = Path(folder)
    if count < 1 or shard < 1:
        raise ValueError(f"{count} pictures in shards of {shard}; both must be at least 1")
    settings = {
        "shard": shard,
        "size": size,
        "steps": steps,
        "guidance": guidance,
        "sampler": sampler,
    }
    recipe = describe(teacher, seed, captions=captions, **settings)
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_other_recipe(folder, recipe)
    files, checksums = [], _recorded_checksums(folder)
    for first in range(0, count, shard):
        path, pictures = folder / _shard_name(first // shard), min(shard, count - first)
        if not _is_current(path, recipe, first, pictures, checksums.get(path.name)):
            (folder / MANIFEST).unlink(missing_ok=True)
            _write_shard(teacher, path, recipe, first, pictures, batch, captions)
        files.append({"file": path.name, "count": pictures, "sha256": digests.of_file(path)})
        if progress is not None:
            progress(first + pictures, count)
    names = {entry["file"] for entry in files}
    for path in (*folder.glob("shard-*.safetensors"), *folder.glob(".shard-*.draft")):
        if path.name not in names:
            path.unlink()
    write_json(folder / MANIFEST, {"recipe": recipe, "count": count, "shards": files})
    return Samples(folder)


def describe(
    teacher: Any,
    seed: int,
    *,
    captions: Sequence[str] | None = None,
    shard: int = 256,
    size: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str = "card",
) -> dict[str, Any]:
    """Return the recipe: everything the pictures depend on, with the card's values filled in."""
    source = sampling.Source.of(teacher)
    plan = sampling.Plan.of(source, size, steps, guidance, sampler)
    return {
        "format": FORMAT,
        "teacher": digests.of_weights(source.model),
        "scheduler": _scheduler_digest(source.scheduler),
        "seed": int(seed),
        "guidance": plan.guidance,
        "steps": plan.steps,
        "sampler": plan.sampler,
        **_prompt_recipe(source.conditions, captions),
        "shape": [source.conditions.channels, *plan.sides],
        "shard": shard,
    }


def _prompt_recipe(conditions: Conditions, captions: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the part of the recipe that determines the prompts."""
    if isinstance(conditions, Labels):
        if captions is not None:
            raise ValueError(
                f"captions for {type(conditions.model).__name__}, which reads no text: it is "
                "conditioned on its "
                f"{conditions.classes} classes; leave captions out, or take a teacher that reads"
            )
        return {"classes": conditions.classes}
    return {
        "captions": "linattn.world"
        if captions is None
        else _captions_digest(conditions.check(captions)),
        "readers": [digests.of_weights(encoder) for encoder in conditions.text_encoders],
        "text_length": conditions.card.get("text_length"),
    }


def asked(
    conditions: Conditions, numbers: Sequence[int], seed: int, captions: Sequence[str] | None = None
) -> Asked:
    """Return the prompts of pictures `numbers`: balanced class labels, or captions, by default
    those of scenes.
    """
    if isinstance(conditions, Labels):
        return balanced_labels(numbers, seed, conditions.classes)
    if captions is not None:
        return [captions[number % len(captions)] for number in numbers]
    return [scene.caption for scene in scenes(numbers, seed)]


def scenes(numbers: Sequence[int], seed: int) -> list[world.Scene]:
    """Return scenes of one thing for even numbers and of two things for odd numbers."""
    return [world.scene(seed, number, 1 + number % 2) for number in numbers]


def _captions_digest(captions: Sequence[str]) -> str:
    return f"{len(captions)} of {digests.of_settings(captions)}"


def _scheduler_digest(scheduler: Any) -> str:
    public = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    return digests.of_settings([type(scheduler).__name__, public])


def balanced_labels(numbers: Sequence[int], seed: int, classes: int) -> Tensor:
    """Return labels of pictures `numbers`; every run of `classes` pictures is a shuffle of all
    classes.
    """
    if classes < 1:
        raise ValueError(f"{classes} classes; a label needs at least 1")
    shuffles: dict[int, Tensor] = {}
    labels = []
    for number in numbers:
        block, position = divmod(number, classes)
        if block not in shuffles:
            # Negative numbers keep the shuffles' generators apart from those of the pictures'
            # noise.
            shuffles[block] = torch.randperm(classes, generator=seeds.of_picture(seed, -1 - block))
        labels.append(shuffles[block][position])
    return torch.stack(labels) if labels else torch.empty(0, dtype=torch.long)


def _write_shard(
    teacher: Any,
    path: Path,
    recipe: Mapping[str, Any],
    first: int,
    count: int,
    batch: int,
    captions: Sequence[str] | None = None,
) -> None:
    """Draw `count` pictures from number `first` on, and write their latents and prompts."""
    source = sampling.Source.of(teacher)
    prompts = asked(source.conditions, range(first, first + count), recipe["seed"], captions)
    size = tuple(side * source.factor for side in recipe["shape"][1:])
    options = {key: recipe[key] for key in ("steps", "guidance", "seed", "sampler")}
    latents = sampling.draw_latents(
        teacher, prompts, size=size, batch=batch, start=first, **options
    )
    tensors, metadata = {"latents": latents.half()}, {"recipe": recipe, "first": first}
    if isinstance(prompts, Tensor):
        tensors["labels"] = prompts
    else:
        metadata["captions"] = list(prompts)
    # All metadata goes under one key, because safetensors stores several in an order that changes
    # from run to run.
    note = json.dumps(metadata, sort_keys=True)
    draft = path.with_name(f".{path.name}.draft")
    save_file(tensors, draft, metadata={"samples": note})
    os.replace(draft, path)


def _is_current(
    path: Path, recipe: Mapping[str, Any], first: int, count: int, sha256: str | None
) -> bool:
    """Say whether the shard is there, undamaged and the one that would be drawn."""
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {})["samples"])
            shape = file.get_slice("latents").get_shape()
        intact = sha256 is None or sha256 == digests.of_file(path)
    except (SafetensorError, KeyError, ValueError):
        intact = False
    if not intact:
        warnings.warn(f"{path} is damaged and is drawn again", stacklevel=3)
        return False
    if note["recipe"] != dict(recipe):
        raise ValueError(_recipe_difference(path, note["recipe"], recipe))
    return note["first"] == first and shape == [count, *recipe["shape"]]


def _refuse_other_recipe(folder: Path, recipe: Mapping[str, Any]) -> None:
    path = folder / MANIFEST
    if path.exists() and (recorded := _read_manifest(path)["recipe"]) != dict(recipe):
        raise ValueError(_recipe_difference(path, recorded, recipe))


def _recipe_difference(
    path: Path, recorded: Mapping[str, Any], requested: Mapping[str, Any]
) -> str:
    names = sorted(
        key for key in {*recorded, *requested} if recorded.get(key) != requested.get(key)
    )
    change = ", ".join(
        f"{name} {recorded.get(name)!r} (now {requested.get(name)!r})" for name in names
    )
    return f"{path} was drawn with {change}; delete {path.parent}, or write to another folder"


def _recorded_checksums(folder: Path) -> dict[str, str]:
    path = folder / MANIFEST
    if not path.exists():
        return {}
    return {entry["file"]: entry["sha256"] for entry in _read_manifest(path)["shards"]}


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
        assert {"recipe", "count", "shards"} <= manifest.keys()
        return manifest
    except (ValueError, AttributeError, AssertionError) as error:
        raise ValueError(
            f"{path} is damaged; delete it and write the samples again, whole shards are kept"
        ) from error


def _shard_name(index: int) -> str:
    return f"shard-{index:05d}.safetensors"


def _read_shard(path: Path) -> dict[str, Any]:
    """Read latents and their prompts, labels or captions."""
    tensors = load_file(path)
    if "labels" in tensors:
        return {"latents": tensors["latents"], "prompts": tensors["labels"]}
    with safe_open(path, framework="pt") as file:
        return {
            "latents": tensors["latents"],
            "prompts": json.loads(file.metadata()["samples"])["captions"],
        }


class Samples:
    """Read the samples that `write` left in a folder.

    A shard is read when it is first needed, and `keep` shards stay in memory.
    """

    def __init__(self, folder: str | Path, keep: int = 64):
        self.folder, self.keep = Path(folder), max(1, keep)
        path = self.folder / MANIFEST
        if not path.exists():
            raise FileNotFoundError(
                f"no {MANIFEST} in {self.folder}: the samples are not there, or not finished; "
                "write them (again), whole shards are kept"
            )
        manifest = _read_manifest(path)
        self.recipe: dict[str, Any] = manifest["recipe"]
        self.shards: list[dict[str, Any]] = manifest["shards"]
        self.count: int = manifest["count"]
        held = sum(entry["count"] for entry in self.shards)
        if held != self.count:
            raise ValueError(
                f"{path} promises {self.count} pictures, its shards hold {held}; write the samples "
                "again"
            )
        for entry in self.shards:
            if not (self.folder / entry["file"]).exists():
                raise FileNotFoundError(
                    f"{self.folder / entry['file']} is missing; write the samples again, only that "
                    "shard is drawn anew"
                )
        self._open: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one picture's latents."""
        return tuple(self.recipe["shape"])

    def batch(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, Asked]:
        """Return latents (batch, channels, height, width) in float32, and labels (batch,) or
        captions.
        """
        numbers = torch.as_tensor(indices)
        if (
            numbers.ndim != 1
            or numbers.numel() == 0
            or numbers.is_floating_point()
            or numbers.dtype == torch.bool
        ):
            raise ValueError(
                f"indices are {tuple(numbers.shape)} {numbers.dtype}; pass whole numbers, shape "
                "(N,)"
            )
        if numbers.min() < 0 or numbers.max() >= self.count:
            raise IndexError(
                f"indices run from {numbers.min()} to {numbers.max()}; the samples are "
                f"0..{self.count - 1}"
            )
        numbers = numbers.cpu().long()
        latents = torch.empty(len(numbers), *self.shape)
        prompts: list[Any] = [None] * len(numbers)
        shards = numbers // self.recipe["shard"]
        for index in shards.unique().tolist():
            rows = (shards == index).nonzero().squeeze(1)
            content = self._shard(index)
            positions = numbers[rows] % self.recipe["shard"]
            latents[rows] = content["latents"][positions].float()
            for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
                prompts[row] = content["prompts"][position]
        return latents, prompts if isinstance(prompts[0], str) else torch.stack(prompts)

    def first(self, count: int) -> tuple[Tensor, Asked]:
        return self.batch(range(count))

    def _shard(self, index: int) -> dict[str, Any]:
        """Return the content of a shard from memory, or read it and check its checksum once."""
        if index in self._open:
            self._open.move_to_end(index)
            return self._open[index]
        entry = self.shards[index]
        path = self.folder / entry["file"]
        try:
            intact = index in self._checked or digests.of_file(path) == entry["sha256"]
            content = _read_shard(path) if intact else {}
            intact = intact and content["latents"].shape == (entry["count"], *self.shape)
        except (OSError, SafetensorError, KeyError):
            intact = False
        if not intact:
            raise ValueError(
                f"{path} is damaged; write the samples again, only that shard is drawn anew"
            )
        self._checked.add(index)
        self._open[index] = content
        if len(self._open) > self.keep:
            self._open.popitem(last=False)
        return content
