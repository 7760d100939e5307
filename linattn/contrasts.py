"""Compare two rows picture by picture and seed by seed: a contrast with its 95 % interval.

- Two rows of one teacher share pictures, noise and, for one seed, the order of the training. Only
  what differs between them stays in a paired interval: 2 to 4 times narrower than two intervals
  side by side, at no cost.
- With several seeds the bootstrap draws seeds, then pictures. All seeds are measured on the same
  pictures, so the pictures of a draw are those of all its seeds (Owen 2007, "The pigeonhole
  bootstrap"). Student's t over the seeds stands beside it, and the wider of the two is taken.
- With one seed the contrast is of two trainings. Two seeds of one student differ too: by 2.6 % of
  the error (standard deviation over 3 seeds of lit), which pictures alone do not show.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from linattn.intervals import beyond, seeds_half_width

DRAWS = 10_000  # the smallest p is 2 of as many, so that Holm can tell 250 pairs
HELD = 1 << 24  # counts that a bootstrap holds, 128 MB: beyond 1,677 pictures it takes fewer draws
SEED = 0  # of all bootstraps, so that a page is the same whenever it is rendered
CLOSE = 0.01  # between the teacher's squares of two machines, whose sums differ in their order
LEAST = 1e-30  # of a sum: no ratio and no logarithm of zero

Levels = tuple[tuple[float, ...], ...]  # levels x pictures
Key = TypeVar("Key", bound=Hashable)
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Sums:
    """Hold what each picture adds to a measure, above and below the fraction line.

    The measure is the mean over levels of summed numerators over summed denominators.
    """

    numerators: tuple[tuple[int, Levels], ...]  # by training seed
    denominators: Levels  # the same for all rows that can be compared

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(seed for seed, _ in self.numerators)

    @property
    def pictures(self) -> int:
        return len(self.denominators[0]) if self.denominators else 0


@dataclass(frozen=True)
class Contrast:
    """Hold how two rows differ: a ratio, which is 1 between equals, or a difference, which is 0."""

    value: float
    low: float  # of the 95 % interval
    high: float
    p: float  # two-sided, of no difference
    pictures: int
    seeds: tuple[int, ...]  # that both rows have


# What a result keeps


def error_sums(result: Mapping[str, Any]) -> Sums | None:
    """Return the sums of a result's error, or None where it keeps none."""
    kept = result.get("tally")
    if not kept:
        return None
    by_seed = [(int(seed), _levels(entry["error"])) for seed, entry in kept["seeds"].items()]
    return Sums(tuple(by_seed), _levels(kept["teacher"]))


def mark_sums(result: Mapping[str, Any], mark: str) -> Sums | None:
    """Return the sums of a mark, such as shape, or None where a result keeps none."""
    kept = (result.get("tally") or {}).get("seeds") or {}
    texts = {int(seed): entry["marks"].get(mark) for seed, entry in kept.items()}
    if not texts or None in texts.values():
        return None
    by_seed = [(seed, (tuple(map(float, text)),)) for seed, text in texts.items()]
    (pictures,) = by_seed[0][1]
    return Sums(tuple(by_seed), ((1.0,) * len(pictures),))


def _levels(lists: list[list[float]]) -> Levels:
    return tuple(tuple(pictures) for pictures in lists)


# Contrasts


def problem(first: Sums, second: Sums) -> str:
    """Say why two rows cannot be compared in pairs, or nothing."""
    sizes = [(len(sums.denominators), sums.pictures) for sums in (first, second)]
    if sizes[0] != sizes[1]:
        return (
            f"the rows have {sizes[0]} and {sizes[1]} levels and pictures; evaluate both with the "
            "same settings"
        )
    if sizes[0][1] < 2:
        return f"the rows have {sizes[0][1]} picture; evaluate at least 2"
    if not np.allclose(first.denominators, second.denominators, rtol=CLOSE, atol=0):
        return (
            "the teacher's predictions differ between the rows; evaluate both with one seed and "
            "one teacher"
        )
    if not _common(first, second):
        return (
            f"the rows have seeds {first.seeds} and {second.seeds}; train both with a common seed"
        )
    return ""


def _common(first: Sums, second: Sums) -> tuple[int, ...]:
    return tuple(seed for seed in first.seeds if seed in second.seeds)


