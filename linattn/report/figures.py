"""Every figure of the project: a small function from plain data to a `Picture`.

- One look (picture.py) for all of them.
- No pyplot and no global state: figures draw the same in a notebook, a test, a thread.
- PNG without a date or a software name: the same data gives the same bytes.
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
    """Draw in the project's look, whatever the notebook has set."""

    def draw(*args, **options) -> Picture:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(LOOK)
            return function(*args, **options)

    draw.__name__, draw.__doc__, draw.__wrapped__ = function.__name__, function.__doc__, function
    return draw


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def _bytes(pictures: Any) -> np.ndarray:
    """(count, 3, height, width) in [0, 1] of any array kind -> (count, height, width, 3) bytes."""
    array = np.asarray(pictures.detach().cpu() if hasattr(pictures, "detach") else pictures)
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[1] != 3:
        raise ValueError(f"pictures have shape (count, 3, height, width), not {array.shape}")
    if array.dtype == np.uint8:
        return array.transpose(0, 2, 3, 1)
    return (np.clip(array.astype(np.float64), 0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


def strip(pictures: Any, alt: str, *, columns: int | None = None, scale: int = 2, gap: int = 8) -> Picture:
    """Pictures side by side, `columns` a row, each pixel `scale` dots wide; the gaps are transparent."""
    frames = _bytes(pictures).repeat(scale, 1).repeat(scale, 2)
    count, height, width, _ = frames.shape
    columns = min(columns or count, count)
    rows = -(-count // columns)
    sheet = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), np.uint8)
    for index, frame in enumerate(frames):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = np.dstack([frame, np.full((height, width, 1), 255, np.uint8)])
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="PNG", optimize=True)
    return Picture(buffer.getvalue(), alt)


def change(teacher: Any, student: Any, gain: float = 1.0) -> np.ndarray:
    """Where two sets of pictures differ: (count, 3, height, width) in [0, 1], white none, dark red all of the range."""
    left, right = (_bytes(each).astype(np.float64) / 255 for each in (teacher, student))
    if left.shape != right.shape:
        raise ValueError(f"pictures of shape {left.shape} cannot be compared with pictures of shape {right.shape}")
    amount = np.clip(np.abs(left - right).mean(-1) * gain, 0, 1)
    return matplotlib.colormaps["Reds"](amount)[..., :3].transpose(0, 3, 1, 2)


@_drawn
def grid(rows: Mapping[str, Any], columns: Sequence[str] = (), alt: str | None = None, *, room: int = 4) -> Picture:
    """A row of pictures a name, the same noise and class down each column; the width has room for `room` or more."""
    names, frames = list(rows), [_bytes(pictures) for pictures in rows.values()]
    count = max(map(len, frames))
    cell = (WIDTH - 1.1) / max(count, room)
    titles = [_stacked(title, cell) for title in columns]
    head = 0.3 + 0.15 * max((title.count("\n") - 1 for title in titles), default=0)
    figure, axes = _axes(1.1 + cell * count, cell * len(names) * 1.03 + head, len(names), count, squeeze=False)
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
    shown = f" The columns are {', '.join(columns)}." if columns else ""
    return _finish(figure, alt or f"Grid of pictures, one row each for {', '.join(names)}.{shown}")


def _stacked(title: str, inches: float) -> str:
    """A class's two words on two lines; a caption wrapped to the picture below it (8 pt: .062 inches a letter)."""
    return title.replace(" ", "\n") if title.count(" ") < 2 else textwrap.fill(title, max(9, int(inches / 0.062)))


def _fitted(name: str, inches: float, most: float) -> float:
    """Points at which a bold name is no wider than its panel: DejaVu's letters take .66 of their size on average."""
    return min(most, 72 * inches / (0.66 * max(len(name), 1)))


