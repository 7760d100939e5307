"""Measure what a layer's output projection can make up for after its attention was replaced.

- A layer is linear in this projection, so its tangent there, as TAFT takes it of whole models
  (arXiv 2307.08122), is the layer itself, and what refitting recovers has a closed form: the start
  `least_squares`. No step is trained.
- What is left after the refit is the least that the other weights of a layer have to learn. The fit
  sees the first half of the pictures, and the errors are of the other half.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linattn import families, sampling
from linattn.conditions import Prompts
from linattn.evaluation.distance import check_latents, diffusion_of, level_time, noised
from linattn.reader import between, checked, typed
from linattn.surgery.conversion import converted

BEFORE, AFTER = "all", "least_squares"  # the policies that are compared


@dataclass(frozen=True)
class Candidate:
    """Hold what `converted` reads of a student."""

    operator: str
    options: dict[str, Any]
    initialise: str = BEFORE
    layers: Any = "all"


@checked(latents=typed(), level=between(0, 1), seed=typed())
@torch.no_grad()
def recoverable(
    teacher: Any,
    latents: Tensor,
    prompts: Prompts,
    operator: str,
    level: float = 0.5,
    *,
    layers: Any = "all",
    seed: int = 0,
    **options: Any,
) -> list[dict[str, Any]]:
    """Return rows of {layer, before, after}: a layer's squared error over the teacher's square.

    `before` is that of the operator with the teacher's weights, `after` with its output projection
    refitted at this noise level. Every layer is given what the teacher's was given.
    """
    source = sampling.Source.of(teacher)
    prompts, latents = source.conditions.check(prompts), check_latents(latents, source)
    if len(latents) < 2 or len(latents) != len(prompts):
        raise ValueError(
            f"{len(latents)} latents and {len(prompts)} prompts; pass as many of each, at least 2: "
            "one half is fitted, the other measured"
        )
    # before any forward, so that a wrong operator is refused first
    untrained = converted(source.model, Candidate(operator, options, BEFORE, layers), seed)
    half = len(latents) // 2
    t = level_time(level, diffusion_of(teacher).steps)
    noisy = noised(teacher, latents, t, seed)
    fitting = _running(source, noisy[:half], t, prompts[:half])
    with sampling.evaluating(source.model), families.capture(source.model, detach=True) as calls:
        _running(source, noisy[half:], t, prompts[half:])(source.model)
    fitted = converted(source.model, Candidate(operator, options, AFTER, layers), seed, fitting)
    before, after = (_errors(student, calls) for student in (untrained, fitted))
    return [{"layer": index, "before": before[index], "after": after[index]} for index in before]


def _running(
    source: sampling.Source, noisy: Tensor, t: int, prompts: Prompts
) -> Callable[[nn.Module], Tensor]:
    """Return a function that runs a model of the source on these latents."""
    encoded = source.conditions.encode(prompts)

    def run(model: nn.Module) -> Tensor:
        weight = next(model.parameters())
        times = torch.full((len(noisy),), t, device=weight.device)
        inputs = noisy.to(weight.device, weight.dtype)
        return source.conditions.call(model, inputs, times, encoded)

    return run


def _errors(student: nn.Module, calls: list[dict[str, Any]]) -> dict[int, float]:
    """Return the error of every replaced layer by its number."""
    layers = [layer for layer in families.layers(student) if layer.operator is not None]
    return {layer.index: _error(layer, calls[layer.index]) for layer in layers}


def _error(layer: families.Layer, call: dict[str, Any]) -> float:
    output = families.apply(layer, call["input"], call["grid"], call["noise"], **call["more"])
    missed = (output - call["output"]).double().square().sum()
    return (missed / call["output"].double().square().sum().clamp_min(1e-30)).item()