@functools.lru_cache(maxsize=1024)
def compared(first: Sums, second: Sums) -> Contrast:
    """Return the ratio of the first row's error to the second's, over the seeds of both.

    It is the geometric mean over seeds.
    """
    logs = _contrast(first, second, _log)
    value, low, high = (math.exp(end) for end in (logs.value, logs.low, logs.high))
    return dataclasses.replace(logs, value=value, low=low, high=high)


@functools.lru_cache(maxsize=1024)
def differing(first: Sums, second: Sums) -> Contrast:
    """Return the first row's share less the second's, averaged over the seeds of both.

    Shares may be zero, so that they have no ratio.
    """
    return _contrast(first, second, _same)


def _log(values: Array) -> Array:
    return np.log(np.maximum(values, LEAST))


def _same(values: Array) -> Array:
    return values


def _contrast(first: Sums, second: Sums, scale: Callable[[Array], Array]) -> Contrast:
    """Return the difference of two rows on a scale, with the wider of its two intervals."""
    if reason := problem(first, second):
        raise ValueError(reason)
    seeds = _common(first, second)
    differences = scale(_of_seeds(first, seeds)) - scale(_of_seeds(second, seeds))
    exact, drawn = differences[0].tolist(), differences[1:]  # (seeds,), (draws, seeds)
    value = statistics.mean(exact)
    low, high, p = _bootstrapped(np.take_along_axis(drawn, _seed_draws(*drawn.shape), 1).mean(1))
    if len(seeds) > 1:
        half_width, p_by_t = _by_student(exact)
        p = max(p, p_by_t)
        if 2 * half_width > high - low:
            low, high = value - half_width, value + half_width
    return Contrast(value, low, high, p, first.pictures, seeds)


def _of_seeds(sums: Sums, seeds: tuple[int, ...]) -> Array:
    return _measures(sums)[:, [sums.seeds.index(seed) for seed in seeds]]


@functools.lru_cache(maxsize=256)
def _measures(sums: Sums) -> Array:
    """Return the measure of all pictures, then of each draw's: (1 + draws, seeds)."""
    counts = _counts(sums.pictures)
    sizes = np.maximum(counts @ np.array(sums.denominators).T, LEAST)  # (1 + draws, levels)
    by_seed = [counts @ np.array(levels).T / sizes for _, levels in sums.numerators]
    return np.stack([ratios.mean(1) for ratios in by_seed], 1)


@functools.lru_cache(maxsize=2)
def _counts(pictures: int) -> Array:
    """Count how often each draw takes a picture; the first takes each once: (1 + draws, pictures).

    All rows share the draws, which pairs them.
    """
    draws = min(DRAWS, HELD // pictures)
    shares = np.full(pictures, 1 / pictures)
    drawn = np.random.default_rng(SEED).multinomial(pictures, shares, draws)
    return np.concatenate([np.ones((1, pictures)), drawn.astype(np.float64)])


def _seed_draws(draws: int, seeds: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Draw the seeds of each draw: (draws, seeds)."""
    return np.random.default_rng((SEED, seeds)).integers(seeds, size=(draws, seeds))


def _bootstrapped(drawn: Array) -> tuple[float, float, float]:
    """Return the 95 % percentile interval of draws, and their two-sided p of no difference."""
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    beyond_zero = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return low, high, min(1.0, 2 * (beyond_zero + 1) / (len(drawn) + 1))


def _by_student(values: list[float]) -> tuple[float, float]:
    """Return the half-width of a mean over seeds and its p of no difference, by Student's t."""
    half_width, error = seeds_half_width(values), statistics.stdev(values) / math.sqrt(len(values))
    if not error:
        return half_width, float(not any(values))
    return half_width, beyond(statistics.mean(values) / error, len(values) - 1)


# Several contrasts


def holm(p: Mapping[Key, float]) -> dict[Key, float]:
    """Return the p of each contrast after Holm's correction for their number.

    Of those below .05 one or more is wrong in at most 5 % of cases.
    """
    adjusted, largest = {}, 0.0
    for index, key in enumerate(sorted(p, key=lambda key: p[key])):
        largest = max(largest, min(1.0, (len(p) - index) * p[key]))
        adjusted[key] = largest
    return adjusted
