"""Measure how close a student is to its teacher, by pictures and by predictions.

Pictures are drawn from the same noise, predictions made on the same latents. Every result is a
`Result` of intervals.py, so every result is finite and can be stored as strict JSON.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from linattn import sampling
from linattn.conditions import Prompts
from linattn.diffusion import Diffusion, Process
from linattn.finite import finite
from linattn.intervals import Result, bootstrap, summary
from linattn.names import short
from linattn.reader import between, checked, typed

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # noise levels: time over 1000, 1 is pure noise
PSNR_MOST = 100.0  # dB: the PSNR of two identical pictures, since JSON has no infinity
PIECE = 8  # pictures compared at once
RULES: dict[str, Any] = {  # of arguments of this file's functions
    "levels": between(0, 1),
    "count": between(1),
    "batch": between(1),
    "seed": typed(),
}
DIVERGED = "the model diverged; look at the weights that were loaded, and at the samples"


@checked(pictures=typed(), reference=typed())
def distances(pictures: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Compare picture by picture and return MSE, cosine, PSNR in dB and SSIM, all (n,).

    Pictures are floats in [0, 1] or in 8 bits. The cosine is of pictures in [-1, 1], where grey is
    zero.
    """
    if pictures.shape != reference.shape or pictures.ndim != 4:
        raise ValueError(
            f"pictures are {tuple(pictures.shape)}, the reference {tuple(reference.shape)}; "
            "compare the same pictures (n, 3, side, side)"
        )
    if min(pictures.shape[-2:]) < 11:
        raise ValueError(
            f"pictures of {tuple(pictures.shape[-2:])} px; SSIM's window needs at least 11 x 11"
        )
    pictures, reference = _checked_values(pictures, "pictures"), _checked_values(reference)
    # A few at a time: SSIM's windows of 128 pictures at once take over a gigabyte, and ten seconds
    # of page faults.
    pieces = zip(pictures.split(PIECE), reference.split(PIECE), strict=True)
    by_name: dict[str, list[Tensor]] = {}
    for piece in pieces:
        for name, values in _piece_distances(*piece).items():
            by_name.setdefault(name, []).append(values)
    return {name: torch.cat(values) for name, values in by_name.items()}


def _checked_values(pictures: Tensor, noun: str = "reference") -> Tensor:
    """Refuse what cannot be compared: other numbers than floats and 8 bits, and no numbers."""
    if not pictures.is_floating_point() and pictures.dtype != torch.uint8:
        raise ValueError(
            f"the {noun} is of {pictures.dtype}; pass floats in [0, 1], or 8 bits as torch.uint8"
        )
    return finite(pictures, f"values of the {noun}", "look at the model that drew them")


