"""The report of the committed run, from what Git holds: nothing is trained, drawn or timed for it.

Results, run files and studies are the published ones. Pictures are the first of each row, which
`make publish` wrote as lossless sheets; executed notebooks are one example of each stage.
"""

from pathlib import Path

from linattn import params, project
from linattn.files import whole_folder
from linattn.report import schema
from linattn.report.data import Report
from linattn.report.notebook import executed
from linattn.report.pages import write
from linattn.report.reading import read
from linattn.report.stored import Files


def committed() -> Report:
    """Read the committed run, whatever was run here and whatever profile params.yaml names.

    A student that joined params.yaml since is not part of it.
    """
    settings = params.load(profile())
    students = settings.students
    return read(
        {name: students[name] for name in students if _has_result(name)},
        settings.profile,
        settings.report.pictures,
        settings.teachers,
        committed=True,
    )


def _has_result(name: str) -> bool:
    return project.published(f"results/{name}.json").is_file()


def profile() -> str | None:
    """Return the profile of the committed results, or None where there are none."""
    results = sorted(project.published("results").glob("*.json"))
    profiles = (Files().json(path, schema.ROW).content.get("profile") for path in results)
    return next(filter(None, profiles), None)


def render(folder: Path) -> Path:
    """Write the committed run's pages to `folder` and return the first.

    They are written beside it and take its place when all are there.
    """
    report = committed()
    with whole_folder(folder) as draft:
        write(report, draft, executed(report, notebook))
    return folder / "index.html"


def notebook(name: str) -> Path:
    """Return the path of a committed executed notebook, e.g. of `04_distill/clear`."""
    return project.published(f"executed/{name}.ipynb")
