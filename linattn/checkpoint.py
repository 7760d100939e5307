"""Keep state that survives a kill: dictionaries of tensors and values in one safetensors file.

- Nothing is pickled, optimizer states included, so that reading a file cannot execute anything.
- A file is written beside its target and renamed, so that a reader finds the old file or the new
  one, never half of one.
- `Resumable` is the loop of every training here. A step's randomness comes from (seed, step) alone,
  so a run that was killed anywhere ends with the weights of an undisturbed one.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from linattn import seeds

generator = seeds.of_step  # the name that scripts have used


class CorruptCheckpoint(ValueError):
    """Report a file that is no complete checkpoint."""


def save(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a nested dictionary, or keep the file that is there and raise OSError."""
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_strip(tree, tensors))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    try:
        save_file(tensors, draft, metadata={"tree": skeleton})
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        draft.unlink(missing_ok=True)
        raise OSError(
            f"{path} could not be written ({error}); the previous checkpoint, if any, is kept"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, or raise CorruptCheckpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
            skeleton = json.loads((file.metadata() or {})["tree"])
        return _fill(skeleton, tensors)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CorruptCheckpoint(
            f"{path} is damaged ({error}); delete it to start that training again"
        ) from error


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
        self.start = self._restore() if self.path.exists() else 0
        self.saved = self.start  # the step of the newest checkpoint

    def _restore(self) -> int:
        state = load(self.path)
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
        """Write a checkpoint after so many steps."""
        if self.writes:
            states = {name: stateful.state_dict() for name, stateful in self.parts.items()}
            save(self.path, {"step": step, "recipe": self.recipe, "parts": states})
        self.saved = step
