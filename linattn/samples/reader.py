"""Read the samples of a folder by their numbers."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linattn import digests, files, sealed
from linattn.conditions import Prompts
from linattn.names import short
from linattn.reader import between, checked
from linattn.samples import manifest
from linattn.samples.recipe import refuse_other
from linattn.samples.shards import REMEDY, OpenShard


class Samples:
    """Read the samples that `write` left in a folder.

    A shard is checked and opened when it is first needed, and single pictures are read from it, so
    that the memory does not grow with the samples.

    Args:
        folder: the folder with the manifest and the shards.
        keep: how many shards stay open.
        most: how many pictures are read of a folder with more; None reads all.
    """

    @checked(keep=between(1), most=between(1))
    def __init__(self, folder: str | Path, keep: int = 64, most: int | None = None):
        self.folder, self.keep = files.path_of(folder, "folder"), keep
        recorded = manifest.read(self.folder)
        if recorded is None:
            raise FileNotFoundError(
                f"no {manifest.MANIFEST} in {self.folder}: the samples are not there, or not "
                "finished; write them (again), whole shards are kept"
            )
        self.recipe: dict[str, Any] = recorded["recipe"]
        self.shards: list[dict[str, Any]] = recorded["shards"]
        self.count: int = recorded["count"]
        self._check()
        self.count = min(self.count, most or self.count)
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._checked: set[int] = set()

    def _check(self) -> None:
        held = sum(entry["count"] for entry in self.shards)
        if held != self.count:
            raise ValueError(
                f"{manifest.path_in(self.folder)} promises {self.count} pictures, its shards hold "
                f"{held}; write the samples again"
            )
        for entry in self.shards:
            if not (self.folder / entry["file"]).exists():
                raise FileNotFoundError(f"{self.folder / entry['file']} is missing; {REMEDY}")

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one picture's latents."""
        return tuple(self.recipe["shape"])

    def batch(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, Prompts]:
        """Return latents (batch, channels, height, width) in float32, and labels or captions."""
        numbers = self._checked_numbers(indices)
        latents = torch.empty(len(numbers), *self.shape)
        prompts: list[Any] = [None] * len(numbers)
        homes = numbers // self.recipe["shard"]
        for index in homes.unique().tolist():
            slots = (homes == index).nonzero().squeeze(1)
            shard = self._shard(index)
            positions = numbers[slots] % self.recipe["shard"]
            for slot, position in zip(slots.tolist(), positions.tolist(), strict=True):
                latents[slot] = shard.row(position)
                prompts[slot] = shard.prompts[position]
        return latents, prompts if isinstance(prompts[0], str) else torch.stack(prompts)

    @checked(count=between(1))
    def first(self, count: int) -> tuple[Tensor, Prompts]:
        return self.batch(range(count))

    def _checked_numbers(self, indices: Tensor | Sequence[int]) -> Tensor:
        try:
            numbers = torch.as_tensor(indices)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"indices are {short(indices)}; pass whole numbers, shape (N,)"
            ) from None
        whole_numbers = not numbers.is_floating_point() and numbers.dtype != torch.bool
        if numbers.ndim != 1 or numbers.numel() == 0 or not whole_numbers:
            raise ValueError(
                f"indices are {tuple(numbers.shape)} {numbers.dtype}; pass whole numbers, shape "
                "(N,)"
            )
        if numbers.min() < 0 or numbers.max() >= self.count:
            raise IndexError(
                f"indices run from {numbers.min()} to {numbers.max()}; the samples are "
                f"0..{self.count - 1}"
            )
        return numbers.cpu().long()

    def _shard(self, index: int) -> OpenShard:
        """Return an open shard, or open it; its checksum is compared once."""
        if index in self._open:
            self._open.move_to_end(index)
            return self._open[index]
        entry = self.shards[index]
        path = self.folder / entry["file"]
        shard = self._read(index, path, entry["sha256"])
        if shard is None or shard.shape != (entry["count"], *self.shape):
            raise ValueError(f"{path} is damaged; {REMEDY}")
        refuse_other(path, shard.recipe, self.recipe)
        self._checked.add(index)
        self._open[index] = shard
        if len(self._open) > self.keep:
            self._open.popitem(last=False)
        return shard

    def _read(self, index: int, path: Path, sha256: str) -> OpenShard | None:
        """Open a shard, or return None where it is damaged."""
        try:
            if index in self._checked or digests.of_file(path) == sha256:
                return OpenShard(path)
        except (OSError, sealed.Damaged, KeyError):
            pass
        return None