@_drawn
def difference(teacher: Any, student: Any, names: tuple[str, str] = ("teacher", "student")) -> Picture:
    """One picture by the teacher, by the student, and where they differ, with the scale beside it."""
    left, right = _bytes(teacher)[0], _bytes(student)[0]
    gap = np.abs(left.astype(float) - right.astype(float)).mean(-1) / 255
    figure, axes = _axes(WIDTH, 2.0, 1, 3)
    for axis, image, title in zip(axes, (left, right, gap), (*names, "difference"), strict=True):
        drawn = axis.imshow(image, cmap="Reds", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, loc="center", fontsize=_fitted(title, 1.55, 10.5))
        axis.set_axis_off()
    figure.colorbar(drawn, ax=axes[2], fraction=0.05, ticks=[0, 0.5, 1])
    told = f"{gap.mean():.3f} of the range on average, at most {gap.max():.2f}"
    return _finish(figure, f"{names[0]}, {names[1]} and their difference: {told}.")


def _over(axis: Any, picture: np.ndarray, weights: np.ndarray, query: int, vmax: float) -> None:
    """One query's weights over the picture it looks at: the picture in grey below, the query framed."""
    height, width = weights.shape
    grey = picture.mean(-1)
    axis.imshow(grey, cmap="gray", vmin=-120, vmax=375, extent=(0, width, height, 0), interpolation="nearest")
    share = np.clip(weights / vmax, 0, 1)
    drawn = matplotlib.colormaps["magma_r"](share)
    drawn[..., 3] = 0.25 + 0.7 * np.sqrt(share)
    axis.imshow(drawn, extent=(0, width, height, 0), interpolation="nearest")
    row, column = divmod(query, width)
    axis.add_patch(matplotlib.patches.Rectangle((column, row), 1, 1, fill=False, ec="#00b7ff", lw=1.8))
    axis.set_axis_off()


@_drawn
def attention_over(picture: Any, weights: Mapping[str, Any], query: int, columns: int = 3) -> Picture:
    """Whom one query token attends to: a panel a name; `weights` are (height, width) rows of the attention maps.

    Each panel has a scale of its own, up to its 99.5th percentile, and says how much that is.
    """
    frame = _bytes(picture)[0]
    panels = {name: np.asarray(each, dtype=float) for name, each in weights.items()}
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    cell = WIDTH / max(columns, 3)
    figure, axes = _axes(cell * columns, rows * (cell + 0.42), rows, columns, squeeze=False)
    told = []
    for axis, (name, row) in zip(axes.flat, panels.items(), strict=False):
        top = max(float(np.quantile(row, 0.995)), 1e-12)
        _over(axis, frame, row, query, top)
        size = _fitted(name, cell, 9.5)
        # The empty line below it is where the scale stands; in smaller letters it is too low for that.
        axis.set_title(f"{name}\n", loc="center", fontsize=size, pad=2 * (9.5 - size))
        axis.text(0.5, 1.03, f"up to {100 * top:.2g} %", transform=axis.transAxes, ha="center", fontsize=8, color=SOFT)
        told.append(f"{name} up to {100 * top:.2g} %")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    height, width = next(iter(panels.values())).shape
    where = f"row {query // width + 1} of {height}, column {query % width + 1} of {width}"
    return _finish(
        figure, f"Attention of the token at {where} over the picture: {', '.join(told)} of its weight on one token."
    )


# ---------------------------------------------------------------------------------------------------------------------
# Quality, cost, speed, training


@_drawn
def quality_cost(points: Sequence[Mapping[str, Any]], *, x: str, y: str, log: bool = True) -> Picture:
    """Points {name, x, y, low?, high?, look?}; those without a look are references drawn as grey lines' ends."""
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
    told = "; ".join(f"{p['name']} {short(p['y'])} at {short(p['x'])}" for p in points)
    return _finish(figure, f"Scatter plot of {y} against {x}: {told}.")


