"""What the judge says of many pictures: how often it finds what was asked for, and how far two sets lie apart for it.

`judge_kid` and `judge_fid` live in the feature space of this repository's judge: they rank rows of one table and are
never comparable to a published (Inception) KID or FID.
"""

import math

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_kernel

from linattn.intervals import NORMAL, Result, wilson
from linattn.world.drawing import COLOURS, SHAPES

FID_PICTURES = 2048  # below it the bias of FID is larger than what it should tell apart
KID_SUBSET = 1000  # of larger sets: the size that published KIDs take


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
    shape, colour = 1 / len(SHAPES), 1 / len(COLOURS)
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
