"""Self-generated data: latents the teacher drew, with their labels or captions, in shards that survive a kill.

- Picture i depends on (seed, i) alone, its label or caption too: asking for more pictures later only adds shards.
- Captions are those of the world's scenes, of one thing and of two in turn, or the caller's, from the first on and over
  again. Any model that reads text can draw either.
- Every shard names the recipe it was drawn by; written beside its place and renamed. A shard that is there, whole and
  of the same recipe is kept; the manifest comes last, so its presence means that all is there.
- The manifest holds a checksum a shard: a damaged one is named, and writing again draws only that one anew.
- Latents are float16: the autoencoder's latents have deviation 1, its own error is a hundred times the rounding.
"""

import hashlib
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
from torch import Tensor, nn

from linattn import sampling, world
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
    """Draw what is missing of `count` pictures; `progress(done, count)` is called after every shard.

    `captions` instead of the world's, where the teacher reads: picture i is asked by number i of them, round and round.
    """
    folder = Path(folder)
    if count < 1 or shard < 1:
        raise ValueError(f"{count} pictures in shards of {shard}; both must be at least 1")
    how = {"shard": shard, "size": size, "steps": steps, "guidance": guidance, "sampler": sampler}
    recipe = describe(teacher, seed, captions=captions, **how)
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_other(folder, recipe)
    files, known = [], _known(folder)
    for first in range(0, count, shard):
        path, rows = folder / _name(first // shard), min(shard, count - first)
        if not _kept(path, recipe, first, rows, known.get(path.name)):
            (folder / MANIFEST).unlink(missing_ok=True)
            _write_shard(teacher, path, recipe, first, rows, batch, captions)
        files.append({"file": path.name, "count": rows, "sha256": _sha256(path)})
        if progress is not None:
            progress(first + rows, count)
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
    """Everything the pictures depend on, with the card's values filled in."""
    source = sampling.Source.of(teacher)
    plan = sampling.Plan.of(source, size, steps, guidance, sampler)
    return {
        "format": FORMAT,
        "teacher": digest(source.model),
        "scheduler": _scheduler_digest(source.scheduler),
        "seed": int(seed),
        "guidance": plan.guidance,
        "steps": plan.steps,
        "sampler": plan.sampler,
        **_of(source.conditions, captions),
        "shape": [source.conditions.channels, *plan.sides],
        "shard": shard,
    }


def _of(conditions: Conditions, captions: Sequence[str] | None = None) -> dict[str, Any]:
    """What the pictures were asked by."""
    if isinstance(conditions, Labels):
        if captions is not None:
            raise ValueError(
                f"captions for {type(conditions.model).__name__}, which reads none: it is asked by its "
                f"{conditions.classes} classes; leave captions out, or take a teacher that reads"
            )
        return {"classes": conditions.classes}
    return {
        "captions": "linattn.world" if captions is None else _captions_digest(conditions.check(captions)),
        "readers": [digest(reader) for reader in conditions.readers],
        "text_length": conditions.card.get("text_length"),
    }


def asked(conditions: Conditions, numbers: Sequence[int], seed: int, captions: Sequence[str] | None = None) -> Asked:
    """What pictures `numbers` are asked to show: a class each, evenly dealt, or a caption, by default a scene's."""
    if isinstance(conditions, Labels):
        return balanced_labels(numbers, seed, conditions.classes)
    if captions is not None:
        return [captions[number % len(captions)] for number in numbers]
    return [scene.caption for scene in scenes(numbers, seed)]


def scenes(numbers: Sequence[int], seed: int) -> list[world.Scene]:
    """Of one thing where the number is even, of two where it is odd."""
    return [world.scene(seed, number, 1 + number % 2) for number in numbers]


def digest(model: nn.Module) -> str:
    """Names, types and bytes of all weights: two models with one digest draw the same."""
    summary = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        summary.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        summary.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return summary.hexdigest()[:16]


def _captions_digest(captions: Sequence[str]) -> str:
    return f"{len(captions)} of {hashlib.sha256(json.dumps(captions).encode()).hexdigest()[:16]}"


def _scheduler_digest(scheduler: Any) -> str:
    public = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    text = json.dumps([type(scheduler).__name__, public], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def balanced_labels(numbers: Sequence[int], seed: int, classes: int) -> Tensor:
    """Labels of pictures `numbers`: every run of `classes` pictures is a shuffle of all classes."""
    if classes < 1:
        raise ValueError(f"{classes} classes; a label needs at least 1")
    shuffles: dict[int, Tensor] = {}
    labels = []
    for number in numbers:
        block, place = divmod(number, classes)
        if block not in shuffles:
            # Counted from the other end of the circle of seeds, away from the pictures' own noise.
            shuffles[block] = torch.randperm(classes, generator=sampling.generator(seed, -1 - block))
        labels.append(shuffles[block][place])
    return torch.stack(labels) if labels else torch.empty(0, dtype=torch.long)


def _write_shard(
    teacher: Any,
    path: Path,
    recipe: Mapping[str, Any],
    first: int,
    rows: int,
    batch: int,
    captions: Sequence[str] | None = None,
) -> None:
    source = sampling.Source.of(teacher)
    wanted = asked(source.conditions, range(first, first + rows), recipe["seed"], captions)
    size = tuple(side * source.factor for side in recipe["shape"][1:])
    options = {key: recipe[key] for key in ("steps", "guidance", "seed", "sampler")}
    latents = sampling.draw_latents(teacher, wanted, size=size, batch=batch, start=first, **options)
    tensors, words = {"latents": latents.half()}, {}
    if isinstance(wanted, Tensor):
        tensors["labels"] = wanted
    else:
        words["captions"] = list(wanted)
    # One metadata key: several would be stored in an order that changes from run to run.
    note = json.dumps({"recipe": recipe, "first": first, **words}, sort_keys=True)
    draft = path.with_name(f".{path.name}.draft")
    save_file(tensors, draft, metadata={"samples": note})
    os.replace(draft, path)


def _kept(path: Path, recipe: Mapping[str, Any], first: int, rows: int, sha256: str | None) -> bool:
    """Whether the shard is there, whole and the one that would be drawn."""
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {})["samples"])
            shape = file.get_slice("latents").get_shape()
        whole = sha256 is None or sha256 == _sha256(path)
    except (SafetensorError, KeyError, ValueError):
        whole = False
    if not whole:
        warnings.warn(f"{path} is damaged and is drawn again", stacklevel=3)
        return False
    if note["recipe"] != dict(recipe):
        raise ValueError(_other_recipe(path, note["recipe"], recipe))
    return note["first"] == first and shape == [rows, *recipe["shape"]]


