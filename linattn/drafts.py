"""Make a student in a folder of its own, apart from those that the pipeline keeps.

Rows of the leaderboard and students of a study are made so, by the code that makes the students of
params.yaml: with the same samples, settings and seeds.
"""

import dataclasses
from pathlib import Path
from typing import Any

from linattn import digests, params, project, students
from linattn.evaluation import evaluation
from linattn.evaluation.bench import Bench


def identity(settings: params.Params, name: str, **origin: str) -> str:
    """Digest what a student depends on, this repository's code aside.

    Args:
        settings: they hold the student.
        name: the student's.
        origin: what else it depends on, such as the file of an operator from elsewhere.
    """
    student = settings.student(name)
    of_teacher = settings.of(student.teacher)
    return digests.of_settings(
        {
            **origin,
            "student": dataclasses.asdict(student),
            "teacher": settings.teacher(student.teacher).source,
            "sample": dataclasses.asdict(of_teacher.sample),
            "distill": dataclasses.asdict(of_teacher.distill),
            "evaluate": dataclasses.asdict(of_teacher.evaluate),
        }
    )


def make(settings: params.Params, name: str, folder: Path, **origin: str) -> dict[str, Any]:
    """Distil and evaluate a student, and return its result.

    One that `folder` holds is not distilled again, so that an interrupted run goes on there.

    Args:
        settings: they hold the student.
        name: the student's.
        folder: the root of all files that are written.
        origin: what else a checkpoint depends on.
    """
    with project.writing_to(folder):
        if not project.run_result(f"{name}.distill", write=True).exists():
            students.make_of(settings, name, **origin)
        return evaluation.evaluate_student(Bench(settings, settings.student(name).teacher), name)
