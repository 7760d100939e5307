"""What every row of the report is made of: the teacher once, then each student beside it.

- The rows that only bound the others (undistilled, twice the side) take fewer pictures and steps; their reference is
  the teacher drawn with those.
- Quality holds no time and no machine, so the same code gives the same bytes; those go to the run file.
"""

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from linattn import params, project, surgery
from linattn.evaluation import costs
from linattn.evaluation.bench import Bench, on_device, say
from linattn.evaluation.rows import (
    WITHIN,
    combine,
    confusion,
    cost,
    distance,
    draw,
    draw_reference,
    errors,
    levels_of,
    plain,
    shown_of,
    sizes,
    truth,
)
from linattn.surgery.conversion import converted
from linattn.world import marks, pairs
from linattn.world.marks import judge_kid

# The teacher, and chance ---------------------------------------------------------------------------------------------


def evaluate_teacher(bench: Bench) -> dict[str, Any]:
    """Draw the reference, mark it, and write what the students need."""
    began = time.monotonic()
    drawn = draw_reference(bench)
    save_file(drawn, project.reference(bench.role, write=True))
    drew = time.monotonic() - began
    pictures = {"pictures": drawn["pictures"], "labels": drawn["labels"], "cross": drawn["cross"]}
    save_file(pictures, project.pictures(bench.name, write=True))
    part = bench.part
    world_kid = judge_kid(bench.known["pictures"], bench.known["world"][: part.pictures], part.seed)
    quality = truth(bench, drawn["pictures"]) | truth(bench, drawn["cross"], "cross_") | {"kid_world": world_kid}
    quick = truth(bench, drawn["quick"])
    result = {
        "student": bench.name,
        **shown_of(bench),
        "operator": "softmax",
        "options": {},
        "control": False,
        "profile": bench.settings.profile,
        "seeds": [],
        "pictures": sizes(bench),
        "quality": {name: plain(value) for name, value in quality.items()},
        "quick": {name: plain(value) for name, value in quick.items()},
        "cost": cost(bench, bench.teacher.model) | {"trained": 0},
        "confusion": confusion(bench, drawn["pictures"]),
    }
    project.write_json(project.result(bench.name, write=True), result)
    project.write_json(project.result(project.chance_row(bench.role), write=True), chance(bench, drawn["pictures"]))
    seconds = {"draw": drew, "evaluate": time.monotonic() - began}
    write_run(bench, bench.name, bench.teacher.model, seconds)
    return result


def chance(bench: Bench, pictures: Tensor) -> dict[str, Any]:
    """What a model that ignores what it is asked for gets; of two things, what captions of other pictures get."""
    values = marks.chance()
    if bench.reads:
        values |= pairs.chance(bench.judge, on_device(pictures[1::2]), bench.scenes(len(pictures))[1::2])
    quality = {name: {"value": value, "low": None, "high": None, "n": None} for name, value in values.items()}
    quality |= {f"cross_{name}": value for name, value in quality.items()}
    row = {"student": project.chance_row(bench.role), "teacher": bench.role, "profile": bench.settings.profile}
    return row | {"quality": quality}


def write_run(bench: Bench, name: str, model: nn.Module, seconds: Mapping[str, float]) -> None:
    distilled = project.run_result(f"{name}.distill")
    before = project.read_json(distilled)["seconds"] if distilled.exists() else {}
    run = {
        "facts": project.facts(),
        "seconds": {key: round(value, 2) for key, value in {**before, **seconds}.items()},
        "backend": surgery.backends(model),
        "memory": max(
            costs.forward_memory(model, noise=level, inputs=bench.inputs(level)) for level in levels_of(bench, model)
        ),
    }
    project.write_json(project.run_result(name, write=True), run)


# Students ------------------------------------------------------------------------------------------------------------


def distilled(bench: Bench, folder: Path) -> nn.Module:
    """A copy of the teacher's model with the layers that `folder` holds."""
    return surgery.load(copy.deepcopy(bench.teacher.model), folder).eval()


def evaluate_student(bench: Bench, name: str) -> dict[str, Any]:
    """One student: distilled for every seed, and converted only."""
    began, drew = time.monotonic(), 0.0
    student, recipe = bench.settings.student(name), bench.settings.recipe(name)
    part, first = bench.part, recipe.seeds[0]
    rows, levels = [], []
    for seed in recipe.seeds:
        model = distilled(bench, project.student(name, None if seed == first else seed))
        say(f"{name} (seed {seed}): {part.pictures} pictures, then {part.cross_pictures} at {part.cross} x the side")
        start = time.monotonic()
        pictures = draw(bench, model, part.pictures, part.steps)
        drew += time.monotonic() - start
        cross = draw(bench, model, part.cross_pictures, part.quick_steps, part.cross)
        error = errors(bench, model)
        levels.append(error["levels"])
        marks = truth(bench, pictures) | truth(bench, cross, "cross_") | distance(bench, pictures, "pictures")
        rows.append({"error": error["mean"], **marks})
        if seed == first:
            shown, kept = (pictures, cross), model
    say(f"{name}, converted and not distilled: {part.quick_pictures} pictures of {part.quick_steps} steps")
    untrained = converted(bench.teacher.model, student, first)
    raw = draw(bench, untrained, part.quick_pictures, part.quick_steps)
    before = errors(bench, untrained)
    bounds = truth(bench, raw) | distance(bench, raw, "quick") | {"error": before["mean"]}
    training = project.read_json(project.student(name) / "training.json")
    result = {
        "student": name,
        **shown_of(bench),
        **settings_of(student),
        "profile": bench.settings.profile,
        "seeds": list(recipe.seeds),
        "pictures": sizes(bench),
        "quality": {key: combine([row[key] for row in rows], WITHIN.get(key)) for key in rows[0]},
        "undistilled": {key: plain(value) for key, value in bounds.items()},
        "by_noise": {
            "noise": list(part.noise),
            "error": [combine(list(each), WITHIN["error"]) for each in zip(*levels, strict=True)],
            "undistilled": [plain(each) for each in before["levels"]],
        },
        "cost": cost(bench, kept) | {"trained": training["trained"]},
        "confusion": confusion(bench, shown[0]),
        "training": training,
    }
    pictures = {"pictures": shown[0], "cross": shown[1], "undistilled": raw, "labels": bench.labels(part.pictures)}
    save_file(pictures, project.pictures(name, write=True))
    project.write_json(project.result(name, write=True), result)
    write_run(bench, name, kept, {"draw": drew, "evaluate": time.monotonic() - began})
    return result


def settings_of(student: params.Student) -> dict[str, Any]:
    """By which the report knows a result of other settings; those that params.yaml leaves out are left out here."""
    made = {"operator": student.operator, "options": student.options, **student.settings}
    return made | {"control": student.operator == "softmax"}


def evaluate(name: str, profile: str | None = None) -> dict[str, Any]:
    """The row of a student, or of a teacher under the name teacher-ROLE."""
    settings = params.load(profile)
    for role in settings.teachers:
        if name == project.teacher_row(role):
            return evaluate_teacher(Bench(settings, role))
    return evaluate_student(Bench(settings, settings.student(name).teacher), name)
