"""How close a student is to its teacher, and how often what it drew is what was asked for.

- Every result is {"value", "low", "high", "n"}: a 95 % interval and the number of pictures. An interval that one
  picture cannot give is None.
- Means carry a percentile bootstrap over pictures from a seed; counts of right and wrong carry Wilson's interval.
- `judge_kid` and `judge_fid` live in the feature space of this repository's judge: they rank rows of one table and
  are never comparable to a published (Inception) KID or FID.
- Nothing here is infinite or NaN, so that every result can be stored as strict JSON.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_kernel

from linattn import sampling, world
from linattn.conditions import Asked
from linattn.diffusion import Diffusion, Process

Result = dict[str, Any]

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # noise levels: time over 1000, 1 is pure noise
FID_PICTURES = 2048  # below it the bias of FID is larger than what it should tell apart
KID_SUBSET = 1000  # of larger sets: the size that published KIDs take
PSNR_MOST = 100.0  # dB: what two identical pictures get, since infinity is no number in JSON
PIECE = 8  # pictures that are compared at once
DRAWN = 1 << 22  # values that a bootstrap holds at once
NORMAL = 1.959964  # half the width of a 95 % interval, in standard deviations


# Intervals -----------------------------------------------------------------------------------------------------------


def mean_over(values: Tensor) -> Tensor:
    """The default statistic: (resamples, n) -> (resamples,)."""
    return values.mean(1)


def bootstrap(
    values: Tensor, seed: int = 0, statistic: Callable[[Tensor], Tensor] = mean_over, resamples: int = 1000
) -> tuple[float | None, float | None]:
    """Percentile interval of 95 % over the first dimension, one row a picture; (None, None) for fewer than two.

    `statistic` maps (resamples, n, ...) to (resamples,).
    """
    values = torch.as_tensor(values).detach().double().cpu()
    if len(values) < 2:
        return None, None
    rows = torch.randint(len(values), (resamples, len(values)), generator=torch.Generator().manual_seed(seed))
    # In pieces: 1,000 resamples of 50,000 pictures would be 400 MB at once.
    step = max(1, DRAWN // values.numel())
    drawn = torch.cat([statistic(values[part]) for part in rows.split(step)])
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def summary(values: Tensor, seed: int = 0) -> Result:
    """The mean over pictures with its bootstrap interval."""
    if len(values) == 0:
        raise ValueError("no values to summarise; evaluate at least 1 picture")
    low, high = bootstrap(values, seed)
    return {"value": values.double().mean().item(), "low": low, "high": high, "n": len(values)}


def wilson(right: int, n: int) -> Result:
    """A share with Wilson's 95 % interval, which stays inside [0, 1] and says something even of 1 picture."""
    if n < 1 or not 0 <= right <= n:
        raise ValueError(f"{right} right of {n}; the count must be within 0..n and n at least 1")
    share, spread = right / n, NORMAL**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = NORMAL * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    low = 0.0 if right == 0 else max(0.0, centre - half)
    high = 1.0 if right == n else min(1.0, centre + half)
    return {"value": share, "low": low, "high": high, "n": n}


# Distance to the teacher ---------------------------------------------------------------------------------------------


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


# The judge -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def judge_marks(judge: nn.Module, pictures: Tensor, labels: Tensor, batch: int = 256) -> tuple[Tensor, Tensor]:
    """Whether the judge finds the asked shape and the asked colour, each (n,) boolean."""
    if len(pictures) != len(labels) or len(pictures) == 0:
        raise ValueError(f"{len(pictures)} pictures and {len(labels)} labels; pass as many of each, at least 1")
    device = next(judge.parameters()).device
    parts = zip(pictures.split(batch), labels.to(device).split(batch), strict=True)
    shape, colour = zip(*(judge(part.to(device).float()).right(label) for part, label in parts), strict=True)
    return torch.cat(shape).cpu(), torch.cat(colour).cpu()


def judge_accuracy(judge: nn.Module, pictures: Tensor, labels: Tensor, batch: int = 256) -> dict[str, Result]:
    """How often shape, colour and both are what was asked for, with Wilson's intervals."""
    shape, colour = judge_marks(judge, pictures, labels, batch)
    found = {"shape": shape, "colour": colour, "both": shape & colour}
    return {name: wilson(int(right.sum()), len(right)) for name, right in found.items()}


def chance() -> dict[str, float]:
    """What a model that ignores its label gets from `judge_accuracy`."""
    shape, colour = 1 / len(world.SHAPES), 1 / len(world.COLOURS)
    return {"shape": shape, "colour": colour, "both": shape * colour}


