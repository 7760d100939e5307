"""The pictures of README.md and docs/results.md, from the committed run's pictures in Git."""

import io
import posixpath
from collections.abc import Mapping

from PIL import Image

from linattn.report import figures, overview
from linattn.report.data import Data, Report
from linattn.report.picture import Picture
from linattn.report.pictures import column_names

CAPTIONED, ROOM = 4, 6  # pictures in a row under captions, drawn as small as six would be
OVERVIEW = "docs/pictures.png"


def of_all(report: Report) -> dict[str, Picture]:
    """Draw the README's picture of all teachers, by its path in the repository."""
    for teacher in _complete(report):
        _require_pictures(teacher)
    picture = overview.pictures(report)
    return {OVERVIEW: picture} if picture else {}


def of_teachers(report: Report) -> dict[str, Picture]:
    """Draw a grid for every teacher with results, by its path in the repository."""
    return {path_of(teacher.role): of_teacher(teacher) for teacher in _complete(report)}


def _complete(report: Report) -> list[Data]:
    """List the teachers that have a row of their own and students."""
    return [data for data in report.parts.values() if data.teacher and data.results]


def path_of(role: str) -> str:
    """Return the path of a teacher's grid."""
    return f"docs/pictures-{role}.png"


def of_teacher(data: Data) -> Picture:
    """Draw the grid of a teacher and its finished students, from the same prompts and noise."""
    names = _require_pictures(data)
    count, room = (min(data.show, CAPTIONED), ROOM) if data.captions else (data.show, data.show)
    drawn = {name: data.pictures[name]["pictures"][:count] for name in names}
    return figures.grid(drawn, column_names(data)[:count], room=room)


def _require_pictures(data: Data) -> tuple[str, ...]:
    names = ("teacher", *data.done)
    if missing := [name for name in names if name not in data.pictures]:
        raise FileNotFoundError(
            f"no pictures of {', '.join(missing)} in reports/pictures: make publish writes them"
        )
    return names


def small(png: bytes) -> bytes:
    """Reduce a picture in Git to 256 colours: half of the bytes, with no visible difference.

    Without the means of k-means cyan became blue and green.
    """
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, kmeans=3).save(
        buffer, "PNG", optimize=True
    )
    return buffer.getvalue()


def lines(pictures: Mapping[str, Picture], page: str) -> str:
    """Return the Markdown that shows the pictures on a page of the repository."""
    folder = posixpath.dirname(page)
    shown = {posixpath.relpath(path, folder or "."): grid for path, grid in pictures.items()}
    return "\n\n".join(f"![{grid.alt}]({path})" for path, grid in shown.items())
