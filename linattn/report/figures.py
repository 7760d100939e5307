"""Every figure of the project: each is a small function from plain data to a `Picture`.

- All figures have one look (picture.py).
- They use no pyplot and no global state, so they draw the same in a notebook, a test, a thread.
- The PNG names no date and no software: the same data gives the same bytes.
"""

import functools
import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image

from linattn.evaluation.growth import exponents
from linattn.report.numbers import seconds, short
from linattn.report.picture import DPI, FAINT, INK, LOOK, PAPER, SOFT, WIDTH, Look, Picture

_Arguments = ParamSpec("_Arguments")
REFERENCE = Look(SOFT, "*", "-", False)  # of a point without a look


def _axes(
    width: float = WIDTH, height: float = 3.5, down: int = 1, across: int = 1, **options: Any
) -> tuple[Figure, Any]:
    """Return a figure and its axes, `down` rows of `across` panels."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(down, across, **options)


def _finish(figure: Figure, alt: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return Picture(buffer.getvalue(), " ".join(alt.split()))


def _drawn(function: Callable[_Arguments, Picture]) -> Callable[_Arguments, Picture]:
    """Make a function draw in the project's look, whatever the notebook has set."""

    @functools.wraps(function)
    def draw(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Picture:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(LOOK)
            return function(*args, **kwargs)

    return draw


# ---------------------------------------------------------------------------------------------
# Pictures


def _bytes(pictures: Any) -> np.ndarray:
    """Turn any array (count, 3, height, width) in [0, 1] into bytes (count, height, width, 3)."""
    array = np.asarray(pictures.detach().cpu() if hasattr(pictures, "detach") else pictures)
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[1] != 3:
        raise ValueError(f"pictures have shape (count, 3, height, width), not {array.shape}")
    if array.dtype == np.uint8:
        return array.transpose(0, 2, 3, 1)
    scaled = np.clip(array.astype(np.float64), 0, 1) * 255
    return scaled.round().astype(np.uint8).transpose(0, 2, 3, 1)


def strip(
    pictures: Any, alt: str, *, columns: int | None = None, scale: int = 2, gap: int = 8
) -> Picture:
    """Draw pictures side by side, `columns` in a row, with transparent gaps.

    Each pixel is `scale` dots wide.
    """
    frames = _bytes(pictures).repeat(scale, 1).repeat(scale, 2)
    count, height, width, _ = frames.shape
    across = min(columns or count, count)
    down = -(-count // across)
    sheet = np.zeros((down * (height + gap) - gap, across * (width + gap) - gap, 4), np.uint8)
    for index, frame in enumerate(frames):
        top, left = (index // across) * (height + gap), (index % across) * (width + gap)
        opaque = np.full((height, width, 1), 255, np.uint8)
        sheet[top : top + height, left : left + width] = np.dstack([frame, opaque])
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="PNG", optimize=True)
    return Picture(buffer.getvalue(), alt)


def change(teacher: Any, student: Any, gain: float = 1.0) -> np.ndarray:
    """Map the difference of two sets of pictures to colours, (count, 3, height, width) in [0, 1].

    White is no difference, dark red the whole range.
    """
    left, right = (_bytes(pictures).astype(np.float64) / 255 for pictures in (teacher, student))
    if left.shape != right.shape:
        raise ValueError(f"pictures of shapes {left.shape} and {right.shape} cannot be compared")
    amount = np.clip(np.abs(left - right).mean(-1) * gain, 0, 1)
    return matplotlib.colormaps["Reds"](amount)[..., :3].transpose(0, 3, 1, 2)


@_drawn
def grid(
    rows: Mapping[str, Any], columns: Sequence[str] = (), alt: str | None = None, *, room: int = 4
) -> Picture:
    """Draw a row of pictures for each name, with the same noise and prompt down each column.

    The width has room for `room` pictures or more.
    """
    names, frames = list(rows), [_bytes(pictures) for pictures in rows.values()]
    count = max(map(len, frames))
    cell = (WIDTH - 1.1) / max(count, room)
    titles = [_stacked(title, cell) for title in columns]
    head = 0.3 + 0.15 * max((title.count("\n") - 1 for title in titles), default=0)
    height = cell * len(names) * 1.03 + head
    figure, axes = _axes(1.1 + cell * count, height, len(names), count, squeeze=False)
    figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    for row, (name, pictures) in enumerate(zip(names, frames, strict=True)):
        for column, axis in enumerate(axes[row]):
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            for spine in axis.spines.values():
                spine.set_visible(False)
            if column < len(pictures):
                axis.imshow(pictures[column], interpolation="nearest")
            if row == 0 and column < len(titles):
                axis.set_title(titles[column], fontsize=8, fontweight="normal", loc="center", pad=3)
        axes[row][0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6, fontsize=9)
    titles_text = f" The columns are {', '.join(columns)}." if columns else ""
    described = f"Grid of pictures, one row each for {', '.join(names)}.{titles_text}"
    return _finish(figure, alt or described)


def _stacked(title: str, inches: float) -> str:
    """Put a class's two words on two lines, and wrap a caption to the width of its picture.

    A letter of 8 pt is .062 inches wide.
    """
    if title.count(" ") < 2:
        return title.replace(" ", "\n")
    return textwrap.fill(title, max(9, int(inches / 0.062)))


def _fitted(name: str, inches: float, most: float) -> float:
    """Return the font size, at most `most`, at which a bold name is no wider than its panel.

    DejaVu's letters are .66 of their size wide on average.
    """
    return min(most, 72 * inches / (0.66 * max(len(name), 1)))


@_drawn
def difference(
    teacher: Any, student: Any, names: tuple[str, str] = ("teacher", "student")
) -> Picture:
    """Draw one picture of the teacher, one of the student, and their difference with its scale."""
    left, right = _bytes(teacher)[0], _bytes(student)[0]
    gap = np.abs(left.astype(float) - right.astype(float)).mean(-1) / 255
    figure, axes = _axes(WIDTH, 2.0, 1, 3)
    for axis, image, title in zip(axes, (left, right, gap), (*names, "difference"), strict=True):
        mappable = axis.imshow(image, cmap="Reds", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, loc="center", fontsize=_fitted(title, 1.55, 10.5))
        axis.set_axis_off()
    figure.colorbar(mappable, ax=axes[2], fraction=0.05, ticks=[0, 0.5, 1])
    amount = f"{gap.mean():.3f} of the range on average, at most {gap.max():.2f}"
    return _finish(figure, f"{names[0]}, {names[1]} and their difference: {amount}.")


def _over(axis: Any, picture: np.ndarray, weights: np.ndarray, query: int, vmax: float) -> None:
    """Draw a query's attention weights over a grey picture, with a frame around the query."""
    height, width = weights.shape
    options = {"extent": (0, width, height, 0), "interpolation": "nearest"}
    axis.imshow(picture.mean(-1), cmap="gray", vmin=-120, vmax=375, **options)
    share = np.clip(weights / vmax, 0, 1)
    colours = matplotlib.colormaps["magma_r"](share)
    colours[..., 3] = 0.25 + 0.7 * np.sqrt(share)
    axis.imshow(colours, **options)
    row, column = divmod(query, width)
    axis.add_patch(Rectangle((column, row), 1, 1, fill=False, ec="#00b7ff", lw=1.8))
    axis.set_axis_off()


@_drawn
def attention_over(
    picture: Any, weights: Mapping[str, Any], query: int, columns: int = 3
) -> Picture:
    """Draw the attention of one query token, with a panel for each name.

    `weights` are rows of the attention maps, (height, width). Each panel has a scale of its own, up
    to its 99.5th percentile, and states this value.
    """
    frame = _bytes(picture)[0]
    panels = {name: np.asarray(array, dtype=float) for name, array in weights.items()}
    columns = min(columns, len(panels))
    down = -(-len(panels) // columns)
    cell = WIDTH / max(columns, 3)
    figure, axes = _axes(cell * columns, down * (cell + 0.42), down, columns, squeeze=False)
    scales = []
    for axis, (name, panel) in zip(axes.flat, panels.items(), strict=False):
        top = max(float(np.quantile(panel, 0.995)), 1e-12)
        _over(axis, frame, panel, query, top)
        size = _fitted(name, cell, 9.5)
        # The title's empty second line makes room for the scale. Smaller letters need padding for
        # the same room.
        axis.set_title(f"{name}\n", loc="center", fontsize=size, pad=2 * (9.5 - size))
        scale = f"up to {100 * top:.2g} %"
        style = {"ha": "center", "fontsize": 8, "color": SOFT}
        axis.text(0.5, 1.03, scale, transform=axis.transAxes, **style)
        scales.append(f"{name} {scale}")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    height, width = next(iter(panels.values())).shape
    token = f"row {query // width + 1} of {height}, column {query % width + 1} of {width}"
    weight = f"{', '.join(scales)} of its weight on one token"
    return _finish(figure, f"Attention of the token at {token} over the picture: {weight}.")


# ---------------------------------------------------------------------------------------------
# Quality, cost, speed, training


@_drawn
def quality_cost(
    points: Sequence[Mapping[str, Any]], *, x: str, y: str, log: bool = True
) -> Picture:
    """Draw points {name, x, y, low?, high?, look?}; those without a look are grey references."""
    figure, axis = _axes(height=3.9)
    for point in points:
        look = point.get("look") or REFERENCE
        error = None
        if point.get("low") is not None:
            error = [[max(point["y"] - point["low"], 0)], [max(point["high"] - point["y"], 0)]]
        style = {"fmt": look.marker, "ms": 7.5, "mew": 1.6, "elinewidth": 1.1, "zorder": 3}
        axis.errorbar(point["x"], point["y"], error, **_colours(look), **style)
    if log:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axis.xaxis.set_minor_formatter(NullFormatter())
        values = [point["x"] for point in points]
        axis.set_xlim(min(values) / 1.5, max(values) * 2.1)
    axis.set(xlabel=x, ylabel=y)
    axis.margins(y=0.12)
    _label_points(figure, axis, points)
    texts = [f"{point['name']} {short(point['y'])} at {short(point['x'])}" for point in points]
    return _finish(figure, f"Scatter plot of {y} against {x}: {'; '.join(texts)}.")


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


@_drawn
def speed(
    timings: Sequence[Mapping[str, Any]], styles: Mapping[str, Look], baseline: str
) -> Picture:
    """Draw rows of `costs.time_operators`: time against tokens on log axes.

    Each line is named with its fitted exponent.
    """
    figure, axis = _axes(height=4.3)
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
    return _finish(figure, f"{drawn}: {'; '.join(descriptions)}.")


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


@_drawn
def training(
    curves: Mapping[str, Mapping[str, Sequence[float]]], styles: Mapping[str, Look], y: str = "loss"
) -> Picture:
    """Draw a panel for each student's {step, loss}: its line in colour, the others' in grey."""
    columns = min(2, len(curves))
    down = -(-len(curves) // columns)
    height, shared = max(1.55 * down + 0.35, 2.6), {"sharex": True, "sharey": True}
    figure, axes = _axes(WIDTH, height, down, columns, squeeze=False, **shared)
    for axis, name in zip(axes.flat, curves, strict=False):
        for other, curve in curves.items():
            if other != name:
                _curve(axis, curve, color=FAINT, lw=1)
        look, curve = styles.get(name, Look(INK, "o", "-", False)), curves[name]
        _curve(axis, curve, color=look.colour, lw=1.9)
        axis.set_title(name, color=_darker(look.colour), fontsize=9.5)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value, 2)))
        axis.yaxis.set_minor_formatter(NullFormatter())
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    for axis in axes.flat[max(0, len(curves) - columns) : len(curves)]:
        axis.tick_params(labelbottom=True)  # the lowest panels, also where the last row is not full
    figure.supxlabel("step", fontsize=10)
    figure.supylabel(y, fontsize=10)
    losses = []
    for name, curve in curves.items():
        losses.append(f"{name} from {short(curve['loss'][0])} to {short(curve['loss'][-1])}")
    return _finish(figure, f"Training curves, {y} by step on a log axis: {'; '.join(losses)}.")


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


@_drawn
def by_noise(
    noise: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    styles: Mapping[str, Look],
    y: str,
    log: bool = True,
) -> Picture:
    """Draw a line for each student over the noise levels, where 0 is clean and 1 is pure noise."""
    figure, axis = _axes(height=4.0)
    for name, values in lines.items():
        look = styles.get(name, Look(SOFT, "o", (0, (1.2, 1.4)), False))
        style = {"ls": look.dash, "marker": look.marker, "mew": 1.4, "label": name}
        axis.plot(noise, values, **_colours(look), **style)
    axis.set(xlabel="noise level (1 is pure noise)", ylabel=y)
    if log and min(map(min, lines.values())) > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value, 2)))
        axis.yaxis.set_minor_formatter(NullFormatter())
    spacing = {"handlelength": 2.6, "columnspacing": 1.4}
    figure.legend(loc="outside lower center", ncols=min(3, len(lines)), **spacing)
    descriptions = []
    for name, values in lines.items():
        descriptions.append(f"{name} {', '.join(short(value, 2) for value in values)}")
    levels = ", ".join(short(level, 2) for level in noise)
    return _finish(figure, f"{y} at noise levels {levels}: {'; '.join(descriptions)}.")


