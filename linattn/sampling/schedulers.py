"""Schedulers and the times and noise levels that they visit."""

from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from linattn.sampling.plan import Plan
from linattn.sampling.source import Source


def scheduler_of(scheduler: Any, sampler: str) -> Any:
    """Return a fresh scheduler on the source's noise schedule.

    diffusers fills in its own defaults where a config is silent, and DDIM's default clips latents
    to [-1, 1].

    Args:
        scheduler: the pipeline's scheduler; its config is read.
        sampler: one of `SAMPLERS`; "card" keeps the scheduler's class.
    """
    config = scheduler.config
    if sampler == "ddim":
        clip = isinstance(scheduler, DDIMScheduler) and config.get("clip_sample", False)
        return DDIMScheduler.from_config(config, clip_sample=clip)
    if sampler == "dpm":
        # With a variance_type the scheduler would split off a variance that the prediction no
        # longer has.
        return DPMSolverMultistepScheduler.from_config(
            config, timestep_spacing="trailing", variance_type=None, algorithm_type="dpmsolver++"
        )
    return type(scheduler).from_config(config)


def is_ancestral(source: Source, plan: Plan) -> bool:
    """Say whether the plan draws by DDPM."""
    if plan.sampler == "card":
        return isinstance(source.scheduler, DDPMScheduler)
    return plan.sampler == "ddpm"


def ddpm_times(scheduler: Any, steps: int) -> Tensor:
    """Return the times (steps,) that DDPMScheduler would visit with the same spacing, rising.

    Args:
        scheduler: a diffusers scheduler; its config is read.
        steps: steps of a draw.
    """
    ddpm: Any = DDPMScheduler.from_config(scheduler.config)
    ddpm.set_timesteps(steps)
    return ddpm.timesteps.flip(0)


def noise_levels(
    teacher_or_pipe: Any, steps: int | None = None, sampler: str = "card"
) -> list[float]:
    """Return the noise levels that a draw visits, from noise to picture; 1 is pure noise.

    Args:
        teacher_or_pipe: a Teacher, a pipeline or a `Source`.
        steps: steps of a draw; None takes the card's value.
        sampler: one of `SAMPLERS`; "card" is the pipeline's own scheduler.
    """
    source = Source.of(teacher_or_pipe)
    plan = Plan.of(source, None, steps, None, sampler)
    return [
        float(time) / source.scheduler.config.num_train_timesteps for time in _times(source, plan)
    ]


def _times(source: Source, plan: Plan) -> Tensor:
    if is_ancestral(source, plan):
        return ddpm_times(source.scheduler, plan.steps).flip(0)
    scheduler = scheduler_of(source.scheduler, plan.sampler)
    latents = torch.empty(1, source.conditions.channels, *plan.sides)
    source.conditions.set_times(scheduler, plan.steps, latents)
    return scheduler.timesteps
