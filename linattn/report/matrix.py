"""Show who is apart from whom: the ratio of the errors of every two students of a teacher."""

from dataclasses import dataclass

from linattn.report import pairs
from linattn.report.columns import measure
from linattn.report.data import Data
from linattn.report.tables import Cell


@dataclass(frozen=True)
class Matrix:
    """Hold ratios of errors, how many times the column's a line's is; each pair stands once."""

    columns: tuple[str, ...]  # names, the closest to the teacher first
    lines: tuple[tuple[str, tuple[Cell, ...]], ...]  # names with a cell for each column


def of_teacher(data: Data) -> Matrix | None:
    """Return the matrix of a teacher's students, or None where no two keep their sums."""
    names = _by_error(data)
    lines = []
    for index, name in enumerate(names[1:], 1):
        before = names[:index]
        cells = [_cell(pairs.of_teacher(data, pairs.ERROR, name, other)) for other in before]
        cells += [Cell("")] * (len(names) - 1 - index)
        lines.append((name, tuple(cells)))
    known = any(cell.interval for _, cells in lines for cell in cells)
    return Matrix(tuple(names[:-1]), tuple(lines)) if known else None


def _by_error(data: Data) -> list[str]:
    """Return the names of methods and controls that have an error, the least first."""
    errors = {name: measure(data.results[name], pairs.ERROR) for name in data.done}
    values = {name: error["value"] for name, error in errors.items() if error}
    return sorted(values, key=lambda name: values[name])


def _cell(pair: pairs.Pair | None) -> Cell:
    """Write a ratio with its interval: bold where the two are apart."""
    if pair is None:
        return Cell("–")
    contrast = pair.contrast
    interval = f"{contrast.low:.2f} to {contrast.high:.2f}"
    return Cell(f"{contrast.value:.2f}", interval, best=pair.apart, close=not pair.apart)