@_drawn
def bars(
    values: Mapping[str, Mapping[str, Any]], styles: Mapping[str, Look], x: str, log: bool = True
) -> Picture:
    """Draw a line for each student of {name: {before, after}} from the one value to the other.

    The farther left the value after, the better the student became.
    """
    figure, axis = _axes(height=0.36 * len(values) + 1.05)
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
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value, 2)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    descriptions = []
    for name, pair in values.items():
        start = f"from {short(pair['before'])} to " if pair.get("before") is not None else ""
        descriptions.append(f"{name} {start}{short(pair['after'])}")
    drawn = f"{x} before distillation (hollow) and after (filled)"
    return _finish(figure, f"{drawn}: {'; '.join(descriptions)}.")


# ---------------------------------------------------------------------------------------------
# Anatomy and mistakes


@_drawn
def heatmap(
    values: Any, *, rows: Sequence[str], columns: Sequence[str], title: str, x: str, y: str
) -> Picture:
    """Draw a table of numbers as colours, with the number in each cell.

    `rows` and `columns` are the names of the ticks; a None among the values stays empty.
    """
    table = np.array(values, float)  # None becomes NaN
    if np.isnan(table).all():
        raise ValueError(f"{title}: not one number to show")
    figure, axis = _axes(WIDTH, 0.34 * len(rows) + 1.15)
    axis.imshow(table, cmap="Blues", aspect="auto", vmin=np.nanmin(table), vmax=_scale_end(table))
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(length=0)
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    low, high = np.nanmin(table), np.nanmax(table)
    dark = (low + high) / 2 + 0.15 * (high - low)
    for (row, column), value in np.ndenumerate(table):
        if not math.isnan(value):
            style = {"ha": "center", "va": "center", "fontsize": 9}
            axis.text(column, row, short(value, 3), color=PAPER if value > dark else INK, **style)
    axis.set(xlabel=x, ylabel=y)
    axis.set_title(title)
    extremes = []
    for word, index in (("lowest", np.nanargmin(table)), ("highest", np.nanargmax(table))):
        row, column = divmod(int(index), table.shape[1])
        value = short(float(table[row, column]))
        extremes.append(f"{word} {value} at {y} {rows[row]}, {x} {columns[column]}")
    return _finish(figure, f"Heat map of {title} by {y} and {x}: {' and '.join(extremes)}.")


