"""Every figure of the project: each is a small function from plain data to a `Picture`.

- All figures have one look (picture.py).
- They use no pyplot and no global state, so they draw the same in a notebook, a test, a thread.
- The PNG names no date and no software: the same data gives the same bytes.
"""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image

from linattn.evaluation.growth import exponents
from linattn.report.numbers import seconds, short
from linattn.report.picture import DPI, FAINT, INK, LOOK, PAPER, SOFT, WIDTH, Look, Picture


def _axes(width: float = WIDTH, height: float = 3.5, rows: int = 1, columns: int = 1, **options):
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def _finish(figure: Figure, alt: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return Picture(buffer.getvalue(), " ".join(alt.split()))


def _drawn(function):
    """Make a function draw in the project's look, whatever the notebook has set."""

    def draw(*args, **options) -> Picture:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(LOOK)
            return function(*args, **options)

    draw.__name__, draw.__doc__, draw.__wrapped__ = function.__name__, function.__doc__, function
    return draw


# ---------------------------------------------------------------------------------------------
# Pictures


def _bytes(pictures: Any) -> np.ndarray:
    """Turn (count, 3, height, width) in [0, 1], of any kind of array, into (count, height, width,
    3) bytes.
    """
    array = np.asarray(pictures.detach().cpu() if hasattr(pictures, "detach") else pictures)
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[1] != 3:
        raise ValueError(f"pictures have shape (count, 3, height, width), not {array.shape}")
    if array.dtype == np.uint8:
        return array.transpose(0, 2, 3, 1)
    return (
        (np.clip(array.astype(np.float64), 0, 1) * 255)
        .round()
        .astype(np.uint8)
        .transpose(0, 2, 3, 1)
    )


def strip(
    pictures: Any, alt: str, *, columns: int | None = None, scale: int = 2, gap: int = 8
) -> Picture:
    """Draw pictures side by side, `columns` in a row, each pixel `scale` dots wide; the gaps are
    transparent.
    """
    frames = _bytes(pictures).repeat(scale, 1).repeat(scale, 2)
    count, height, width, _ = frames.shape
    columns = min(columns or count, count)
    rows = -(-count // columns)
    sheet = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), np.uint8)
    for index, frame in enumerate(frames):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
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
        raise ValueError(
            f"pictures of shape {left.shape} cannot be compared with pictures of shape "
            f"{right.shape}"
        )
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
    figure, axes = _axes(
        1.1 + cell * count, cell * len(names) * 1.03 + head, len(names), count, squeeze=False
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
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
    return _finish(
        figure, alt or f"Grid of pictures, one row each for {', '.join(names)}.{titles_text}"
    )


def _stacked(title: str, inches: float) -> str:
    """Put a class's two words on two lines, and wrap a caption to the width of the picture below
    it.

    A letter of 8 pt is .062 inches wide.
    """
    return (
        title.replace(" ", "\n")
        if title.count(" ") < 2
        else textwrap.fill(title, max(9, int(inches / 0.062)))
    )


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
    """Draw a query's attention weights over the picture: the picture is grey, the query has a
    frame.
    """
    height, width = weights.shape
    grey = picture.mean(-1)
    axis.imshow(
        grey,
        cmap="gray",
        vmin=-120,
        vmax=375,
        extent=(0, width, height, 0),
        interpolation="nearest",
    )
    share = np.clip(weights / vmax, 0, 1)
    colours = matplotlib.colormaps["magma_r"](share)
    colours[..., 3] = 0.25 + 0.7 * np.sqrt(share)
    axis.imshow(colours, extent=(0, width, height, 0), interpolation="nearest")
    row, column = divmod(query, width)
    axis.add_patch(
        matplotlib.patches.Rectangle((column, row), 1, 1, fill=False, ec="#00b7ff", lw=1.8)
    )
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
    rows = -(-len(panels) // columns)
    cell = WIDTH / max(columns, 3)
    figure, axes = _axes(cell * columns, rows * (cell + 0.42), rows, columns, squeeze=False)
    scales = []
    for axis, (name, panel) in zip(axes.flat, panels.items(), strict=False):
        top = max(float(np.quantile(panel, 0.995)), 1e-12)
        _over(axis, frame, panel, query, top)
        size = _fitted(name, cell, 9.5)
        # The title's empty second line makes room for the scale; smaller letters need padding for
        # the same room.
        axis.set_title(f"{name}\n", loc="center", fontsize=size, pad=2 * (9.5 - size))
        axis.text(
            0.5,
            1.03,
            f"up to {100 * top:.2g} %",
            transform=axis.transAxes,
            ha="center",
            fontsize=8,
            color=SOFT,
        )
        scales.append(f"{name} up to {100 * top:.2g} %")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    height, width = next(iter(panels.values())).shape
    where = f"row {query // width + 1} of {height}, column {query % width + 1} of {width}"
    return _finish(
        figure,
        f"Attention of the token at {where} over the picture: {', '.join(scales)} of its weight on one token.",
    )


# ---------------------------------------------------------------------------------------------
# Quality, cost, speed, training


@_drawn
def quality_cost(
    points: Sequence[Mapping[str, Any]], *, x: str, y: str, log: bool = True
) -> Picture:
    """Draw points {name, x, y, low?, high?, look?}; a point without a look is a reference and is
    drawn in grey.
    """
    figure, axis = _axes(height=3.9)
    for point in points:
        look = point.get("look") or Look(SOFT, "*", "-", False)
        error = None
        if point.get("low") is not None:
            error = [[max(point["y"] - point["low"], 0)], [max(point["high"] - point["y"], 0)]]
        axis.errorbar(
            point["x"], point["y"], error, fmt=look.marker, color=look.colour, ms=7.5, elinewidth=1.1, mew=1.6,
            mfc=PAPER if look.hollow else look.colour, zorder=3,
        )  # fmt: skip
    if log:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axis.xaxis.set_minor_formatter(NullFormatter())
        values = [point["x"] for point in points]
        axis.set_xlim(min(values) / 1.5, max(values) * 2.1)
    axis.set(xlabel=x, ylabel=y)
    axis.margins(y=0.12)
    _label_points(figure, axis, points)
    values_text = "; ".join(
        f"{point['name']} {short(point['y'])} at {short(point['x'])}" for point in points
    )
    return _finish(figure, f"Scatter plot of {y} against {x}: {values_text}.")


def _label_points(figure: Figure, axis: Any, points: Sequence[Mapping[str, Any]]) -> None:
    """Write names beside the points, moved down until none covers another."""
    figure.draw_without_rendering()
    step = 13.5 * DPI / 72 * 10.5 / 12
    placed: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda point: -point["y"]):
        x, y = axis.transData.transform((point["x"], point["y"]))
        width = len(point["name"]) * 0.62 * 9 * DPI / 72
        label_y = y
        while any(
            abs(label_y - other) < step and x < end and begin < x + width
            for begin, end, other in placed
        ):
            label_y -= step / 4
        placed.append((x, x + width, label_y))
        shift = (label_y - y) * 72 / DPI
        colour = (point.get("look") or Look(SOFT, "*", "-", False)).colour
        axis.annotate(
            point["name"], (point["x"], point["y"]), (9, shift), textcoords="offset points", va="center", fontsize=9,
            color=_darker(colour),
            arrowprops={"arrowstyle": "-", "color": FAINT, "lw": 0.7, "shrinkB": 4} if abs(shift) > 9 else None,
        )  # fmt: skip


def _darker(colour: str) -> str:
    """Darken a hue until it is readable as text on white."""
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    luma = 0.299 * channels[0] + 0.587 * channels[1] + 0.114 * channels[2]
    scale = min(1.0, 105 / max(luma, 1))
    return "#" + "".join(f"{round(c * scale):02x}" for c in channels)


@_drawn
def speed(rows: Sequence[Mapping[str, Any]], styles: Mapping[str, Look], baseline: str) -> Picture:
    """Draw rows of `costs.time_operators`: time against tokens on log axes, each line with its
    fitted exponent.
    """
    figure, axis = _axes(height=4.3)
    lines, slopes = _series(rows), exponents(rows)
    labels, descriptions = [], []
    for name, (tokens, times) in lines.items():
        look = styles.get(name, Look(SOFT, "o", "-", False))
        axis.plot(
            tokens, times, color=look.colour, ls=look.dash, marker=look.marker, mew=1.4,
            mfc=PAPER if look.hollow else look.colour, lw=2.4 if name == baseline else 1.8, zorder=3,
        )  # fmt: skip
        slope = slopes[name]
        fitted = "" if slope is None else f"  {slope:.2f}"
        # The baseline's own name is long; the alt text and the text beside the figure give it.
        label = "dense" if name == baseline else name
        labels.append({"name": f"{label}{fitted}", "x": tokens[-1], "y": times[-1], "look": look})
        descriptions.append(
            f"{name} {seconds(times[-1])} at {tokens[-1]:,} tokens"
            + (f", exponent {slope:.2f}" if slope else "")
        )
    axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="time of one call")
    ticks = sorted({size for tokens, _ in lines.values() for size in tokens})
    spacing = max(1, len(ticks) // 4)
    axis.set_xticks(
        ticks, [f"{tick:,}" if index % spacing == 0 else "" for index, tick in enumerate(ticks)]
    )
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))
    axis.set_xlim(
        ticks[0] / 1.25,
        ticks[-1] * (ticks[-1] / ticks[0]) ** 0.62 if len(ticks) > 1 else ticks[0] * 4,
    )
    _label_points(figure, axis, labels)
    listing = "; ".join(descriptions)
    return _finish(
        figure,
        f"Time of one attention call against tokens, log axes, baseline {baseline}: {listing}.",
    )


