"""Drawing pictures: our own loop over model and scheduler, the same for teacher and student.

- Picture i's noise comes from (seed, i, latent shape) alone, on the CPU: whatever the batch, the device or the model,
  picture 17 starts from the same noise. So does every stochastic step of it.
- Guidance as `DiTPipeline`: one doubled batch [conditional, null class], every channel guided, the variance taken from
  the conditional half. Guidance 1 costs one forward, not two.
- `ddpm` is ancestral and uses the learned variance, which `DiTPipeline` cuts away before its scheduler sees it.
- Any square size whose latents the patches divide: the positions are recomputed by the model.
- Schedulers are built anew for every batch, so nothing is shared between calls or threads.
"""

import difflib
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

from linattn.diffusion import Diffusion

NULL_CLASS = 1000  # DiTPipeline's constant, however few classes there are
STEPS, GUIDANCE = 50, 4.0  # DiTPipeline's own, for a pipeline without a card
SAMPLERS = ("card", "dpm", "ddim", "ddpm")

Callback = Callable[[int, Tensor, Tensor], None]  # (step, latents after it, estimate of the clean latents)


@dataclass(frozen=True)
class Source:
    """What a draw needs of a teacher or a pipeline."""

    model: nn.Module
    vae: nn.Module
    scheduler: Any
    card: Mapping[str, Any]

    @classmethod
    def of(cls, teacher_or_pipe: Any, model: nn.Module | None = None) -> "Source":
        """`model` draws in place of the source's own: a student with its teacher's VAE, scheduler and card."""
        if isinstance(teacher_or_pipe, cls):
            return teacher_or_pipe if model is None else replace(teacher_or_pipe, model=model)
        pipe = getattr(teacher_or_pipe, "pipe", teacher_or_pipe)
        own = getattr(pipe, "transformer", None)
        if own is None or getattr(pipe, "vae", None) is None:
            raise ValueError(f"{type(pipe).__name__} has no transformer and VAE; pass a Teacher or a DiTPipeline")
        named = getattr(pipe.config, "id2label", None) or {}
        card = getattr(teacher_or_pipe, "card", None) or {"labels": list(named.values())}
        return cls(own if model is None else model, pipe.vae, pipe.scheduler, card)

    @property
    def classes(self) -> int:
        named = self.card.get("labels") or self.card.get("classes") or self.model.config.num_embeds_ada_norm
        return named if isinstance(named, int) else len(named)

    @property
    def factor(self) -> int:
        """Pixels to one latent position."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def side(self) -> int:
        return self.card.get("side") or self.model.config.sample_size * self.factor


@dataclass(frozen=True)
class Plan:
    """A validated request: everything the pictures depend on but the weights, the labels and the seed."""

    side: int  # of the latents
    steps: int
    guidance: float
    sampler: str

    @classmethod
    def of(cls, source: Source, size: int | None, steps: int | None, guidance: float | None, sampler: str) -> "Plan":
        steps = source.card.get("steps", STEPS) if steps is None else steps
        guidance = source.card.get("guidance", GUIDANCE) if guidance is None else guidance
        return cls(_latent_side(source, size), _check_steps(source, steps), _check_guidance(guidance), _check(sampler))


def draw(
    teacher_or_pipe: Any,
    labels: Tensor,
    *,
    size: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    sampler: str = "card",
    model: nn.Module | None = None,
    batch: int = 64,
    callback: Callback | None = None,
    start: int = 0,
) -> Tensor:
    """Pictures (N, 3, size, size) in [0, 1], float32 on the CPU; None takes the card's value.

    `start` is the number of the first picture, so that a shard draws what one long call would have drawn there.
    """
    options = {"size": size, "steps": steps, "guidance": guidance, "seed": seed, "sampler": sampler, "start": start}
    latents = draw_latents(teacher_or_pipe, labels, **options, model=model, batch=batch, callback=callback)
    return decode(teacher_or_pipe, latents, batch)


@torch.no_grad()
def draw_latents(
    teacher_or_pipe: Any,
    labels: Tensor,
    *,
    size: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    sampler: str = "card",
    model: nn.Module | None = None,
    batch: int = 64,
    callback: Callback | None = None,
    start: int = 0,
) -> Tensor:
    """The same before decoding: (N, channels, side, side), float32 on the CPU."""
    source = Source.of(teacher_or_pipe, model)
    plan = Plan.of(source, size, steps, guidance, sampler)
    labels = _check_labels(labels, source.classes)
    if batch < 1:
        raise ValueError(f"a batch of {batch} pictures; draw at least 1 at a time")
    parts = []
    with evaluating(source.model):
        for first in range(0, len(labels), batch):
            chosen = labels[first : first + batch]
            numbers = range(start + first, start + first + len(chosen))
            parts.append(_draw_batch(source, plan, chosen, [generator(seed, number) for number in numbers], callback))
    return torch.cat(parts)


@torch.no_grad()
def decode(teacher_or_pipe: Any, latents: Tensor, batch: int = 64) -> Tensor:
    """Pictures in [0, 1] as DiTPipeline decodes them: only the VAE's scaling factor is applied."""
    vae = Source.of(teacher_or_pipe).vae
    weight = next(vae.parameters())
    parts = []
    for part in latents.split(batch):
        scaled = part.to(weight.device, weight.dtype) / vae.config.scaling_factor
        parts.append(vae.decode(scaled).sample.float().div(2).add(0.5).clamp(0, 1).cpu())
    return torch.cat(parts)


