"""List the teachers, students and prompts that can be explored, and make a student."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from linattn import params, project, sampling, surgery, world
from linattn.names import known
from linattn.surgery.conversion import converted

UNTRAINED = ", not distilled"
CAPTIONS = 24  # number of captions in a menu


def choices(teacher: Any) -> list[tuple[str, int | str]]:
    """Return what the teacher can draw, as text and value.

    These are classes, or captions of one thing and of two in turn.

    Args:
        teacher: a Teacher or a pipeline.
    """
    if getattr(getattr(teacher, "pipe", teacher), "tokenizer", None) is not None:
        captions = [world.scene(0, index, 1 + index % 2).caption for index in range(CAPTIONS)]
        return [(caption, caption) for caption in captions]
    names = teacher.card.get("labels") or range(teacher.classes)
    return [(str(name), label) for label, name in enumerate(names)]


def teachers() -> dict[str, str]:
    """Return the teachers' folders under data/teachers/, by name."""
    folder = project.ROOT / "data" / "teachers"
    cards = sorted(folder.glob("*/model_index.json"))
    if not cards:
        raise FileNotFoundError(
            f"no teacher in {folder}; run the notebook 01_teacher, or check out the folder from Git"
        )
    return {card.parent.name: str(card.parent) for card in cards}


def students(entries: Mapping[str, Any] | None = None, teacher: str | None = None) -> list[str]:
    """Name the students to choose from: those distilled here, then every student converted.

    Controls come last in both groups.

    Args:
        entries: the students by name; None takes those of params.yaml.
        teacher: a name of `teachers()`, which limits the choice to its students. Where no role
            names this teacher, all students are offered, converted.
    """
    entries = params.load().students if entries is None else entries
    roles = [role for role, name in _folder_names().items() if name == teacher] if teacher else []
    of_teacher = [name for name in entries if teacher is None or entries[name].teacher in roles]
    names = sorted(of_teacher or entries, key=lambda name: entries[name].operator == "softmax")
    trained = [name for name in names if of_teacher and project.student(name).is_dir()]
    return trained + [name + UNTRAINED for name in names]


def student(name: str, teacher: Any, entries: Mapping[str, Any] | None = None) -> nn.Module:
    """Return a copy of the teacher's model as a student; the teacher does not change.

    A student that is not distilled is the report's: it is converted with the first seed of its
    distillation.

    Args:
        name: a student of params.yaml, with ", not distilled" after it for one that is only
            converted.
        teacher: the teacher of this student.
        entries: the students by name; None takes those of params.yaml.
    """
    entries = params.load().students if entries is None else entries
    short = known(name.removesuffix(UNTRAINED), entries, "student")
    model = sampling.Source.of(teacher).model
    if name.endswith(UNTRAINED):
        return converted(model, entries[short], _first_seed(short))
    trained = surgery.load(copy.deepcopy(model), project.student(short))
    return trained.eval().requires_grad_(False)


def _first_seed(name: str) -> int:
    settings = params.load()
    return (settings.recipe(name) if name in settings.students else settings.distill).seeds[0]


def _folder_names() -> dict[str, str]:
    """Map each role to the name of its teacher's folder."""
    return {role: entry.source.rpartition("/")[2] for role, entry in params.load().teachers.items()}
