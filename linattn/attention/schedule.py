"""Options that follow the noise: a list of entries from noise to picture, each with an `until`.

- `[{until: 0.8, count: 16}, {until: 0.3, count: 64}]`: the first entry holds down to noise 0.8, the
  second down to 0.3, and below that the operator's own options hold.
- An entry is kept as `(until, changes)`; `position` counts entries, and len(schedule) stands for
  the operator's own options.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Changes = dict[str, Any]
Entry = tuple[float, Changes]
UNTRACED = (
    "a schedule follows the values of the noise, by which one graph cannot choose: compile without "
    "fullgraph=True, hold one entry by operator.pin(...), or export, where all entries are computed"
)
SHOWN = "[{until: 0.8, ...}, {until: 0.0, ...}]"


def read(
    owner: str, entries: Sequence[Changes], checked: Callable[[Changes], Changes]
) -> list[Entry]:
    """Return the entries in canonical form, or raise a ValueError that says what is wrong."""
    if not isinstance(entries, (list, tuple)) or not all(isinstance(e, dict) for e in entries):
        raise ValueError(f"{owner}: schedule is a list like {SHOWN}, not {entries!r}")
    schedule: list[Entry] = []
    for entry in entries:
        changes = dict(entry)
        until = _until(owner, changes.pop("until", None), entry)
        if schedule and until >= schedule[-1][0]:
            last = schedule[-1][0]
            raise ValueError(
                f"{owner}: schedules go from noise to picture; until {until} follows {last}"
            )
        schedule.append((until, checked(changes)))
    return schedule


def _until(owner: str, until: Any, entry: Changes) -> float:
    real = isinstance(until, (int, float)) and not isinstance(until, bool)
    if not real or not 0 <= until <= 1:
        raise ValueError(f"{owner}: until is a noise level in [0, 1], not {until!r} in {entry!r}")
    return float(until)


def write(schedule: Sequence[Entry]) -> list[Changes]:
    """Return the entries as they are typed: the inverse of `read`."""
    return [{"until": until, **changes} for until, changes in schedule]


@torch.compiler.disable(reason=UNTRACED)
def positions(schedule: Sequence[Entry], noise: Tensor) -> list[int]:
    """Return for each noise level the position of the entry that holds there."""
    return _numbers(schedule, noise).tolist()


def _numbers(schedule: Sequence[Entry], noise: Tensor) -> Tensor:
    # In the noise's own precision: 0.7 in float32 is below the double 0.7, yet it is the level that
    # was meant.
    untils = noise.new_tensor([until for until, _ in schedule])
    return (noise.flatten()[:, None] < untils).sum(1)


def by_choice(
    function: Callable[..., Tensor], schedule: Sequence[Entry], noise: Tensor, *tensors: Any
) -> Tensor:
    """Run function(position, *tensors) for every position on all pictures, and choose for each.

    It is what `positions` and `by_position` compute, without a branch on the noise's values.
    """
    outputs = torch.stack([function(number, *tensors) for number in range(len(schedule) + 1)])
    batch = torch.arange(outputs.shape[1], device=outputs.device)
    return outputs[_numbers(schedule, noise).to(outputs.device).expand_as(batch), batch]


def changes(schedule: Sequence[Entry], position: int) -> Changes:
    """Return what the entry at `position` changes; nothing past the last one."""
    return schedule[position][1] if position < len(schedule) else {}


def by_position(
    function: Callable[..., Tensor], positions: Sequence[int], *tensors: Tensor | None
) -> Tensor:
    """Run function(position, *tensors) on the pictures of each position, in the batch's order."""
    distinct = sorted(set(positions))
    if len(distinct) == 1:
        return function(distinct[0], *tensors)
    device = next(tensor.device for tensor in tensors if tensor is not None)
    outputs, indices = [], []
    for position in distinct:
        index = torch.tensor([i for i, p in enumerate(positions) if p == position], device=device)
        chosen = [None if tensor is None else tensor[index] for tensor in tensors]
        outputs.append(function(position, *chosen))
        indices.append(index)
    return torch.cat(outputs)[torch.cat(indices).argsort()]
