"""`make publish`: this machine's finished run becomes the committed one.

- Results, students and run files of reports/local replace those that Git holds, studies those that
  were run here. The report is rendered anew, since it compares the two, and the README's tables and
  pictures follow.
- What is published follows from params.yaml, file by file. Nothing is copied while one is missing
  or failed, while a stage is behind the code, or where a row was made by code that no commit holds.
"""

import shutil
import sys
from pathlib import Path

from linattn import params, pipeline, project
from linattn.report import readme

KINDS = ("results", "runs", "students")


def publish() -> int:
    settings = params.load()
    files = expected(settings)
    refuse(settings, files)
    drafts = [draft(kind, files) for kind in KINDS]
    for kind, folder in zip(KINDS, drafts, strict=True):
        shutil.rmtree(project.published(kind), ignore_errors=True)
        folder.rename(project.published(kind))
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
    results = [*rows, *map(project.chance_row, roles), "anatomy"]
    runs = [*rows, *(f"{name}.distill" for name in students), "benchmark"]
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
    rows = [
        Path(path).stem for path in files if path.startswith("results/") and "chance-" not in path
    ]
    missing = [path for path in files if not project.local(path).exists()]
    missing += [f"pictures of {name}" for name in rows if not project.pictures(name).exists()]
    if missing:
        raise ValueError(
            f"this machine's run is not whole: {', '.join(missing)} missing; run make repro first"
        )
    runs = {
        path: project.read_json(project.local(path)) for path in files if path.startswith("runs/")
    }
    if failed := [path for path, run in runs.items() if run.get("error")]:
        raise ValueError(f"{', '.join(failed)} ended in an error; run make repro first")
    commits = {
        path: (run.get("facts") or {}).get("commit") or "unknown" for path, run in runs.items()
    }
    if edited := [
        path
        for path, commit in commits.items()
        if commit == "unknown" or commit.endswith("+changes")
    ]:
        raise ValueError(
            f"{', '.join(edited)}: made by code that no commit holds ({commits[edited[0]]}); "
            "commit it, then run those "
            f"stages again: dvc repro --force --single-item STAGE"
        )


def draft(kind: str, files: list[str]) -> Path:
    """Copy what belongs to one kind into a folder beside the published one, to be swapped in whole."""
    folder = project.published(f".{kind}.draft")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in (Path(path) for path in files if path.startswith(f"{kind}/")):
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
