"""Figures of quality, cost, speed and training."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from linattn.evaluation.growth import exponents
from linattn.report.figures import inputs
from linattn.report.figures.canvas import REFERENCE, drawn, finish, new_figure
from linattn.report.numbers import seconds, short
from linattn.report.picture import DPI, FAINT, INK, LETTER, PAPER, SOFT, WIDTH, Look, Picture


@drawn
def quality_cost(
    points: Sequence[Mapping[str, Any]],
    *,
    x: str,
    y: str,
    log: bool = True,
    log_y: bool = False,
    markers: Mapping[str, str] | None = None,
    line: Sequence[Mapping[str, Any]] = (),
    line_name: str = "",
    height: float = 3.9,
) -> Picture:
    """Draw points {name, x, y, low?, high?, look?}; those without a look are grey references.

    `height` is in inches: many points need room for their names. `markers` maps the names of a
    legend to markers, where these mean something. `line` has points of one thing, which a line
    joins. A logarithmic axis shows no point at 0 or below; the alt text names those that are left
    out.
    """
    points, line, missing = _on_axes(points, line, ["x"] * log + ["y"] * log_y)
    figure, axis = new_figure(height=height)
    if line:
        ends = [point["x"] for point in line], [point["y"] for point in line]
        axis.plot(*ends, color=SOFT, lw=1.2, ls="--", label=line_name, zorder=2)
    for point in (*points, *line):
        _errorbar(axis, point)
    every = [*points, *line]
    if log:
        axis.set_xscale("log")
        if line:  # a draw's cost spans less than a decade, which may hold a single power of ten
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axis.xaxis.set_minor_formatter(NullFormatter())
        values = [point["x"] for point in every]
        axis.set_xlim(min(values) / 1.5, max(values) * 2.1)
    if log_y:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value, 2)))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel=x, ylabel=y)
    axis.margins(y=0.12)
    for name, marker in (markers or {}).items():
        axis.plot([], [], marker, color=SOFT, label=name)
    if markers:
        figure.legend(loc="outside upper right", ncols=_columns(markers), handletextpad=0.2)
    elif line:
        figure.legend(loc="outside upper right")
    _label_points(figure, axis, every)
    alt = f"Scatter plot of {y} against {x}: {_in_words(points)}"
    alt += f"; without {', '.join(missing)}, at 0 or below on a log axis" if missing else ""
    return finish(figure, f"{alt}; {line_name}: {_in_words(line)}." if line else f"{alt}.")


def _on_axes(
    points: Sequence[Mapping[str, Any]], line: Sequence[Mapping[str, Any]], axes: Sequence[str]
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]], list[str]]:
    """Return the points and the line that axes can show, and the names of what they cannot."""
    for point in (*points, *line):
        for key in ("x", "y", "low", "high"):
            if key in ("x", "y") or point.get(key) is not None:
                inputs.number(point.get(key), f"{key} of {point['name']}")
    shown, missing = inputs.above_zero(points, axes)
    joined, missing_of_line = inputs.above_zero(line, axes)
    inputs.some(shown, "points")
    return shown, joined, missing + missing_of_line


def _columns(names: Collection[str]) -> int:
    """Return how many names of a legend fit beside one another, their marks included."""
    widest = max(map(len, names)) + 5
    return min(len(names), max(1, int(WIDTH / (widest * LETTER))))


def _errorbar(axis: Any, point: Mapping[str, Any]) -> None:
    """Draw a point, with its interval where it has one."""
    look, error = point.get("look") or REFERENCE, None
    if point.get("low") is not None:
        error = [[max(point["y"] - point["low"], 0)], [max(point["high"] - point["y"], 0)]]
    style = {"fmt": look.marker, "ms": 7.5, "mew": 1.6, "elinewidth": 1.1, "zorder": 3}
    axis.errorbar(point["x"], point["y"], error, **_colours(look), **style)


def _in_words(points: Sequence[Mapping[str, Any]]) -> str:
    texts = [f"{point['name']} {short(point['y'])} at {short(point['x'])}" for point in points]
    return "; ".join(texts)


def _colours(look: Look) -> dict[str, str]:
    """Return the colours of a line and of its markers, which may be hollow."""
    return {"color": look.colour, "mfc": PAPER if look.hollow else look.colour}


def _label_points(figure: Figure, axis: Any, points: Sequence[Mapping[str, Any]]) -> None:
    """Write names beside the points, moved down until none covers another."""
    figure.draw_without_rendering()
    step = 13.5 * DPI / 72 * 10.5 / 12
    placed: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda point: -point["y"]):
        x, y = axis.transData.transform((point["x"], point["y"]))
        width = len(point["name"]) * 0.62 * 9 * DPI / 72
        label_y = y
        beside = [other for begin, end, other in placed if x < end and begin < x + width]
        while any(abs(label_y - other) < step for other in beside):
            label_y -= step / 4
        placed.append((x, x + width, label_y))
        shift = (label_y - y) * 72 / DPI
        style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 9}
        style["color"] = _darker((point.get("look") or REFERENCE).colour)
        if abs(shift) > 9:
            style["arrowprops"] = {"arrowstyle": "-", "color": FAINT, "lw": 0.7, "shrinkB": 4}
        axis.annotate(point["name"], (point["x"], point["y"]), (9, shift), **style)


def _darker(colour: str) -> str:
    """Darken a hue until it is readable as text on white."""
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    luma = 0.299 * channels[0] + 0.587 * channels[1] + 0.114 * channels[2]
    scale = min(1.0, 105 / max(luma, 1))
    return "#" + "".join(f"{round(c * scale):02x}" for c in channels)


@drawn
def speed(
    timings: Sequence[Mapping[str, Any]], styles: Mapping[str, Look], baseline: str
) -> Picture:
    """Draw rows of `costs.time_operators`: time against tokens on log axes.

    Each line is named with its fitted exponent.
    """
    measured = [timing for timing in timings if timing["seconds"] is not None]
    inputs.some(measured, "times")
    for timing in measured:
        noun = f"the time of {timing['operator']} at {timing['tokens']} tokens"
        if not inputs.number(timing["seconds"], noun) > 0:
            raise ValueError(f"{noun} is {timing['seconds']}; it must be above 0")
    figure, axis = new_figure(height=4.3)
    lines, slopes = _series(timings), exponents(timings)
    labels, descriptions = [], []
    for name, (tokens, times) in lines.items():
        look = styles.get(name, Look(SOFT, "o", "-", False))
        style = {"ls": look.dash, "marker": look.marker, "mew": 1.4, "zorder": 3}
        width = 2.4 if name == baseline else 1.8
        axis.plot(tokens, times, lw=width, **_colours(look), **style)
        slope = slopes[name]
        fitted = "" if slope is None else f"  {slope:.2f}"
        # The baseline's own name is long; the alt text and the text beside the figure give it.
        label = "dense" if name == baseline else name
        labels.append({"name": f"{label}{fitted}", "x": tokens[-1], "y": times[-1], "look": look})
        exponent = f", exponent {slope:.2f}" if slope else ""
        last = f"{seconds(times[-1])} at {tokens[-1]:,} tokens"
        descriptions.append(f"{name} {last}{exponent}")
    axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="time of one call")
    _tokens_axis(axis, sorted(set().union(*(tokens for tokens, _ in lines.values()))))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))
    _label_points(figure, axis, labels)
    drawn = f"Time of one attention call against tokens, log axes, baseline {baseline}"
    return finish(figure, f"{drawn}: {'; '.join(descriptions)}.")


def _tokens_axis(axis: Any, ticks: Sequence[int]) -> None:
    """Name a few of the sizes, and leave room on the right for the names of the lines."""
    spacing = max(1, len(ticks) // 4)
    names = [f"{tick:,}" if index % spacing == 0 else "" for index, tick in enumerate(ticks)]
    axis.set_xticks(ticks, names)
    axis.minorticks_off()
    end = ticks[-1] * (ticks[-1] / ticks[0]) ** 0.62 if len(ticks) > 1 else ticks[0] * 4
    axis.set_xlim(ticks[0] / 1.25, end)


def _series(timings: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Return the tokens and the times of each operator, in the order of the rows."""
    lines: dict[str, tuple[list[int], list[float]]] = {}
    for row in sorted(timings, key=lambda row: row["tokens"]):
        if not row["seconds"]:  # too slow to be measured at this size
            continue
        tokens, times = lines.setdefault(row["operator"], ([], []))
        tokens.append(int(row["tokens"]))
        times.append(float(row["seconds"]))
    order = list(dict.fromkeys(row["operator"] for row in timings))
    return {name: lines[name] for name in order if name in lines}


