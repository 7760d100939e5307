"""Check what was typed, and turn it into the student that the row is of."""

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from linattn import drafts, params, project
from linattn.attention import OPERATORS
from linattn.names import known
from linattn.params.schema import STUDENT_KEYS
from linattn.row.source import Source
from linattn.source import check as check_teacher


@dataclass(frozen=True)
class Request:
    """Hold one row to make: settings that include its student, and the operator's file."""

    settings: params.Params
    student: params.Student
    source: Source

    @property
    def name(self) -> str:
        return self.student.name

    @property
    def role(self) -> str:
        return self.student.teacher

    @property
    def folder(self) -> Path:
        """Return the folder of the row on this machine."""
        return project.local(f"rows/{self.role}/{self.name}")

    @property
    def identity(self) -> str:
        """Digest what the row depends on, this repository's code aside."""
        return drafts.identity(self.settings, self.name, operator=self.source.digest)


def requested(
    settings: params.Params, source: Source, role: str, options: str, name: str
) -> Request:
    """Return the row that was typed, or raise one sentence that says what is wrong."""
    teacher = _teacher(settings, role)
    name = name or source.operator.name.replace("_", "-")
    _check_free(settings, source, name)
    entry = {"operator": source.operator.name, "teacher": role, **read_options(options)}
    student = params.read_student(name, entry, f"NAME={name}")
    params.check_operator(student, *params.shape_of(teacher), path="OPTIONS")
    students = {**settings.students, name: student}
    settings = settings.of(role)
    return Request(dataclasses.replace(settings, students=students), student, source)


def _teacher(settings: params.Params, role: str) -> params.Teacher:
    if not role:
        roles = ", ".join(settings.teachers)
        raise ValueError(f"no teacher is named: TEACHER=ROLE, where ROLE is one of {roles}")
    for named, teacher in settings.teachers.items():
        if role in (teacher.source, Path(teacher.source).name):
            raise ValueError(f"TEACHER={role} is a teacher, and TEACHER takes its role: {named}")
    teacher = settings.teachers[known(role, settings.teachers, "teacher")]
    check_teacher(role, teacher)
    return teacher


def _check_free(settings: params.Params, source: Source, name: str) -> None:
    """Refuse the name of a student or of another operator of this repository."""
    remedy = f"choose another, as in NAME={name}-2"
    if name in settings.students:
        raise ValueError(f"{name!r} is the name of a student here: {remedy}")
    if name.replace("-", "_") in set(OPERATORS) - {source.operator.name}:
        raise ValueError(f"{name!r} is the name of an operator here: {remedy}")


def read_options(text: str) -> dict[str, Any]:
    """Read an operator's options: `radius=4 pool=2`, or a YAML mapping `radius: 4, pool: 2`."""
    if "=" in text.partition(":")[0] or not text.strip():
        pairs = [_pair(word) for word in _words(text)]
    else:
        pairs = list(_mapping(text).items())
    names = [str(key) for key, _ in pairs]
    for key in names:
        if key in STUDENT_KEYS:
            raise ValueError(
                f"OPTIONS: {key!r} belongs to the student and is no option of its operator: all "
                "rows share one protocol"
            )
        if names.count(key) > 1:
            raise ValueError(f"OPTIONS: {key!r} stands there {names.count(key)} times; keep one")
    return {str(key): value for key, value in pairs}


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        raise ValueError(f"OPTIONS: {text!r} has a quotation mark without its twin") from None


def _pair(word: str) -> tuple[str, Any]:
    key, equals, value = word.partition("=")
    if not (key and equals and value):
        raise ValueError(f"OPTIONS: {word!r} is no option=value, as in 'radius=4 pool=2'")
    return key, _yaml(value)


def _mapping(text: str) -> dict[Any, Any]:
    inner = text.strip()
    content = _yaml(inner if inner.startswith("{") else f"{{{inner}}}")
    # a word without a value is a key of nothing
    if not isinstance(content, dict) or None in content.values():
        raise ValueError(f"OPTIONS: {text!r} is no list of options, as in 'radius=4 pool=2'")
    return content


def _yaml(text: str) -> Any:
    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        message = " ".join(str(error).split())
        raise ValueError(f"OPTIONS: {text!r} is not valid YAML: {message}") from None
