"""Drawing: prompts to latents and pictures, batch by batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from linattn.conditions import Prompts
from linattn.finite import finite
from linattn.reader import checked
from linattn.sampling.coding import decode
from linattn.sampling.guidance import GuidedBatch
from linattn.sampling.loop import ancestral, scheduled
from linattn.sampling.modes import evaluating
from linattn.sampling.noise import noise_of
from linattn.sampling.plan import RULES, Plan, Size
from linattn.sampling.schedulers import is_ancestral
from linattn.sampling.source import Source
from linattn.seeds import of_picture

# (step, latents after it, estimate of the clean latents)
Callback = Callable[[int, Tensor, Tensor], None]
REMEDY = "the model diverged; lower the guidance, or look at the weights that were loaded"


@checked(**RULES)
def draw(
    teacher_or_pipe: Any,
    prompts: Prompts,
    *,
    size: Size = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    sampler: str = "card",
    model: nn.Module | None = None,
    batch: int = 64,
    callback: Callback | None = None,
    start: int = 0,
) -> Tensor:
    """Draw pictures (N, 3, height, width) in [0, 1], float32 on the CPU.

    Args:
        teacher_or_pipe: a Teacher, a pipeline or a `Source`.
        prompts: a label (DiT) or a caption for each picture.
        size: a side in px, or (height, width); None takes the card's side.
        steps: steps of a draw; None takes the card's value.
        guidance: scale of the guidance; None takes the card's value, and 1 is none.
        seed: picture i's noise depends on this seed and i alone.
        sampler: one of `SAMPLERS`; "card" is the pipeline's own scheduler.
        model: draws in place of the teacher's own model, as a student does.
        batch: how many pictures are drawn at once.
        callback: called after each step of a batch with the step's number, the latents and the
            clean latents that the model predicts.
        start: the number of the first picture, so that a shard draws the pictures that one long
            call would draw there.
    """
    latents = draw_latents(
        teacher_or_pipe,
        prompts,
        size=size,
        steps=steps,
        guidance=guidance,
        seed=seed,
        sampler=sampler,
        model=model,
        batch=batch,
        callback=callback,
        start=start,
    )
    return decode(teacher_or_pipe, latents, batch)


@checked(**RULES)
@torch.no_grad()
def draw_latents(
    teacher_or_pipe: Any,
    prompts: Prompts,
    *,
    size: Size = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    sampler: str = "card",
    model: nn.Module | None = None,
    batch: int = 64,
    callback: Callback | None = None,
    start: int = 0,
) -> Tensor:
    """Draw latents (N, channels, height, width), float32 on the CPU, which `draw` would decode.

    Args:
        teacher_or_pipe: a Teacher, a pipeline or a `Source`.
        prompts: a label (DiT) or a caption for each picture.
        size: a side in px, or (height, width); None takes the card's side.
        steps: steps of a draw; None takes the card's value.
        guidance: scale of the guidance; None takes the card's value, and 1 is none.
        seed: picture i's noise depends on this seed and i alone.
        sampler: one of `SAMPLERS`; "card" is the pipeline's own scheduler.
        model: draws in place of the teacher's own model, as a student does.
        batch: how many pictures are drawn at once.
        callback: called after each step of a batch with the step's number, the latents and the
            clean latents that the model predicts.
        start: the number of the first picture.
    """
    source = Source.of(teacher_or_pipe, model)
    plan = Plan.of(source, size, steps, guidance, sampler)
    prompts = source.conditions.check(prompts)
    drawn = []
    with evaluating(source.model):
        for first in range(0, len(prompts), batch):
            chosen = prompts[first : first + batch]
            numbers = range(start + first, start + first + len(chosen))
            generators = [of_picture(seed, number) for number in numbers]
            drawn.append(_draw_batch(source, plan, chosen, generators, callback))
    return finite(torch.cat(drawn), "latents of a draw", REMEDY)


def _draw_batch(
    source: Source,
    plan: Plan,
    prompts: Prompts,
    generators: list[torch.Generator],
    callback: Callback | None,
) -> Tensor:
    """Draw the latents of one batch."""
    device = next(source.model.parameters()).device
    latents = noise_of(generators, (source.conditions.channels, *plan.sides)).to(device)
    loop = ancestral if is_ancestral(source, plan) else scheduled
    steps = loop(source, plan, GuidedBatch.of(source, prompts, plan), latents, generators)
    for step, (latents, clean) in enumerate(steps):
        if callback is not None:
            callback(step, latents, clean)
    return latents.float().cpu()
