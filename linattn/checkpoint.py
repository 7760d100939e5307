"""Keep state that survives a kill: dictionaries of tensors and values in one safetensors file.

- Nothing is pickled, optimizer states included, so that reading a file cannot execute anything.
- A file appears whole and carries its digest: half a file and a flipped bit are both refused.
- What is not finite is never written, so the newest checkpoint is always one to go on from.
- `Resumable` is the loop of every training here. A step's randomness comes from (seed, step) alone,
  so a run that was killed anywhere ends with the weights of an undisturbed one.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from linattn import files, sealed, seeds
from linattn.finite import NotFinite

REMEDY = "delete it to start that training again"
generator = seeds.of_step  # the name that scripts have used


class CorruptCheckpoint(ValueError):
    """Report a file that is no complete checkpoint."""


def save(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a nested dictionary, or keep the file that is there and raise OSError."""
    tensors: dict[str, Tensor] = {}
    skeleton = _strip(tree, tensors)
    try:
        sealed.save(tensors, path, skeleton)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{path} could not be written ({error}); the previous checkpoint, if any, is kept"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, or raise CorruptCheckpoint."""
    try:
        skeleton = sealed.check(path, REMEDY)
        return _fill(skeleton, sealed.load(path, REMEDY))
    except sealed.Damaged as error:
        raise CorruptCheckpoint(str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpoint(f"{path} is no checkpoint ({error}); {REMEDY}") from error


def _strip(node: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Move every tensor of the tree to `tensors`, and return the tree with their names instead."""
    if isinstance(node, Tensor):
        name = str(len(tensors))
        tensors[name] = node.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(node, Mapping):
        return {"dict": [[key, _strip(value, tensors)] for key, value in node.items()]}
    if isinstance(node, (list, tuple)):
        return {type(node).__name__: [_strip(value, tensors) for value in node]}
    return {"value": node}


def _fill(node: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    """Return the tree of `_strip` with its tensors back."""
    ((tag, content),) = node.items()
    if tag == "tensor":
        return tensors[content]
    if tag == "dict":
        return {key: _fill(value, tensors) for key, value in content}
    if tag in ("list", "tuple"):
        items = [_fill(value, tensors) for value in content]
        return tuple(items) if tag == "tuple" else items
    return content


class Resumable:
    """Count steps from the last checkpoint on.

    `parts` are all objects that a step changes; they have state_dict and load_state_dict. `recipe`
    holds every setting the result depends on: a checkpoint of another recipe is refused.
    """

    def __init__(
        self,
        path: Path,
        parts: Mapping[str, Any],
        steps: int,
        recipe: Mapping[str, Any],
        every: int = 200,
        writes: bool = True,
    ):
        self.path, self.parts, self.steps, self.every = Path(path), parts, steps, every
        self.recipe = json.loads(json.dumps(dict(recipe)))
        self.writes = writes  # of several processes, all read and one writes
        if writes:
            self._require_place()
        self.start = self._restore() if self.path.exists() else 0
        self.saved = self.start  # the step of the newest checkpoint

    def _require_place(self) -> None:
        """Raise OSError where no checkpoint could be written, before the steps up to the first."""
        try:
            files.require_room(self.path.parent, names=[self.path.name])
        except OSError as error:
            raise OSError(
                f"no checkpoint can be written to {self.path} ({error}): name another scratch "
                "folder"
            ) from error

    def _restore(self) -> int:
        state = load(self.path)
        missing = {"step", "recipe", "parts"} - state.keys() or self.parts.keys() - state["parts"]
        if missing:
            raise CorruptCheckpoint(
                f"{self.path} lacks {', '.join(sorted(missing))}: other code wrote it; {REMEDY}"
            )
        if state["recipe"] != self.recipe:
            raise ValueError(
                f"{self.path} was made by another recipe: {state['recipe']}, now {self.recipe}; "
                "delete it, or use another scratch folder"
            )
        for name, stateful in self.parts.items():
            stateful.load_state_dict(state["parts"][name])
        return state["step"]

    def __iter__(self) -> Iterator[int]:
        for step in range(self.start, self.steps):
            yield step
            done = step + 1
            if done % self.every == 0 or done == self.steps:
                self.save(done)

    def save(self, step: int) -> None:
        """Write a checkpoint after so many steps, or raise NotFinite and leave the former one."""
        states = {name: stateful.state_dict() for name, stateful in self.parts.items()}
        if broken := sorted(_not_finite(states)):
            raise NotFinite(
                f"after step {step} of {self.steps}, {len(broken)} of the tensors that a training "
                f"holds are not finite, such as {broken[0]}: lower the learning rate, warm up "
                f"longer, or train in float32. {self.last}"
            )
        if self.writes:
            save(self.path, {"step": step, "recipe": self.recipe, "parts": states})
        self.saved = step

    @property
    def last(self) -> str:
        """Say which checkpoint a run would go on from."""
        if not self.saved:
            return "No checkpoint was written yet"
        return f"{self.path} holds step {self.saved} and is good: the same call goes on from it"


def _not_finite(node: Any, name: str = "") -> Iterator[str]:
    """Yield the paths of the tensors in a tree that hold a value that is not finite."""
    if isinstance(node, Tensor):
        if node.is_floating_point() and not torch.isfinite(node).all():
            yield name
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _not_finite(value, f"{name}.{key}".lstrip("."))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _not_finite(value, f"{name}[{index}]")
