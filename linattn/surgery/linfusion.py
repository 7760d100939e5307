"""Read weights that LinFusion's authors released (Yuanshi/LinFusion-1-5, -2-1, -XL) as a student.

- config.json names the layers in `modules_list`. Tensors are keyed by the position in that list,
  `3.to_q.weight`. The functions of query and key are `to_q_` and `to_k_`.
- A layer without these functions (a `projection_mid_dim` of -1) adds x to itself in the released
  code; this module doubles the projections instead, with hidden=0.
- The number of heads is checked, because SD 1.5 and 2.1 have the same names and shapes.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from linattn.families import KEY
from linattn.names import short
from linattn.surgery.card import pickled, read_weights
from linattn.surgery.student import Entry, Student

CONFIG, MODULES = "config.json", "modules_list"
FUNCTIONS = {"to_q_": f"{KEY}.query", "to_k_": f"{KEY}.key"}  # LinFusion's names and ours


def recognises(path: Path) -> bool:
    return (path / CONFIG).is_file() and MODULES in _config(path)


def read(path: Path, options: Mapping[str, Any]) -> Student:
    """Read a released folder, which names all options itself."""
    if options:
        raise ValueError(
            f"{path}: LinFusion's files name all options themselves; leave out {', '.join(options)}"
        )
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        pickles = pickled(path) or "; pickles (.bin) are not opened"
        raise ValueError(
            f"{path} holds {len(files)} safetensors files, LinFusion's folder one{pickles}"
        )
    tensors = read_weights(files[0])
    modules = _config(path)[MODULES]
    if not isinstance(modules, list):
        raise ValueError(
            f"{path / CONFIG} is damaged ({MODULES} is {short(modules)}); fetch it again"
        )
    entries = [_entry(path, number, module) for number, module in enumerate(modules)]
    _refuse_unnamed(files[0], tensors, len(entries))
    renamed = [_renamed(name, tensor, entries) for name, tensor in tensors.items()]
    return Student(path, entries, dict(renamed))


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / CONFIG).read_text())
        if not isinstance(config, dict):
            raise ValueError(f"it is {short(config)}")
        return config
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path / CONFIG} is damaged ({error}); fetch it again") from error


def _entry(path: Path, number: int, module: Mapping[str, Any]) -> Entry:
    try:
        name, width, heads = module["module_name"], module["projection_mid_dim"], module["heads"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path / CONFIG}: module {number} is {module}, without {error}"
        ) from error
    return Entry(name, "linfusion", {"hidden": 0 if width == -1 else width}, heads=heads)


def _refuse_unnamed(file: Path, tensors: Mapping[str, Tensor], modules: int) -> None:
    numbers = {str(number) for number in range(modules)}
    unnamed = sorted(name for name in tensors if name.partition(".")[0] not in numbers)
    if unnamed:
        raise ValueError(
            f"{file} holds {unnamed[0]} and {len(unnamed) - 1} more that its {CONFIG} does not name"
        )


def _renamed(name: str, tensor: Tensor, entries: list[Entry]) -> tuple[str, Tensor]:
    """Return a tensor with its name in the plain model."""
    number, _, inner = name.partition(".")
    entry = entries[int(number)]
    inner = re.sub(r"^to_[qk]_(?=\.)", lambda match: FUNCTIONS[match[0]], inner)
    doubled = entry.options["hidden"] == 0 and inner in ("to_q.weight", "to_k.weight")
    return f"{entry.name}.{inner}", 2 * tensor if doubled else tensor