def _label_points(figure: Figure, axis: Any, points: Sequence[Mapping[str, Any]]) -> None:
    """Names beside the points, moved up or down until none covers another."""
    figure.draw_without_rendering()
    step = 13.5 * DPI / 72 * 10.5 / 12
    placed: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda each: -each["y"]):
        x, y = axis.transData.transform((point["x"], point["y"]))
        width = len(point["name"]) * 0.62 * 9 * DPI / 72
        spot = y
        while any(abs(spot - other) < step and x < end and begin < x + width for begin, end, other in placed):
            spot -= step / 4
        placed.append((x, x + width, spot))
        shift = (spot - y) * 72 / DPI
        colour = (point.get("look") or Look(SOFT, "*", "-", False)).colour
        axis.annotate(
            point["name"], (point["x"], point["y"]), (9, shift), textcoords="offset points", va="center", fontsize=9,
            color=_darker(colour),
            arrowprops={"arrowstyle": "-", "color": FAINT, "lw": 0.7, "shrinkB": 4} if abs(shift) > 9 else None,
        )  # fmt: skip


def _darker(colour: str) -> str:
    """The hue dark enough to be read as text on white."""
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    luma = 0.299 * channels[0] + 0.587 * channels[1] + 0.114 * channels[2]
    scale = min(1.0, 105 / max(luma, 1))
    return "#" + "".join(f"{round(c * scale):02x}" for c in channels)


