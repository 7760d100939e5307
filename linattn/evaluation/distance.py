"""How close a student is to its teacher: the pictures from the same noise, and the prediction on the same latents.

Every result is one of intervals.py's, so all of them are finite and can be stored as strict JSON.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from linattn import sampling
from linattn.conditions import Asked
from linattn.diffusion import Diffusion, Process
from linattn.intervals import Result, bootstrap, summary

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # noise levels: time over 1000, 1 is pure noise
PSNR_MOST = 100.0  # dB: what two identical pictures get, since infinity is no number in JSON
PIECE = 8  # pictures that are compared at once


def distances(pictures: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Per picture, each (n,): MSE, cosine (of pictures in [-1, 1], where grey is zero), PSNR in dB, SSIM."""
    if pictures.shape != reference.shape or pictures.ndim != 4:
        raise ValueError(
            f"pictures are {tuple(pictures.shape)}, the reference {tuple(reference.shape)}; "
            "compare the same pictures (n, 3, side, side)"
        )
    if min(pictures.shape[-2:]) < 11:
        raise ValueError(f"pictures of {tuple(pictures.shape[-2:])} px; SSIM's window needs at least 11 x 11")
    # A few at a time: SSIM's windows of 128 pictures at once take over a gigabyte, ten seconds of page faults.
    parts = [_distances(*pair) for pair in zip(pictures.split(PIECE), reference.split(PIECE), strict=True)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _distances(pictures: Tensor, reference: Tensor) -> dict[str, Tensor]:
    ours, theirs = pictures.double().cpu(), reference.double().cpu()
    mse = (ours - theirs).square().flatten(1).mean(1)
    cosine = nn.functional.cosine_similarity((ours * 2 - 1).flatten(1), (theirs * 2 - 1).flatten(1), eps=1e-12)
    psnr = (-10 * mse.clamp_min(1e-30).log10()).clamp_max(PSNR_MOST)
    ssim = structural_similarity_index_measure(ours, theirs, data_range=1.0, reduction="none")
    return {"mse": mse, "cosine": cosine, "psnr": psnr, "ssim": ssim.reshape(-1)}


def distance(pictures: Tensor, reference: Tensor, seed: int = 0) -> dict[str, Result]:
    return {name: summary(values, seed) for name, values in distances(pictures, reference).items()}


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
    """||student - teacher||^2 / ||teacher||^2 of the prediction on noised samples, summed over pictures.

    `samples` is a `Samples` or (latents, labels or captions). No guidance: what is compared is the model, not the
    sampler. The result has one entry a level and their mean; its interval resamples pictures, each with all its levels.
    `theirs`, the teacher's `predictions`, are the same for every student and may be kept.
    """
    asked = {"count": count, "batch": batch, "seed": seed}
    if theirs is None:
        theirs = predictions(teacher, sampling.Source.of(teacher).model, samples, levels, **asked)
    ours = predictions(teacher, student, samples, levels, **asked)
    if ours.shape != theirs.shape:
        raise ValueError(
            f"predictions are {tuple(ours.shape)}, the teacher's that were kept {tuple(theirs.shape)}; "
            "ask both for the same levels and pictures"
        )
    # (pictures, levels, 2): squared error, squared size of the teacher's prediction
    sums = torch.stack([torch.stack([_squares(a - b), _squares(b)], 1) for a, b in zip(ours, theirs, strict=True)], 1)
    rows, steps = [], diffusion_of(teacher).steps
    for place, level in enumerate(levels):
        rows.append({"noise": level, "time": level_time(level, steps), **_ratio(sums[:, place : place + 1], seed)})
    return {"levels": rows, "mean": _ratio(sums, seed)}


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
    """What a model says of noised samples, without the variance half: (levels, pictures, channels, side, side).

    Picture i's noise at a level comes from (seed, i, level) alone, so all students are asked the same.
    """
    latents, asked = samples if isinstance(samples, tuple) else samples.first(min(count, len(samples)))
    latents, asked = latents[:count].float(), asked[:count]
    if len(latents) == 0 or len(latents) != len(asked):
        raise ValueError(f"{len(latents)} latents and {len(asked)} conditions; pass as many of each, at least 1")
    source, found = sampling.Source.of(teacher, model), []
    with sampling.evaluating(model):
        for t in [level_time(level, diffusion_of(teacher).steps) for level in levels]:
            for start in range(0, len(latents), batch):
                part = slice(start, start + batch)
                found.append(_prediction(source, noised(teacher, latents[part], t, seed, start), t, asked[part]))
    return torch.cat(found).unflatten(0, (len(levels), len(latents)))


def _squares(values: Tensor) -> Tensor:
    """(pictures, ...) -> (pictures,), in float64."""
    return values.double().square().flatten(1).sum(1)


def diffusion_of(teacher_or_pipe: Any) -> Process:
    """A teacher knows its process; a pipeline's is that of its scheduler."""
    known = getattr(teacher_or_pipe, "diffusion", None)
    return Diffusion.of(sampling.Source.of(teacher_or_pipe).scheduler) if known is None else known


def level_time(level: float, steps: int = 1000) -> int:
    """The time step of a noise level in [0, 1]."""
    if not 0 <= level <= 1:
        raise ValueError(f"a noise level of {level}; it is a share of the {steps} times, within 0..1")
    return min(steps - 1, round(level * steps))


def level_noise(shape: Sequence[int], t: int, seed: int, start: int = 0) -> Tensor:
    """Noise of pictures start.. at time t, from (seed, picture, t) alone: `shape` is (pictures, ...)."""
    numbers = range(start, start + shape[0])
    return sampling.starting_noise(int(f"{seed}{t:04d}"), numbers, tuple(shape[1:]))


def noised(teacher: Any, latents: Tensor, t: int, seed: int = 0, start: int = 0) -> Tensor:
    """Latents of pictures start.. at time t, with the noise of `level_noise`."""
    clean = latents.float().cpu()
    time = torch.full((len(clean),), t)
    return diffusion_of(teacher).noised(clean, level_noise(clean.shape, t, seed, start), time)


def _prediction(source: sampling.Source, noisy: Tensor, t: int, asked: Asked) -> Tensor:
    weight = next(source.model.parameters())
    inputs = noisy.to(weight.device, weight.dtype)
    times = torch.full((len(noisy),), t, device=weight.device)
    output = source.conditions.call(source.model, inputs, times, source.conditions.rows(asked))
    return output[:, : noisy.shape[1]].contiguous().cpu()


def _ratio(sums: Tensor, seed: int) -> Result:
    """(pictures, levels, 2) -> the mean over levels of summed error over summed size."""

    def statistic(drawn: Tensor) -> Tensor:  # (resamples, pictures, levels, 2)
        totals = drawn.sum(1)
        return (totals[..., 0] / totals[..., 1].clamp_min(1e-30)).mean(1)

    low, high = bootstrap(sums, seed, statistic)
    return {"value": statistic(sums[None]).item(), "low": low, "high": high, "n": len(sums)}
