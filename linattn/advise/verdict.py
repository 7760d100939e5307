"""From which side an operator pays, and the sentence that says so."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from linattn.advise.advice import BACKWARD, Advice, Point
from linattn.report.numbers import seconds, short


@dataclass(frozen=True)
class Crossover:
    """Say from which side on an operator's attention is faster than the fastest softmax."""

    operator: str  # its label
    side: float | None  # pixels, between two sides interpolated in logarithms; None: at none
    everywhere: bool  # faster at the smallest side already, so that the true side lies below
    estimated: bool  # one of the points that decide was not run


def fastest(points: Sequence[Point]) -> Point | None:
    """Return the point with the least time, or None where there is none."""
    timed = [point for point in points if point.seconds is not None]
    return min(timed, key=_seconds, default=None)


def _seconds(point: Point) -> float:
    return math.inf if point.seconds is None else point.seconds


def softmax_at(advice: Advice, mode: str, side: int) -> Point | None:
    """Return the fastest softmax of a side."""
    return fastest([point for point in advice.at(mode, side) if point.is_softmax])


def operator_at(advice: Advice, mode: str, side: int) -> Point | None:
    """Return the fastest operator of a side."""
    return fastest([point for point in advice.at(mode, side) if not point.is_softmax])


def ratio(advice: Advice, point: Point | None) -> float:
    """Return how many times faster a point's attention is than softmax's; 0 without a time.

    Where no softmax runs, an operator that runs is faster without bounds.
    """
    if point is None or point.seconds is None:
        return 0.0
    dense = softmax_at(advice, point.mode, point.side)
    return math.inf if dense is None else _seconds(dense) / point.seconds


def pays(advice: Advice, mode: str) -> list[Crossover]:
    """Return for every operator from which side on it pays, at all larger sides too."""
    labels = dict.fromkeys(p.path for p in advice.points if not p.is_softmax and p.mode == mode)
    return [_pays(advice, mode, label) for label in labels]


def _pays(advice: Advice, mode: str, label: str) -> Crossover:
    points = [_named(advice.at(mode, side), label) for side in advice.sides]
    ratios = [ratio(advice, point) for point in points]
    first = len(ratios)
    while first and ratios[first - 1] > 1:
        first -= 1
    if first == len(ratios):
        return Crossover(label, None, False, _is_estimated(advice, points[-1:]))
    if not first:
        return Crossover(label, advice.sides[0], True, _is_estimated(advice, points[:1]))
    side = between(advice.sides[first - 1 : first + 1], ratios[first - 1 : first + 1])
    return Crossover(label, side, False, _is_estimated(advice, points[first - 1 : first + 1]))


def _named(points: Sequence[Point], label: str) -> Point:
    return next(point for point in points if point.path == label)


def _is_estimated(advice: Advice, points: Sequence[Point | None]) -> bool:
    """Say whether one of the points, or the softmax beside it, was not run."""
    deciding = [point for point in points if point is not None]
    beside = [softmax_at(advice, point.mode, point.side) for point in deciding]
    return any(point is not None and point.estimated for point in (*deciding, *beside))


def between(sides: Sequence[int], ratios: Sequence[float]) -> float:
    """Return the side at which a ratio is 1, on a straight line of logarithms.

    A ratio of 0 or without bounds has no logarithm; the larger side is returned then.
    """
    (low, high), (below, above) = sides, ratios
    if below <= 0 or math.isinf(above):
        return float(high)
    share = -math.log(below) / (math.log(above) - math.log(below))
    return low * (high / low) ** share


def sentence(advice: Advice, mode: str) -> str:
    """Say from which side anything pays, and what the largest side gains."""
    opening = "Forward and backward. " if mode == BACKWARD else ""
    return f"{opening}{_beginning(advice, mode)} {_at_the_end(advice, mode)}"


def _beginning(advice: Advice, mode: str) -> str:
    best = [operator_at(advice, mode, side) for side in advice.sides]
    ratios = [ratio(advice, point) for point in best]
    first = next((index for index, value in enumerate(ratios) if value > 1), None)
    if first is None:
        dense = softmax_at(advice, mode, advice.sides[-1])
        mark = _mark(_is_estimated(advice, best))
        return f"Up to {_px(advice.sides[-1])} nothing here is faster than {_name(dense)}{mark}."
    winner = best[first]
    if not first:
        dense = softmax_at(advice, mode, advice.sides[0])
        mark = _mark(_is_estimated(advice, best[:1]))
        smallest = _px(advice.sides[0])
        return f"At {smallest} {_name(winner)} is faster than {_name(dense)} already{mark}."
    dense = softmax_at(advice, mode, advice.sides[first - 1])
    crossing = between(advice.sides[first - 1 : first + 1], ratios[first - 1 : first + 1])
    mark = _mark(_is_estimated(advice, best[first - 1 : first + 1]))
    return (
        f"Below {_about(crossing)} nothing here is faster than {_name(dense)}; "
        f"from there on {_name(winner)} is{mark}."
    )


def _at_the_end(advice: Advice, mode: str) -> str:
    """Compare the whole steps of the largest side."""
    side = advice.sides[-1]
    dense, best = softmax_at(advice, mode, side), operator_at(advice, mode, side)
    outside = advice.outside_at(mode, side)
    if best is None or best.step is None:
        return f"At {_px(side)} no operator runs."
    with_best = f"At {_px(side)} a step with {_name(best)} takes {seconds(best.step)}"
    if dense is None or dense.step is None:
        return f"{with_best}, and no softmax runs{_mark(best.estimated or outside.estimated)}."
    times, most = dense.step / best.step, dense.step / outside.seconds
    mark = _mark(dense.estimated or best.estimated or outside.estimated)
    return (
        f"{with_best} and one with {_name(dense)} {seconds(dense.step)}: {short(times)} times, "
        f"where Amdahl's limit is {short(most)}{mark}."
    )


def _name(point: Point | None) -> str:
    return "softmax, which does not run" if point is None else point.path


def _px(side: float) -> str:
    return f"{side:.0f} px"


def _about(side: float) -> str:
    """Write an interpolated side with two digits, as its precision is no better."""
    return f"about {float(f'{side:.2g}'):.0f} px"


def _mark(estimated: bool) -> str:
    return " (estimated)" if estimated else ""
