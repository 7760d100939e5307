"""Read weights that CLEAR's authors released (Huage001/CLEAR) as a student.

- One file holds the trained projections under FLUX's own names.
- Where keys are pooled, each layer also has a `spatial_weight`, whose side is the pooling.
- No file says the radius: `load(..., radius=8)`.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from linattn.attention import OPERATORS
from linattn.attention.options import check_names
from linattn.families import KEY
from linattn.surgery.card import read_weights
from linattn.surgery.student import Entry, Student

ATTENTION = re.compile(r"(?:transformer\.)?((?:single_)?transformer_blocks\.\d+\.attn)\.(.+)$")
OPTIONS = ("radius", "proportional", "trained")  # a file says all others itself
TRAINED = ("to_q", "to_k", "to_v")


def recognises(path: Path) -> bool:
    return path.is_file()


def read(path: Path, options: Mapping[str, Any]) -> Student:
    """Read a released file; `options` says the radius, which the file lacks."""
    table = {name: OPERATORS["clear"].table[name] for name in OPTIONS}
    check_names("clear", table, options)
    if "radius" not in options:
        raise ValueError(
            f"{path}: no file of CLEAR's says its radius (window_size); pass it, load(..., "
            "radius=8)"
        )
    tensors: dict[str, Tensor] = {}
    pools: dict[str, int] = {}
    for key, tensor in read_weights(path).items():
        name, inner = _split(path, key)
        pools.setdefault(name, 1)
        if inner.endswith("spatial_weight"):
            pool = pools[name] = math.isqrt(tensor.numel())
            if pool * pool != tensor.numel() or not pool:
                raise ValueError(f"{path}: {key} is {tuple(tensor.shape)}, and must be a square")
            inner, tensor = f"{KEY}.pooling.{pool}", tensor.reshape(pool, pool)
        tensors[f"{name}.{inner}"] = tensor
    _check_pools(path, pools)
    _check_projections(path, pools, tensors)
    entries = [Entry(name, "clear", {**options, "pool": pool}) for name, pool in pools.items()]
    return Student(path, entries, tensors)


def _split(path: Path, key: str) -> tuple[str, str]:
    """Split a tensor's name into that of its layer and the rest."""
    match = ATTENTION.match(key)
    if match is None:
        raise ValueError(
            f"{path}: {key} is no tensor of a FLUX attention, so this is no file of CLEAR's"
        )
    return match[1], match[2]


def _check_pools(path: Path, pools: Mapping[str, int]) -> None:
    if len(set(pools.values())) > 1:
        unpooled = [name for name, pool in pools.items() if pool == 1]
        raise ValueError(
            f"{path} pools by {max(pools.values())} and holds no spatial_weight for {unpooled[0]} "
            f"and {len(unpooled) - 1} more: a file of CLEAR's pools in all of its layers or in none"
        )


def _check_projections(
    path: Path, layers: Mapping[str, int], tensors: Mapping[str, Tensor]
) -> None:
    required = [f"{name}.{projection}.weight" for name in layers for projection in TRAINED]
    if missing := [name for name in required if name not in tensors]:
        raise ValueError(
            f"{path} lacks {missing[0]} and {len(missing) - 1} more; "
            "a file of CLEAR's holds all three trained projections"
        )
