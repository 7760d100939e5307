"""Compare rows of one teacher in pairs, on the same pictures, where their results keep the sums.

A row of a run that kept none, and a column without sums, are compared by intervals (ranking.py).
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from linattn.contrasts import (
    Contrast,
    Sums,
    compared,
    differing,
    error_sums,
    holm,
    mark_sums,
    problem,
)
from linattn.report.data import Data, Result
from linattn.report.words import listed

Compare = Callable[[Sums, Sums], Contrast]
Names = frozenset[str]

ERROR = "error"
MARKS = ("shape", "colour", "two_shapes", "two_colours", "relation")
CHANCE = 0.05  # that any pair of a teacher's rows is wrongly called apart
# Pictures of a pair. Of 600 pairs without a difference 95 % intervals held 1 in 80 % (4 pictures),
# 89 (8), 93 (16) and 93 (64): those of fewer are too narrow.
LEAST = 16
WITH = (
    "Errors and marks of two rows are compared on the same pictures: by a paired bootstrap, beside "
    "Student's t where both have several seeds, with Holm's correction over all pairs of a "
    "teacher's rows. Elsewhere intervals decide."
)
WITHOUT = (
    "The run keeps no sums of single pictures, so its rows are compared by their intervals and not "
    "in pairs."
)


@dataclass(frozen=True)
class Pair:
    """Hold how two rows compare, and what remains of it among all pairs of the teacher's rows."""

    contrast: Contrast
    p: float  # after Holm's correction
    pairs: int  # of all rows

    @property
    def apart(self) -> bool:
        return self.p < CHANCE


def pair(results: Mapping[str, Result], key: str, first: str, second: str) -> Pair | None:
    """Compare two rows of a teacher, or return None where they cannot be compared in pairs.

    The contrast of errors is a ratio, that of marks a difference.

    Args:
        results: all rows of the teacher by name.
        key: the measure.
        first: the name of the row above the fraction line.
        second: the name of the other.
    """
    sums = _sums(results, key)
    compare = compared if key == ERROR else differing
    corrected = _corrected(tuple(sums.items()), compare)
    names = frozenset((first, second))
    if names not in corrected:
        return None
    return Pair(compare(sums[first], sums[second]), corrected[names], len(corrected))


def of_teacher(data: Data, key: str, first: str, second: str) -> Pair | None:
    """Compare two students of a teacher among all that are done."""
    return pair({name: data.results[name] for name in data.done}, key, first, second)


def _sums(results: Mapping[str, Result], key: str) -> dict[str, Sums]:
    """Return the sums of the rows that keep enough of them."""
    kept = {}
    for name, result in results.items():
        if key == ERROR:
            sums = error_sums(result)
        else:
            sums = mark_sums(result, key) if key in MARKS else None
        if sums and sums.pictures >= LEAST:
            kept[name] = sums
    return kept


@functools.lru_cache(maxsize=64)
def _corrected(rows: tuple[tuple[str, Sums], ...], compare: Compare) -> dict[Names, float]:
    """Return the p of all pairs that can be compared, after Holm's correction."""
    p = {}
    for (first, ours), (second, theirs) in itertools.combinations(rows, 2):
        if not problem(ours, theirs):
            p[frozenset((first, second))] = compare(ours, theirs).p
    return holm(p)


# Words


def in_words(pair: Pair) -> str:
    """Say what a pair's errors show, as a clause."""
    contrast = pair.contrast
    ratio = f"{contrast.value:.2f} ({contrast.low:.2f} to {contrast.high:.2f}; {_chance(pair)})"
    return f"on the same {contrast.pictures} pictures their ratio is {ratio}, so {_verdict(pair)}"


def _chance(pair: Pair) -> str:
    p = f"p {pair.p:.2g}" if pair.p >= 0.001 else "p below 0.001"
    return f"{p} after Holm over {pair.pairs} pairs" if pair.pairs > 1 else p


def _verdict(pair: Pair) -> str:
    """Say whether the rows are apart; over one seed it is two trainings that are."""
    if not pair.apart:
        return "the order is open"
    seeds = listed([str(seed) for seed in pair.contrast.seeds])
    if len(pair.contrast.seeds) > 1:
        return f"they are apart over the training seeds {seeds}"
    return f"these two trainings are apart; seed {seeds} is their only one in common"


def note(teachers: Iterable[Data]) -> str:
    """Say how the rows of a page are compared; nothing where there are not two to compare."""
    several = [data for data in teachers if len(data.done) > 1]
    if not several:
        return ""
    return WITH if are_there(several) else WITHOUT


def are_there(teachers: Iterable[Data]) -> bool:
    """Say whether any two rows of one teacher can be compared in pairs."""
    return any(_rows_in_pairs(data) for data in teachers)


def _rows_in_pairs(data: Data) -> bool:
    sums = _sums({name: data.results[name] for name in data.done}, ERROR)
    return bool(_corrected(tuple(sums.items()), compared))
