"""Read the rows of operators that are not of this repository, one folder each.

- Git holds contributed rows in reports/rows/<role>/<name>/, and reports/local/rows holds those that
  `make row` made here. A row made here stands for the contributed one of its name.
- A folder has the operator's file, the result (as those of students, with `file` and `identity`
  more), the run file and a strip of pictures; one made here also has the student's weights.
- A row whose operator's file is not the one that the result names is refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from linattn import digests, project
from linattn.report import schema, stored
from linattn.report.columns import measure
from linattn.report.stored import Files

OPERATOR, RESULT, RUN, STRIP = "operator.py", "result.json", "run.json", "pictures.png"
STUDENT = "student"  # the folder of the weights, which are too large for Git
SHOWN = 8  # pictures in a strip


@dataclass(frozen=True)
class Contributed:
    """Hold one row that an operator's file gave, or say why it is refused."""

    name: str
    folder: Path
    result: dict[str, Any]
    run: dict[str, Any]
    in_git: bool
    problem: str = ""
    pictures: np.ndarray | None = field(default=None, compare=False)  # (count, 3, side, side)


def read(roles: Iterable[str], committed: bool = False) -> dict[str, list[Contributed]]:
    """Return the rows of each teacher by name; `committed` leaves out those made here."""
    contributed = {}
    for role in roles:
        entries = _of_folder(project.published(f"rows/{role}"), in_git=True)
        if not committed:
            entries |= _of_folder(project.local(f"rows/{role}"), in_git=False)
        contributed[role] = [entries[name] for name in sorted(entries)]
    return contributed


def _of_folder(folder: Path, in_git: bool) -> dict[str, Contributed]:
    """Return the rows of a folder by name; hidden folders are drafts."""
    if not folder.is_dir():
        return {}
    names = [path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    return {name: read_row(folder / name, in_git) for name in names}


def read_row(folder: Path, in_git: bool = False) -> Contributed:
    """Return the row of a folder, with what is wrong with its files."""
    files = Files()
    result = files.json(folder / RESULT, schema.CONTRIBUTED)
    run = files.json(folder / RUN, schema.RUN)
    drawn = files.sheet(folder / STRIP, "pictures")
    problem = result.problem or run.problem or drawn.problem or _problem(folder, result.content)
    pictures = drawn.content.get("pictures")
    return Contributed(folder.name, folder, result.content, run.content, in_git, problem, pictures)


def _problem(folder: Path, result: dict[str, Any]) -> str:
    """Say why a row is refused, or nothing."""
    if result["student"] != folder.name:
        return f"its result is of {result['student']}, and its folder is {folder.name}"
    if result["teacher"] != folder.parent.name:
        return f"its result is of {result['teacher']}, and its folder is in {folder.parent.name}"
    try:
        digest = digests.of_text((folder / OPERATOR).read_text())
    except (OSError, ValueError) as error:
        return f"{OPERATOR} cannot be read ({type(error).__name__}); {stored.remedy(folder)}"
    if digest != result["file"]["digest"]:
        return (
            f"its result was made from a file of digest {result['file']['digest']}, and "
            f"{OPERATOR} has {digest}: make row makes it anew"
        )
    if measure(result, "error") is None:
        return "its result has no error"
    return ""
