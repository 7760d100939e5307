"""Make results: {"value", "low", "high", "n"}, a value with its 95 % interval and its pictures.

- A mean carries a percentile bootstrap over pictures from a seed. A count of right and wrong
  carries Wilson's interval.
- The interval is None where a single picture cannot give one.
- No result holds infinity or NaN, so that every result can be stored as strict JSON.
"""

import math
from collections.abc import Callable
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
