"""Refuse calls that would lose a student or split its tokens, before they change or write anything.

A student carries its refusals as attributes, so that a deepcopy carries them too. A pipeline saves
its parts one after the other: where the model alone refused, its VAE and encoders were written
already. Models are shared by pipelines that nobody converted (`from_pipe`), so the question is
asked in the class of all pipelines.
"""

import functools
from collections.abc import Callable
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.loaders import FluxIPAdapterMixin, SD3IPAdapterMixin
from torch import nn

from linattn import families


def _refuse_to_save(*args: Any, **kwargs: Any) -> None:
    raise ValueError(
        "save_pretrained would write a folder that loads as the softmax model again, with weights "
        "that do not fit it: write the student with linattn.save(model, folder) and read it with "
        "linattn.load(base, folder), or linattn.restore(model) first"
    )


def _refuse_to_publish(*args: Any, **kwargs: Any) -> None:
    raise ValueError(
        "push_to_hub would publish a model that loads as the softmax model again, with weights "
        "that do not fit it: write the student with linattn.save(model, folder) and publish that "
        "with linattn.push(folder, repository)"
    )


def _refuse_parallelism(*args: Any, **kwargs: Any) -> None:
    raise ValueError(
        "enable_parallelism is not supported after linearize: it gives each GPU a part of the "
        "tokens or heads, and an operator reads the whole grid; give each GPU pictures of its own, "
        "or linattn.restore(model) first"
    )


def _refuse_config(*args: Any, **kwargs: Any) -> None:
    raise ValueError(
        "save_config would write the config of the softmax model, which says nothing of the "
        "operators: write the student with linattn.save(model, folder), or linattn.restore(model) "
        "first"
    )


def _refuse_adapter(*args: Any, **kwargs: Any) -> None:
    raise ValueError(
        "an IP-Adapter of FLUX or SD3 is a processor of the joint attention, which linearize has "
        "replaced: linattn.restore(model) first, or convert layers without text of their own alone "
        "(FLUX's single blocks)"
    )


ADAPTER = "_load_ip_adapter_weights"  # what diffusers calls to set an IP-Adapter's processors
REFUSALS: dict[str, Callable[..., None]] = {
    "save_pretrained": _refuse_to_save,
    "push_to_hub": _refuse_to_publish,
    "save_config": _refuse_config,
    "enable_parallelism": _refuse_parallelism,
    ADAPTER: _refuse_adapter,
}
# Which method of pipelines asks their parts whether they refuse, and what.
OF_PIPELINES = (
    (DiffusionPipeline, "save_pretrained", "save_pretrained"),
    (DiffusionPipeline, "push_to_hub", "push_to_hub"),
    (DiffusionPipeline, "save_config", "save_config"),
    (FluxIPAdapterMixin, "load_ip_adapter", ADAPTER),
    (SD3IPAdapterMixin, "load_ip_adapter", ADAPTER),
)


def refuse(model: nn.Module) -> None:
    """Make the model, and every pipeline that holds it, refuse these calls."""
    allow(model)
    replaced = [layer for layer in families.layers(model) if layer.operator is not None]
    takes_adapters = not any(projects_text(layer) for layer in replaced)
    for name, refusal in REFUSALS.items():
        if name != ADAPTER or not takes_adapters:
            vars(model)[name] = refusal
    for owner, method, name in OF_PIPELINES:
        _guard(owner, method, name)


def projects_text(layer: families.Layer) -> bool:
    """Say whether text has projections of its own in a layer, as where adapters are processors."""
    return getattr(layer.attn, "add_k_proj", None) is not None


def refuse_adapter(layer: families.Layer) -> None:
    """Raise if an IP-Adapter is the processor that an operator would take the place of."""
    processor = type(layer.attn.processor).__name__
    if "IPAdapter" in processor:
        raise ValueError(
            f"{layer.name} has an IP-Adapter for its processor ({processor}), which the operator "
            "would replace: call unload_ip_adapter() on the pipeline before"
        )


def allow(model: nn.Module) -> None:
    """Give the model the methods of its class back."""
    for name in REFUSALS:
        vars(model).pop(name, None)


def _guard(owner: type, method: str, name: str) -> None:
    """Ask in this method of all pipelines, once, whether a part refuses `name`."""
    original = getattr(owner, method)
    if hasattr(original, "asks_its_parts"):
        return

    @functools.wraps(original)
    def guarded(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        for component in vars(pipe).values():
            if isinstance(component, nn.Module) and _refuses(component, name):
                REFUSALS[name]()
        return original(pipe, *args, **kwargs)

    vars(guarded)["asks_its_parts"] = True
    setattr(owner, method, guarded)


def _refuses(model: nn.Module, name: str) -> bool:
    """Say whether a model refuses the call; torch.compile's wrapper answers for what it wraps."""
    return getattr(model, name, None) is REFUSALS[name]
