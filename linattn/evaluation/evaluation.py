"""Evaluate a teacher, then its students beside it, and write the rows that the report shows.

- Rows that only bound the others (undistilled, twice the side) take fewer pictures and steps. Their
  reference is what the teacher draws with as many.
- A result names no time and no machine, so the same code writes the same bytes. Times and machine
  go to the run file.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from linattn import params, project, sealed, surgery
from linattn.attention import POLICIES
from linattn.evaluation import costs, scores, tally
from linattn.evaluation.bench import Bench, on_device, say
from linattn.evaluation.fewer import fewer
from linattn.evaluation.likeness import unrelated
from linattn.evaluation.rows import (
    WITHIN,
    Measures,
    combine,
    confusion,
    cost,
    cross_distance,
    distance,
    draw,
    draw_reference,
    errors,
    levels_of,
    marks,
    plain,
    shown_of,
    sizes,
    truth,
)
from linattn.intervals import shares
from linattn.surgery.conversion import converted, loaded
from linattn.world import pairs
from linattn.world.marks import chance as judge_chance, judge_kid

# The teacher, and chance
# ---------------------------------------------------------------------------------------------


def evaluate_teacher(bench: Bench) -> dict[str, Any]:
    """Draw the reference, mark it, and write it for the students."""
    began = time.monotonic()
    reference = draw_reference(bench)
    sealed.save(reference, project.reference(bench.role, write=True))
    draw_seconds = time.monotonic() - began
    pictures = {name: reference[name] for name in ("pictures", "labels", "cross")}
    sealed.save(pictures, project.pictures(bench.name, write=True))
    teacher_cost = cost(bench, bench.teacher.model)
    result = {
        "student": bench.name,
        **shown_of(bench),
        "operator": "softmax",
        "options": {},
        "control": False,
        "profile": bench.settings.profile,
        "seeds": [],
        "pictures": sizes(bench),
        "quality": _plain(_teacher_quality(bench, reference)),
        "quick": _plain(truth(bench, reference["quick"])),
        "fewer": fewer(bench, reference, teacher_cost["macs"]),
        "cost": teacher_cost | {"trained": 0},
        "confusion": confusion(bench, reference["pictures"]),
        **_left_out(bench),
    }
    project.write_json(project.result(bench.name, write=True), result)
    chance_path = project.result(project.chance_row(bench.role), write=True)
    project.write_json(chance_path, chance(bench, reference["pictures"]))
    seconds = {"draw": draw_seconds, "evaluate": time.monotonic() - began}
    write_run(bench, bench.name, bench.teacher.model, seconds)
    return result


def _teacher_quality(bench: Bench, reference: Mapping[str, Tensor]) -> Measures:
    """Mark the teacher's pictures, which have no distance to the teacher, only one to the world.

    Nothing is marked of a teacher that does not draw the small world.
    """
    settings = bench.evaluation
    published = scores.of_teacher(bench, reference["pictures"])
    if not bench.judged:
        return published
    world_features = bench.known["world"][: settings.pictures]
    world_kid = judge_kid(bench.known["pictures"], world_features, settings.seed)
    marked = truth(bench, reference["pictures"])
    enlarged = truth(bench, reference["cross"], "cross_")
    return {**marked, **enlarged, "kid_world": world_kid, **published}


def _left_out(bench: Bench) -> dict[str, Any]:
    """Return the reasons for scores that were asked for and not measured, if there are any."""
    reasons = scores.left_out(bench)
    return {"left_out": reasons} if reasons else {}


def _plain(measures: Mapping[str, Any]) -> Measures:
    """Keep value, interval and number of pictures of every measure."""
    return {name: plain(measure) for name, measure in measures.items()}


def chance(bench: Bench, pictures: Tensor) -> dict[str, Any]:
    """Return the row of a model that ignores its label or caption.

    Pictures of two things are marked against the captions of other pictures. To the eye the row is
    as far from the teacher's pictures as these are from one another.
    """
    values = judge_chance() if bench.judged else {}
    if bench.judged and bench.captioned:
        two_things, scenes = on_device(pictures[1::2]), bench.scenes(len(pictures))[1::2]
        values |= pairs.chance(bench.judge, two_things, scenes)
    repeating = len(bench.captions) if bench.captions else None
    quality = {}
    for prefix in ("", "cross_"):
        for name, value in values.items():
            quality[prefix + name] = {"value": value, "low": None, "high": None, "n": None}
    for prefix, drawn in (("", "pictures"), ("cross_", "cross")):
        if apart := unrelated(bench.eyed[drawn], bench.evaluation.seed, repeating):
            quality[f"{prefix}eye_distance"] = plain(apart)
    return {
        "student": project.chance_row(bench.role),
        "teacher": bench.role,
        "profile": bench.settings.profile,
        "quality": quality,
    }


def write_run(bench: Bench, name: str, model: nn.Module, seconds: Mapping[str, float]) -> None:
    """Write the run file: the machine's facts, seconds, backend and peak memory.

    The seconds of the distillation are repeated there, so that one file holds them all.
    """
    distill_path = project.run_result(f"{name}.distill")
    distill_seconds = project.read_json(distill_path)["seconds"] if distill_path.exists() else {}
    all_seconds = {**distill_seconds, **seconds}
    facts, backend = project.facts(), surgery.backends(model)
    peaks = []
    for level in levels_of(bench, model):
        peaks.append(costs.forward_memory(model, noise=level, inputs=bench.inputs(level)))
    run = {
        "facts": facts,
        "seconds": {key: round(value, 2) for key, value in all_seconds.items()},
        "backend": backend,
        "memory": max(peaks),
    }
    project.write_json(project.run_result(name, write=True), run)


# Students
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """Hold what is measured of the student that one training seed gave."""

    measures: Measures
    error_levels: list[Mapping[str, Any]]  # the prediction's error by noise level
    pictures: Tensor
    cross: Tensor  # at a multiple of the trained side
    draw_seconds: float
    squares: tally.Squares  # of the error and of the teacher's prediction
    marks: Mapping[str, Tensor]  # which pictures are right, by mark


@dataclass(frozen=True)
class Undistilled:
    """Hold what is measured of a student that was converted and not distilled."""

    measures: Measures
    error_levels: list[Mapping[str, Any]]
    pictures: Tensor


def distilled(bench: Bench, folder: Path) -> nn.Module:
    """Return a copy of the teacher's model with the layers that `folder` holds."""
    return loaded(bench.teacher.model, folder)