def _series(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Return the tokens and the times of each operator, in the order of the rows."""
    lines: dict[str, tuple[list[int], list[float]]] = {}
    for row in sorted(rows, key=lambda row: row["tokens"]):
        if not row["seconds"]:  # too slow to be measured at this size
            continue
        tokens, times = lines.setdefault(row["operator"], ([], []))
        tokens.append(int(row["tokens"]))
        times.append(float(row["seconds"]))
    order = list(dict.fromkeys(row["operator"] for row in rows))
    return {name: lines[name] for name in order if name in lines}


@_drawn
def training(
    curves: Mapping[str, Mapping[str, Sequence[float]]], styles: Mapping[str, Look], y: str = "loss"
) -> Picture:
    """Draw a panel for each student's {step, loss}, its own line in colour and the others' in grey
    for comparison.
    """
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = _axes(
        WIDTH, max(1.55 * rows + 0.35, 2.6), rows, columns, squeeze=False, sharex=True, sharey=True
    )
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
        # the lowest panel of a column, also where the last row is not full
        axis.tick_params(labelbottom=True)
    figure.supxlabel("step", fontsize=10)
    figure.supylabel(y, fontsize=10)
    losses = "; ".join(
        f"{name} from {short(curve['loss'][0])} to {short(curve['loss'][-1])}"
        for name, curve in curves.items()
    )
    return _finish(figure, f"Training curves, {y} by step on a log axis: {losses}.")


def _curve(axis: Any, curve: Mapping[str, Sequence[Any]], **style: Any) -> None:
    """Draw a line for each stage, since layer by layer and end to end are losses of different
    kinds.
    """
    stages = curve.get("stage") or [""] * len(curve["step"])
    for stage in dict.fromkeys(stages):
        indices = [index for index, name in enumerate(stages) if name == stage]
        steps = [curve["step"][index] for index in indices]
        loss = _smooth([curve["loss"][index] for index in indices])
        axis.plot(steps, loss, marker="." if len(indices) == 1 else "", **style)


def _smooth(values: Sequence[float], share: float = 0.04) -> np.ndarray:
    """Return the running mean over a share of the steps; short curves do not change."""
    values = np.asarray(values, float)
    width = int(len(values) * share)
    if width < 2:
        return values
    total = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
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
        axis.plot(
            noise, values, color=look.colour, ls=look.dash, marker=look.marker, mew=1.4, label=name,
            mfc=PAPER if look.hollow else look.colour,
        )  # fmt: skip
    axis.set(xlabel="noise level (1 is pure noise)", ylabel=y)
    if log and all(value > 0 for values in lines.values() for value in values):
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value, 2)))
        axis.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(
        loc="outside lower center", ncols=min(3, len(lines)), handlelength=2.6, columnspacing=1.4
    )
    descriptions = []
    for name, values in lines.items():
        descriptions.append(f"{name} {', '.join(short(value, 2) for value in values)}")
    levels = ", ".join(short(level, 2) for level in noise)
    return _finish(figure, f"{y} at noise levels {levels}: {'; '.join(descriptions)}.")


@_drawn
def bars(
    values: Mapping[str, Mapping[str, float]], styles: Mapping[str, Look], x: str, log: bool = True
) -> Picture:
    """Draw a line for each student from its value before to the value after: {name: {before,
    after}}.

    The farther left the value after, the better the student became.
    """
    figure, axis = _axes(height=0.36 * len(values) + 1.05)
    for row, (name, pair) in enumerate(values.items()):
        look = styles.get(name, Look(INK, "o", "-", False))
        if pair.get("before") is not None:
            axis.plot(
                [pair["before"], pair["after"]], [row, row], color=look.colour, lw=2.2, alpha=0.45
            )
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
    return _finish(
        figure, f"{x} before distillation (hollow) and after (filled): {'; '.join(descriptions)}."
    )


# ---------------------------------------------------------------------------------------------
# Anatomy and mistakes


@_drawn
def heatmap(
    values: Any, *, rows: Sequence[str], columns: Sequence[str], title: str, x: str, y: str
) -> Picture:
    """Draw a table of numbers as colours, with the number in each cell: layers down, noise levels
    across.
    """
    filled = []
    for row in values:
        filled.append([math.nan if value is None else value for value in row])
    table = np.array(filled, float)
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
    middle = (np.nanmin(table) + np.nanmax(table)) / 2
    for (row, column), value in np.ndenumerate(table):
        if math.isnan(value):
            continue
        colour = PAPER if value > middle + 0.15 * (np.nanmax(table) - np.nanmin(table)) else INK
        axis.text(column, row, short(value, 3), ha="center", va="center", fontsize=9, color=colour)
    axis.set(xlabel=x, ylabel=y)
    axis.set_title(title)
    lowest = np.unravel_index(np.nanargmin(table), table.shape)
    highest = np.unravel_index(np.nanargmax(table), table.shape)
    extremes = " and ".join(
        f"{word} {short(float(table[index]))} at {y} {rows[index[0]]}, {x} {columns[index[1]]}"
        for word, index in (("lowest", lowest), ("highest", highest))
    )
    return _finish(figure, f"Heat map of {title} by {y} and {x}: {extremes}.")


def _scale_end(table: np.ndarray) -> float:
    """Return the end of the colour scale, which lies above its start even where all values are
    equal.
    """
    low, high = np.nanmin(table), np.nanmax(table)
    return high if high > low else low + 1


@_drawn
def confusion(matrix: Any, names: Sequence[str]) -> Picture:
    """Draw how often the judge saw each shape (columns) for each prompted shape (rows), in per cent
    of the row.
    """
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
            colour = PAPER if value > 55 else INK
            axis.text(
                column, row, f"{value:.0f}", ha="center", va="center", fontsize=8.5, color=colour
            )
    axis.set(xlabel="shape the judge saw", ylabel="shape asked for")
    wrong = []
    for row, asked in enumerate(names):
        wrong += [
            (share[row, column], asked, seen) for column, seen in enumerate(names) if column != row
        ]
    worst_first = sorted(wrong, key=lambda mistake: -mistake[0])[:3]
    worst = [
        f"{asked} seen as {seen} {value:.0f} %"
        for value, asked, seen in worst_first
        if value >= 0.5
    ]
    right = counts.trace() / max(counts.sum(), 1)
    alt = f"Confusion of shapes in per cent: {100 * right:.0f} % right; " + (
        "; ".join(worst) or "no mistakes"
    )
    return _finish(figure, alt + ".")
