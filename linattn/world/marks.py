"""Mark many pictures with the judge: count right shapes and colours, and compare two sets.

`judge_kid` and `judge_fid` use the feature space of this repository's judge. They rank rows of one
table and are never comparable to a published (Inception) KID or FID.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_kernel

from linattn.finite import finite
from linattn.intervals import NORMAL, RESAMPLES, Result, shares
from linattn.reader import between, checked, typed
from linattn.world.drawing import COLOURS, LABELS, SHAPES

# with fewer pictures the bias of FID exceeds the differences that it should show
FID_PICTURES = 2048
JUDGING: dict[str, Any] = {"judge": typed(), "pictures": typed(), "batch": between(1)}
FEATURES: dict[str, Any] = {"features": typed(), "reference": typed(), "seed": typed()}
KID_SUBSET = 1000  # subset size for larger sets, the size that published KIDs take


@checked(labels=typed(), **JUDGING)
@torch.no_grad()
def judge_marks(
    judge: nn.Module, pictures: Tensor, labels: Tensor, batch: int = 256
) -> tuple[Tensor, Tensor]:
    """Say whether the judge finds the label's shape and its colour: two booleans a picture."""
    if len(pictures) != len(labels) or len(pictures) == 0:
        raise ValueError(
            f"{len(pictures)} pictures and {len(labels)} labels; pass as many of each, at least 1"
        )
    _check_labels(labels)
    check_pictures(pictures)
    device = next(judge.parameters()).device
    shapes, colours = [], []
    batches = zip(pictures.split(batch), labels.to(device).split(batch), strict=True)
    for batch_pictures, batch_labels in batches:
        shape, colour = judge(batch_pictures.to(device).float()).right(batch_labels)
        shapes.append(shape)
        colours.append(colour)
    return torch.cat(shapes).cpu(), torch.cat(colours).cpu()


def _check_labels(labels: Tensor) -> None:
    """Refuse what are no classes of the world."""
    whole = not labels.is_floating_point() and labels.dtype != torch.bool
    if labels.ndim != 1 or not whole or labels.is_complex():
        raise ValueError(
            f"labels are {tuple(labels.shape)} {labels.dtype}; pass one whole number a picture"
        )
    if labels.min() < 0 or labels.max() >= len(LABELS):
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}; the world's are 0 to "
            f"{len(LABELS) - 1}"
        )


def check_pictures(pictures: Tensor) -> None:
    """Raise unless these are pictures that the judge can mark, all of them finite.

    Args:
        pictures: (pictures, 3, height, width), floats in [0, 1] or their 8 bits.
    """
    numbers = pictures.is_floating_point() or pictures.dtype == torch.uint8
    if pictures.ndim != 4 or pictures.shape[1] != 3 or not pictures.numel() or not numbers:
        raise ValueError(
            f"pictures are {tuple(pictures.shape)} {pictures.dtype}; pass at least one, as floats "
            "(pictures, 3, height, width) in [0, 1]"
        )
    finite(pictures, "values of the pictures", "look at the model that drew them")


@checked(labels=typed(), **JUDGING)
def judge_accuracy(
    judge: nn.Module, pictures: Tensor, labels: Tensor, batch: int = 256
) -> dict[str, Result]:
    """Count how often shape, colour and both are those of the label, with Wilson's intervals."""
    return shares(label_marks(judge, pictures, labels, batch))


@checked(labels=typed(), **JUDGING)
def label_marks(
    judge: nn.Module, pictures: Tensor, labels: Tensor, batch: int = 256
) -> dict[str, Tensor]:
    """Say of each picture whether shape, colour and both are those of the label, by mark."""
    shape, colour = judge_marks(judge, pictures, labels, batch)
    return {"shape": shape, "colour": colour, "both": shape & colour}


def chance() -> dict[str, float]:
    """Return the expected `judge_accuracy` of a model that ignores its label."""
    shape, colour = 1 / len(SHAPES), 1 / len(COLOURS)
    return {"shape": shape, "colour": colour, "both": shape * colour}


@checked(**JUDGING)
@torch.no_grad()
def judge_features(judge: nn.Module, pictures: Tensor, batch: int = 256) -> Tensor:
    """Return the judge's features (n, features) in float64 on the CPU.

    Compute the teacher's features once and share them between all rows.
    """
    check_pictures(pictures)
    device = next(judge.parameters()).device
    batches = pictures.split(batch)
    return torch.cat([judge(chunk.to(device).float()).features.double().cpu() for chunk in batches])


