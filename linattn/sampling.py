"""Drawing pictures: our own loop over model and scheduler, the same for teacher and student.

- Picture i's noise comes from (seed, i, latent shape) alone, on the CPU: whatever the batch, the device or the model,
  picture 17 starts from the same noise. So does every stochastic step of it.
- What is asked for are labels or captions, whichever the pipeline reads (conditions.py).
- Guidance as `DiTPipeline`: one doubled batch [conditional, empty], every channel guided, the variance taken from the
  conditional half. Guidance 1 costs one forward, not two, and a model that is told its guidance is asked once.
- `ddpm` is ancestral and uses the learned variance, which `DiTPipeline` cuts away before its scheduler sees it.
- Any size whose latents the patches divide (DiT: squares only): the positions are recomputed by the model.
- Schedulers are built anew for every batch, so nothing is shared between calls or threads.
"""

import difflib
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

from linattn import conditions
from linattn.conditions import Asked, Conditions, Rows
from linattn.diffusion import Diffusion

SAMPLERS = ("card", "dpm", "ddim", "ddpm")

Size = int | tuple[int, int] | None  # a side or (height, width) in pixels; None: the card's
Callback = Callable[[int, Tensor, Tensor], None]  # (step, latents after it, estimate of the clean latents)


@dataclass(frozen=True)
class Source:
    """What a draw needs of a teacher or a pipeline."""

    model: nn.Module
    vae: nn.Module
    scheduler: Any
    card: Mapping[str, Any]
    conditions: Conditions

    @classmethod
    def of(cls, teacher_or_pipe: Any, model: nn.Module | None = None) -> "Source":
        """`model` draws in place of the source's own: a student with its teacher's VAE, scheduler and card."""
        if isinstance(teacher_or_pipe, cls):
            return teacher_or_pipe if model is None else replace(teacher_or_pipe, model=model)
        pipe = getattr(teacher_or_pipe, "pipe", teacher_or_pipe)
        card = getattr(teacher_or_pipe, "card", None) or _card_of(pipe)
        known = conditions.of(pipe, card)
        return cls(known.model if model is None else model, pipe.vae, pipe.scheduler, card, known)

    @property
    def factor(self) -> int:
        """Pixels to one latent position."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def side(self) -> int:
        return self.card.get("side") or self.conditions.side * self.factor


def _card_of(pipe: Any) -> dict[str, Any]:
    """Of a pipeline by itself: the card in the folder it was loaded from, or what its config says of labels.

    Without flux-nano's card its captions are 512 tokens long where it learned from 16.
    """
    config = getattr(pipe, "config", None) or {}
    folder = getattr(config, "_name_or_path", None)
    path = Path(folder or "") / "card.json"
    if folder and path.is_file():
        return json.loads(path.read_text())
    named = getattr(config, "id2label", None) or {}
    return {"labels": list(named.values())} if named else {}


@dataclass(frozen=True)
class Plan:
    """A validated request: everything the pictures depend on but the weights, what is asked for, and the seed."""

    sides: tuple[int, int]  # of the latents: height, width
    steps: int
    guidance: float
    sampler: str

    @classmethod
    def of(cls, source: Source, size: Size, steps: int | None, guidance: float | None, sampler: str) -> "Plan":
        usual = {**source.conditions.defaults(), **source.card}  # without a card, the pipeline's own
        steps = usual["steps"] if steps is None else steps
        guidance = usual["guidance"] if guidance is None else guidance
        return cls(
            latent_sides(source, size), _check_steps(source, steps), _check_guidance(guidance), _check(source, sampler)
        )


def draw(
    teacher_or_pipe: Any,
    asked: Asked,
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
    """Pictures (N, 3, height, width) in [0, 1], float32 on the CPU; None takes the card's value.

    `asked` is a row a picture: labels (DiT) or captions. `size` is a side or (height, width).

    `start` is the number of the first picture, so that a shard draws what one long call would have drawn there.
    """
    options = {"size": size, "steps": steps, "guidance": guidance, "seed": seed, "sampler": sampler, "start": start}
    latents = draw_latents(teacher_or_pipe, asked, **options, model=model, batch=batch, callback=callback)
    return decode(teacher_or_pipe, latents, batch)


@torch.no_grad()
def draw_latents(
    teacher_or_pipe: Any,
    asked: Asked,
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
    """The same before decoding: (N, channels, height, width), float32 on the CPU."""
    source = Source.of(teacher_or_pipe, model)
    plan = Plan.of(source, size, steps, guidance, sampler)
    asked = source.conditions.check(asked)
    if batch < 1:
        raise ValueError(f"a batch of {batch} pictures; draw at least 1 at a time")
    parts = []
    with evaluating(source.model):
        for first in range(0, len(asked), batch):
            chosen = asked[first : first + batch]
            numbers = range(start + first, start + first + len(chosen))
            parts.append(_draw_batch(source, plan, chosen, [generator(seed, number) for number in numbers], callback))
    return torch.cat(parts)


@torch.no_grad()
def decode(teacher_or_pipe: Any, latents: Tensor, batch: int = 64) -> Tensor:
    """Pictures in [0, 1], as the pipeline itself decodes them."""
    source = Source.of(teacher_or_pipe)
    vae, parts = source.vae, []
    with upcast(vae):
        weight = next(vae.parameters())
        for part in latents.split(batch):
            scaled = source.conditions.unscaled(part.to(weight.device, weight.dtype), vae)
            parts.append(vae.decode(scaled).sample.float().div(2).add(0.5).clamp(0, 1).cpu())
    return torch.cat(parts)


@torch.no_grad()
def encode(teacher_or_pipe: Any, pictures: Tensor, batch: int = 64) -> Tensor:
    """Latents of pictures in [0, 1], float32 on the VAE's device: the posterior's mean."""
    source = Source.of(teacher_or_pipe)
    with upcast(source.vae):
        weight = next(source.vae.parameters())
        parts = [
            source.vae.encode((part * 2 - 1).to(weight.device, weight.dtype)).latent_dist.mean
            for part in pictures.split(batch)
        ]
    return source.conditions.scaled(torch.cat(parts), source.vae).float()


@contextmanager
def upcast(vae: nn.Module) -> Iterator[None]:
    """A float16 VAE in float32 meanwhile where its config asks for that, as stock SDXL: its activations pass 65,504.

    bfloat16 has float32's range and stays. There and back changes no bit of the weights.
    """
    half = next(vae.parameters()).dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    if half:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if half:
            vae.to(torch.float16)


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
    source: Source, plan: Plan, asked: Asked, generators: list[torch.Generator], callback: Callback | None
) -> Tensor:
    device = next(source.model.parameters()).device
    noise = _noise(generators, (source.conditions.channels, *plan.sides)).to(device)
    walk = _ancestral if _is_ancestral(source, plan) else _scheduled
    for step, (latents, clean) in enumerate(walk(source, plan, Guided.of(source, asked, plan), noise, generators)):
        if callback is not None:
            callback(step, latents, clean)
    return latents.float().cpu()


@dataclass(frozen=True)
class Guided:
    """A batch's rows and, where guidance takes two answers, the empty ones beside them."""

    rows: Rows
    guidance: float
    doubled: bool

    @classmethod
    def of(cls, source: Source, asked: Asked, plan: Plan) -> "Guided":
        known, count = source.conditions, len(asked)
        rows = known.rows(asked)
        if known.guided:
            return cls(rows | {"guidance": torch.full_like(rows["guidance"], plan.guidance)}, 1.0, False)
        if plan.guidance <= 1:
            return cls(rows, plan.guidance, False)
        empty = conditions.repeated(known.nothing(), count)
        return cls(conditions.joined(rows, empty), plan.guidance, True)


