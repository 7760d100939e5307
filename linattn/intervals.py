"""A result is a value with its 95 % interval and its number of pictures: {"value", "low", "high", "n"}.

- Means carry a percentile bootstrap over pictures from a seed; counts of right and wrong carry Wilson's interval.
- An interval that one picture cannot give is None.
- Nothing here is infinite or NaN, so that every result can be stored as strict JSON.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Result = dict[str, Any]

DRAWN = 1 << 22  # values that a bootstrap holds at once
NORMAL = 1.959964  # half the width of a 95 % interval, in standard deviations


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