class _PrecomputedFeatures(nn.Module):
    """Stand in for torchmetrics' feature extractor where the features are computed already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


@checked(subsets=between(1, RESAMPLES), subset_size=between(2), **FEATURES)
def judge_kid(
    features: Tensor,
    reference: Tensor,
    seed: int = 0,
    subsets: int = 100,
    subset_size: int | None = None,
) -> Result:
    """Estimate the kernel distance of two sets of judge features whose rows are pairs.

    The pictures of a pair have the same index, label and noise.

    - KID's usual estimate is far too low for pairs (-9 for a set against itself), because it counts
      the kernel of a picture and its partner as one of two unrelated pictures. Without those terms
      the estimate is zero for two equal sets, and unbiased where pairs are drawn independently.
    - Labels dealt evenly are not quite independent: unrelated pictures share a label less often
      than by chance, so differences between classes weigh less (a third, at 128 pictures of 60
      classes). All rows of a table are dealt the same labels, so this estimate ranks rows and is
      not the distance of two distributions.
    - The features are divided by the reference's root mean square, because a cubic kernel depends
      on their scale.
    - The interval is that of the delete-half jackknife: the spread over random halves.
    """
    ours, theirs = check_features(features, reference)
    n = len(ours)
    if len(theirs) != n:
        raise ValueError(
            f"{n} pictures and a reference of {len(theirs)}; KID here compares pairs, so as many "
            "of each"
        )
    if n < 4 and subset_size is None:
        return _unknown(n, f"{n} pictures; KID needs 4")
    size = min(n // 2, KID_SUBSET) if subset_size is None else subset_size
    if size > n:
        raise ValueError(f"subsets of {size} from {n} pictures; choose 2 to {n}")
    scale = theirs.square().mean().sqrt().clamp_min(1e-12)
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = ours / scale, theirs / scale
    subset_indices = [torch.randperm(n, generator=generator)[:size] for _ in range(subsets)]
    values = torch.stack([_paired_mmd(ours[chosen], theirs[chosen]) for chosen in subset_indices])
    mean = values.mean().item()
    if size == n:
        return {"value": mean, "low": None, "high": None, "n": n, "subset_size": size}
    half_width = NORMAL * values.std(correction=0).item() * math.sqrt(size / (n - size))
    low, high = mean - half_width, mean + half_width
    return {"value": mean, "low": low, "high": high, "n": n, "subset_size": size}


def _unknown(n: int, reason: str) -> Result:
    return {"value": None, "low": None, "high": None, "n": n, "reason": reason}


def _paired_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy over all pairs of different rows.

    This is lemma 6 of Gretton et al. (2012).
    """
    kernels = (
        poly_kernel(x, x) + poly_kernel(y, y) - poly_kernel(x, y) - poly_kernel(y, x)
    )  # (n, n)
    return (kernels.sum() - kernels.trace()) / (len(x) * (len(x) - 1))


@checked(resamples=between(2, RESAMPLES), **FEATURES)
def judge_fid(features: Tensor, reference: Tensor, seed: int = 0, resamples: int = 40) -> Result:
    """Return the Frechet distance of two sets of judge features, for at least 2,048 pictures a set.

    A bootstrap of FID is biased upwards, since a resample has fewer distinct pictures. Only its
    spread is used: the interval is value +- 1.96 standard deviations over resamples.
    """
    ours, theirs = check_features(features, reference)
    n = min(len(ours), len(theirs))
    if n < FID_PICTURES:
        reason = f"{n} pictures; from {FID_PICTURES} on, below that its bias hides the differences"
        return _unknown(n, reason)
    generator = torch.Generator().manual_seed(seed)

    def resample(features: Tensor) -> Tensor:
        return features[torch.randint(len(features), (len(features),), generator=generator)]

    value = _frechet(ours, theirs)
    distances = [_frechet(resample(ours), resample(theirs)) for _ in range(resamples)]
    half_width = NORMAL * torch.tensor(distances).std().item()
    return {"value": value, "low": max(0.0, value - half_width), "high": value + half_width, "n": n}


def _frechet(ours: Tensor, theirs: Tensor) -> float:
    """Return torchmetrics' Frechet distance in float64, at least zero."""
    metric = FrechetInceptionDistance(feature=_PrecomputedFeatures(ours.shape[1]))
    metric.set_dtype(torch.float64)
    metric.update(theirs, real=True)
    metric.update(ours, real=False)
    return max(0.0, metric.compute().item())


def check_features(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sets in float64 on the CPU; those of different networks are refused.

    Args:
        features: (pictures, features), all of them finite.
        reference: others of the same network.
    """
    for values in (features, reference):
        if not values.is_floating_point():
            raise ValueError(f"features are {values.dtype}; pass what judge_features returned")
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features are {tuple(features.shape)}, the reference {tuple(reference.shape)}; "
            "both must be (pictures, features) of one judge: see judge_features"
        )
    sets = (features.double().cpu(), reference.double().cpu())
    for features in sets:
        finite(features, "features", "look at the pictures that they are of")
    return sets
