"""`make publish`: this machine's finished run becomes the committed one.

- Results, students and run files of reports/local replace those that Git holds, studies those that were run here. The
  report is rendered anew, since it compares the two, and the README's tables follow.
- Refused before anything is copied: while a stage is behind the code, or a row is missing or failed.
"""

import shutil
import sys
from pathlib import Path

from linattn import params, pipeline, project
from linattn.report import readme

KINDS = ("results", "runs", "students")  # a committed row that params.yaml no longer names goes


def publish() -> int:
    settings = params.load()
    if stale := pipeline.stale():
        raise ValueError(f"these stages are behind the code: {', '.join(stale)}; run make repro first")
    roles = [role for role, teacher in settings.teachers.items() if teacher.folder]
    if failed := pipeline.failures(settings, roles):
        raise ValueError(f"without a result of this machine: {', '.join(failed)}; run make repro first")
    for kind in KINDS:
        replace(project.ROOT / project.LOCAL / kind, project.published(kind))
    if (studies := project.ROOT / project.LOCAL / "studies").is_dir():
        shutil.copytree(studies, project.published("studies"), dirs_exist_ok=True)
    if pipeline.render():
        return 1
    readme.main([])
    print("Published. Commit README.md, docs, dvc.lock and reports together: tests hold them to one another.")
    return 0


def replace(source: Path, target: Path) -> None:
    """Swap a finished copy in, so that an interrupted one leaves what was there."""
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(source, draft)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)


def main() -> int:
    try:
        with project.pipeline():
            return publish()
    except (ValueError, RuntimeError) as error:
        print(f"linattn: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
