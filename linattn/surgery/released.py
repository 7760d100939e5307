"""Read weights that the papers' authors released as a student of this library.

- LinFusion (Yuanshi/LinFusion-1-5, -2-1, -XL): config.json names the layers in `modules_list`.
  Tensors are keyed by the position in that list, `3.to_q.weight`. The functions of query and key
  are `to_q_` and `to_k_`. A layer without these functions (-1) adds x to itself in the released
  code; this module doubles the projections instead, with hidden=0.
- CLEAR (Huage001/CLEAR): one file holds the trained projections under FLUX's own names. Where keys
  are pooled, each layer also has a `spatial_weight`, whose side is the pooling. No file says the
  radius: `load(..., radius=8)`.
- Tensors that a file lacks stay the base's (norms, the text's projections). Layers that a file does
  not name stay unchanged, with a warning. A layer that the model lacks is an error. Another number
  of heads is an error too, because SD 1.5 and 2.1 have the same names and shapes.
"""

import json
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from linattn.attention.options import check_names
from linattn.families import KEY, Layer

Student = tuple[list[dict[str, Any]], dict[str, Tensor]]  # entries of a card, tensors by our names
CONFIG = "config.json"


def recognised(path: Path) -> bool:
    """Say whether a path is a file (CLEAR's release) or a folder with LinFusion's config."""
    return path.is_file() or ((path / CONFIG).is_file() and "modules_list" in _config(path))


def read(path: Path, options: dict[str, Any]) -> Student:
    """Read the layer entries and tensors of a released student; `options` completes those that a
    file lacks.
    """
    if path.is_file():
        return _clear(_tensors(path), path, options)
    if options:
        raise ValueError(
            f"{path}: LinFusion's files name all options themselves; leave out {', '.join(options)}"
        )
    weights = sorted(path.glob("*.safetensors"))
    if len(weights) != 1:
        raise ValueError(f"{path} holds {len(weights)} safetensors files, LinFusion's folder one")
    return _linfusion(_config(path)["modules_list"], _tensors(weights[0]), weights[0])


def _config(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / CONFIG).read_text())
    except ValueError as error:
        raise ValueError(f"{path / CONFIG} is damaged ({error}); fetch it again") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again") from error


def _linfusion(modules: list[dict[str, Any]], tensors: dict[str, Tensor], path: Path) -> Student:
    entries, renamed, used = [], {}, set()
    for number, module in enumerate(modules):
        try:
            name, middle, heads = (
                module[key] for key in ("module_name", "projection_mid_dim", "heads")
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path.parent / CONFIG}: module {number} is {module}, without {error}"
            ) from error
        hidden = 0 if middle == -1 else middle
        entries.append(_entry(name, "linfusion", {"hidden": hidden}) | {"heads": heads})
        for key in [key for key in tensors if key.startswith(f"{number}.")]:
            used.add(key)
            inner, tensor = key.split(".", 1)[1], tensors[key]
            inner = re.sub(
                r"^to_(q|k)_\.", lambda m: f"{KEY}.{'query' if m[1] == 'q' else 'key'}.", inner
            )
            doubled = hidden == 0 and inner in ("to_q.weight", "to_k.weight")
            renamed[f"{name}.{inner}"] = 2 * tensor if doubled else tensor
    if unused := sorted(set(tensors) - used):
        raise ValueError(
            f"{path} holds {unused[0]} and {len(unused) - 1} more that its {CONFIG} does not name"
        )
    return entries, renamed


def _clear(tensors: dict[str, Tensor], path: Path, options: dict[str, Any]) -> Student:
    check_names("clear", {"radius": None, "proportional": None}, options)
    if "radius" not in options:
        raise ValueError(
            f"{path}: no file of CLEAR's says its radius (window_size); pass it, load(..., "
            "radius=8)"
        )
    renamed, factors = {}, {}
    for key, tensor in tensors.items():
        layer = re.match(
            r"(?:transformer\.)?((?:single_)?transformer_blocks\.\d+\.attn)\.(.+)$", key
        )
        if layer is None:
            raise ValueError(
                f"{path}: {key} is no tensor of a FLUX attention, so this is no file of CLEAR's"
            )
        name, inner = layer.groups()
        factors.setdefault(name, 1)
        if inner.endswith("spatial_weight"):
            factor = factors[name] = math.isqrt(tensor.numel())
            inner, tensor = f"{KEY}.pooling.{factor}", tensor.reshape(factor, factor)
        renamed[f"{name}.{inner}"] = tensor
    if len(set(factors.values())) > 1:
        unpooled = [name for name, factor in factors.items() if factor == 1]
        raise ValueError(
            f"{path} pools by {max(factors.values())} and holds no spatial_weight for "
            f"{unpooled[0]} and "
            f"{len(unpooled) - 1} more: a file of CLEAR's pools in all of its layers or in none"
        )
    required = [
        f"{name}.{projection}.weight" for name in factors for projection in ("to_q", "to_k", "to_v")
    ]
    if missing := [name for name in required if name not in renamed]:
        raise ValueError(
            f"{path} lacks {missing[0]} and {len(missing) - 1} more; "
            "a file of CLEAR's holds all three trained projections"
        )
    entries = [
        _entry(name, "clear", {**options, "pool": factor}) for name, factor in factors.items()
    ]
    return entries, renamed


def check(entries: Sequence[dict[str, Any]], layers: Sequence[Layer], path: Path) -> None:
    """Raise if an entry has other heads than the model, and warn about layers that the file does
    not name.
    """
    heads = {layer.name: layer.shape.heads for layer in layers}
    trained_heads = [(entry["name"], entry["heads"]) for entry in entries if "heads" in entry]
    for name, trained in trained_heads:
        if name in heads and trained != heads[name]:
            raise ValueError(
                f"{path} was trained with {trained} heads in {name}, which has {heads[name]} here: "
                "it belongs to another base"
            )
    named = {entry["name"] for entry in entries}
    if unnamed := [name for name in heads if name not in named]:
        more = f" and {len(unnamed) - 4} more" if len(unnamed) > 4 else ""
        warnings.warn(
            f"{path} does not name {', '.join(unnamed[:4])}{more}: they stay as they are",
            stacklevel=3,
        )


def _entry(name: str, operator: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "operator": operator, "options": options, "initialise": "all"}
