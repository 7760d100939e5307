"""Publish this machine's finished run (`make publish`): it becomes the committed one.

- Results, students and run files of reports/local replace those that Git holds, and so do studies
  that were run here. The report is rendered anew, since it compares the two, and the
  tables and pictures of README.md and docs/ follow.
- Of the pictures each row's first are published, as many as the report shows, and of the executed
  notebooks one of each stage: `make report` renders the pages from these alone.
- params.yaml says which files are published. Nothing is copied while a file is missing or failed,
  while a stage is behind the code, or where a row was made by code that no commit holds.
"""

import argparse
import contextlib
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linattn import params, pipeline, project, sealed
from linattn.files import whole_folder
from linattn.notebooks import STAGES
from linattn.passages import readme
from linattn.report import sheet

COPIED = ("results", "runs", "students")
FOLDERS = (*COPIED, "pictures", "executed")


def publish() -> int:
    """Replace the published run by this machine's, render the report and update the pages."""
    settings = params.load()
    files = expected(settings)
    refuse(settings, files)
    with contextlib.ExitStack() as all_or_none:
        drafts = {
            name: all_or_none.enter_context(whole_folder(project.published(name)))
            for name in FOLDERS
        }
        for name in COPIED:
            copy(files, drafts[name], name)
        sheets(drawn(settings), drafts["pictures"], settings.report.pictures)
        notebooks(settings, drafts["executed"])
    if (studies := project.local("studies")).is_dir():
        shutil.copytree(studies, project.published("studies"), dirs_exist_ok=True)
    if pipeline.render():
        raise RuntimeError(
            "everything is copied, and the report could not be rendered: see above, then make "
            "publish again"
        )
    readme.main(["--pictures"])
    print(
        "Published. Commit README.md, docs, dvc.lock and reports together: tests hold them to one "
        "another."
    )
    return 0


def expected(settings: params.Params) -> list[str]:
    """List the files and folders of a whole run, below reports/local and below reports alike."""
    roles = _roles(settings)
    students = [name for role in roles for name in settings.of_teacher(role)]
    benchmarks = [role for role in settings.teachers_of["benchmark"] if role in roles]
    plans = [project.plan_row(role) for role in settings.teachers_of["plan"] if role in roles]
    results = [*drawn(settings), *map(project.chance_row, roles), *plans]
    runs = [*students, *map(project.teacher_row, roles), *plans]
    runs += [f"{name}.distill" for name in students]
    runs += map(project.benchmark_row, benchmarks)
    return [
        *(f"results/{name}.json" for name in results),
        *(f"runs/{name}.run.json" for name in runs),
        *(f"students/{name}" for name in students),
    ]


def _roles(settings: params.Params) -> list[str]:
    return [role for role, teacher in settings.teachers.items() if teacher.folder]


def refuse(settings: params.Params, files: list[str]) -> None:
    """Raise a ValueError that names what keeps this run from being published."""
    if behind := pipeline.stale():
        raise ValueError(
            f"these stages are behind the code: {', '.join(behind)}; run make repro first"
        )
    if missing := _missing(settings, files):
        raise ValueError(
            f"this machine's run is not whole: {', '.join(missing)} missing; run make repro first"
        )
    paths = [path for path in files if path.startswith("runs/")]
    runs = {path: project.read_json(project.local(path)) for path in paths}
    if failed := [path for path, run in runs.items() if run.get("error")]:
        raise ValueError(f"{', '.join(failed)} ended in an error; run make repro first")
    commits = {path: _commit(run) for path, run in runs.items()}
    unheld = ("unknown", "+changes")
    if edited := [path for path, commit in commits.items() if commit.endswith(unheld)]:
        raise ValueError(
            f"{', '.join(edited)}: made by code that no commit holds ({commits[edited[0]]}); "
            "commit it, then run those stages again: dvc repro --force --single-item STAGE"
        )


def _missing(settings: params.Params, files: list[str]) -> list[str]:
    """Name the files that this machine's run lacks, and the rows that lack their pictures."""
    missing = [path for path in files if not project.local(path).exists()]
    return missing + [
        f"pictures of {name}" for name in drawn(settings) if not project.pictures(name).exists()
    ]


def drawn(settings: params.Params) -> list[str]:
    """Name the results that have pictures: students, teachers and their anatomies."""
    roles = _roles(settings)
    students = [name for role in roles for name in settings.of_teacher(role)]
    anatomies = [role for role in settings.teachers_of["anatomy"] if role in roles]
    return [*students, *map(project.teacher_row, roles), *map(project.anatomy_row, anatomies)]


def _commit(run: Mapping[str, Any]) -> str:
    return (run.get("facts") or {}).get("commit") or "unknown"


def copy(files: list[str], folder: Path, name: str) -> None:
    """Copy the files of one folder of the run."""
    for path in (Path(path) for path in files if path.startswith(f"{name}/")):
        source = project.local(str(path))
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / path.name)


def sheets(names: list[str], folder: Path, count: int) -> None:
    """Write each row's first pictures as a sheet, and copy the maps of the anatomies."""
    for name in names:
        source = project.pictures(name)
        arrays = sealed.load(source, "make repro makes it again once it is removed", "np")
        if "pictures" in arrays:
            sheet.write(arrays, folder / f"{name}.png", count)
        else:  # the maps of an anatomy
            shutil.copy2(source, folder / source.name)


def notebooks(settings: params.Params, folder: Path) -> None:
    """Copy an executed notebook of each stage: the first teacher's, and its first method's."""
    for name in examples(settings):
        target = folder / f"{name}.ipynb"
        target.parent.mkdir(exist_ok=True)
        shutil.copy2(project.executed(name), target)


def examples(settings: params.Params) -> list[str]:
    """Name the executed notebooks that are published and are there."""
    role = next(role for role, teacher in settings.teachers.items() if teacher.folder)
    names = settings.of_teacher(role)
    methods = [name for name in names if settings.students[name].operator != "softmax"]
    shown = {"teacher": [role], "student": methods[:1], "": []}
    paths: list[str] = []
    for stage in STAGES.values():
        paths += [f"{stage.notebook}/{name}" for name in shown[stage.takes]]
    return [path for path in paths if project.executed(path).exists()]


def main(arguments: list[str] | None = None) -> int:
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m linattn.publish", description=description)
    parser.parse_args(arguments)
    try:
        with project.pipeline():
            return publish()
    except (ValueError, RuntimeError) as error:
        print(f"linattn: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