def evaluate_student(bench: Bench, name: str) -> dict[str, Any]:
    """Evaluate one student distilled from every seed, and the same student not distilled."""
    began = time.monotonic()
    student, recipe = bench.settings.student(name), bench.settings.recipe(name)
    first_seed, *other_seeds = recipe.seeds
    first_model = distilled(bench, project.student(name))
    trained = [measure_trained(bench, first_model, f"{name} (seed {first_seed})")]
    for seed in other_seeds:
        model = distilled(bench, project.student(name, seed))
        trained.append(measure_trained(bench, model, f"{name} (seed {seed})"))
    by_seed = zip(recipe.seeds, trained, strict=True)
    before = None
    if not starts_from_data(student):
        model = converted(bench.teacher.model, student, first_seed)
        before = measure_undistilled(bench, model, name)
    training = project.read_json(project.student(name) / "training.json")
    result = {
        "student": name,
        **shown_of(bench),
        **settings_of(student),
        "profile": bench.settings.profile,
        "seeds": list(recipe.seeds),
        "pictures": sizes(bench),
        "quality": _over_seeds([one.measures for one in trained]),
        "tally": tally.tally({seed: (one.squares, one.marks) for seed, one in by_seed}),
        **({"undistilled": _plain(before.measures)} if before else {}),
        "by_noise": _by_noise(bench, [one.error_levels for one in trained], before),
        "cost": cost(bench, first_model) | {"trained": training["trained"]},
        "confusion": confusion(bench, trained[0].pictures),
        "training": training,
        **_left_out(bench),
    }
    tensors = {
        "pictures": trained[0].pictures,
        "cross": trained[0].cross,
        **({"undistilled": before.pictures} if before else {}),
        "labels": bench.labels(bench.evaluation.pictures),
    }
    sealed.save(tensors, project.pictures(name, write=True))
    project.write_json(project.result(name, write=True), result)
    draw_seconds = sum(one.draw_seconds for one in trained)
    seconds = {"draw": draw_seconds, "evaluate": time.monotonic() - began}
    write_run(bench, name, first_model, seconds)
    return result