@_drawn
def speed(rows: Sequence[Mapping[str, Any]], styles: Mapping[str, Look], baseline: str) -> Picture:
    """Rows of `costs.time_operators`: time against tokens on log axes, each line named with its fitted exponent."""
    figure, axis = _axes(height=4.3)
    lines, slopes = _series(rows), exponents(rows)
    labels, told = [], []
    for name, (tokens, times) in lines.items():
        look = styles.get(name, Look(SOFT, "o", "-", False))
        axis.plot(
            tokens, times, color=look.colour, ls=look.dash, marker=look.marker, mew=1.4,
            mfc=PAPER if look.hollow else look.colour, lw=2.4 if name == baseline else 1.8, zorder=3,
        )  # fmt: skip
        slope = slopes[name]
        fitted = "" if slope is None else f"  {slope:.2f}"
        shown = "dense" if name == baseline else name  # its own name is long; text beside the figure and alt give it
        labels.append({"name": f"{shown}{fitted}", "x": tokens[-1], "y": times[-1], "look": look})
        told.append(
            f"{name} {seconds(times[-1])} at {tokens[-1]:,} tokens" + (f", exponent {slope:.2f}" if slope else "")
        )
    axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="time of one call")
    ticks = sorted({t for tokens, _ in lines.values() for t in tokens})
    axis.set_xticks(ticks, [f"{t:,}" if i % max(1, len(ticks) // 4) == 0 else "" for i, t in enumerate(ticks)])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))
    axis.set_xlim(ticks[0] / 1.25, ticks[-1] * (ticks[-1] / ticks[0]) ** 0.62 if len(ticks) > 1 else ticks[0] * 4)
    _label_points(figure, axis, labels)
    return _finish(
        figure, f"Time of one attention call against tokens, log axes, baseline {baseline}: {'; '.join(told)}."
    )


def _series(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    lines: dict[str, tuple[list[int], list[float]]] = {}
    for row in sorted(rows, key=lambda each: each["tokens"]):
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
    """A panel a student: {step, loss}, its own line in colour and the others' in grey, so that all compare."""
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = _axes(WIDTH, max(1.55 * rows + 0.35, 2.6), rows, columns, squeeze=False, sharex=True, sharey=True)
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
        axis.tick_params(labelbottom=True)  # nothing stands below, be the last row full or not
    figure.supxlabel("step", fontsize=10)
    figure.supylabel(y, fontsize=10)
    told = "; ".join(
        f"{name} from {short(curve['loss'][0])} to {short(curve['loss'][-1])}" for name, curve in curves.items()
    )
    return _finish(figure, f"Training curves, {y} by step on a log axis: {told}.")


def _curve(axis: Any, curve: Mapping[str, Sequence[Any]], **style: Any) -> None:
    """A line a stage: layer by layer and end to end are losses of different kinds, with nothing between them."""
    stages = curve.get("stage") or [""] * len(curve["step"])
    for stage in dict.fromkeys(stages):
        rows = [i for i, each in enumerate(stages) if each == stage]
        loss = _smooth([curve["loss"][i] for i in rows])
        axis.plot([curve["step"][i] for i in rows], loss, marker="." if len(rows) == 1 else "", **style)


def _smooth(values: Sequence[float], share: float = 0.04) -> np.ndarray:
    """Running mean over a share of the steps; short curves stay as they are."""
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
    noise: Sequence[float], lines: Mapping[str, Sequence[float]], styles: Mapping[str, Look], y: str, log: bool = True
) -> Picture:
    """One line a student over the noise levels, 0 clean and 1 pure noise."""
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
    figure.legend(loc="outside lower center", ncols=min(3, len(lines)), handlelength=2.6, columnspacing=1.4)
    told = "; ".join(f"{name} {', '.join(short(v, 2) for v in values)}" for name, values in lines.items())
    levels = ", ".join(short(level, 2) for level in noise)
    return _finish(figure, f"{y} at noise levels {levels}: {told}.")


@_drawn
def bars(values: Mapping[str, Mapping[str, float]], styles: Mapping[str, Look], x: str, log: bool = True) -> Picture:
    """Before and after, a line a student: {name: {before, after}}; the shorter the left end, the better it became."""
    figure, axis = _axes(height=0.36 * len(values) + 1.05)
    for place, (name, each) in enumerate(values.items()):
        look = styles.get(name, Look(INK, "o", "-", False))
        if each.get("before") is not None:
            axis.plot([each["before"], each["after"]], [place, place], color=look.colour, lw=2.2, alpha=0.45)
            axis.plot(each["before"], place, "o", color=look.colour, mfc=PAPER, mew=1.6, ms=7)
        axis.plot(each["after"], place, "o", color=look.colour, ms=7)
    axis.set_yticks(range(len(values)), list(values))
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.invert_yaxis()
    axis.set(xlabel=x)
    axis.grid(False, axis="y")
    if log:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value, 2)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    told = "; ".join(
        f"{name} from {short(each['before'])} to {short(each['after'])}" if each.get("before") is not None
        else f"{name} {short(each['after'])}" for name, each in values.items()
    )  # fmt: skip
    return _finish(figure, f"{x} before distillation (hollow) and after (filled): {told}.")


# ---------------------------------------------------------------------------------------------------------------------
# Anatomy and mistakes


@_drawn
def heatmap(values: Any, *, rows: Sequence[str], columns: Sequence[str], title: str, x: str, y: str) -> Picture:
    """A number a cell, written into it: layers down, noise levels across."""
    table = np.array([[math.nan if value is None else value for value in row] for row in values], float)
    if np.isnan(table).all():
        raise ValueError(f"{title}: not one number to show")
    figure, axis = _axes(WIDTH, 0.34 * len(rows) + 1.15)
    axis.imshow(table, cmap="Blues", aspect="auto", vmin=np.nanmin(table), vmax=_above(table))
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
    lowest, highest = (np.unravel_index(f(table), table.shape) for f in (np.nanargmin, np.nanargmax))
    told = " and ".join(
        f"{word} {short(float(table[at]))} at {y} {rows[at[0]]}, {x} {columns[at[1]]}"
        for word, at in (("lowest", lowest), ("highest", highest))
    )
    return _finish(figure, f"Heat map of {title} by {y} and {x}: {told}.")


def _above(table: np.ndarray) -> float:
    low, high = np.nanmin(table), np.nanmax(table)
    return high if high > low else low + 1


@_drawn
def confusion(matrix: Any, names: Sequence[str]) -> Picture:
    """Rows what was asked for, columns what the judge saw, in per cent of the row."""
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
            axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8.5, color=colour)
    axis.set(xlabel="shape the judge saw", ylabel="shape asked for")
    wrong = [(share[i, j], names[i], names[j]) for i in range(len(names)) for j in range(len(names)) if i != j]
    worst = [f"{a} seen as {b} {v:.0f} %" for v, a, b in sorted(wrong, key=lambda each: -each[0])[:3] if v >= 0.5]
    right = counts.trace() / max(counts.sum(), 1)
    alt = f"Confusion of shapes in per cent: {100 * right:.0f} % right; " + ("; ".join(worst) or "no mistakes")
    return _finish(figure, alt + ".")
