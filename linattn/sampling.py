"""Draw pictures with one loop over model and scheduler, the same for teacher and student.

- Picture i's noise comes from (seed, i, latent shape) alone, on the CPU. Picture 17 starts from the
  same noise whatever the batch, the device or the model, and the noise of its stochastic steps is
  the same too.
- Prompts are labels or captions, whichever the pipeline reads (conditions.py).
- Guidance works as in `DiTPipeline`: one doubled batch [conditional, empty], every channel guided,
  the variance taken from the conditional half. Guidance 1 costs one forward, not two. A model that
  takes its guidance as an argument also runs once a step.
- `ddpm` is ancestral and uses the learned variance, which `DiTPipeline` removes before the
  scheduler step.
- Any size works whose latents the patches divide (DiT: squares only), because the model recomputes
  its positions.
- Every batch builds its own scheduler, so calls and threads share no state.
"""

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

from linattn import conditions, seeds
from linattn.conditions import Asked, Conditions, Rows
from linattn.diffusion import Diffusion
from linattn.names import nearest

SAMPLERS = ("card", "dpm", "ddim", "ddpm")

Size = int | tuple[int, int] | None  # a side or (height, width) in pixels; None: the card's
# (step, latents after it, estimate of the clean latents)
Callback = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class Source:
    """Hold the parts of a teacher or a pipeline that a draw needs."""

    model: nn.Module
    vae: nn.Module
    scheduler: Any
    card: Mapping[str, Any]
    conditions: Conditions

    @classmethod
    def of(cls, teacher_or_pipe: Any, model: nn.Module | None = None) -> "Source":
        """Return the source of a teacher, a pipeline or another source.

        `model` replaces the source's own, so that a student draws with its teacher's VAE, scheduler
        and card.
        """
        if isinstance(teacher_or_pipe, cls):
            return teacher_or_pipe if model is None else replace(teacher_or_pipe, model=model)
        pipe = getattr(teacher_or_pipe, "pipe", teacher_or_pipe)
        card = getattr(teacher_or_pipe, "card", None) or _card_of(pipe)
        conditioner = conditions.of(pipe, card)
        return cls(
            conditioner.model if model is None else model,
            pipe.vae,
            pipe.scheduler,
            card,
            conditioner,
        )

    @property
    def factor(self) -> int:
        """Return the number of pixels along one side of a latent position."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def side(self) -> int:
        """Return the default side in pixels: the card's, or the one that the model was trained at."""
        return self.card.get("side") or self.conditions.side * self.factor


def _card_of(pipe: Any) -> dict[str, Any]:
    """Return the card of a pipeline that comes without a teacher.

    It is the card in the folder the pipeline was loaded from, or else the labels of the pipeline's
    config. Without its card, flux-nano would get captions of 512 tokens, although it was trained
    with 16.
    """
    config = getattr(pipe, "config", None) or {}
    folder = getattr(config, "_name_or_path", None)
    path = Path(folder or "") / "card.json"
    if folder and path.is_file():
        return json.loads(path.read_text())
    labels = getattr(config, "id2label", None) or {}
    return {"labels": list(labels.values())} if labels else {}