def _scale_end(table: np.ndarray) -> float:
    """Return the end of the colour scale, above its start even where all values are equal."""
    low, high = np.nanmin(table), np.nanmax(table)
    return high if high > low else low + 1


@_drawn
def confusion(matrix: Any, names: Sequence[str]) -> Picture:
    """Draw how often the judge saw each shape (columns) for each prompted one (rows), in %."""
    counts = np.asarray(matrix, float)
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axis = _axes(WIDTH, WIDTH * 0.86)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(length=0)
    axis.grid(False)
    for (row, column), value in np.ndenumerate(share):
        if value >= 0.5:
            style = {"ha": "center", "va": "center", "fontsize": 8.5}
            axis.text(column, row, f"{value:.0f}", color=PAPER if value > 55 else INK, **style)
    axis.set(xlabel="shape the judge saw", ylabel="shape asked for")
    right = counts.trace() / max(counts.sum(), 1)
    mistakes = "; ".join(_mistakes(share, names)) or "no mistakes"
    return _finish(
        figure, f"Confusion of shapes in per cent: {100 * right:.0f} % right; {mistakes}."
    )


def _mistakes(share: np.ndarray, names: Sequence[str]) -> list[str]:
    """Describe up to three of the most frequent mistakes; `share` is in per cent of a row."""
    wrong = share * (1 - np.eye(len(names)))
    order = np.argsort(-wrong, axis=None, kind="stable")[:3]
    described = []
    for row, column in (divmod(int(index), len(names)) for index in order):
        if wrong[row, column] >= 0.5:
            described.append(f"{names[row]} seen as {names[column]} {wrong[row, column]:.0f} %")
    return described