@drawn
def training(
    curves: Mapping[str, Mapping[str, Sequence[float]]], styles: Mapping[str, Look], y: str = "loss"
) -> Picture:
    """Draw a panel for each student's {step, loss}: its line in colour, the others' in grey."""
    inputs.some(curves, "curves")
    for name, curve in curves.items():
        inputs.alike({"step": curve["step"], "loss": curve["loss"]}, f"the curve of {name}")
    columns = min(2, len(curves))
    down = -(-len(curves) // columns)
    height, shared = max(1.55 * down + 0.35, 2.6), {"sharex": True, "sharey": True}
    figure, axes = new_figure(WIDTH, height, down, columns, squeeze=False, **shared)
    for axis, name in zip(axes.flat, curves, strict=False):
        for other, curve in curves.items():
            if other != name:
                _curve(axis, curve, color=FAINT, lw=1)
        look, curve = styles.get(name, Look(INK, "o", "-", False)), curves[name]
        _curve(axis, curve, color=look.colour, lw=1.9)
        axis.set_title(name, color=_darker(look.colour), fontsize=9.5)
        axis.set_yscale("log")
        _number(axis.yaxis)
        axis.xaxis.set_major_locator(
            MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10])  # no half steps
        )
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    for axis in axes.flat[max(0, len(curves) - columns) : len(curves)]:
        axis.tick_params(labelbottom=True)  # the lowest panels, also where the last row is not full
    figure.supxlabel("step", fontsize=10)
    figure.supylabel(y, fontsize=10)
    losses = []
    for name, curve in curves.items():
        losses.append(f"{name} from {short(curve['loss'][0])} to {short(curve['loss'][-1])}")
    return finish(figure, f"Training curves, {y} by step on a log axis: {'; '.join(losses)}.")