@dataclass(frozen=True)
class Plan:
    """Hold the validated settings of a draw: all that the pictures depend on except weights,
    prompts and seed.
    """

    sides: tuple[int, int]  # of the latents: height, width
    steps: int
    guidance: float
    sampler: str

    @classmethod
    def of(
        cls, source: Source, size: Size, steps: int | None, guidance: float | None, sampler: str
    ) -> "Plan":
        """Fill in defaults and validate; None takes the card's value, or the pipeline's where the
        card has none.
        """
        defaults = {**source.conditions.defaults(), **source.card}
        sides = latent_sides(source, size)
        steps = _checked_steps(source, defaults["steps"] if steps is None else steps)
        guidance = _checked_guidance(defaults["guidance"] if guidance is None else guidance)
        return cls(sides, steps, guidance, _checked_sampler(source, sampler))


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
    """Draw pictures (N, 3, height, width) in [0, 1], float32 on the CPU. None takes the card's
    value.

    `asked` holds the prompts, one a picture: labels (DiT) or captions. `size` is a side or (height,
    width).

    `start` is the number of the first picture, so that a shard draws the pictures that one long
    call would draw there.
    """
    options = {
        "size": size,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "sampler": sampler,
        "start": start,
    }
    latents = draw_latents(
        teacher_or_pipe, asked, **options, model=model, batch=batch, callback=callback
    )
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
    """Draw latents (N, channels, height, width), float32 on the CPU, which `draw` would decode."""
    source = Source.of(teacher_or_pipe, model)
    plan = Plan.of(source, size, steps, guidance, sampler)
    prompts = source.conditions.check(asked)
    if batch < 1:
        raise ValueError(f"a batch of {batch} pictures; draw at least 1 at a time")
    drawn = []
    with evaluating(source.model):
        for first in range(0, len(prompts), batch):
            chosen = prompts[first : first + batch]
            numbers = range(start + first, start + first + len(chosen))
            generators = [seeds.of_picture(seed, number) for number in numbers]
            drawn.append(_draw_batch(source, plan, chosen, generators, callback))
    return torch.cat(drawn)


@torch.no_grad()
def decode(teacher_or_pipe: Any, latents: Tensor, batch: int = 64) -> Tensor:
    """Decode latents to pictures in [0, 1], as the pipeline itself does."""
    source = Source.of(teacher_or_pipe)
    vae, pictures = source.vae, []
    with upcast(vae):
        weight = next(vae.parameters())
        for chunk in latents.split(batch):
            unscaled = source.conditions.unscaled(chunk.to(weight.device, weight.dtype), vae)
            pictures.append(vae.decode(unscaled).sample.float().div(2).add(0.5).clamp(0, 1).cpu())
    return torch.cat(pictures)


@torch.no_grad()
def encode(teacher_or_pipe: Any, pictures: Tensor, batch: int = 64) -> Tensor:
    """Encode pictures in [0, 1] to latents, the posterior's mean, float32 on the VAE's device."""
    source = Source.of(teacher_or_pipe)
    means = []
    with upcast(source.vae):
        weight = next(source.vae.parameters())
        for chunk in pictures.split(batch):
            centred = (chunk * 2 - 1).to(weight.device, weight.dtype)
            means.append(source.vae.encode(centred).latent_dist.mean)
    return source.conditions.scaled(torch.cat(means), source.vae).float()


@contextmanager
def upcast(vae: nn.Module) -> Iterator[None]:
    """Run a float16 VAE in float32 meanwhile where its config requests it, because its activations
    pass 65,504.

    Stock SDXL does the same. A bfloat16 VAE stays, because bfloat16 has float32's range. Casting
    the weights to float32 and back changes no bit of them.
    """
    needs_upcast = next(vae.parameters()).dtype == torch.float16 and getattr(
        vae.config, "force_upcast", False
    )
    if needs_upcast:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if needs_upcast:
            vae.to(torch.float16)


# Noise
# ---------------------------------------------------------------------------------------------


generator = seeds.of_picture  # the name that scripts have used


def starting_noise(seed: int, numbers: range, shape: tuple[int, ...]) -> Tensor:
    """Return the noise that pictures `numbers` start from: (len(numbers), *shape), float32 on the
    CPU.
    """
    return _noise([seeds.of_picture(seed, number) for number in numbers], shape)


