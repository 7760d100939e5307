"""One picture of many models: a row for each idea, a block of columns for each teacher."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from linattn.report.figures import inputs
from linattn.report.figures.canvas import drawn, finish, new_figure
from linattn.report.figures.pictures import as_bytes
from linattn.report.picture import INK, LETTER, SOFT, WIDTH, Picture

GAP = 4  # pixels between pictures
NAMES = 0.95  # inches for the names of the rows


@drawn
def blocks(teachers: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Picture:
    """Draw the pictures of each teacher's models below one another.

    `teachers` maps a teacher's name to {row's name: pictures}. A row that a teacher lacks stays
    empty there.
    """
    inputs.some(teachers, "teachers")
    for teacher, models in teachers.items():
        inputs.some(set(models) & set(names), f"named pictures of {teacher}")
    sheets = {teacher: _sheet(models, names) for teacher, models in teachers.items()}
    across = (WIDTH - NAMES) / len(sheets)
    titles = [_wrapped(teacher, across) for teacher in sheets]
    head_room = 0.28 + 0.14 * max(title.count("\n") for title in titles)
    widths = [sheet.shape[1] for sheet in sheets.values()]
    inches = (WIDTH - NAMES - 0.12 * (len(sheets) - 1)) / sum(widths)
    height = inches * max(sheet.shape[0] for sheet in sheets.values()) + head_room
    figure, axes = new_figure(
        WIDTH, height, 1, len(sheets), squeeze=False, gridspec_kw={"width_ratios": widths}
    )
    figure.set_layout_engine(None)
    head = 1 - (head_room - 0.02) / height
    figure.subplots_adjust(NAMES / WIDTH, 0, 1, head, wspace=0.12 / (inches * np.mean(widths)))
    for axis, title, (teacher, sheet) in zip(axes[0], titles, sheets.items(), strict=True):
        axis.imshow(sheet, interpolation="nearest", aspect="auto")
        axis.set_title(title, fontsize=9, pad=4)
        axis.set_axis_off()
        _name_gaps(axis, [name in teachers[teacher] for name in names])
    _name_rows(axes[0][0], names)
    described = []
    for teacher, models in teachers.items():
        described.append(f"{teacher} ({', '.join(name for name in names if name in models)})")
    order = ", ".join(names)
    return finish(
        figure,
        f"Pictures from the same noise and prompts down each column. The rows are {order}; "
        f"the blocks are {'; '.join(described)}.",
    )


def _wrapped(name: str, inches: float) -> str:
    """Break a teacher's name into lines as wide as its block."""
    return "\n".join(textwrap.wrap(name, max(6, int(inches / LETTER))))


def _sheet(models: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
    """Put a teacher's pictures on one transparent sheet, (rows · side, columns · side, 4)."""
    frames = {name: as_bytes(pictures) for name, pictures in models.items() if name in names}
    side = next(iter(frames.values())).shape[1]
    across = max(map(len, frames.values()))
    step = side + GAP
    sheet = np.zeros((len(names) * step - GAP, across * step - GAP, 4), np.uint8)
    for row, name in enumerate(names):
        for column, frame in enumerate(frames.get(name, ())):
            top, left = row * step, column * step
            sheet[top : top + side, left : left + side, :3] = frame
            sheet[top : top + side, left : left + side, 3] = 255
    return sheet


def _name_gaps(axis: Any, drawn_rows: Sequence[bool]) -> None:
    """Write "no student" where a teacher lacks a row."""
    for row, has_pictures in enumerate(drawn_rows):
        if not has_pictures:
            centre = 1 - (row + 0.5) / len(drawn_rows)
            style = {"ha": "center", "va": "center", "fontsize": 8, "color": SOFT}
            axis.text(0.5, centre, "no student", transform=axis.transAxes, **style)


def _name_rows(axis: Any, names: Sequence[str]) -> None:
    """Write the rows' names to the left of the first block."""
    for row, name in enumerate(names):
        centre = 1 - (row + 0.5) / len(names)
        colour = SOFT if row == 0 else INK
        axis.annotate(
            name,
            (0, centre),
            (-6, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=9,
            color=colour,
        )
