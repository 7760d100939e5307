"""Draw the shards that a folder of samples lacks."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from linattn import digests, files, sampling
from linattn.finite import finite
from linattn.reader import between, checked, typed
from linattn.samples import manifest, shards
from linattn.samples.prompts import prompts_of
from linattn.samples.reader import Samples
from linattn.samples.recipe import RULES, describe, refuse_other
from linattn.samples.shards import Shard

MOST = 10**9  # pictures
FLOAT16 = 2  # bytes


@checked(count=between(1, MOST), progress=typed(), **RULES)
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
    progress: Callable[[int, int], Any] | None = None,
) -> Samples:
    """Draw the missing ones of `count` pictures, and return the samples.

    Args:
        teacher: the Teacher that draws.
        folder: where the shards and the manifest are written; undamaged shards of the same recipe
            stay.
        count: how many pictures are read in the end; a folder that holds more keeps them.
        seed: picture i, with its label or caption, depends on this seed and i alone.
        captions: captions to repeat in place of the world's, for a teacher that reads text: picture
            i gets caption i modulo their number.
        shard: pictures in one file.
        size: side of the pictures in px; None takes the card's value.
        steps: steps of a draw; None takes the card's value.
        guidance: scale of the guidance; None takes the card's value.
        sampler: one of `linattn.sampling.SAMPLERS`; "card" is the pipeline's own scheduler.
        batch: pictures drawn at once; the same pictures come out at every batch but for rounding,
            so a folder that was drawn in another batch is refused.
        progress: called as `progress(done, count)` after each shard.
    """
    folder = files.path_of(folder, "folder")
    recipe = describe(
        teacher,
        seed,
        captions=captions,
        shard=shard,
        size=size,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        batch=batch,
    )
    _require_place(folder, recipe, count)
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
    recorded = _recorded(folder, recipe)
    checksums = {entry["file"]: entry["sha256"] for entry in recorded["shards"]}
    total, entries = max(count, recorded["count"]), []
    for first in range(0, total, shard):
        path, pictures = shards.path_in(folder, first // shard), min(shard, total - first)
        held = shards.held(path, recipe, first, checksums.get(path.name))
        if held < pictures:
            manifest.path_in(folder).unlink(missing_ok=True)
            drawn = _draw(teacher, recipe, range(first, first + pictures), batch, captions)
            shards.write(path, drawn, recipe, first)
        entry = {"count": max(held, pictures), "sha256": digests.of_file(path)}
        entries.append({"file": path.name, **entry})
        if progress is not None:
            progress(first + pictures, total)
    manifest.write(folder, recipe, sum(entry["count"] for entry in entries), entries)
    return Samples(folder, most=count)


def _require_place(folder: Path, recipe: Mapping[str, Any], count: int) -> None:
    """Raise OSError unless the shards that are not there can be written, before any is drawn."""
    firsts = range(0, count, recipe["shard"])
    try:
        missing = [
            first for first in firsts if not shards.path_in(folder, first // firsts.step).exists()
        ]
        pictures = sum(min(firsts.step, count - first) for first in missing)
        files.require_room(folder, pictures * math.prod(recipe["shape"]) * FLOAT16)
    except OSError as error:
        raise OSError(f"samples cannot be written in {folder} ({error}): name another") from error


def _draw(
    teacher: Any,
    recipe: Mapping[str, Any],
    numbers: range,
    batch: int,
    captions: Sequence[str] | None,
) -> Shard:
    source = sampling.Source.of(teacher)
    prompts = prompts_of(source.conditions, numbers, recipe["seed"], captions)
    height, width = recipe["shape"][1:]
    latents = sampling.draw_latents(
        teacher,
        prompts,
        size=(height * source.factor, width * source.factor),
        batch=batch,
        start=numbers.start,
        steps=recipe["steps"],
        guidance=recipe["guidance"],
        seed=recipe["seed"],
        sampler=recipe["sampler"],
    )
    remedy = "the VAE scales latents beyond float16's 65,504"
    return Shard(finite(latents.half(), "latents in float16", remedy), prompts)


def _recorded(folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the folder's manifest holds; one of another recipe is an error."""
    recorded = manifest.read(folder)
    if recorded is None:
        return {"count": 0, "shards": []}
    refuse_other(manifest.path_in(folder), recorded["recipe"], recipe)
    return recorded