def measure_trained(bench: Bench, model: nn.Module, title: str) -> Trained:
    """Draw with a distilled student and measure it; `title` names it in the log."""
    settings = bench.evaluation
    say(
        f"{title}: {settings.pictures} pictures, "
        f"then {settings.cross_pictures} at {settings.cross} x the side"
    )
    start = time.monotonic()
    pictures = draw(bench, model, settings.pictures, settings.steps)
    draw_seconds = time.monotonic() - start
    cross = draw(bench, model, settings.cross_pictures, settings.quick_steps, settings.cross)
    error = errors(bench, model)
    right, enlarged = marks(bench, pictures), truth(bench, cross, "cross_")
    to_teacher = distance(bench, pictures, "pictures")
    measures = {"error": error["mean"], **shares(right), **enlarged, **to_teacher}
    measures |= cross_distance(bench, cross)
    measures |= scores.of_student(bench, pictures)
    levels, squares = error["levels"], error["squares"]
    return Trained(measures, levels, pictures, cross, draw_seconds, squares, right)


def measure_undistilled(bench: Bench, model: nn.Module, name: str) -> Undistilled:
    """Draw with a student that was not distilled, fewer pictures in fewer steps, and measure it."""
    settings = bench.evaluation
    say(
        f"{name}, converted and not distilled: {settings.quick_pictures} pictures of "
        f"{settings.quick_steps} steps"
    )
    pictures = draw(bench, model, settings.quick_pictures, settings.quick_steps)
    error = errors(bench, model)
    marked, to_teacher = truth(bench, pictures), distance(bench, pictures, "quick")
    return Undistilled({**marked, **to_teacher, "error": error["mean"]}, error["levels"], pictures)


def _over_seeds(measures: Sequence[Measures]) -> Measures:
    """Combine every measure over the training seeds."""
    quality = {}
    for key in measures[0]:
        quality[key] = combine([of_seed[key] for of_seed in measures], WITHIN.get(key))
    return quality


def _by_noise(
    bench: Bench,
    error_levels: Sequence[Sequence[Mapping[str, Any]]],
    before: Undistilled | None,
) -> dict[str, Any]:
    """Return the errors by noise level; `error_levels` has one list of levels for each seed."""
    by_level = zip(*error_levels, strict=True)
    by_noise: dict[str, Any] = {
        "noise": list(bench.evaluation.noise),
        "error": [combine(over_seeds, WITHIN["error"]) for over_seeds in by_level],
    }
    if before:
        by_noise["undistilled"] = [plain(measure) for measure in before.error_levels]
    return by_noise


def starts_from_data(student: params.Student) -> bool:
    """Say whether the conversion needs the training's pictures, which are not evaluation's.

    Such a student has no row "converted, not distilled".
    """
    return POLICIES[student.initialise].fit is not None


def settings_of(student: params.Student) -> dict[str, Any]:
    """Return the settings by which the report recognises a result of other settings.

    Settings that params.yaml leaves out are left out here too.
    """
    settings = {"operator": student.operator, "options": student.options, **student.settings}
    return settings | {"control": student.operator == "softmax"}


def evaluate(name: str, profile: str | None = None) -> dict[str, Any]:
    """Evaluate a student, or a teacher under the name teacher-ROLE, and return its row.

    Args:
        name: a student of params.yaml, or teacher-ROLE for a teacher.
        profile: a profile of params.yaml; None takes the one that the file names.
    """
    settings = params.load(profile)
    for role in settings.teachers:
        if name == project.teacher_row(role):
            return evaluate_teacher(Bench(settings, role))
    return evaluate_student(Bench(settings, settings.student(name).teacher), name)
