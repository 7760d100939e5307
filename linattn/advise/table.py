"""The advice as lines of text: a table for each side, and the sentences."""

from collections.abc import Iterator, Sequence

from linattn.advise.advice import FORWARD, Advice, Outside, Point
from linattn.advise.verdict import Crossover, pays, ratio, sentence
from linattn.report.numbers import seconds, short

HEAD = ("attention by", "time", "faster", "whole step", "faster", "memory", "")
ESTIMATED = "estimated"


def lines(advice: Advice) -> Iterator[str]:
    """Yield the lines that the terminal and docs/advise.md show."""
    threads = advice.facts["hardware"]["threads"]
    yield f"{advice.model}: {advice.layers} self-attentions, on {advice.device}, {advice.dtype}"
    if advice.facts["hardware"]["gpu"] is None:
        unit = "thread" if threads == 1 else "threads"
        yield f"{threads} {unit} of {advice.facts['hardware']['cores']} cores"
    for mode in advice.modes:
        for side in advice.sides:
            yield ""
            yield _headline(advice, mode, side)
            yield from _aligned([HEAD, *_entries(advice, mode, side)])
        yield ""
        yield from _aligned([("operator", "pays from"), *_crossovers(advice, mode)])
        yield ""
        yield sentence(advice, mode)
    if advice.missing:
        yield ""
    for name, reason in advice.missing.items():
        yield f"Not here: {name}, {reason}."


def _headline(advice: Advice, mode: str, side: int) -> str:
    outside, points = advice.outside_at(mode, side), advice.at(mode, side)
    shown = "" if mode == FORWARD else f", {mode}"
    return (
        f"{side} px, {points[0].tokens:,} tokens{shown}; outside the attention "
        f"{seconds(outside.seconds)}{_note(outside)}"
    )


def _note(outside: Outside) -> str:
    return f" ({ESTIMATED} by the rate of a smaller side)" if outside.estimated else ""


def _entries(advice: Advice, mode: str, side: int) -> Iterator[tuple[str, ...]]:
    """Yield the cells of every path, softmax first."""
    dense = [point.step for point in advice.at(mode, side) if point.is_softmax and point.step]
    for point in advice.at(mode, side):
        if point.seconds is None or point.step is None:
            yield point.path, "none", "", "none", "", "", point.skipped
            continue
        yield (
            point.path,
            seconds(point.seconds),
            _times(ratio(advice, point), bool(dense)),
            seconds(point.step),
            _times(min(dense) / point.step if dense else 0, bool(dense)),
            _bytes(point),
            ESTIMATED if point.estimated else "",
        )


def _times(value: float, comparable: bool) -> str:
    return f"{short(value)} x" if comparable else ""


def _bytes(point: Point) -> str:
    if point.bytes is None:
        return ""
    return f"{point.bytes / 1e9:.3g} GB" if point.bytes >= 1e9 else f"{point.bytes / 1e6:.3g} MB"


def _crossovers(advice: Advice, mode: str) -> Iterator[tuple[str, str]]:
    for crossover in pays(advice, mode):
        mark = f", {ESTIMATED}" if crossover.estimated else ""
        yield crossover.operator, f"{_from(crossover, advice.sides)}{mark}"


def _from(crossover: Crossover, sides: Sequence[int]) -> str:
    if crossover.side is None:
        return f"not up to {sides[-1]} px"
    if crossover.everywhere:
        return f"{sides[0]} px or less"
    return f"{crossover.side:.0f} px"


def _aligned(cells: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield the cells of each line in columns; all but the first and the last to the right."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line in cells:
        texts = []
        for column, (text, width) in enumerate(zip(line, widths, strict=True)):
            is_outer = column in (0, len(line) - 1)
            texts.append(text.ljust(width) if is_outer else text.rjust(width))
        yield "  ".join(texts).rstrip()
