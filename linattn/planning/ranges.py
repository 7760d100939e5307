"""Split the noise into ranges, in each of which a layer may have another operator."""

from collections.abc import Sequence
from dataclasses import dataclass

from linattn.names import short


@dataclass(frozen=True)
class Range:
    """Hold the noise levels from `until` up to the range before, at which errors are measured."""

    until: float
    levels: tuple[float, ...]
    share: float  # of all levels that are measured


def split(until: Sequence[float], levels: Sequence[float]) -> list[Range]:
    """Return the ranges from noise to picture; the last one ends at 0.

    Args:
        until: noise levels between ranges, falling; none makes one range of all levels.
        levels: noise levels at which errors are measured.
    """
    ends = [*until, 0.0]
    if ends != sorted(set(ends), reverse=True) or not all(0 <= end < 1 for end in ends):
        raise ValueError(f"until is {short(until)}; it holds falling noise levels between 1 and 0")
    ranges, before = [], float("inf")
    for end in ends:
        inside = tuple(level for level in levels if end <= level < before)
        if not inside:
            raise ValueError(
                f"no noise level of {short(levels)} lies from {end} up to {min(before, 1)}: "
                "measure one there, or leave that until out"
            )
        ranges.append(Range(end, inside, len(inside) / len(levels)))
        before = end
    return ranges