def _noise(generators: list[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    return torch.stack([torch.randn(shape, generator=stream) for stream in generators])


# The loop
# ---------------------------------------------------------------------------------------------


def _draw_batch(
    source: Source,
    plan: Plan,
    prompts: Asked,
    generators: list[torch.Generator],
    callback: Callback | None,
) -> Tensor:
    """Draw the latents of one batch."""
    device = next(source.model.parameters()).device
    noise = _noise(generators, (source.conditions.channels, *plan.sides)).to(device)
    loop = _ancestral if _is_ancestral(source, plan) else _scheduled
    steps = loop(source, plan, GuidedBatch.of(source, prompts, plan), noise, generators)
    for step, (latents, clean) in enumerate(steps):
        if callback is not None:
            callback(step, latents, clean)
    return latents.float().cpu()


@dataclass(frozen=True)
class GuidedBatch:
    """Hold the conditioning of a batch; where guidance needs two predictions, the empty
    conditioning is appended.
    """

    conditioning: Rows
    guidance: float
    doubled: bool

    @classmethod
    def of(cls, source: Source, prompts: Asked, plan: Plan) -> "GuidedBatch":
        conditioner = source.conditions
        conditioning = conditioner.rows(prompts)
        if conditioner.embeds_guidance:
            guidance = torch.full_like(conditioning["guidance"], plan.guidance)
            return cls(conditioning | {"guidance": guidance}, 1.0, False)
        if plan.guidance <= 1:
            return cls(conditioning, plan.guidance, False)
        empty = conditions.repeated(conditioner.nothing(), len(prompts))
        return cls(conditions.joined(conditioning, empty), plan.guidance, True)


def _is_ancestral(source: Source, plan: Plan) -> bool:
    return plan.sampler == "ddpm" or (
        plan.sampler == "card" and isinstance(source.scheduler, DDPMScheduler)
    )


def predict(
    source: Source, latents: Tensor, t: Tensor, guided: GuidedBatch
) -> tuple[Tensor, Tensor]:
    """Return the guided prediction and the raw variance, or an empty tensor, for latents that share
    the time t.
    """
    weight = next(source.model.parameters())
    inputs = (
        torch.cat([latents, latents]) if guided.doubled else latents
    )  # (2 batch, channels, height, width)
    times = t.to(weight.device).expand(len(inputs))
    output = source.conditions.call(
        source.model, inputs.to(weight.dtype), times, guided.conditioning
    )
    channels = latents.shape[1]
    prediction, raw = output.to(latents.dtype).split([channels, output.shape[1] - channels], dim=1)
    if not guided.doubled:
        return prediction, raw
    conditional, empty = prediction.chunk(2)
    return empty + guided.guidance * (conditional - empty), raw.chunk(2)[0]


def _scheduled(
    source: Source,
    plan: Plan,
    guided: GuidedBatch,
    noise: Tensor,
    generators: list[torch.Generator],
) -> Iterator[tuple[Tensor, Tensor]]:
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
) -> Iterator[tuple[Tensor, Tensor]]:
    """Take the scheduler's steps from number `first` on, and yield the latents and the clean
    estimate after each.
    """
    process = Diffusion.of(scheduler)
    # One generator a picture makes a stochastic scheduler draw the same noise whatever the batch.
    kwargs = (
        {"generator": generators}
        if "generator" in inspect.signature(scheduler.step).parameters
        else {}
    )
    for t in scheduler.timesteps[first:]:
        noisy = (
            scheduler.scale_model_input(latents, t)
            if hasattr(scheduler, "scale_model_input")
            else latents
        )
        prediction, _ = predict(source, noisy, t, guided)
        clean = process.clean(prediction, noisy, t.expand(len(noisy)))
        latents = scheduler.step(prediction, t, latents, **kwargs).prev_sample
        yield latents, clean


def _ancestral(
    source: Source,
    plan: Plan,
    guided: GuidedBatch,
    noise: Tensor,
    generators: list[torch.Generator],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw by DDPM with learned variance on a respaced process, whose times are those that the draw
    visits.
    """
    times = ddpm_times(source.scheduler, plan.steps)
    full = Diffusion.of(source.scheduler)
    respaced = Diffusion(full.alphas_cumprod[times], full.prediction)
    latents = noise
    for index in reversed(range(len(times))):
        t = torch.full((len(latents),), index, device=latents.device)
        prediction, raw = predict(source, latents, times[index], guided)
        clean = respaced.clean(prediction, latents, t)
        # given a clean picture, the posterior's mean is that picture and its variance is 0
        if index == 0:
            latents = clean
        else:
            mean, smallest = respaced.posterior(clean, latents, t)
            log_variance = respaced.log_variance(raw, t) if raw.shape[1] else smallest
            step_noise = _noise(generators, latents.shape[1:]).to(latents)
            latents = mean + (0.5 * log_variance).exp() * step_noise
        yield latents, clean


def ddpm_times(scheduler: Any, steps: int) -> Tensor:
    """Return the times that DDPMScheduler would visit with the same spacing, in rising order:
    (steps,).
    """
    ddpm = DDPMScheduler.from_config(scheduler.config)
    ddpm.set_timesteps(steps)
    return ddpm.timesteps.flip(0)


def noise_levels(
    teacher_or_pipe: Any, steps: int | None = None, sampler: str = "card"
) -> list[float]:
    """Return the noise levels that a draw visits, from noise to picture; 1 is pure noise."""
    source = Source.of(teacher_or_pipe)
    plan = Plan.of(source, None, steps, None, sampler)
    if _is_ancestral(source, plan):
        times = ddpm_times(source.scheduler, plan.steps).flip(0)
    else:
        scheduler = scheduler_of(source.scheduler, plan.sampler)
        source.conditions.set_times(
            scheduler, plan.steps, torch.empty(1, source.conditions.channels, *plan.sides)
        )
        times = scheduler.timesteps
    return [float(time) / source.scheduler.config.num_train_timesteps for time in times]


def scheduler_of(scheduler: Any, sampler: str) -> Any:
    """Return a fresh scheduler on the source's noise schedule.

    diffusers fills in its own defaults where a config is silent, and DDIM's default clips latents
    to [-1, 1].
    """
    if sampler == "ddim":
        clip = (
            scheduler.config.get("clip_sample", False)
            if isinstance(scheduler, DDIMScheduler)
            else False
        )
        return DDIMScheduler.from_config(scheduler.config, clip_sample=clip)
    if sampler == "dpm":
        # With a variance_type the scheduler would split off a variance that the prediction no
        # longer has.
        changes = {
            "timestep_spacing": "trailing",
            "variance_type": None,
            "algorithm_type": "dpmsolver++",
        }
        return DPMSolverMultistepScheduler.from_config(scheduler.config, **changes)
    return type(scheduler).from_config(scheduler.config)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode meanwhile, and every submodule back into its own mode afterwards.

    A DiT in training mode would drop labels at random.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


# Validation
# ---------------------------------------------------------------------------------------------


def latent_sides(source: Source, size: Size) -> tuple[int, int]:
    """Return (height, width) in latents, or raise if the model cannot draw that size."""
    sides = (
        tuple(size)
        if isinstance(size, (tuple, list))
        else (source.side if size is None else size,) * 2
    )
    unit = source.factor * source.conditions.unit
    for side in sides:
        if not isinstance(side, int) or side < unit or side % unit:
            near = (
                f"; the nearest is {max(unit, round(side / unit) * unit)}"
                if isinstance(side, (int, float))
                else ""
            )
            raise ValueError(
                f"a side of {side} px is no multiple of {unit} (VAE {source.factor} x patch "
                f"{source.conditions.unit}){near}"
            )
    if len(sides) != 2 or (source.conditions.square and sides[0] != sides[1]):
        raise ValueError(
            f"a size of {sides} px; {type(source.model).__name__} draws squares: pass one side"
        )
    return sides[0] // source.factor, sides[1] // source.factor


def _checked_steps(source: Source, steps: int) -> int:
    most = source.scheduler.config.num_train_timesteps
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most:
        raise ValueError(f"{steps} steps; the schedule has room for 1 to {most}")
    return steps


def _checked_guidance(guidance: float) -> float:
    if not guidance >= 1:
        raise ValueError(f"a guidance of {guidance}; 1 means none, larger follows the label more")
    return float(guidance)


def _checked_sampler(source: Source, sampler: str) -> str:
    if sampler not in SAMPLERS:
        raise nearest("sampler", sampler, SAMPLERS)
    if sampler != "card" and not hasattr(source.scheduler, "alphas_cumprod"):
        raise ValueError(
            f"sampler {sampler!r} is for noise and velocities; a flow needs its own sampler, 'card'"
        )
    return sampler
