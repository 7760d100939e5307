"""Read one file of a run, or say what is wrong with it: nothing damaged reaches a page.

Damage is a sentence with the file's name and the remedy, and costs its own row or section.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from linattn import outs, project, sealed
from linattn.report import schema, sheet
from linattn.report.words import NO_RESULT

Result = dict[str, Any]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Stored:
    """Hold what a file holds, or what is wrong with it."""

    content: Any = field(default_factory=dict)
    problem: str = ""

    @property
    def damaged(self) -> str:
        """Return the problem with a file that is there."""
        return "" if self.problem == NO_RESULT else self.problem


@dataclass(frozen=True)
class Files:
    """Read the files of a run: those of this machine, or those that Git holds alone."""

    local: Callable[[str], Path] = project.local  # the path of a file of this machine's run
    damage: Mapping[str, str] = field(default_factory=dict)  # sentences of outs.damaged by path

    def json(self, path: Path, expected: schema.Schema) -> Stored:
        """Read a result file.

        Args:
            path: the file.
            expected: what it holds, one of schema.py.
        """
        if not path.exists():
            return Stored(problem=NO_RESULT)
        if sentence := self._damage(path):
            return Stored(problem=sentence)
        try:
            content = schema.parse(path.read_text())
            problem = schema.problem(content, expected)
        except (OSError, ValueError, RecursionError) as error:
            content, problem = {}, str(error)
        return Stored(problem=damaged(path, problem)) if problem else Stored(content)

    def pictures(self, path: Path, needed: str) -> Stored:
        """Read the arrays of a row's pictures or of an anatomy's maps; none where no file is.

        Args:
            path: the file.
            needed: the array that it cannot be without.
        """
        return self._arrays(path, needed, functools.partial(sealed.load, framework="np"))

    def sheet(self, path: Path, needed: str) -> Stored:
        """Read the pictures of a committed row."""
        return self._arrays(path, needed, sheet.read)

    def _arrays(self, path: Path, needed: str, load: Callable[[Path, str], Arrays]) -> Stored:
        if not path.exists():
            return Stored()
        if sentence := self._damage(path):
            return Stored(problem=sentence)
        try:
            arrays = load(path, remedy(path))
        except (OSError, ValueError) as error:
            return Stored(problem=str(error).replace(f"{project.ROOT}/", ""))
        problem = unfit(arrays, needed)
        return Stored(problem=damaged(path, problem)) if problem else Stored(arrays)

    def _damage(self, path: Path) -> str:
        """Return the sentence of a file, or of a folder that it lies in."""
        names = [_name(place) for place in (path, *path.parents)]
        return next((self.damage[name] for name in names if name in self.damage), "")


def of_run(committed: bool) -> Files:
    """Return the files that the report reads; within DVC's stage those that DVC finds damaged.

    Args:
        committed: whether to leave out whatever was run on this machine.
    """
    stage = outs.running()
    return Files(nowhere if committed else project.local, outs.damaged(stage) if stage else {})


def nowhere(path: str) -> Path:
    """Return a path at which no run leaves a file."""
    return project.ROOT / "reports" / "nowhere" / path


def damaged(path: Path, problem: str) -> str:
    """Return the sentence of a damaged file."""
    return f"{_name(path)} is damaged ({problem}); {remedy(path)}"


def remedy(path: Path) -> str:
    """Say how a file comes back: from Git, or by making it again."""
    if path.is_relative_to(project.published("")) and not path.is_relative_to(project.local("")):
        return f"git checkout HEAD -- {_name(path)}"
    return "remove it, and make repro makes it again"


def _name(path: Path) -> str:
    """Return a path from the root: a page names no folder of this machine."""
    inside = path.is_relative_to(project.ROOT)
    return path.relative_to(project.ROOT).as_posix() if inside else path.name


def unfit(arrays: Mapping[str, np.ndarray], needed: str) -> str:
    """Say why arrays cannot be shown, or nothing.

    Args:
        arrays: `pictures`, `undistilled`, `picture`, `labels` and `map.<name>`.
        needed: the name of the array that there must be.
    """
    if needed not in arrays:
        return f"it has no {needed}"
    for name, array in arrays.items():
        if problem := _unfit(name, array):
            return f"{name} {problem}"
    counts = {name: len(arrays[name]) for name in ("pictures", "labels") if name in arrays}
    if len(set(counts.values())) > 1:
        return f"it has {counts['pictures']} pictures and {counts['labels']} labels"
    return ""


SHAPES = {"pictures": 4, "undistilled": 4, "picture": 3, "labels": 1}  # dimensions by name
FRAMES = ("pictures", "undistilled", "picture")


def _unfit(name: str, array: np.ndarray) -> str:
    """Say why one array cannot be shown; a map of attention has two dimensions."""
    dimensions = SHAPES.get(name, 2 if name.startswith("map.") else array.ndim)
    if name == "picture" and array.ndim == 4:  # one picture alone, as a notebook writes it
        dimensions = 4
    if array.ndim != dimensions or not array.size:
        return f"has shape {array.shape}, and must have {dimensions} dimensions and an element"
    if name in FRAMES and array.shape[-3] != 3:
        return f"has shape {array.shape}, and must have three channels before height and width"
    if not np.issubdtype(array.dtype, np.number) or not np.isfinite(array).all():
        return f"of {array.dtype} holds what is no finite number"
    return ""