# Noise ---------------------------------------------------------------------------------------------------------------


def generator(seed: int, number: int) -> torch.Generator:
    """The stream of picture `number`: its starting noise first, then one draw a stochastic step.

    torch's CPU generator keeps only the low 32 bits of a seed, so seed and number cannot simply be packed in 64: the
    seed is hashed to a place on the circle of 2**32 states and pictures follow from there, none twice.
    """
    place = int.from_bytes(hashlib.blake2b(str(int(seed)).encode(), digest_size=4).digest(), "little")
    return torch.Generator("cpu").manual_seed((place + number) % 2**32)


def starting_noise(seed: int, numbers: range, shape: tuple[int, ...]) -> Tensor:
    """The noise pictures `numbers` start from: (len(numbers), *shape), float32 on the CPU."""
    return _noise([generator(seed, number) for number in numbers], shape)


def _noise(generators: list[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    return torch.stack([torch.randn(shape, generator=each) for each in generators])


# The loop ------------------------------------------------------------------------------------------------------------


def _draw_batch(
    source: Source, plan: Plan, labels: Tensor, generators: list[torch.Generator], callback: Callback | None
) -> Tensor:
    device = next(source.model.parameters()).device
    shape = (source.model.config.in_channels, plan.side, plan.side)
    noise = _noise(generators, shape).to(device)
    walk = _ancestral if _is_ancestral(source, plan) else _scheduled
    for step, (latents, clean) in enumerate(walk(source, plan, labels.to(device), noise, generators)):
        if callback is not None:
            callback(step, latents, clean)
    return latents.float().cpu()


def _is_ancestral(source: Source, plan: Plan) -> bool:
    return plan.sampler == "ddpm" or (plan.sampler == "card" and isinstance(source.scheduler, DDPMScheduler))


def predict(model: nn.Module, latents: Tensor, t: Tensor, labels: Tensor, guidance: float) -> tuple[Tensor, Tensor]:
    """(guided prediction, raw variance or an empty tensor) for latents that share the time t."""
    weight = next(model.parameters())
    doubled = guidance > 1
    inputs = torch.cat([latents, latents]) if doubled else latents  # (2 batch, channels, side, side)
    classes = torch.cat([labels, torch.full_like(labels, NULL_CLASS)]) if doubled else labels
    times = t.to(weight.device).expand(len(inputs))
    output = model(inputs.to(weight.dtype), timestep=times, class_labels=classes, return_dict=False)[0]
    output = output.to(latents.dtype)
    prediction, raw = output.split([latents.shape[1], output.shape[1] - latents.shape[1]], dim=1)
    if not doubled:
        return prediction, raw
    conditional, null = prediction.chunk(2)
    return null + guidance * (conditional - null), raw.chunk(2)[0]


def _scheduled(
    source: Source, plan: Plan, labels: Tensor, noise: Tensor, generators: list[torch.Generator]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Any diffusers scheduler whose model predicts noise or velocity."""
    scheduler = _scheduler(source.scheduler, plan.sampler)
    scheduler.set_timesteps(plan.steps, device=noise.device)
    diffusion = Diffusion.of(scheduler)
    # A list of generators, one a picture: a scheduler that draws noise then draws the same whatever the batch.
    stream = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    latents = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        noisy = scheduler.scale_model_input(latents, t)
        prediction, _ = predict(source.model, noisy, t, labels, plan.guidance)
        clean = diffusion.clean(prediction, noisy, t.expand(len(noisy)))
        latents = scheduler.step(prediction, t, latents, **stream).prev_sample
        yield latents, clean


def _ancestral(
    source: Source, plan: Plan, labels: Tensor, noise: Tensor, generators: list[torch.Generator]
) -> Iterator[tuple[Tensor, Tensor]]:
    """DDPM with learned variance on a respaced process: the visited times become a shorter diffusion of their own."""
    times = ddpm_times(source.scheduler, plan.steps)
    whole = Diffusion.of(source.scheduler)
    visited = Diffusion(whole.alphas_cumprod[times], whole.prediction)
    latents = noise
    for place in reversed(range(len(times))):
        here = torch.full((len(latents),), place, device=latents.device)
        prediction, raw = predict(source.model, latents, times[place], labels, plan.guidance)
        clean = visited.clean(prediction, latents, here)
        if place == 0:  # the posterior's mean given a clean picture is that picture, its variance nothing
            latents = clean
        else:
            mean, smallest = visited.posterior(clean, latents, here)
            log_variance = visited.log_variance(raw, here) if raw.shape[1] else smallest
            step_noise = _noise(generators, latents.shape[1:]).to(latents)
            latents = mean + (0.5 * log_variance).exp() * step_noise
        yield latents, clean


def ddpm_times(scheduler: Any, steps: int) -> Tensor:
    """The times DDPMScheduler would visit with the same spacing, rising: (steps,)."""
    walker = DDPMScheduler.from_config(scheduler.config)
    walker.set_timesteps(steps)
    return walker.timesteps.flip(0)


def noise_levels(teacher_or_pipe: Any, steps: int | None = None, sampler: str = "card") -> list[float]:
    """The levels a draw visits, from noise to picture; 1 is pure noise."""
    source = Source.of(teacher_or_pipe)
    plan = Plan.of(source, None, steps, None, sampler)
    if _is_ancestral(source, plan):
        times = ddpm_times(source.scheduler, plan.steps).flip(0)
    else:
        scheduler = _scheduler(source.scheduler, plan.sampler)
        scheduler.set_timesteps(plan.steps)
        times = scheduler.timesteps
    return [float(time) / source.scheduler.config.num_train_timesteps for time in times]


def _scheduler(scheduler: Any, sampler: str) -> Any:
    """A fresh scheduler on the source's noise schedule.

    What a config does not say, diffusers fills in with its own defaults, and DDIM's clips latents to [-1, 1].
    """
    if sampler == "ddim":
        keep = scheduler.config.get("clip_sample", False) if isinstance(scheduler, DDIMScheduler) else False
        return DDIMScheduler.from_config(scheduler.config, clip_sample=keep)
    if sampler == "dpm":
        # variance_type would make it cut the variance half off a prediction that no longer has one.
        changes = {"timestep_spacing": "trailing", "variance_type": None, "algorithm_type": "dpmsolver++"}
        return DPMSolverMultistepScheduler.from_config(scheduler.config, **changes)
    return type(scheduler).from_config(scheduler.config)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A DiT in training mode drops labels at random; afterwards every submodule is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


# Validation ----------------------------------------------------------------------------------------------------------


def _latent_side(source: Source, size: int | None) -> int:
    size = source.side if size is None else size
    unit = source.factor * source.model.config.patch_size
    if not isinstance(size, int) or size < unit or size % unit:
        raise ValueError(
            f"a side of {size} px is no multiple of {unit} (VAE {source.factor} x patch "
            f"{source.model.config.patch_size}); the nearest is {max(unit, round(size / unit) * unit)}"
        )
    return size // source.factor


def _check_steps(source: Source, steps: int) -> int:
    most = source.scheduler.config.num_train_timesteps
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most:
        raise ValueError(f"{steps} steps; the schedule has room for 1 to {most}")
    return steps


def _check_guidance(guidance: float) -> float:
    if not guidance >= 1:
        raise ValueError(f"a guidance of {guidance}; 1 means none, larger follows the label more")
    return float(guidance)


def _check(sampler: str) -> str:
    if sampler not in SAMPLERS:
        near = difflib.get_close_matches(str(sampler), SAMPLERS, 1, cutoff=0.0)
        raise ValueError(f"unknown sampler {sampler!r}; one of {', '.join(SAMPLERS)} (nearest: {near[0]})")
    return sampler


def _check_labels(labels: Tensor, classes: int) -> Tensor:
    labels = torch.as_tensor(labels)
    if labels.ndim != 1 or labels.numel() == 0 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels are {tuple(labels.shape)} {labels.dtype}; pass one whole number a picture, shape (N,)"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}; this model's classes are 0..{classes - 1}")
    return labels.long()
