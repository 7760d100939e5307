"""The advice as one figure: the time of a whole step against the side of the picture."""

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import FuncFormatter, NullFormatter

from linattn.advise.advice import FORWARD, Advice, Point
from linattn.advise.verdict import sentence
from linattn.report.figures.canvas import drawn, finish, new_figure
from linattn.report.looks import looks
from linattn.report.numbers import seconds
from linattn.report.picture import FAINT, PAPER, SOFT, Look, Picture

OUTSIDE = "outside attention"
# of softmax's implementations, which have no hue
DASHES = ("-", (0, (4, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.4, 1.2, 1.4)), (0, (2, 2)))


@drawn
def steps(advice: Advice, mode: str = FORWARD) -> Picture:
    """Draw a line for each path; hollow points were not run but estimated."""
    figure, axis = new_figure(height=4.3)
    outside = [advice.outside_at(mode, side).seconds for side in advice.sides]
    axis.fill_between(advice.sides, outside, color=FAINT, label=OUTSIDE, lw=0)
    styles = _styles(advice, mode)
    for label, look in styles.items():
        points = [point for point in advice.points if (point.mode, point.path) == (mode, label)]
        _line(axis, [point for point in points if point.step is not None], label, look)
    axis.set(xscale="log", yscale="log", xlabel="side of the picture, px", ylabel="one step")
    axis.set_ylim(bottom=min(outside) / 2)
    axis.set_xticks(advice.sides, [str(side) for side in advice.sides])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))
    axis.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside lower center", ncols=3, handlelength=2.4, columnspacing=1.4)
    return finish(figure, described(advice, mode))


def described(advice: Advice, mode: str = FORWARD) -> str:
    """Return the figure's alt text."""
    about = f"Time of one step of {advice.model} against the side, log axes, {mode}, on"
    return f"{about} {advice.device}. {sentence(advice, mode)}"


def _styles(advice: Advice, mode: str) -> dict[str, Look]:
    """Return the look of every path: grey for softmax, its own hue for an operator."""
    operators = {p.path: p.operator for p in advice.points if p.mode == mode}
    softmax = [label for label, operator in operators.items() if not operator]
    greys = {
        label: Look(SOFT, "o", DASHES[number % len(DASHES)], False)
        for number, label in enumerate(softmax)
    }
    hued = {label: operator for label, operator in operators.items() if operator}
    return {**greys, **looks(hued)}


def _line(axis: Any, points: Sequence[Point], label: str, look: Look) -> None:
    """Draw the line of a path, with hollow markers where a point was estimated."""
    sides, times = [point.side for point in points], [point.step for point in points]
    axis.plot(sides, times, ls=look.dash, color=look.colour, marker=look.marker, label=label)
    estimated = [point for point in points if point.estimated]
    sides, times = [point.side for point in estimated], [point.step for point in estimated]
    hollow = {"mfc": PAPER, "mec": look.colour, "mew": 1.4, "zorder": 3}
    axis.plot(sides, times, look.marker, color=look.colour, **hollow)
