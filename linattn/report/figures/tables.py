"""Figures of tables: a heatmap, and which shape is taken for which."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from linattn.report.figures import inputs
from linattn.report.figures.canvas import drawn, finish, new_figure
from linattn.report.numbers import short
from linattn.report.picture import INK, PAPER, WIDTH, Picture


@drawn
def heatmap(
    values: Any, *, rows: Sequence[str], columns: Sequence[str], title: str, x: str, y: str
) -> Picture:
    """Draw a table of numbers as colours, with the number in each cell.

    `rows` and `columns` are the names of the ticks; a None among the values stays empty.
    """
    table = inputs.table(values, (len(rows), len(columns)), title)
    if np.isnan(table).all():
        raise ValueError(f"{title}: not one number to show")
    figure, axis = new_figure(WIDTH, 0.34 * len(rows) + 1.15)
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
    return finish(figure, f"Heat map of {title} by {y} and {x}: {' and '.join(extremes)}.")


def _scale_end(table: np.ndarray) -> float:
    """Return the end of the colour scale, above its start even where all values are equal."""
    low, high = np.nanmin(table), np.nanmax(table)
    return high if high > low else low + 1


@drawn
def confusion(matrix: Any, names: Sequence[str]) -> Picture:
    """Draw how often the judge saw each shape (columns) for each prompted one (rows), in %."""
    counts = inputs.table(matrix, (len(names), len(names)), "the confusion of shapes")
    if not (counts >= 0).all():  # a NaN is none either
        raise ValueError("the confusion of shapes holds a count that is no number of 0 or more")
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axis = new_figure(WIDTH, WIDTH * 0.86)
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
    return finish(
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
