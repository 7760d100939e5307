"""Make results: {"value", "low", "high", "n"}, a value with its 95 % interval and its pictures.

- A mean carries a percentile bootstrap over pictures from a seed. A count of right and wrong
  carries Wilson's interval.
- A mean of a few training seeds is bounded by Student's t.
- The interval is None where a single picture cannot give one.
- No result holds infinity or NaN, so that every result can be stored as strict JSON.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from linattn.finite import finite
from linattn.names import short
from linattn.reader import between, checked, typed

Result = dict[str, Any]

DRAWN = 1 << 22  # resampled values that a bootstrap holds at once
RESAMPLES = 10**6  # the most that a bootstrap is drawn from
NORMAL = 1.959964  # half the width of a 95 % interval, in standard deviations
# 97.5 % of Student's t by degrees of freedom, since a handful of training seeds says little about
# their spread.
STUDENT_T = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
}


def mean_over(values: Tensor) -> Tensor:
    """Average each resample, which is the default statistic: (resamples, n) -> (resamples,)."""
    return values.mean(1)


@checked(seed=typed(), statistic=typed(), resamples=between(1, RESAMPLES))
def bootstrap(
    values: Tensor,
    seed: int = 0,
    statistic: Callable[[Tensor], Tensor] = mean_over,
    resamples: int = 1000,
) -> tuple[float | None, float | None]:
    """Return the 95 % percentile interval of a statistic by resampling pictures.

    The first dimension of `values` is that of pictures. `statistic` maps (resamples, n, ...) to
    (resamples,). Fewer than two pictures give (None, None).
    """
    values = _as_values(values)
    if len(values) < 2:
        return None, None
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(len(values), (resamples, len(values)), generator=generator)
    # In chunks, because 1,000 resamples of 50,000 pictures would take 400 MB at once.
    chunk_size = max(1, DRAWN // values.numel())
    statistics = torch.cat([statistic(values[chunk]) for chunk in indices.split(chunk_size)])
    bounds = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(statistics, bounds).tolist()
    return low, high


def _as_values(values: Tensor) -> Tensor:
    """Return the values in float64 on the CPU, or raise where they are none or not finite."""
    try:
        numbers = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"values are {short(values)}; pass a tensor, whose first dimension is that of pictures"
        ) from None
    if numbers.ndim == 0 or numbers.is_complex() or (len(numbers) and not numbers.numel()):
        raise ValueError(
            f"values are {tuple(numbers.shape)} {numbers.dtype}; pass real numbers, whose first "
            "dimension is that of pictures"
        )
    return finite(numbers.double(), "values", "look for the picture that they are of")


@checked(seed=typed())
def summary(values: Tensor, seed: int = 0) -> Result:
    """Average over pictures, with a bootstrap interval."""
    values = _as_values(values)
    if len(values) == 0:
        raise ValueError("no values to summarise; evaluate at least 1 picture")
    low, high = bootstrap(values, seed)
    return {"value": values.mean().item(), "low": low, "high": high, "n": len(values)}


@checked(right=between(0), n=between(1))
def wilson(right: int, n: int) -> Result:
    """Return a share with Wilson's 95 % interval.

    The interval stays inside [0, 1] and is informative even for 1 picture.
    """
    if right > n:
        raise ValueError(f"{right} right of {n}; the count must be within 0..n")
    share, correction = right / n, NORMAL**2 / n
    centre = (share + correction / 2) / (1 + correction)
    deviation = math.sqrt(share * (1 - share) / n + correction / (4 * n))
    half_width = NORMAL * deviation / (1 + correction)
    low = 0.0 if right == 0 else max(0.0, centre - half_width)
    high = 1.0 if right == n else min(1.0, centre + half_width)
    return {"value": share, "low": low, "high": high, "n": n}


def shares(marks: Mapping[str, Tensor]) -> dict[str, Result]:
    """Count the pictures that are right in each mark, with Wilson's interval."""
    return {name: wilson(int(right.sum()), len(right)) for name, right in marks.items()}


def seeds_half_width(values: Sequence[float]) -> float:
    """Return half the 95 % interval of a mean over training seeds, by Student's t."""
    spread = statistics.stdev(values)
    return STUDENT_T.get(len(values) - 1, 2.2) * spread / math.sqrt(len(values))


def beyond(t: float, freedom: int) -> float:
    """Return the chance that Student's t lies farther from 0 than `t`.

    For whole degrees of freedom the integral is a finite sum: Abramowitz and Stegun 26.7.3, 26.7.4.
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    odd, cosine = freedom % 2, math.cos(angle)
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    within = total * math.sin(angle)
    return 1 - (2 / math.pi * (angle + within) if odd else within)
