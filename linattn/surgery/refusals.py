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
from torch import nn


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


REFUSALS: dict[str, Callable[..., None]] = {
    "save_pretrained": _refuse_to_save,
    "push_to_hub": _refuse_to_publish,
    "enable_parallelism": _refuse_parallelism,
}
OF_PIPELINES = ("save_pretrained", "push_to_hub")


def refuse(model: nn.Module) -> None:
    """Make the model, and every pipeline that holds it, refuse these calls."""
    vars(model).update(REFUSALS)
    for name in OF_PIPELINES:
        _guard(name)


def allow(model: nn.Module) -> None:
    """Give the model the methods of its class back."""
    for name in REFUSALS:
        vars(model).pop(name, None)


def _guard(name: str) -> None:
    """Ask in this method of all pipelines, once, whether a part refuses it."""
    method = getattr(DiffusionPipeline, name)
    if hasattr(method, "asks_its_parts"):
        return

    @functools.wraps(method)
    def guarded(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        for component in vars(pipe).values():
            if isinstance(component, nn.Module) and _refuses(component, name):
                REFUSALS[name]()
        return method(pipe, *args, **kwargs)

    vars(guarded)["asks_its_parts"] = True
    setattr(DiffusionPipeline, name, guarded)


def _refuses(model: nn.Module, name: str) -> bool:
    """Say whether a model refuses the call; torch.compile's wrapper answers for what it wraps."""
    return getattr(model, name, None) is REFUSALS[name]
