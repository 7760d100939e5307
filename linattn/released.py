"""Weights as the papers' authors released them, read as a student of ours.

- LinFusion (Yuanshi/LinFusion-1-5, -2-1, -XL): config.json names the layers in `modules_list`, tensors are keyed by the
  place in it, `3.to_q.weight`, the functions of query and key are `to_q_` and `to_k_`. Where there is none (-1), x is
  added to itself there: the projections are doubled here, hidden=0.
- CLEAR (Huage001/CLEAR): one file of FLUX's own names with the trained projections, and a `spatial_weight` a layer
  where keys are pooled, whose side is the pooling. No file says the radius: `load(..., radius=8)`.
- What a file does not hold is the base's (norms, the text's projections); what the model does not have is an error.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from linattn.attention.options import check_names
from linattn.families import KEY

Student = tuple[list[dict[str, Any]], dict[str, Tensor]]  # entries of a card, tensors by our names
CONFIG = "config.json"


def recognised(place: Path) -> bool:
    return place.is_file() or (
        (place / CONFIG).is_file() and "modules_list" in json.loads((place / CONFIG).read_text())
    )


def read(place: Path, options: dict[str, Any]) -> Student:
    if place.is_file():
        return _clear(_tensors(place), place, options)
    if options:
        raise ValueError(f"{place}: LinFusion's files hold all there is to say; leave out {', '.join(options)}")
    weights = sorted(place.glob("*.safetensors"))
    if len(weights) != 1:
        raise ValueError(f"{place} holds {len(weights)} safetensors files, LinFusion's folder one")
    return _linfusion(json.loads((place / CONFIG).read_text())["modules_list"], _tensors(weights[0]), weights[0])


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again") from error


def _linfusion(modules: list[dict[str, Any]], tensors: dict[str, Tensor], path: Path) -> Student:
    entries, found, taken = [], {}, set()
    for number, module in enumerate(modules):
        name, middle = module["module_name"], module["projection_mid_dim"]
        hidden = 0 if middle == -1 else middle
        entries.append(_entry(name, "linfusion", {"hidden": hidden}))
        for key in [key for key in tensors if key.startswith(f"{number}.")]:
            taken.add(key)
            inner, tensor = key.split(".", 1)[1], tensors[key]
            inner = re.sub(r"^to_(q|k)_\.", lambda m: f"{KEY}.{'query' if m[1] == 'q' else 'key'}.", inner)
            doubled = hidden == 0 and inner in ("to_q.weight", "to_k.weight")
            found[f"{name}.{inner}"] = 2 * tensor if doubled else tensor
    if unused := sorted(set(tensors) - taken):
        raise ValueError(f"{path} holds {unused[0]} and {len(unused) - 1} more that its {CONFIG} does not name")
    return entries, found


def _clear(tensors: dict[str, Tensor], path: Path, options: dict[str, Any]) -> Student:
    check_names("clear", {"radius": None, "proportional": None}, options)
    if "radius" not in options:
        raise ValueError(f"{path}: no file of CLEAR's says its radius (window_size); pass it, load(..., radius=8)")
    found, factors = {}, {}
    for key, tensor in tensors.items():
        layer = re.match(r"(?:transformer\.)?((?:single_)?transformer_blocks\.\d+\.attn)\.(.+)$", key)
        if layer is None:
            raise ValueError(f"{path}: {key} is no tensor of a FLUX attention, so this is no file of CLEAR's")
        name, inner = layer.groups()
        factors.setdefault(name, 1)
        if inner.endswith("spatial_weight"):
            factor = factors[name] = math.isqrt(tensor.numel())
            inner, tensor = f"{KEY}.pooling.{factor}", tensor.reshape(factor, factor)
        found[f"{name}.{inner}"] = tensor
    return [_entry(name, "clear", {**options, "pool": factor}) for name, factor in factors.items()], found


def _entry(name: str, operator: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "operator": operator, "options": options, "initialise": "all"}
