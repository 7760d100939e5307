"""Identify the base of a student, and name what has changed in it, by digests.

- The base's weights and its public config are digested.
- A tensor has a sha256 of its bits and one of its bits after a cast to every narrower float. A base
  that was only cast to half precision is therefore still that base, and only training counts as a
  change.
- Names are those of the plain model. They exclude operators, LoRA factors and IP-Adapters (weights
  in processors and the projection of their pictures), and `to_q.base_layer.weight` is
  `to_q.weight`.
- Cost: sha256 read 0.6 GB/s a thread on a busy 2-core machine; 50 ms for `dit-nano`, of the 80 ms
  of `linearize`.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from linattn import digests
from linattn.families import KEY
from linattn.surgery import quantised

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # widest first
NO_NAMES = ("", ".", "transformer", "unet")  # folders of a path that name no model
Digests = dict[str, str]  # dtype -> digest, the tensor's own dtype first
PLUGIN_NAMES = (".lora_", ".processor.", ".image_projection_layers.")  # of a plug-in's tensors


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the live parameters and stored buffers of the plain model by their plain names."""
    return {
        name: tensor
        for name, tensor in without_plugins(model).items()
        if isinstance(tensor, Tensor) and f".{KEY}." not in f".{name}"
    }


def without_plugins(module: nn.Module) -> dict[str, Tensor]:
    """Return the live state of a module by its plain names, without what plug-ins added."""
    state = module.state_dict(keep_vars=True)
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in state.items()
        if not any(mark in f".{name}" for mark in PLUGIN_NAMES)
    }


def tensor_digests(tensor: Tensor) -> Digests:
    """Digest a tensor in its own dtype and in every narrower float; a quantised one as it is."""
    if quantised.is_quantised(tensor):
        return {quantised.class_name(tensor): quantised.digest(tensor)}
    tensor = tensor.detach()
    return {
        _name(dtype): digests.of_tensor(tensor.to(dtype))
        for dtype in (tensor.dtype, *_narrower(tensor.dtype))
    }


def all_digests(named: Mapping[str, Tensor]) -> dict[str, Digests]:
    """Digest many tensors in several threads."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib releases the interpreter lock
        return dict(zip(named, pool.map(tensor_digests, named.values()), strict=True))


def changed(named: Mapping[str, Tensor], recorded: Mapping[str, Digests]) -> list[str]:
    """Name the tensors whose values differ from the recorded ones; a cast is no difference."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = pool.map(lambda name: _is_unchanged(named[name], recorded[name]), named)
        return [name for name, unchanged in zip(named, verdicts, strict=True) if not unchanged]


def _is_unchanged(tensor: Tensor, recorded: Digests) -> bool:
    if quantised.is_quantised(tensor):
        return tensor_digests(tensor) == recorded
    tensor, widest = tensor.detach(), next(iter(recorded))
    if _name(tensor.dtype) in recorded:
        return digests.of_tensor(tensor) == recorded[_name(tensor.dtype)]
    # a base recorded in half precision may have been widened since
    narrow = tensor.to(getattr(torch, widest))
    return digests.of_tensor(narrow) == recorded[widest] and torch.equal(
        narrow.to(tensor.dtype), tensor
    )


def base(model: nn.Module, recorded: Mapping[str, Digests] | None = None) -> dict[str, Any]:
    """Describe the base of a saved student as plain JSON."""
    recorded = recorded or all_digests(tensors(model))
    config = public_config(model)
    return {
        "class": type(model).__name__,
        "name": public_name(model),
        "config": config,
        "config_digest": digests.of_settings(config),
        "weights": _model_digests(recorded),
    }


def public_config(model: nn.Module) -> dict[str, Any]:
    """Return the arguments the model was built with, without origin and version."""
    arguments = sorted(_config(model).items())
    config = {name: value for name, value in arguments if not name.startswith("_")}
    return json.loads(json.dumps(config, default=str))


def _config(model: nn.Module) -> dict[str, Any]:
    config: Any = model.config  # diffusers sets it on every model, and torch's types do not know it
    return dict(config)


def public_name(model: nn.Module) -> str:
    """Return a hub id or the name of a folder, never a path of this machine."""
    origin = str(_config(model).get("_name_or_path") or "")
    if cached := re.search(r"models--([^/\\]+)--([^/\\]+)[/\\]snapshots", origin):
        return "/".join(cached.groups())
    if not os.path.exists(origin) and re.fullmatch(r"[\w.-]+/[\w.-]+", origin):
        return origin
    folders = [name for name in re.split(r"[/\\]", origin) if name not in NO_NAMES]
    return folders[-1] if folders else "unnamed"


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """List why a student of base `theirs` does not fit base `ours`; an empty list if it does."""
    if theirs["class"] != ours["class"]:
        return [f"class {theirs['class']} there, {ours['class']} here"]
    names = sorted({*theirs["config"], *ours["config"]})
    values = [(name, theirs["config"].get(name), ours["config"].get(name)) for name in names]
    reasons = [
        f"{name} {there!r} there, {here!r} here" for name, there, here in values if there != here
    ]
    if not reasons and not _same_weights(theirs["weights"], ours["weights"]):
        reasons = ["the weights (the same architecture, trained otherwise)"]
    return reasons


def label(base: Mapping[str, Any]) -> str:
    weights = next(iter(base["weights"].values()), "none")
    return f"{base['class']} {base['name']!r} (config {base['config_digest']}, weights {weights})"


def _same_weights(theirs: Digests, ours: Digests) -> bool:
    common = [dtype for dtype in theirs if dtype in ours]
    return bool(common) and theirs[common[0]] == ours[common[0]]


def _model_digests(recorded: Mapping[str, Digests]) -> Digests:
    """Return one digest of the model for every dtype in which all its floats were digested."""
    float_names = [_name(dtype) for dtype in FLOATS]
    of_floats = [by_dtype for by_dtype in recorded.values() if next(iter(by_dtype)) in float_names]
    shared = set(float_names).intersection(*of_floats)
    ordered = [dtype for dtype in float_names if dtype in shared]
    return {dtype: digests.of_text(_lines(recorded, dtype)) for dtype in ordered}


def _lines(recorded: Mapping[str, Digests], dtype: str) -> str:
    """List every tensor with its digest in `dtype`, or in its own dtype where it has none."""
    lines = []
    for name, by_dtype in sorted(recorded.items()):
        in_its_own = next(iter(by_dtype.values()))
        lines.append(f"{name} {by_dtype.get(dtype, in_its_own)}")
    return "\n".join(lines)


def _narrower(dtype: torch.dtype) -> Iterable[torch.dtype]:
    """Return the narrower floats of a dtype.

    A half precision has none, because a cast from one to the other would round twice.
    """
    if dtype in (torch.float64, torch.float32):
        return FLOATS[FLOATS.index(dtype) + 1 :]
    return ()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