def _number(axis: Any) -> None:
    """Write numbers on a logarithmic axis of x or y; within a decade they are evenly spaced."""
    low, high = sorted(axis.get_view_interval())
    within = high < 10 * low  # where a decade's locator may find none
    if within:
        axis.set_major_locator(MaxNLocator(4))
    digits = 3 if within else 2
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value, digits)))
    axis.set_minor_formatter(NullFormatter())


def _curve(axis: Any, curve: Mapping[str, Sequence[Any]], **style: Any) -> None:
    """Draw a line for each stage: layer by layer and end to end have different losses."""
    stages = curve.get("stage") or [""] * len(curve["step"])
    for stage in dict.fromkeys(stages):
        indices = [index for index, name in enumerate(stages) if name == stage]
        steps = [curve["step"][index] for index in indices]
        loss = _smooth([curve["loss"][index] for index in indices])
        axis.plot(steps, loss, marker="." if len(indices) == 1 else "", **style)


def _smooth(values: Sequence[float], share: float = 0.04) -> np.ndarray:
    """Return the running mean over a share of the steps; short curves do not change."""
    array = np.asarray(values, float)
    width = int(len(array) * share)
    if width < 2:
        return array
    total = np.cumsum(np.insert(array, 0, 0.0))
    ends = np.arange(1, len(array) + 1)
    begins = np.maximum(ends - width, 0)
    return (total[ends] - total[begins]) / (ends - begins)


@drawn
def by_noise(
    noise: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    styles: Mapping[str, Look],
    y: str,
    log: bool = True,
) -> Picture:
    """Draw a line for each student over the noise levels, where 0 is clean and 1 is pure noise."""
    inputs.some(lines, "lines")
    for name, values in lines.items():
        inputs.alike({"the noise levels": noise, name: values}, y)
    figure, axis = new_figure(height=4.0)
    for name, values in lines.items():
        look = styles.get(name, Look(SOFT, "o", (0, (1.2, 1.4)), False))
        style = {"ls": look.dash, "marker": look.marker, "mew": 1.4, "label": name}
        axis.plot(noise, values, **_colours(look), **style)
    axis.set(xlabel="noise level (1 is pure noise)", ylabel=y)
    if log and min(map(min, lines.values())) > 0:
        axis.set_yscale("log")
        _number(axis.yaxis)
    spacing = {"handlelength": 2.6, "columnspacing": 1.4}
    figure.legend(loc="outside lower center", ncols=min(3, len(lines)), **spacing)
    descriptions = []
    for name, values in lines.items():
        descriptions.append(f"{name} {', '.join(short(value, 2) for value in values)}")
    levels = ", ".join(short(level, 2) for level in noise)
    return finish(figure, f"{y} at noise levels {levels}: {'; '.join(descriptions)}.")


@drawn
def bars(
    values: Mapping[str, Mapping[str, Any]], styles: Mapping[str, Look], x: str, log: bool = True
) -> Picture:
    """Draw a line for each student of {name: {before, after}} from the one value to the other.

    The farther left the value after, the better the student became.
    """
    inputs.some(values, "students")
    for name, pair in values.items():
        ends = [pair["after"]] if pair.get("before") is None else [pair["before"], pair["after"]]
        inputs.line(ends, f"{x} of {name}")
    figure, axis = new_figure(height=0.36 * len(values) + 1.05)
    for row, (name, pair) in enumerate(values.items()):
        look = styles.get(name, Look(INK, "o", "-", False))
        if pair.get("before") is not None:
            ends = [pair["before"], pair["after"]]
            axis.plot(ends, [row, row], color=look.colour, lw=2.2, alpha=0.45)
            axis.plot(pair["before"], row, "o", color=look.colour, mfc=PAPER, mew=1.6, ms=7)
        axis.plot(pair["after"], row, "o", color=look.colour, ms=7)
    axis.set_yticks(range(len(values)), list(values))
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.invert_yaxis()
    axis.set(xlabel=x)
    axis.grid(False, axis="y")
    if log:
        axis.set_xscale("log")
        _number(axis.xaxis)
    descriptions = []
    for name, pair in values.items():
        start = f"from {short(pair['before'])} to " if pair.get("before") is not None else ""
        descriptions.append(f"{name} {start}{short(pair['after'])}")
    drawn = f"{x} before distillation (hollow) and after (filled)"
    return finish(figure, f"{drawn}: {'; '.join(descriptions)}.")
