"""The common parts of the studies: running a stage, the sheet of pictures, tables in the report.

- A sheet is a JPEG with a row of pictures for each name, from which the report cuts its grids.
  Arrays or PNG would put a megabyte into Git.
- A table has the report's own style. A cell is a text, or a text and its interval.
"""

import html
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from linattn import notebooks, project

Cell = str | tuple[str, str]


def run(study: str, notebook: str, stage: str, **names: str) -> int:
    """Run a notebook of studies/<study> as the pipeline runs its own.

    The result is 0, or 1 after printing the failure.
    """
    home = f"studies/{study}"
    out = project.ROOT / "reports" / "notebooks" / home / f"{stage}.ipynb"
    source = project.ROOT / home / f"{notebook}.ipynb"
    title = f"study {study}, {stage}"
    return notebooks.ended(title, lambda: notebooks.run(source, out, by_hand=False, **names))


def run_name(study: str) -> str:
    """Name the file of a study's seconds and of the machine on which they were measured."""
    return f"{study}.run.json"


def run_file(study: str, write: bool = False) -> Path:
    """Return the path of this file: of the run here, or the published one."""
    return project.study(run_name(study), write=write)


def measured_on(facts: Mapping[str, Any]) -> str:
    """Name the machine, the version of torch, and the commit."""
    hardware = facts["hardware"]
    device = hardware["gpu"] or f"{hardware['cpu']}, {hardware['threads']} threads"
    return f"{device}, torch {facts['versions']['torch']}, commit {facts['commit']}"


def write_sheet(pictures: Mapping[Any, Tensor], path: Path, **jpeg: int) -> None:
    """Write rows of pictures below one another; each row is (pictures, 3, side, side) in [0, 1]."""
    strips = [torch.cat(list(row), dim=2) for row in pictures.values()]  # (3, side, all widths)
    pixels = torch.cat(strips, dim=1).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
    Image.fromarray(pixels.cpu().numpy()).save(path, None, optimize=True, **jpeg)


def read_sheet(names: Iterable[Hashable], path: Path) -> dict[Any, np.ndarray]:
    """Read a sheet back: (pictures, 3, side, side) bytes by name."""
    names, pixels = list(names), np.asarray(Image.open(path))
    side = pixels.shape[0] // len(names)
    pictures = pixels.reshape(len(names), side, -1, side, 3).transpose(0, 2, 4, 1, 3)
    return dict(zip(names, pictures, strict=True))


def cell(measure: Mapping[str, Any], scale: float = 100, digits: int = 1) -> Cell:
    """Write a measure as a cell."""
    value, low, high = (measure[key] for key in ("value", "low", "high"))
    if value is None:
        return "–"
    text = f"{scale * value:.{digits}f}"
    return text if low is None else (text, f"{scale * low:.{digits}f} to {scale * high:.{digits}f}")


def table(label: str, heads: Iterable[str], rows: Iterable[tuple[str, Iterable[Cell]]]) -> str:
    """Write a table in HTML; a row is a name and cells, and screen readers read the label."""
    titles = list(heads)
    top = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in titles)
    body = "\n".join(_tr(name, cells, titles[1:]) for name, cells in rows)
    element = f"<table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    region = f'class="scroll" role="region" aria-label="{html.escape(label)}" tabindex="0"'
    return f"<div {region}>\n{element}\n</div>"


def _tr(name: str, cells: Iterable[Cell], titles: Iterable[str]) -> str:
    line = "".join(_td(cell, title) for cell, title in zip(cells, titles, strict=True))
    return f'<tr><th scope="row">{html.escape(name)}</th>{line}</tr>'


def _td(cell: Cell, title: str) -> str:
    """Write a cell; on a phone, where a table has no heads, its label is the column's title."""
    text, interval = (cell, "") if isinstance(cell, str) else cell
    span = f' <span class="interval">{html.escape(interval)}</span>' if interval else ""
    empty = ' class="none"' if text == "–" else ""
    return f'<td data-label="{html.escape(title)}"{empty}>{html.escape(text)}{span}</td>'
