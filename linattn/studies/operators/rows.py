"""Put the study's rows beside those of params.yaml's students, as the report shows them.

- Of params.yaml's students the published rows are taken: studies depend on what Git holds. One that
  was trained or evaluated otherwise than the study's own is left out, by name.
- The result names no time and no machine; the run file has both, for every row its own.
"""

from collections.abc import Mapping
from typing import Any

from linattn import project
from linattn.report import budget, studyparts
from linattn.studies.operators.settings import RESULT, ROW, RUN, Settings, folder, load

Row = dict[str, Any]
KEPT = ("student", "operator", "options", "control", "seeds", "failure", "by_noise")
MEASURES = ("error", "shape", "colour", "two_shapes", "relation", "eye_distance")
QUALITIES = ("undistilled", "untrained", "quality")  # before any step, the same in full, trained
COSTS = ("core_macs", "added")


def collect(settings: Settings | None = None) -> dict[str, Any]:
    """Write and return the rows of all teachers, and write the run file."""
    settings = settings or load()
    teachers, runs = {}, {}
    for role in settings.params.teachers:
        if rows := own(settings, role):
            teachers[role] = compared(role, rows, published(settings, role))
            shown = [row["student"] for row in teachers[role]["rows"]]
            runs |= {name: run_of(settings, name) for name in shown}
    result = {"profile": settings.params.profile, "teachers": teachers}
    run = {"facts": project.facts(), "rows": runs}
    project.write_json(studyparts.run_file("operators", write=True), run)
    project.write_json(project.study(RESULT, write=True), result)
    return result


def own(settings: Settings, role: str) -> dict[str, Row]:
    """Return the rows of the study's students of a teacher."""
    names = [name for name in settings.params.of_teacher(role) if name in settings.names]
    return {name: project.read_json(folder(name) / ROW) for name in names}


def published(settings: Settings, role: str) -> dict[str, Row]:
    """Return the published rows of params.yaml's students of a teacher."""
    names = [name for name in settings.params.of_teacher(role) if name not in settings.names]
    paths = {name: project.published(f"results/{name}.json") for name in names}
    return {name: project.read_json(path) for name, path in paths.items() if path.exists()}


def run_of(settings: Settings, name: str) -> Row:
    """Return the machine, the commit and the seconds of a row."""
    published_run = project.published(f"runs/{name}.run.json")
    run = project.read_json(folder(name) / RUN if name in settings.names else published_run)
    return {key: run.get(key) for key in ("facts", "seconds")}


def compared(role: str, own: Mapping[str, Row], published: Mapping[str, Row]) -> Row:
    """Return what the report shows of a teacher: rows of one protocol, and what softmax costs.

    Args:
        role: the teacher's.
        own: the study's rows by name, of which the first that did not fail names the protocol.
        published: those of params.yaml's students.
    """
    protocol = next((row for row in own.values() if "failure" not in row), {})
    alike = [name for name, row in published.items() if is_alike(row, protocol)]
    teacher = project.read_json(project.published(f"results/{project.teacher_row(role)}.json"))
    return {
        "folder": teacher["folder"],
        "pictures": protocol.get("pictures"),
        "training": {key: protocol.get("training", {}).get(key) for key in budget.TRAINED},
        "seeds": protocol.get("seeds"),
        "softmax_macs": teacher["cost"]["core_macs"],
        "rows": [*(kept(published[name]) for name in alike), *map(kept, own.values())],
        "left_out": [name for name in published if name not in alike],
    }


def is_alike(row: Row, protocol: Row) -> bool:
    """Say whether a row was trained and evaluated as another."""
    same_budget = budget.training_of(row) == budget.training_of(protocol)
    return same_budget and row["pictures"] == protocol.get("pictures")


def kept(row: Row) -> Row:
    """Keep of a row what the report shows."""
    small = {key: row[key] for key in KEPT if key in row}
    for quality in QUALITIES:
        if quality in row:
            small[quality] = {key: row[quality][key] for key in MEASURES if key in row[quality]}
    if "cost" in row:
        small["cost"] = {key: row["cost"].get(key) for key in COSTS}
    return small