def _piece_distances(pictures: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Compare a few pictures in float64 on the CPU."""
    pictures, reference = _as_floats(pictures), _as_floats(reference)
    mse = (pictures - reference).square().flatten(1).mean(1)
    signed, signed_reference = (pictures * 2 - 1).flatten(1), (reference * 2 - 1).flatten(1)
    cosine = nn.functional.cosine_similarity(signed, signed_reference, eps=1e-12)
    psnr = (-10 * mse.clamp_min(1e-30).log10()).clamp_max(PSNR_MOST)
    options: dict[str, Any] = {"data_range": 1.0, "reduction": "none"}
    ssim = cast(Tensor, structural_similarity_index_measure(pictures, reference, **options))
    return {"mse": mse, "cosine": cosine, "psnr": psnr, "ssim": ssim.reshape(-1)}


def _as_floats(pictures: Tensor) -> Tensor:
    """Convert pictures to float64 on the CPU; 8 bits become [0, 1] in float32, as models see it."""
    floats = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures
    return floats.double().cpu()


@checked(seed=typed())
def distance(pictures: Tensor, reference: Tensor, seed: int = 0) -> dict[str, Result]:
    """Average every distance over the pictures, with a bootstrap interval."""
    return {name: summary(values, seed) for name, values in distances(pictures, reference).items()}


@checked(student=typed(), theirs=typed(), **RULES)
def prediction_error(
    teacher: Any,
    student: nn.Module,
    samples: Any,
    levels: Sequence[float] = LEVELS,
    *,
    theirs: Tensor | None = None,
    count: int = 64,
    batch: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """Return ||student - teacher||^2 / ||teacher||^2 of the prediction on noised samples.

    Both squares are summed over the pictures.

    - `samples` is a `Samples` or (latents, labels or captions).
    - Predictions are without guidance, so that the models are compared and not the sampler.
    - The result has one entry for each level and the mean of the levels, whose interval resamples
      pictures with all their levels.
    - `squares` holds both squares of each picture, levels x pictures, for comparisons in pairs.
    - `theirs` holds the teacher's `predictions`: they are the same for every student, so a caller
      may keep them.
    """
    options = {"count": count, "batch": batch, "seed": seed}
    if theirs is None:
        theirs = predictions(teacher, sampling.Source.of(teacher).model, samples, levels, **options)
    ours = predictions(teacher, student, samples, levels, **options)
    finite(theirs, "values of the teacher's predictions", DIVERGED)
    if ours.shape != theirs.shape:
        raise ValueError(
            f"predictions are {tuple(ours.shape)}, the teacher's that were kept "
            f"{tuple(theirs.shape)}; take both for the same levels and pictures"
        )
    sums, steps = _squared_sums(ours, theirs), diffusion_of(teacher).steps
    by_level = []
    for index, level in enumerate(levels):
        error = _relative_error(sums[:, index : index + 1], seed)
        by_level.append({"noise": level, "time": level_time(level, steps), **error})
    error, size = sums.permute(2, 1, 0).tolist()  # each (levels, pictures)
    squares = {"error": error, "teacher": size}
    return {"levels": by_level, "mean": _relative_error(sums, seed), "squares": squares}


def _squared_sums(ours: Tensor, theirs: Tensor) -> Tensor:
    """Sum the squares of the error and of the teacher's prediction: (pictures, levels, 2)."""
    by_level = []
    for our_prediction, their_prediction in zip(ours, theirs, strict=True):
        squares = (_squares(our_prediction - their_prediction), _squares(their_prediction))
        by_level.append(torch.stack(squares, 1))
    return torch.stack(by_level, 1)


@checked(model=typed(), **RULES)
@torch.no_grad()
def predictions(
    teacher: Any,
    model: nn.Module,
    samples: Any,
    levels: Sequence[float] = LEVELS,
    *,
    count: int = 64,
    batch: int = 32,
    seed: int = 0,
) -> Tensor:
    """Return a model's predictions on noised samples: (levels, pictures, channels, side, side).

    The variance half of an output is left out. Picture i's noise at a level comes from (seed, i,
    level) alone, so all students predict from the same noise.
    """
    source, outputs = sampling.Source.of(teacher, model), []
    latents, conditioning = _first(samples, count, source)
    with sampling.evaluating(model):
        for t in [level_time(level, diffusion_of(teacher).steps) for level in levels]:
            for start in range(0, len(latents), batch):
                chunk = slice(start, start + batch)
                noisy = noised(teacher, latents[chunk], t, seed, start)
                outputs.append(_prediction(source, noisy, t, conditioning[chunk]))
    predicted = torch.cat(outputs).unflatten(0, (len(levels), len(latents)))
    return finite(predicted, "values of the model's predictions", DIVERGED)


def _first(samples: Any, count: int, source: sampling.Source) -> tuple[Tensor, Prompts]:
    """Return the first latents and prompts of samples or of a pair, or raise a ValueError."""
    if hasattr(samples, "first"):
        samples = samples.first(min(count, len(samples)))
    if not isinstance(samples, tuple) or len(samples) != 2 or not isinstance(samples[0], Tensor):
        raise ValueError(
            f"samples are {short(samples)}; pass Samples, or a pair of latents and of labels or "
            "captions"
        )
    latents, prompts = check_latents(samples[0], source), source.conditions.check(samples[1])
    if len(latents) != len(prompts):
        raise ValueError(
            f"{len(latents)} latents and {len(prompts)} prompts; pass as many of each, at least 1"
        )
    return latents[:count].float(), prompts[:count]


def check_latents(latents: Tensor, source: sampling.Source) -> Tensor:
    """Return latents of a source's model, or raise where they are none or not finite.

    Args:
        latents: (pictures, channels, height, width).
        source: the model with its conditions.
    """
    channels = source.conditions.channels
    if latents.ndim != 4 or latents.shape[1] != channels or not latents.is_floating_point():
        raise ValueError(
            f"latents are {tuple(latents.shape)} {latents.dtype}; {type(source.model).__name__} "
            f"takes floating-point numbers (pictures, {channels}, height, width)"
        )
    return finite(latents, "latents", "look at the model that drew them, or draw them again")


def _squares(values: Tensor) -> Tensor:
    """Sum the squares of each picture in float64: (pictures, ...) -> (pictures,)."""
    return values.double().square().flatten(1).sum(1)


def diffusion_of(teacher_or_pipe: Any) -> Process:
    """Return the diffusion process of a teacher, or that of a pipeline's scheduler."""
    process = getattr(teacher_or_pipe, "diffusion", None)
    if process is not None:
        return process
    return Diffusion.of(sampling.Source.of(teacher_or_pipe).scheduler)


@checked(level=between(0, 1), steps=between(1))
def level_time(level: float, steps: int = 1000) -> int:
    """Return the time step of a noise level in [0, 1]."""
    return min(steps - 1, round(level * steps))


@checked(shape=between(1), t=between(0), seed=typed(), start=between(0))
def level_noise(shape: Sequence[int], t: int, seed: int, start: int = 0) -> Tensor:
    """Draw the noise of pictures start.. at time t from (seed, picture, t) alone.

    `shape` is (pictures, ...).
    """
    indices = range(start, start + shape[0])
    return sampling.starting_noise(int(f"{seed}{t:04d}"), indices, tuple(shape[1:]))


@checked(latents=typed(), t=between(0), seed=typed(), start=between(0))
def noised(teacher: Any, latents: Tensor, t: int, seed: int = 0, start: int = 0) -> Tensor:
    """Return the latents of pictures start.. at time t, with the noise of `level_noise`."""
    if t >= (steps := diffusion_of(teacher).steps):
        raise ValueError(f"a time of {t}; the teacher's process has the steps 0 to {steps - 1}")
    clean = check_latents(latents, sampling.Source.of(teacher)).float().cpu()
    time = torch.full((len(clean),), t)
    return diffusion_of(teacher).noised(clean, level_noise(clean.shape, t, seed, start), time)


def _prediction(source: sampling.Source, noisy: Tensor, t: int, conditioning: Prompts) -> Tensor:
    """Return the model's prediction on the CPU, without the channels of the variance."""
    weight = next(source.model.parameters())
    inputs = noisy.to(weight.device, weight.dtype)
    times = torch.full((len(noisy),), t, device=weight.device)
    encoded = source.conditions.encode(conditioning)
    output = source.conditions.call(source.model, inputs, times, encoded)
    return output[:, : noisy.shape[1]].contiguous().cpu()


def _relative_error(sums: Tensor, seed: int) -> Result:
    """Average summed error over summed size over the levels; `sums` is (pictures, levels, 2)."""

    def statistic(resampled: Tensor) -> Tensor:  # (resamples, pictures, levels, 2)
        totals = resampled.sum(1)
        return (totals[..., 0] / totals[..., 1].clamp_min(1e-30)).mean(1)

    low, high = bootstrap(sums, seed, statistic)
    return {"value": statistic(sums[None]).item(), "low": low, "high": high, "n": len(sums)}
