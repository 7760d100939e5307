"""Publish this machine's finished run (`make publish`): it becomes the committed one.

- Results, students and run files of reports/local replace those that Git holds, and so do studies
  that were run here. The report is rendered anew, since it compares the two, and the README's
  tables and pictures follow.
- params.yaml says which files are published. Nothing is copied while a file is missing or failed,
  while a stage is behind the code, or where a row was made by code that no commit holds.
"""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linattn import params, pipeline, project
from linattn.report import readme

FOLDERS = ("results", "runs", "students")


def publish() -> int:
    """Replace the published run by this machine's, render the report and update the README."""
    settings = params.load()
    files = expected(settings)
    refuse(settings, files)
    drafts = {name: draft(name, files) for name in FOLDERS}
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
    results = [path for path in files if path.startswith("results/") and "chance-" not in path]
    names = [Path(path).stem for path in results]
    missing = [path for path in files if not project.local(path).exists()]
    return missing + [
        f"pictures of {name}" for name in names if not project.pictures(name).exists()
    ]


def _commit(run: Mapping[str, Any]) -> str:
    return (run.get("facts") or {}).get("commit") or "unknown"


def draft(name: str, files: list[str]) -> Path:
    """Copy the files of one folder beside the published folder, which they are to replace."""
    folder = project.published(f".{name}.draft")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in (Path(path) for path in files if path.startswith(f"{name}/")):
        source = project.local(str(path))
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / path.name)
    return folder


def main() -> int:
    try:
        with project.pipeline():
            return publish()
    except (ValueError, RuntimeError) as error:
        print(f"linattn: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
