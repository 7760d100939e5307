"""Draw one picture, and record what the model was given and what it predicted at every step."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linattn import families, sampling
from linattn.attention.grid import Grid

SHARED = ("img_ids", "txt_ids")  # arguments of a forward that have no batch dimension


@dataclass(frozen=True)
class Trace:
    """Record how one picture was drawn; step 0 is the first prediction from pure noise."""

    label: int | str  # the class or the caption of the picture
    seed: int  # of the picture's noise
    beliefs: Tensor  # (steps, 3, side, side): the finished picture that the model predicts
    inputs: tuple[dict[str, Any], ...]  # of each step, without guidance's unconditional half
    grid: Grid  # how the model's tokens lie
    levels: tuple[float, ...]  # the noise level of each step

    @property
    def steps(self) -> int:
        return len(self.inputs)

    def noise(self, step: int) -> float:
        """Return the noise level of a step."""
        return self.levels[step]


def trace(
    teacher: Any,
    label: int | str,
    *,
    seed: int = 0,
    model: nn.Module | None = None,
    steps: int | None = None,
    size: int | None = None,
) -> Trace:
    """Draw one picture of a class or a caption, and record every step.

    Args:
        teacher: a Teacher or a pipeline.
        label: the class or the caption.
        seed: the same seed gives the same noise to every model.
        model: draws in place of the teacher's own model, as a student does.
        steps: steps of a draw; None takes the card's value.
        size: side of the picture in px; None takes the card's value.
    """
    source = sampling.Source.of(teacher, model)
    beliefs: list[Tensor] = []
    inputs: list[dict[str, Any]] = []

    def record(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        # Where the empty prompt has another length it gets a forward of its own, after this one.
        if len(inputs) == len(beliefs):
            inputs.append(first_row(module, args, kwargs))

    def keep(step: int, latents: Tensor, clean: Tensor) -> None:
        beliefs.append(clean.detach().float().cpu())

    handle = source.model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        sampling.draw_latents(
            teacher,
            [label] if isinstance(label, str) else torch.tensor([label]),
            seed=seed,
            steps=steps,
            size=size,
            model=model,
            callback=keep,
        )
    finally:
        handle.remove()
    grid, _ = _grid_and_noise(source.model, inputs[0])
    levels = tuple(_grid_and_noise(source.model, kwargs)[1] for kwargs in inputs)
    pictures = sampling.decode(teacher, torch.cat(beliefs))
    return Trace(label, seed, pictures, tuple(inputs), grid, levels)


def _grid_and_noise(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Grid, float]:
    context = families.family(model).context(model, inputs)
    if context.noise is None:
        raise ValueError(f"{type(model).__name__} was called without a time, which a trace needs")
    return context.grid, float(context.noise[0])


def first_row(model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's tensors by name, for the first picture alone.

    With guidance this is the conditional half of the batch: the unconditional half comes after it.

    Args:
        model: the model that was called.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
    """
    return _first_row(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def _first_row(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the first row of every tensor.

    SDXL and PixArt nest a dictionary of sizes and pooled captions.
    """
    first: dict[str, Any] = {}
    for name, argument in arguments.items():
        if isinstance(argument, Tensor):
            has_batch = argument.ndim > 0 and name not in SHARED
            kept = argument[:1] if has_batch else argument
            first[name] = kept.detach().clone()  # copied, because the loop may write in place
        elif isinstance(argument, Mapping):
            first[name] = _first_row(argument)
        elif isinstance(argument, list):  # Qwen-Image's shapes, one a picture
            first[name] = argument[:1]
    return first


def distance(first: Trace, second: Trace) -> list[float]:
    """Return the mean squared difference of the two predicted pictures at every step.

    Args:
        first: how one model drew the picture.
        second: how another drew it, in as many steps.
    """
    if first.beliefs.shape != second.beliefs.shape:
        shapes = [tuple(trace.beliefs.shape) for trace in (first, second)]
        raise ValueError(
            f"the traces are {shapes[0]} and {shapes[1]} (steps, 3, height, width): draw both in "
            "as many steps and at one size"
        )
    return (first.beliefs - second.beliefs).square().mean((1, 2, 3)).tolist()
