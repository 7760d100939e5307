"""Grid and noise on their way to the layers.

Hooks on the model, on a UNet's levels and on every attention pass them on. A hook is a plain
function that reaches everything through its arguments: a deepcopy keeps it, for the copy.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.taylorseer_cache import _TAYLORSEER_CACHE_HOOK
from torch import nn

from linattn.attention.grid import Grid
from linattn.families.base import KEY, Context
from linattn.families.processors import Attention, Processor
from linattn.families.registry import family, layers, model_of

Call = tuple[tuple, dict[str, Any]]


def watch(model: nn.Module) -> None:
    """Make every forward of the model hand grid and noise to its layers from now on.

    Args:
        model: a diffusers model of a supported family.
    """
    unwatch(model)
    model_family = family(model)
    key = model_family.handed_down
    send = functools.partial(_send, names=arguments_of(model), key=key)
    model.register_forward_pre_hook(send, with_kwargs=True)
    for module in model_family.levels(model):
        narrow = functools.partial(_narrow, names=arguments_of(module), key=key)
        module.register_forward_pre_hook(narrow, with_kwargs=True)
    for module in attentions(model):
        module.register_forward_pre_hook(_deliver, with_kwargs=True)
        if hasattr(module, KEY):
            _keep_uncached(getattr(module, KEY))


def unwatch(model: nn.Module) -> None:
    """Remove the hooks that `watch` put on the model.

    Args:
        model: a diffusers model of a supported family.
    """
    _remove(model, _send)
    for module in family(model).levels(model):
        _remove(module, _narrow)
    for module in attentions(model):
        _remove(module, _deliver)


def is_watched(model: nn.Module) -> bool:
    """Say whether the model has the hooks of `watch`."""
    return bool(_hooks(model, _send))


def arguments_of(module: nn.Module) -> tuple[str, ...]:
    """Return the names of a forward's arguments.

    They are those of the class: accelerate replaces the instance's forward by one that hides them.
    """
    return tuple(inspect.signature(type(module).forward).parameters)[1:]


def attentions(model: nn.Module) -> list[Attention]:
    """Return every attention, cross-attentions included: all are handed the same arguments.

    Args:
        model: a diffusers model.
    """
    return [
        module
        for module in model.modules()
        if hasattr(module, "set_processor") and hasattr(module, "heads")
    ]


def bound(names: tuple[str, ...], args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _send(
    model: nn.Module, args: tuple, kwargs: dict[str, Any], names: tuple[str, ...], key: str
) -> Call:
    """Add the context to the dictionary that the model hands down."""
    arguments = bound(names, args, kwargs)
    context = family(model).context(model, arguments)
    extras = {**(arguments.get(key) or {}), KEY: context}
    return _with_extras(args, kwargs, names, key, extras)


def _narrow(
    module: nn.Module, args: tuple, kwargs: dict[str, Any], names: tuple[str, ...], key: str
) -> Call:
    """Replace the grid by the level's own.

    The level's first argument is (batch, channels, height, width).
    """
    arguments = bound(names, args, kwargs)
    extras, sample = arguments[key], arguments[names[0]]
    context = Context.of(Grid(*sample.shape[-2:]), extras[KEY].noise, sample)
    return _with_extras(args, kwargs, names, key, {**extras, KEY: context})


def _with_extras(
    args: tuple, kwargs: dict[str, Any], names: tuple[str, ...], key: str, extras: dict[str, Any]
) -> Call:
    """Return the call with another dictionary to hand down."""
    position = names.index(key)
    if position < len(args):
        return (*args[:position], extras, *args[position + 1 :]), kwargs
    return args, {**kwargs, key: extras}


def _deliver(attn: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Call:
    """Take the context away from a layer without an operator; one with an operator must use it."""
    if not hasattr(attn, KEY):
        return args, {name: value for name, value in kwargs.items() if name != KEY}
    if not isinstance(attn.processor, Processor):
        raise RuntimeError(
            f"a linearised layer lost its processor to {type(attn.processor).__name__} "
            "(enable_attention_slicing and disable_attention_slicing, fuse_qkv_projections, "
            "disable_xformers_memory_efficient_attention and set_attn_processor do that) and would "
            "be softmax again: call linattn.reattach(model)"
        )
    return args, kwargs


class _Uncached(HookRegistry):
    """Hold diffusers' hooks of an operator, without TaylorSeer's.

    That cache hooks every module whose name ends in "attn", so both the attention and the operator
    `attn.linattn` inside it. The inner one is not called at the steps that the outer one predicts:
    it counts fewer, and predicts where the outer one computes.
    """

    def register_hook(self, hook: ModelHook, name: str) -> None:
        if name != _TAYLORSEER_CACHE_HOOK:
            super().register_hook(hook, name)


def _keep_uncached(operator: nn.Module) -> None:
    if not hasattr(operator, "_diffusers_hook"):
        vars(operator)["_diffusers_hook"] = _Uncached(operator)


def _hooks(module: nn.Module, function: Any) -> list[int]:
    """Return the numbers of a module's hooks that run `function`."""
    return [
        number
        for number, hook in module._forward_pre_hooks.items()
        if getattr(hook, "func", hook) is function
    ]


def _remove(module: nn.Module, function: Any) -> None:
    for number in _hooks(module, function):
        del module._forward_pre_hooks[number]
        module._forward_pre_hooks_with_kwargs.pop(number, None)


def reattach(model_or_pipeline: Any) -> Any:
    """Make a student draw as one again after diffusers took processors away, and return it.

    Attention slicing, fused projections and `set_attn_processor` put processors of diffusers on all
    layers. Every layer that has an operator gets ours back; the others stay as they are.

    Args:
        model_or_pipeline: a linearised model, or a pipeline or Teacher that holds one.
    """
    replaced = [layer for layer in layers(model_or_pipeline) if layer.operator is not None]
    if not replaced:
        raise ValueError(
            f"this {type(model_of(model_or_pipeline)).__name__} has no operator: call "
            "linattn.linearize(model, name) first"
        )
    for layer in replaced:
        layer.attn.set_processor(layer.processor())
    return model_or_pipeline
