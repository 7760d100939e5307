"""Figures of pictures: strips, grids, differences, and what a token attends to."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image

from linattn.report.figures import inputs
from linattn.report.figures.canvas import drawn, finish, new_figure
from linattn.report.picture import SOFT, WIDTH, Picture


def as_bytes(pictures: Any) -> np.ndarray:
    """Turn any array (count, 3, height, width) in [0, 1] into bytes (count, height, width, 3)."""
    array = np.asarray(pictures.detach().cpu() if hasattr(pictures, "detach") else pictures)
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[1] != 3:
        raise ValueError(f"pictures have shape (count, 3, height, width), not {array.shape}")
    if not array.size:
        raise ValueError(f"there are no pictures to draw: their shape is {array.shape}")
    if array.dtype == np.uint8:
        return array.transpose(0, 2, 3, 1)
    if broken := int((~np.isfinite(array)).sum()):
        raise ValueError(
            f"{broken:,} of {array.size:,} values of pictures are not finite: what drew them has "
            "weights or inputs that are NaN or infinite"
        )
    scaled = np.clip(array.astype(np.float64), 0, 1) * 255
    return scaled.round().astype(np.uint8).transpose(0, 2, 3, 1)


def strip(
    pictures: Any, alt: str, *, columns: int | None = None, scale: int = 2, gap: int = 8
) -> Picture:
    """Draw pictures side by side, `columns` in a row, with transparent gaps.

    Each pixel is `scale` dots wide.
    """
    frames = as_bytes(pictures).repeat(scale, 1).repeat(scale, 2)
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
    left, right = (as_bytes(pictures).astype(np.float64) / 255 for pictures in (teacher, student))
    if left.shape != right.shape:
        raise ValueError(f"pictures of shapes {left.shape} and {right.shape} cannot be compared")
    amount = np.clip(np.abs(left - right).mean(-1) * gain, 0, 1)
    return matplotlib.colormaps["Reds"](amount)[..., :3].transpose(0, 3, 1, 2)


@drawn
def grid(
    rows: Mapping[str, Any], columns: Sequence[str] = (), alt: str | None = None, *, room: int = 4
) -> Picture:
    """Draw a row of pictures for each name, with the same noise and prompt down each column.

    The width has room for `room` pictures or more.
    """
    inputs.some(rows, "rows of pictures")
    names, frames = list(rows), [as_bytes(pictures) for pictures in rows.values()]
    count = max(map(len, frames))
    cell = (WIDTH - 1.1) / max(count, room)
    titles = [stacked(title, cell) for title in columns]
    head = 0.3 + 0.15 * max((title.count("\n") - 1 for title in titles), default=0)
    height = cell * len(names) * 1.03 + head
    figure, axes = new_figure(1.1 + cell * count, height, len(names), count, squeeze=False)
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
    return finish(figure, alt or described)


def stacked(title: str, inches: float) -> str:
    """Put a class's two words on two lines, and wrap a caption to the width of its picture.

    A letter of 8 pt is .062 inches wide.
    """
    if title.count(" ") < 2:
        return title.replace(" ", "\n")
    return textwrap.fill(title, max(9, int(inches / 0.062)))


def fitted(name: str, inches: float, most: float) -> float:
    """Return the font size, at most `most`, at which a bold name is no wider than its panel.

    DejaVu's letters are .66 of their size wide on average.
    """
    return min(most, 72 * inches / (0.66 * max(len(name), 1)))


@drawn
def difference(
    teacher: Any, student: Any, names: tuple[str, str] = ("teacher", "student")
) -> Picture:
    """Draw one picture of the teacher, one of the student, and their difference with its scale."""
    left, right = as_bytes(teacher)[0], as_bytes(student)[0]
    gap = np.abs(left.astype(float) - right.astype(float)).mean(-1) / 255
    figure, axes = new_figure(WIDTH, 2.0, 1, 3)
    for axis, image, title in zip(axes, (left, right, gap), (*names, "difference"), strict=True):
        mappable = axis.imshow(image, cmap="Reds", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, loc="center", fontsize=fitted(title, 1.55, 10.5))
        axis.set_axis_off()
    figure.colorbar(mappable, ax=axes[2], fraction=0.05, ticks=[0, 0.5, 1])
    amount = f"{gap.mean():.3f} of the range on average, at most {gap.max():.2f}"
    return finish(figure, f"{names[0]}, {names[1]} and their difference: {amount}.")


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


def _map(name: str, weights: Any, query: int) -> np.ndarray:
    """Return a row of an attention map, which holds the query's token and finite weights."""
    array = np.asarray(weights, dtype=float)
    if array.ndim != 2 or not 0 <= query < array.size:
        raise ValueError(
            f"the map of {name} has shape {array.shape}; it must be (height, width), and hold the "
            f"query, token {query}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"the map of {name} holds weights that are not finite")
    return array


@drawn
def attention_over(
    picture: Any, weights: Mapping[str, Any], query: int, columns: int = 3
) -> Picture:
    """Draw the attention of one query token, with a panel for each name.

    `weights` are rows of the attention maps, (height, width). Each panel has a scale of its own, up
    to its 99.5th percentile, and states this value.
    """
    frame = as_bytes(picture)[0]
    panels = {name: _map(name, array, query) for name, array in weights.items()}
    inputs.some(panels, "maps")
    columns = min(columns, len(panels))
    down = -(-len(panels) // columns)
    cell = WIDTH / max(columns, 3)
    figure, axes = new_figure(cell * columns, down * (cell + 0.42), down, columns, squeeze=False)
    scales = []
    for axis, (name, panel) in zip(axes.flat, panels.items(), strict=False):
        top = max(float(np.quantile(panel, 0.995)), 1e-12)
        _over(axis, frame, panel, query, top)
        size = fitted(name, cell, 9.5)
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
    return finish(figure, f"Attention of the token at {token} over the picture: {weight}.")