def _refuse_other(folder: Path, recipe: Mapping[str, Any]) -> None:
    path = folder / MANIFEST
    if path.exists() and (there := _read_manifest(path)["recipe"]) != dict(recipe):
        raise ValueError(_other_recipe(path, there, recipe))


def _other_recipe(path: Path, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    names = sorted(key for key in {*there, *wanted} if there.get(key) != wanted.get(key))
    change = ", ".join(f"{name} {there.get(name)!r} (now {wanted.get(name)!r})" for name in names)
    return f"{path} was drawn with {change}; delete {path.parent}, or write to another folder"


def _known(folder: Path) -> dict[str, str]:
    path = folder / MANIFEST
    return {entry["file"]: entry["sha256"] for entry in _read_manifest(path)["shards"]} if path.exists() else {}


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
        assert {"recipe", "count", "shards"} <= manifest.keys()
        return manifest
    except (ValueError, AttributeError, AssertionError) as error:
        raise ValueError(f"{path} is damaged; delete it and write the samples again, whole shards are kept") from error


def _name(index: int) -> str:
    return f"shard-{index:05d}.safetensors"


def _read_shard(path: Path) -> dict[str, Any]:
    """Latents, and the labels or captions they were drawn for."""
    tensors = load_file(path)
    if "labels" in tensors:
        return {"latents": tensors["latents"], "asked": tensors["labels"]}
    with safe_open(path, framework="pt") as file:
        return {"latents": tensors["latents"], "asked": json.loads(file.metadata()["samples"])["captions"]}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Samples:
    """What `write` left in a folder; shards are read when first asked for, and `keep` of them stay in memory."""

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
        if sum(entry["count"] for entry in self.shards) != self.count:
            held = sum(entry["count"] for entry in self.shards)
            raise ValueError(f"{path} promises {self.count} pictures, its shards hold {held}; write the samples again")
        for entry in self.shards:
            if not (self.folder / entry["file"]).exists():
                raise FileNotFoundError(
                    f"{self.folder / entry['file']} is missing; write the samples again, only that shard is drawn anew"
                )
        self._open: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one picture's latents."""
        return tuple(self.recipe["shape"])

    def batch(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, Asked]:
        """Latents (batch, channels, height, width) in float32 and labels (batch,) or captions, as the indices go."""
        numbers = torch.as_tensor(indices)
        if numbers.ndim != 1 or numbers.numel() == 0 or numbers.is_floating_point() or numbers.dtype == torch.bool:
            raise ValueError(f"indices are {tuple(numbers.shape)} {numbers.dtype}; pass whole numbers, shape (N,)")
        if numbers.min() < 0 or numbers.max() >= self.count:
            raise IndexError(
                f"indices run from {numbers.min()} to {numbers.max()}; the samples are 0..{self.count - 1}"
            )
        numbers = numbers.cpu().long()
        latents = torch.empty(len(numbers), *self.shape)
        wanted: list[Any] = [None] * len(numbers)
        shards = numbers // self.recipe["shard"]
        for index in shards.unique().tolist():
            rows = (shards == index).nonzero().squeeze(1)
            held = self._shard(index)
            places = numbers[rows] % self.recipe["shard"]
            latents[rows] = held["latents"][places].float()
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                wanted[row] = held["asked"][place]
        return latents, wanted if isinstance(wanted[0], str) else torch.stack(wanted)

    def first(self, count: int) -> tuple[Tensor, Asked]:
        return self.batch(range(count))

    def _shard(self, index: int) -> dict[str, Any]:
        if index in self._open:
            self._open.move_to_end(index)
            return self._open[index]
        entry = self.shards[index]
        path = self.folder / entry["file"]
        try:
            whole = index in self._checked or _sha256(path) == entry["sha256"]
            held = _read_shard(path) if whole else {}
            whole = whole and held["latents"].shape == (entry["count"], *self.shape)
        except (OSError, SafetensorError, KeyError):
            whole = False
        if not whole:
            raise ValueError(f"{path} is damaged; write the samples again, only that shard is drawn anew")
        self._checked.add(index)
        self._open[index] = held
        if len(self._open) > self.keep:
            self._open.popitem(last=False)
        return held
