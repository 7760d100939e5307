"""Weights as the papers' authors released them, read as a student of ours.

- LinFusion (Yuanshi/LinFusion-1-5, -2-1, -XL): config.json names the layers in `modules_list`, tensors are keyed by the
  place in it, `3.to_q.weight`, the functions of query and key are `to_q_` and `to_k_`. Where there is none (-1), x is
  added to itself there: the projections are doubled here, hidden=0.
- CLEAR (Huage001/CLEAR): one file of FLUX's own names with the trained projections, and a `spatial_weight` a layer
  where keys are pooled, whose side is the pooling. No file says the radius: `load(..., radius=8)`.
- What a file does not hold is the base's (norms, the text's projections), and whole layers that it does not name stay
  what they are, with a warning. What the model does not have is an error, and so are other heads: SD 1.5 and 2.1 have
  the same names and shapes.
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


def recognised(place: Path) -> bool:
    return place.is_file() or ((place / CONFIG).is_file() and "modules_list" in _config(place))


def read(place: Path, options: dict[str, Any]) -> Student:
    if place.is_file():
        return _clear(_tensors(place), place, options)
    if options:
        raise ValueError(f"{place}: LinFusion's files hold all there is to say; leave out {', '.join(options)}")
    weights = sorted(place.glob("*.safetensors"))
    if len(weights) != 1:
        raise ValueError(f"{place} holds {len(weights)} safetensors files, LinFusion's folder one")
    return _linfusion(_config(place)["modules_list"], _tensors(weights[0]), weights[0])


def _config(place: Path) -> dict[str, Any]:
    try:
        return json.loads((place / CONFIG).read_text())
    except ValueError as error:
        raise ValueError(f"{place / CONFIG} is damaged ({error}); fetch it again") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again") from error


def _linfusion(modules: list[dict[str, Any]], tensors: dict[str, Tensor], path: Path) -> Student:
    entries, found, taken = [], {}, set()
    for number, module in enumerate(modules):
        try:
            name, middle, heads = (module[key] for key in ("module_name", "projection_mid_dim", "heads"))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path.parent / CONFIG}: module {number} is {module}, without {error}") from error
        hidden = 0 if middle == -1 else middle
        entries.append(_entry(name, "linfusion", {"hidden": hidden}) | {"heads": heads})
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
    if len(set(factors.values())) > 1:
        plain = [name for name, factor in factors.items() if factor == 1]
        raise ValueError(
            f"{path} pools by {max(factors.values())} and holds no spatial_weight for {plain[0]} and {len(plain) - 1} "
            "more: a file of CLEAR's pools in all of its layers or in none"
        )
    own = [f"{name}.{part}.weight" for name in factors for part in ("to_q", "to_k", "to_v")]
    if absent := [name for name in own if name not in found]:
        raise ValueError(
            f"{path} lacks {absent[0]} and {len(absent) - 1} more; CLEAR's hold what they trained, all three"
        )
    return [_entry(name, "clear", {**options, "pool": factor}) for name, factor in factors.items()], found


def check(entries: Sequence[dict[str, Any]], layers: Sequence[Layer], place: Path) -> None:
    """That heads are those of the model, and which of its layers the file leaves alone."""
    heads = {layer.name: layer.shape.heads for layer in layers}
    for name, told in ((entry["name"], entry["heads"]) for entry in entries if "heads" in entry):
        if name in heads and told != heads[name]:
            raise ValueError(
                f"{place} was trained with {told} heads in {name}, which has {heads[name]} here: "
                "it belongs to another base"
            )
    if left := [name for name in heads if name not in {entry["name"] for entry in entries}]:
        more = f" and {len(left) - 4} more" if len(left) > 4 else ""
        warnings.warn(f"{place} does not name {', '.join(left[:4])}{more}: they stay as they are", stacklevel=3)


def _entry(name: str, operator: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "operator": operator, "options": options, "initialise": "all"}
