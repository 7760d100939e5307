"""The canvas of every figure: its axes, its look, and its PNG."""

import functools
import io
from collections.abc import Callable
from typing import Any, ParamSpec

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from linattn.report.picture import DPI, LOOK, SOFT, WIDTH, Look, Picture

_Arguments = ParamSpec("_Arguments")
REFERENCE = Look(SOFT, "*", "-", False)  # of a point without a look


def new_figure(
    width: float = WIDTH, height: float = 3.5, down: int = 1, across: int = 1, **options: Any
) -> tuple[Figure, Any]:
    """Return a figure and its axes, `down` rows of `across` panels."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(down, across, **options)


def finish(figure: Figure, alt: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return Picture(buffer.getvalue(), " ".join(alt.split()))


def drawn(function: Callable[_Arguments, Picture]) -> Callable[_Arguments, Picture]:
    """Make a function draw in the project's look, whatever the notebook has set."""

    @functools.wraps(function)
    def draw(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Picture:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(LOOK)
            return function(*args, **kwargs)

    return draw
