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
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linattn import params, pipeline, project, sealed
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
    drafts = {name: draft(name, files) for name in COPIED}
    drafts["pictures"] = sheets(files, settings.report.pictures)
    drafts["executed"] = notebooks(settings)
    for name, folder in drafts.items():
        shutil.rmtree(project.published(name), ignore_errors=True)
        folder.rename(project.published(name))
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
    roles = [role for role, teacher in settings.teachers.items() if teacher.folder]
    students = [name for role in roles for name in settings.of_teacher(role)]
    rows = [*students, *map(project.teacher_row, roles)]
    anatomies = [role for role in settings.teachers_of["anatomy"] if role in roles]
    benchmarks = [role for role in settings.teachers_of["benchmark"] if role in roles]
    results = [*rows, *map(project.chance_row, roles), *map(project.anatomy_row, anatomies)]
    runs = [*rows, *(f"{name}.distill" for name in students)]
    runs += map(project.benchmark_row, benchmarks)
    return [
        *(f"results/{name}.json" for name in results),
        *(f"runs/{name}.run.json" for name in runs),
        *(f"students/{name}" for name in students),
    ]


def refuse(settings: params.Params, files: list[str]) -> None:
    """Raise a ValueError that names what keeps this run from being published."""
    if behind := pipeline.stale():
        raise ValueError(
            f"these stages are behind the code: {', '.join(behind)}; run make repro first"
        )
    if missing := _missing(files):
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


def _missing(files: list[str]) -> list[str]:
    """Name the files that this machine's run lacks, and the rows that lack their pictures."""
    missing = [path for path in files if not project.local(path).exists()]
    return missing + [
        f"pictures of {name}" for name in _drawn(files) if not project.pictures(name).exists()
    ]


def _drawn(files: list[str]) -> list[str]:
    """Name the rows of results that have pictures: all but guessing."""
    results = [path for path in files if path.startswith("results/")]
    return [Path(path).stem for path in results if "chance-" not in path]


def _commit(run: Mapping[str, Any]) -> str:
    return (run.get("facts") or {}).get("commit") or "unknown"


def draft(name: str, files: list[str]) -> Path:
    """Copy the files of one folder beside the published folder, which they are to replace."""
    folder = _empty(name)
    for path in (Path(path) for path in files if path.startswith(f"{name}/")):
        source = project.local(str(path))
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / path.name)
    return folder


def sheets(files: list[str], count: int) -> Path:
    """Write each row's first pictures as a sheet, and copy the maps of the anatomies."""
    folder = _empty("pictures")
    for name in _drawn(files):
        source = project.pictures(name)
        drawn = sealed.load(source, "make repro makes it again once it is removed", "np")
        if "pictures" in drawn:
            sheet.write(drawn, folder / f"{name}.png", count)
        else:  # the maps of an anatomy
            shutil.copy2(source, folder / source.name)
    return folder


def notebooks(settings: params.Params) -> Path:
    """Copy an executed notebook of each stage: the first teacher's, and its first method's."""
    folder = _empty("executed")
    for name in examples(settings):
        target = folder / f"{name}.ipynb"
        target.parent.mkdir(exist_ok=True)
        shutil.copy2(project.executed(name), target)
    return folder


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


def _empty(name: str) -> Path:
    """Make the empty folder that is to become the published one of this name."""
    folder = project.published(f".{name}.draft")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


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