def _is_ancestral(source: Source, plan: Plan) -> bool:
    return plan.sampler == "ddpm" or (plan.sampler == "card" and isinstance(source.scheduler, DDPMScheduler))


def predict(source: Source, latents: Tensor, t: Tensor, asked: Guided) -> tuple[Tensor, Tensor]:
    """(guided prediction, raw variance or an empty tensor) for latents that share the time t."""
    weight = next(source.model.parameters())
    inputs = torch.cat([latents, latents]) if asked.doubled else latents  # (2 batch, channels, height, width)
    times = t.to(weight.device).expand(len(inputs))
    output = source.conditions.call(source.model, inputs.to(weight.dtype), times, asked.rows).to(latents.dtype)
    prediction, raw = output.split([latents.shape[1], output.shape[1] - latents.shape[1]], dim=1)
    if not asked.doubled:
        return prediction, raw
    conditional, null = prediction.chunk(2)
    return null + asked.guidance * (conditional - null), raw.chunk(2)[0]


def _scheduled(
    source: Source, plan: Plan, asked: Guided, noise: Tensor, generators: list[torch.Generator]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Any diffusers scheduler whose model predicts noise, velocity or flow."""
    scheduler = scheduler_of(source.scheduler, plan.sampler)
    source.conditions.set_times(scheduler, plan.steps, noise)
    yield from stepped(source, scheduler, asked, noise * getattr(scheduler, "init_noise_sigma", 1.0), generators)


def stepped(
    source: Source, scheduler: Any, asked: Guided, latents: Tensor, generators: list[torch.Generator], first: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """The scheduler's times from number `first` on: latents after each, and what the model took for clean."""
    process = Diffusion.of(scheduler)
    # A list of generators, one a picture: a scheduler that draws noise then draws the same whatever the batch.
    stream = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in scheduler.timesteps[first:]:
        noisy = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
        prediction, _ = predict(source, noisy, t, asked)
        clean = process.clean(prediction, noisy, t.expand(len(noisy)))
        latents = scheduler.step(prediction, t, latents, **stream).prev_sample
        yield latents, clean


def _ancestral(
    source: Source, plan: Plan, asked: Guided, noise: Tensor, generators: list[torch.Generator]
) -> Iterator[tuple[Tensor, Tensor]]:
    """DDPM with learned variance on a respaced process: the visited times become a shorter diffusion of their own."""
    times = ddpm_times(source.scheduler, plan.steps)
    whole = Diffusion.of(source.scheduler)
    visited = Diffusion(whole.alphas_cumprod[times], whole.prediction)
    latents = noise
    for place in reversed(range(len(times))):
        here = torch.full((len(latents),), place, device=latents.device)
        prediction, raw = predict(source, latents, times[place], asked)
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
        scheduler = scheduler_of(source.scheduler, plan.sampler)
        source.conditions.set_times(scheduler, plan.steps, torch.empty(1, source.conditions.channels, *plan.sides))
        times = scheduler.timesteps
    return [float(time) / source.scheduler.config.num_train_timesteps for time in times]


def scheduler_of(scheduler: Any, sampler: str) -> Any:
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


def latent_sides(source: Source, size: Size) -> tuple[int, int]:
    """(height, width) in latents."""
    sides = (source.side if size is None else size,) * 2 if not isinstance(size, (tuple, list)) else tuple(size)
    unit = source.factor * source.conditions.unit
    for side in sides:
        if not isinstance(side, int) or side < unit or side % unit:
            near = f"; the nearest is {max(unit, round(side / unit) * unit)}" if isinstance(side, (int, float)) else ""
            raise ValueError(
                f"a side of {side} px is no multiple of {unit} (VAE {source.factor} x patch "
                f"{source.conditions.unit}){near}"
            )
    if len(sides) != 2 or (source.conditions.square and sides[0] != sides[1]):
        raise ValueError(f"a size of {sides} px; {type(source.model).__name__} draws squares: pass one side")
    return sides[0] // source.factor, sides[1] // source.factor


def _check_steps(source: Source, steps: int) -> int:
    most = source.scheduler.config.num_train_timesteps
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most:
        raise ValueError(f"{steps} steps; the schedule has room for 1 to {most}")
    return steps


def _check_guidance(guidance: float) -> float:
    if not guidance >= 1:
        raise ValueError(f"a guidance of {guidance}; 1 means none, larger follows the label more")
    return float(guidance)


def _check(source: Source, sampler: str) -> str:
    if sampler not in SAMPLERS:
        near = difflib.get_close_matches(str(sampler), SAMPLERS, 1, cutoff=0.0)
        raise ValueError(f"unknown sampler {sampler!r}; one of {', '.join(SAMPLERS)} (nearest: {near[0]})")
    if sampler != "card" and not hasattr(source.scheduler, "alphas_cumprod"):
        raise ValueError(f"sampler {sampler!r} is for noise and velocities; a flow is followed by its own: 'card'")
    return sampler