@torch.no_grad()
def judge_features(judge: nn.Module, pictures: Tensor, batch: int = 256) -> Tensor:
    """(n, features) in float64 on the CPU; compute the teacher's once and give them to every row."""
    device = next(judge.parameters()).device
    return torch.cat([judge(part.to(device).float()).features.double().cpu() for part in pictures.split(batch)])


class _Given(nn.Module):
    """An extractor for torchmetrics when the features are there already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def judge_kid(
    features: Tensor, reference: Tensor, seed: int = 0, subsets: int = 100, subset_size: int | None = None
) -> Result:
    """Kernel distance of two sets of judge features whose rows are pairs: same number, same label, same noise.

    - Pairs make KID's usual estimate far too low (-9 for a set against itself): it takes the kernel of a picture and
      its own partner for one of two strangers. Without those terms it is zero for two equal sets, and unbiased where
      pairs are drawn independently. Labels dealt evenly are not quite: strangers share one less often than chance
      has it, so what differs from class to class weighs less (a third, at 128 pictures of 60 classes). All rows of a
      table are dealt the same labels: it ranks them, and is not the distance of two distributions.
    - The features are divided by the reference's root mean square, since a cubic kernel is not free of their scale.
    - Its interval is the delete-half jackknife's: the spread over random halves.
    """
    ours, theirs = _check_features(features, reference)
    n = len(ours)
    if len(theirs) != n:
        raise ValueError(f"{n} pictures and a reference of {len(theirs)}; KID here compares pairs, so as many of each")
    if n < 4 and subset_size is None:
        return {"value": None, "low": None, "high": None, "n": n, "reason": f"{n} pictures; KID needs 4"}
    size = min(n // 2, KID_SUBSET) if subset_size is None else subset_size
    if not 2 <= size <= n:
        raise ValueError(f"subsets of {size} from {n} pictures; choose 2 to {n}")
    scale = theirs.square().mean().sqrt().clamp_min(1e-12)
    dice = torch.Generator().manual_seed(seed)
    chosen = [torch.randperm(n, generator=dice)[:size] for _ in range(subsets)]
    values = torch.stack([_paired_mmd(ours[rows] / scale, theirs[rows] / scale) for rows in chosen])
    mean = values.mean().item()
    if size == n:
        return {"value": mean, "low": None, "high": None, "n": n, "subset_size": size}
    half = NORMAL * values.std(correction=0).item() * math.sqrt(size / (n - size))
    return {"value": mean, "low": mean - half, "high": mean + half, "n": n, "subset_size": size}


def _paired_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Squared maximum mean discrepancy over all pairs of different rows (Gretton et al. 2012, lemma 6)."""
    kernels = poly_kernel(x, x) + poly_kernel(y, y) - poly_kernel(x, y) - poly_kernel(y, x)  # (n, n)
    return (kernels.sum() - kernels.trace()) / (len(x) * (len(x) - 1))


def judge_fid(features: Tensor, reference: Tensor, seed: int = 0, resamples: int = 40) -> Result:
    """Frechet distance of two sets of judge features, from 2,048 pictures a set on.

    A bootstrap of FID is biased upwards (a resample has fewer distinct pictures), so only its spread is used: value
    +- 1.96 standard deviations over resamples.
    """
    ours, theirs = _check_features(features, reference)
    least = min(len(ours), len(theirs))
    if least < FID_PICTURES:
        reason = f"{least} pictures; from {FID_PICTURES} on, below that its bias hides the differences"
        return {"value": None, "low": None, "high": None, "n": least, "reason": reason}
    draw = torch.Generator().manual_seed(seed)

    def again(features: Tensor) -> Tensor:
        return features[torch.randint(len(features), (len(features),), generator=draw)]

    value = _frechet(ours, theirs)
    half = NORMAL * torch.tensor([_frechet(again(ours), again(theirs)) for _ in range(resamples)]).std().item()
    return {"value": value, "low": max(0.0, value - half), "high": value + half, "n": least}


def _frechet(ours: Tensor, theirs: Tensor) -> float:
    metric = FrechetInceptionDistance(feature=_Given(ours.shape[1]))
    metric.set_dtype(torch.float64)
    metric.update(theirs, real=True)
    metric.update(ours, real=False)
    return max(0.0, metric.compute().item())


def _check_features(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features are {tuple(features.shape)}, the reference {tuple(reference.shape)}; "
            "both must be (pictures, features) of one judge: see judge_features"
        )
    return features.double().cpu(), reference.double().cpu()
