"""Evaluate a teacher, then its students beside it, and write the rows that the report shows.

- Rows that only bound the others (undistilled, twice the side) take fewer pictures and steps. Their
  reference is what the teacher draws with as many.
- A result names no time and no machine, so the same code writes the same bytes. Times and machine
  go to the run file.
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

# The teacher, and chance
# ---------------------------------------------------------------------------------------------


def evaluate_teacher(bench: Bench) -> dict[str, Any]:
    """Draw the reference, mark it, and write it for the students."""
    began = time.monotonic()
    reference = draw_reference(bench)
    save_file(reference, project.reference(bench.role, write=True))
    draw_seconds = time.monotonic() - began
    pictures = {name: reference[name] for name in ("pictures", "labels", "cross")}
    save_file(pictures, project.pictures(bench.name, write=True))
    settings = bench.part
    world_features = bench.known["world"][: settings.pictures]
    world_kid = judge_kid(bench.known["pictures"], world_features, settings.seed)
    quality = truth(bench, reference["pictures"]) | truth(bench, reference["cross"], "cross_")
    quality |= {"kid_world": world_kid}
    quick = truth(bench, reference["quick"])
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
        "confusion": confusion(bench, reference["pictures"]),
    }
    project.write_json(project.result(bench.name, write=True), result)
    chance_path = project.result(project.chance_row(bench.role), write=True)
    project.write_json(chance_path, chance(bench, reference["pictures"]))
    seconds = {"draw": draw_seconds, "evaluate": time.monotonic() - began}
    write_run(bench, bench.name, bench.teacher.model, seconds)
    return result


def chance(bench: Bench, pictures: Tensor) -> dict[str, Any]:
    """Return the row of a model that ignores its label or caption.

    Pictures of two things are marked against the captions of other pictures.
    """
    values = marks.chance()
    if bench.reads:
        values |= pairs.chance(
            bench.judge, on_device(pictures[1::2]), bench.scenes(len(pictures))[1::2]
        )
    quality = {
        name: {"value": value, "low": None, "high": None, "n": None}
        for name, value in values.items()
    }
    quality |= {f"cross_{name}": value for name, value in quality.items()}
    row = {
        "student": project.chance_row(bench.role),
        "teacher": bench.role,
        "profile": bench.settings.profile,
    }
    return row | {"quality": quality}


def write_run(bench: Bench, name: str, model: nn.Module, seconds: Mapping[str, float]) -> None:
    """Write the run file: facts of the machine, seconds (those of the distillation too), backend
    and peak memory.
    """
    distill_path = project.run_result(f"{name}.distill")
    distill_seconds = project.read_json(distill_path)["seconds"] if distill_path.exists() else {}
    all_seconds = {**distill_seconds, **seconds}
    facts, backend = project.facts(), surgery.backends(model)
    levels = levels_of(bench, model)
    run = {
        "facts": facts,
        "seconds": {key: round(value, 2) for key, value in all_seconds.items()},
        "backend": backend,
        "memory": max(
            costs.forward_memory(model, noise=level, inputs=bench.inputs(level)) for level in levels
        ),
    }
    project.write_json(project.run_result(name, write=True), run)


# Students
# ---------------------------------------------------------------------------------------------


def distilled(bench: Bench, folder: Path) -> nn.Module:
    """Return a copy of the teacher's model with the layers that `folder` holds."""
    return surgery.load(copy.deepcopy(bench.teacher.model), folder).eval()


def evaluate_student(bench: Bench, name: str) -> dict[str, Any]:
    """Evaluate one student distilled from every seed, and the same student converted but not
    distilled.
    """
    began, draw_seconds = time.monotonic(), 0.0
    student, recipe = bench.settings.student(name), bench.settings.recipe(name)
    settings, first_seed = bench.part, recipe.seeds[0]
    rows, error_levels = [], []
    for seed in recipe.seeds:
        model = distilled(bench, project.student(name, None if seed == first_seed else seed))
        say(
            f"{name} (seed {seed}): {settings.pictures} pictures, "
            f"then {settings.cross_pictures} at {settings.cross} x the side"
        )
        start = time.monotonic()
        pictures = draw(bench, model, settings.pictures, settings.steps)
        draw_seconds += time.monotonic() - start
        cross = draw(bench, model, settings.cross_pictures, settings.quick_steps, settings.cross)
        error = errors(bench, model)
        error_levels.append(error["levels"])
        truths = truth(bench, pictures) | truth(bench, cross, "cross_")
        rows.append({"error": error["mean"], **truths, **distance(bench, pictures, "pictures")})
        if seed == first_seed:
            first_pictures, first_cross, first_model = pictures, cross, model
    say(
        f"{name}, converted and not distilled: {settings.quick_pictures} pictures of "
        f"{settings.quick_steps} steps"
    )
    undistilled_model = converted(bench.teacher.model, student, first_seed)
    undistilled_pictures = draw(
        bench, undistilled_model, settings.quick_pictures, settings.quick_steps
    )
    undistilled_error = errors(bench, undistilled_model)
    undistilled = truth(bench, undistilled_pictures) | distance(
        bench, undistilled_pictures, "quick"
    )
    undistilled |= {"error": undistilled_error["mean"]}
    training = project.read_json(project.student(name) / "training.json")
    quality = {}
    for key in rows[0]:
        quality[key] = combine([row[key] for row in rows], WITHIN.get(key))
    by_noise = {
        "noise": list(settings.noise),
        "error": [
            combine(list(over_seeds), WITHIN["error"])
            for over_seeds in zip(*error_levels, strict=True)
        ],
        "undistilled": [plain(measure) for measure in undistilled_error["levels"]],
    }
    result = {
        "student": name,
        **shown_of(bench),
        **settings_of(student),
        "profile": bench.settings.profile,
        "seeds": list(recipe.seeds),
        "pictures": sizes(bench),
        "quality": quality,
        "undistilled": {key: plain(value) for key, value in undistilled.items()},
        "by_noise": by_noise,
        "cost": cost(bench, first_model) | {"trained": training["trained"]},
        "confusion": confusion(bench, first_pictures),
        "training": training,
    }
    tensors = {
        "pictures": first_pictures,
        "cross": first_cross,
        "undistilled": undistilled_pictures,
        "labels": bench.labels(settings.pictures),
    }
    save_file(tensors, project.pictures(name, write=True))
    project.write_json(project.result(name, write=True), result)
    write_run(
        bench, name, first_model, {"draw": draw_seconds, "evaluate": time.monotonic() - began}
    )
    return result


def settings_of(student: params.Student) -> dict[str, Any]:
    """Return the settings by which the report recognises a result of other settings.

    Settings that params.yaml leaves out are left out here too.
    """
    settings = {"operator": student.operator, "options": student.options, **student.settings}
    return settings | {"control": student.operator == "softmax"}


def evaluate(name: str, profile: str | None = None) -> dict[str, Any]:
    """Evaluate a student, or a teacher under the name teacher-ROLE, and return its row."""
    settings = params.load(profile)
    for role in settings.teachers:
        if name == project.teacher_row(role):
            return evaluate_teacher(Bench(settings, role))
    return evaluate_student(Bench(settings, settings.student(name).teacher), name)
