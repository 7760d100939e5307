"""Make one student of the study, and write its row, its run file, its weights and its pictures.

- A row is that of params.yaml's students. Where conversion adds no parameter, nothing has to be
  learned: such a student is drawn and marked before training as it is afterwards (`untrained`).
- Numbers that stop being finite, in training or in a picture, are a result: the row has `failure`
  in the place of its quality.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from linattn import drafts, params, project, surgery
from linattn.evaluation import evaluation, rows
from linattn.evaluation.bench import Bench
from linattn.files import whole_folder
from linattn.names import known
from linattn.studies.operators.settings import (
    PICTURES,
    ROW,
    RUN,
    WEIGHTS,
    Settings,
    folder,
    load,
)
from linattn.surgery.conversion import converted

# Of a student's numbers; any other error is one of the code, and ends the study.
FAILURES = (ArithmeticError, torch.linalg.LinAlgError)


def make(name: str, settings: Settings | None = None) -> dict[str, Any]:
    """Distil and evaluate a student of the study, write its folder, and return its row."""
    settings = settings or load()
    known(name, settings.names, "student of the study")
    identity = drafts.identity(settings.params, name)
    draft = project.scratch(f"operators-{name}", identity=identity, code=project.code())
    row = measured(settings.params, name, draft)
    write(name, draft, row)
    shutil.rmtree(draft)
    return row


def measured(settings: params.Params, name: str, draft: Path) -> dict[str, Any]:
    """Return a student's row; one that failed says why, and what it was before training."""
    bench = Bench(settings, settings.student(name).teacher)
    try:
        return drafts.make(settings, name, draft) | untrained(bench, name)
    except FAILURES as error:
        return failed(bench, name, str(error))


def untrained(bench: Bench, name: str) -> dict[str, Any]:
    """Return the measures before training of a student that adds nothing to learn, else nothing."""
    model = before(bench, name)
    if model is None or surgery.new_parameters(model):
        return {}
    measures = evaluation.measure_trained(bench, model, f"{name}, untrained").measures
    return {"untrained": {key: rows.plain(measure) for key, measure in measures.items()}}


def before(bench: Bench, name: str) -> nn.Module | None:
    """Return the student before training, or None where its start needs the training's data."""
    student, recipe = bench.settings.student(name), bench.settings.recipe(name)
    if evaluation.starts_from_data(student):
        return None
    return converted(bench.teacher.model, student, recipe.seeds[0])


def failed(bench: Bench, name: str, reason: str) -> dict[str, Any]:
    """Return the row of a student whose numbers stopped being finite."""
    row = {
        "student": name,
        **rows.shown_of(bench),
        **evaluation.settings_of(bench.settings.student(name)),
        "profile": bench.settings.profile,
        "seeds": list(bench.settings.recipe(name).seeds),
        "pictures": rows.sizes(bench),
        "failure": reason,
    }
    model = before(bench, name)
    return row if model is None else row | {"cost": rows.cost(bench, model)} | start(bench, model)


def start(bench: Bench, model: nn.Module) -> dict[str, Any]:
    """Return the error before training, or nothing where that is not finite either."""
    try:
        return {"undistilled": {"error": rows.plain(rows.errors(bench, model)["mean"])}}
    except FAILURES:
        return {}


def write(name: str, draft: Path, row: dict[str, Any]) -> None:
    """Write the files of a student, which replace its folder together."""
    with project.writing_to(draft):
        run, weights = project.run_result(name), project.student(name)
        pictures = project.pictures(name)
    with whole_folder(folder(name, write=True)) as whole:
        project.write_json(whole / ROW, row)
        if "failure" in row:
            project.write_json(whole / RUN, {"facts": project.facts(), "error": row["failure"]})
            return
        shutil.copy2(run, whole / RUN)
        shutil.copy2(pictures, whole / PICTURES)
        shutil.copytree(weights, whole / WEIGHTS)
