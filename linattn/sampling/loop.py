"""The loops over a scheduler's steps."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from linattn.diffusion import Diffusion
from linattn.sampling.guidance import GuidedBatch, predict
from linattn.sampling.noise import noise_of
from linattn.sampling.plan import Plan
from linattn.sampling.schedulers import ddpm_times, scheduler_of
from linattn.sampling.source import Source

Steps = Iterator[tuple[Tensor, Tensor]]  # latents and the estimate of the clean latents


def scheduled(
    source: Source,
    plan: Plan,
    guided: GuidedBatch,
    noise: Tensor,
    generators: list[torch.Generator],
) -> Steps:
    """Draw with any diffusers scheduler whose model predicts noise, velocity or flow."""
    scheduler = scheduler_of(source.scheduler, plan.sampler)
    source.conditions.set_times(scheduler, plan.steps, noise)
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    yield from stepped(source, scheduler, guided, latents, generators)


def stepped(
    source: Source,
    scheduler: Any,
    guided: GuidedBatch,
    latents: Tensor,
    generators: list[torch.Generator],
    first: int = 0,
) -> Steps:
    """Take the scheduler's steps from number `first` on; yield latents and clean estimate.

    Args:
        source: the model with its conditions.
        scheduler: a fresh scheduler whose times are set.
        guided: the conditioning of the batch and the scale of its guidance.
        latents: where the draw starts, (batch, channels, height, width).
        generators: one a picture, for the noise of stochastic steps.
        first: the position in the scheduler's times at which to start.
    """
    process = Diffusion.of(scheduler)
    # One generator a picture makes a stochastic scheduler draw the same noise whatever the batch.
    draws_noise = "generator" in inspect.signature(scheduler.step).parameters
    kwargs = {"generator": generators} if draws_noise else {}
    scales = hasattr(scheduler, "scale_model_input")
    for t in scheduler.timesteps[first:]:
        noisy = scheduler.scale_model_input(latents, t) if scales else latents
        prediction, _ = predict(source, noisy, t, guided)
        clean = process.clean(prediction, noisy, t.expand(len(noisy)))
        latents = scheduler.step(prediction, t, latents, **kwargs).prev_sample
        yield latents, clean


def ancestral(
    source: Source,
    plan: Plan,
    guided: GuidedBatch,
    noise: Tensor,
    generators: list[torch.Generator],
) -> Steps:
    """Draw by DDPM with learned variance on a process of the visited times alone."""
    times = ddpm_times(source.scheduler, plan.steps)
    respaced = _respaced(source, times)
    latents = noise
    for index in reversed(range(len(times))):
        t = torch.full((len(latents),), index, device=latents.device)
        prediction, raw = predict(source, latents, times[index], guided)
        clean = respaced.clean(prediction, latents, t)
        # Given a clean picture, the posterior's mean is that picture and its variance is 0.
        if index == 0:
            latents = clean
        else:
            mean, smallest = respaced.posterior(clean, latents, t)
            log_variance = respaced.log_variance(raw, t) if raw.shape[1] else smallest
            step_noise = noise_of(generators, latents.shape[1:]).to(latents)
            latents = mean + (0.5 * log_variance).exp() * step_noise
        yield latents, clean


def _respaced(source: Source, times: Tensor) -> Diffusion:
    """Return the process that has these times and no others."""
    process = Diffusion.of(source.scheduler)
    if not isinstance(process, Diffusion):
        raise ValueError("DDPM draws with noise and velocities; a flow has no ancestral steps")
    return Diffusion(process.alphas_cumprod[times], process.prediction)
