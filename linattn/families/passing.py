"""Grid and noise on their way to the layers: hooks on the model, on a UNet's levels and on every
attention.

- Hooks are plain functions that reach everything through their arguments: a deepcopy keeps them,
  for the copy.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from linattn.attention.grid import Grid
from linattn.families.base import KEY, Context
from linattn.families.processors import Processor
from linattn.families.registry import family, layers, model_of

Call = tuple[tuple, dict[str, Any]]


def watch(model: nn.Module) -> None:
    """From now on every forward of the model tells its layers grid and noise."""
    unwatch(model)
    kind = family(model)
    place = functools.partial(_send, names=arguments_of(model), key=kind.handed_down)
    model.register_forward_pre_hook(place, with_kwargs=True)
    for module in kind.levels(model):
        narrow = functools.partial(_narrow, names=arguments_of(module), key=kind.handed_down)
        module.register_forward_pre_hook(narrow, with_kwargs=True)
    for module in attentions(model):
        module.register_forward_pre_hook(_deliver, with_kwargs=True)


def unwatch(model: nn.Module) -> None:
    _remove(model, _send)
    for module in family(model).levels(model):
        _remove(module, _narrow)
    for module in attentions(model):
        _remove(module, _deliver)


def is_watched(model: nn.Module) -> bool:
    return bool(_hooks(model, _send))


def arguments_of(module: nn.Module) -> tuple[str, ...]:
    # Of the class: accelerate replaces the instance's forward by one that hides its arguments.
    return tuple(inspect.signature(type(module).forward).parameters)[1:]


def attentions(model: nn.Module) -> list[nn.Module]:
    """Every one of them, cross-attention included: all are handed the same arguments."""
    return [
        module
        for module in model.modules()
        if hasattr(module, "set_processor") and hasattr(module, "heads")
    ]


def bound(names: tuple[str, ...], args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _send(
    model: nn.Module, args: tuple, kwargs: dict[str, Any], names: tuple[str, ...], key: str
) -> Call:
    given = bound(names, args, kwargs)
    return _handed(
        args,
        kwargs,
        names,
        key,
        {**(given.get(key) or {}), KEY: family(model).context(model, given)},
    )


def _narrow(
    module: nn.Module, args: tuple, kwargs: dict[str, Any], names: tuple[str, ...], key: str
) -> Call:
    """The level's own grid, from its first argument (batch, channels, height, width)."""
    given = bound(names, args, kwargs)
    extras, sample = given[key], given[names[0]]
    here = Context.of(Grid(*sample.shape[-2:]), extras[KEY].noise, sample)
    return _handed(args, kwargs, names, key, {**extras, KEY: here})


def _handed(
    args: tuple, kwargs: dict[str, Any], names: tuple[str, ...], key: str, extras: dict[str, Any]
) -> Call:
    position = names.index(key)
    if position < len(args):
        return (*args[:position], extras, *args[position + 1 :]), kwargs
    return args, {**kwargs, key: extras}


def _deliver(attn: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Call:
    """A layer without an operator is called as if linattn were not there; one with an operator must
    use it.
    """
    if not hasattr(attn, KEY):
        return args, {name: value for name, value in kwargs.items() if name != KEY}
    if not isinstance(attn.processor, Processor):
        raise RuntimeError(
            f"a linearised layer lost its processor to {type(attn.processor).__name__} (attention "
            "slicing, fused "
            "projections, an IP-Adapter for joint attention and set_attn_processor do that) and "
            "would be softmax "
            "again: undo that, or call linattn.families.reattach(model)"
        )
    return args, kwargs


def _hooks(module: nn.Module, function: Any) -> list[int]:
    return [
        n
        for n, hook in module._forward_pre_hooks.items()
        if getattr(hook, "func", hook) is function
    ]


def _remove(module: nn.Module, function: Any) -> None:
    for number in _hooks(module, function):
        del module._forward_pre_hooks[number]
        module._forward_pre_hooks_with_kwargs.pop(number, None)


def reattach(model_or_pipeline: Any) -> None:
    """Put our processor back on every layer that has an operator."""
    for layer in layers(model_of(model_or_pipeline)):
        if layer.operator is not None:
            layer.attn.set_processor(layer.processor())
