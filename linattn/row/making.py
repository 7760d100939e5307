"""Distil and evaluate a row's student as those of params.yaml are, and put its files together.

All is drafted in scratch, in a folder for this operator's file, these settings and this code. The
row's folder appears when it is whole, and replaces an older row of its name.
"""

import shutil
from pathlib import Path
from typing import Any

from linattn import drafts, project, sealed
from linattn.files import whole_folder
from linattn.report import contributed, sheet
from linattn.row.request import Request


def is_made(request: Request) -> bool:
    """Say whether the row is there whole, of the same file, options and settings."""
    row = contributed.read_row(request.folder)
    return not row.problem and row.result.get("identity") == request.identity


def make(request: Request) -> dict[str, Any]:
    """Compute a row, write its folder, and return its result."""
    name, settings = request.name, request.settings
    key = f"row-{request.role}-{name}"
    draft = project.scratch(key, identity=request.identity, code=project.code())
    result = drafts.make(settings, name, draft, operator_file=request.source.digest)
    result = {**result, "identity": request.identity, "file": described(request)}
    write(request, draft, result)
    shutil.rmtree(draft)
    return result


def described(request: Request) -> dict[str, str]:
    """Describe the operator's file for pages, which do not import it."""
    source = request.source
    return {
        "name": source.path.name,
        "class": source.operator.__qualname__,
        "digest": source.digest,
        "paper": source.operator.paper,
    }


def write(request: Request, draft: Path, result: dict[str, Any]) -> None:
    """Write the files of a row, which replace its folder together."""
    name = request.name
    with project.writing_to(draft):
        run, student = project.read_json(project.run_result(name)), project.student(name)
        drawn = sealed.load(project.pictures(name), framework="np")
    drawn.pop("undistilled", None)  # the leaderboard shows what a row draws in the end
    with whole_folder(request.folder) as folder:
        (folder / contributed.OPERATOR).write_text(request.source.text)
        project.write_json(folder / contributed.RUN, run)
        shutil.copytree(student, folder / contributed.STUDENT)
        sheet.write(drawn, folder / contributed.STRIP, contributed.SHOWN)
        project.write_json(folder / contributed.RESULT, result)
