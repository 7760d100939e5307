"""Read the study's students: entries as those of params.yaml, whose numbers they are trained by."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linattn import params, project, reader
from linattn.names import known

PARAMS = "studies/operators/params.yaml"
RESULT = "operators.json"
ROW, RUN, WEIGHTS, PICTURES = "row.json", "run.json", "student", "pictures.safetensors"


@dataclass(frozen=True)
class Settings:
    """Hold the numbers of params.yaml with the study's students beside its own."""

    params: params.Params
    names: tuple[str, ...]  # of the study's students


def load(path: str | Path = PARAMS) -> Settings:
    """Read the study's students as strictly as those of params.yaml."""
    common, entries = params.load(), listed(path)
    students = {}
    for name, entry in entries.items():
        students[name] = _student(common, name, entry, f"{path}: students.{name}")
    both = dataclasses.replace(common, students={**common.students, **students})
    return Settings(both, tuple(students))


def listed(path: str | Path = PARAMS) -> dict[str, Any]:
    """Return the entries of the students by name, unchecked."""
    content = reader.mapping(reader.read_yaml(project.ROOT / path), str(path))
    reader.check_keys(content, ("students",), ("students",), str(path))
    return dict(reader.mapping(content["students"], f"{path}: students"))


def _student(common: params.Params, name: str, entry: Any, path: str) -> params.Student:
    """Read one student, and refuse what the layers of its teacher cannot have."""
    if name in common.students:
        raise ValueError(f"{path}: {name!r} is a student of params.yaml; choose another name")
    student = params.read_student(name, entry, path)
    teacher = common.teachers[known(student.teacher, common.teachers, f"{path}.teacher")]
    params.check_operator(student, *params.shape_of(teacher), path=path)
    return student


def folder(name: str, write: bool = False) -> Path:
    """Return the folder of a student: its row, its run file, its weights and its pictures."""
    return project.artifact(f"data/operators/{name}", write)
