"""Run the stage of plans: what each layer of a teacher loses, and which layers a budget replaces.

Everything is measured twice, on candidates as they are converted and after their layerwise stage.
Trained candidates have projections of their own, and the layers of a plan are measured with these;
a student of that plan is trained as a whole.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from linattn import params, project, roles
from linattn.distillation.settings import Settings
from linattn.evaluation.anatomy import layer_names
from linattn.planning import candidates, ranges
from linattn.planning.bets import rankings
from linattn.planning.candidates import SOFTMAX, Candidate
from linattn.planning.comparison import compared
from linattn.planning.survey import Survey, grids, survey
from linattn.samples import Samples
from linattn.teachers import Teacher


def run(role: str, profile: str | None = None) -> dict[str, Any]:
    """Run the whole stage of one teacher: write its result and its run file.

    Args:
        role: the teacher's role in params.yaml.
        profile: a profile's name; None takes the one that the file names.
    """
    began, settings = time.monotonic(), params.load(profile)
    teacher, samples = roles.load(settings, role), Samples(project.samples(role))
    measured = of_teacher(teacher, samples, settings.plan, settings.of(role).distill)
    result = {"teacher": role, "profile": settings.profile, **measured}
    seconds = {"measure": round(time.monotonic() - began, 2)}
    name = project.plan_row(role)
    project.write_json(project.result(name, write=True), result)
    run_file = {"facts": project.facts(), "seconds": seconds}
    project.write_json(project.run_result(name, write=True), run_file)
    return result


def of_teacher(
    teacher: Teacher, samples: Any, settings: params.Planning, training: Settings
) -> dict[str, Any]:
    """Measure a teacher's layers, and return its plans and the choices beside them.

    Args:
        teacher: it does not change.
        samples: latents with prompts that it drew.
        settings: the section `plan` of a profile.
        training: how the layerwise stage trains; its number of steps is that of `settings`.
    """
    entries = candidates.read(
        {label: (entry.operator, entry.options) for label, entry in settings.candidates.items()}
    )
    pictures = min(settings.pictures, len(samples))
    ranked = rankings(teacher, samples, entries, settings.noise, pictures, settings.seed)
    surveys = both(teacher, samples, entries, settings, training)
    of_layers = surveys["untrained"].costs
    return {
        "n": pictures,
        "seed": settings.seed,
        "noise": list(settings.noise),
        "until": list(settings.until),
        "layerwise_steps": settings.layerwise_steps,
        "layers": list(range(len(of_layers[SOFTMAX]))),
        **layer_names(grids(teacher, samples, None), range(len(of_layers[SOFTMAX]))),
        "candidates": {
            label: {"operator": entry.operator, "options": entry.options}
            for label, entry in entries.items()
        },
        "costs": of_layers,
        "stages": {
            stage: compared(measured, settings.budgets, ranked)
            for stage, measured in surveys.items()
        },
    }


def both(
    teacher: Teacher,
    samples: Any,
    entries: Mapping[str, Candidate],
    settings: params.Planning,
    training: Settings,
) -> dict[str, Survey]:
    """Survey the candidates untrained and after the layerwise stage."""
    spans = ranges.split(settings.until, settings.noise)
    trained = dataclasses.replace(training, layerwise_steps=settings.layerwise_steps)
    return {
        stage: survey(
            teacher,
            samples,
            entries,
            spans,
            budget=min(settings.budgets),
            training=steps,
            seed=settings.seed,
            count=settings.pictures,
            batch=settings.batch,
        )
        for stage, steps in {"untrained": None, "layerwise": trained}.items()
    }
