"""Read params.yaml: the whole file is checked, other profiles than the chosen one too."""

import dataclasses
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from linattn import project, reader
from linattn.attention import OPERATORS
from linattn.names import known, short
from linattn.params.operators import check_students
from linattn.params.schema import (
    SECTIONS,
    STUDENT_KEYS,
    Distill,
    Params,
    Profile,
    Published,
    Student,
    Teacher,
    with_changes,
)
from linattn.reader import check_keys, mapping, read

TOP = ("profile", "pretrained", "teachers", "teachers_of", "students", "profiles", "operators")
OPERATOR_LISTS = ("anatomy", "benchmark")
TEACHER_LISTS = (*OPERATOR_LISTS, "plan")
HUB_ID = r"[\w-][\w.-]*(/[\w-][\w.-]*)?"
REVISION = r"[\w-][\w.-]*(/[\w-][\w.-]*)*"
LONGEST = 255  # bytes of a file's name
# How the names of the report's other rows begin. A student may be plan-50: no role is called so.
OTHER_ROWS = r"(teacher|chance|anatomy|benchmark|index)(-|$)|plan$"
LONGEST = 80  # characters of a name: file systems take 255 bytes, and files add words to a name


def load(profile: str | None = None, path: Path | None = None) -> Params:
    """Return the parameters of the profile that the file names, or of another by name.

    Args:
        profile: a profile's name; None takes the one that the file names.
        path: the file; None takes params.yaml of this repository.
    """
    path = Path(path or project.ROOT / "params.yaml")
    return parse(reader.read_yaml(path), profile, path.name)


def parse(content: Any, profile: str | None = None, file: str = "params.yaml") -> Params:
    """Return the parameters of one profile from the content of the file.

    Args:
        content: what the YAML file holds.
        profile: a profile's name; None takes the one that the content names.
        file: the file's name, for errors.
    """
    top = mapping(content, file)
    check_keys(top, TOP, TOP, file)
    teachers = _teachers(top["teachers"], "teachers")
    _check_pretrained(top["pretrained"], teachers)
    teachers_of = _teachers_of(top["teachers_of"], teachers)
    entries = mapping(top["profiles"], "profiles")
    chosen = known(top["profile"] if profile is None else profile, entries, "profile")
    if profile is None:
        known(top["profile"], entries, f"{file}: profile")
    profiles = {}
    for name, entry in entries.items():
        profiles[name] = _profile(entry, teachers, f"profiles.{name}")
    numbers, path = profiles[chosen], "students"
    listed = top["students"]
    if "students" in entries[chosen]:
        listed, path = entries[chosen]["students"], f"profiles.{chosen}.students"
    _check_teachers_named(listed, path)
    students = {}
    for name, student in _students(listed, path).items():
        known(student.teacher, {**teachers, **numbers.teachers}, f"{path}.{name}.teacher")
        if name in map(project.plan_row, {**teachers, **numbers.teachers}):
            raise _other_row(name, f"{path}.{name}")
        students[name] = _resolved(student, numbers.published, chosen)
    lists = mapping(top["operators"], "operators")
    check_keys(lists, OPERATOR_LISTS, OPERATOR_LISTS, "operators")
    operators = {use: _importable(lists[use], f"operators.{use}") for use in OPERATOR_LISTS}
    params = Params(
        profile=chosen,
        students=students,
        operators=operators,
        teachers_of=_with_teachers(teachers_of, numbers.teachers),
        **vars(numbers),
    )
    check_students(params)
    return params


def _teachers(content: Any, path: str) -> dict[str, Teacher]:
    teachers = {}
    for role, entry in mapping(content, path).items():
        _check_name(role, f"{path}.{role}")
        teachers[role] = read(Teacher, entry, f"{path}.{role}")
        _check_source(teachers[role], f"{path}.{role}")
    return teachers


def _check_source(teacher: Teacher, path: str) -> None:
    """Refuse a source that names neither a folder nor a repository of the hub, or no revision."""
    too_long = any(len(part.encode()) > LONGEST for part in Path(teacher.source).parts)
    if (
        too_long
        or not teacher.source
        or not (teacher.folder or re.fullmatch(HUB_ID, teacher.source))
    ):
        raise ValueError(
            f"{path}.source is {short(teacher.source)}; it must be a folder or a repository of the "
            "hub, owner/name"
        )
    if teacher.revision is not None and not re.fullmatch(REVISION, teacher.revision):
        raise ValueError(
            f"{path}.revision is {short(teacher.revision)}; it must be a commit, a branch or a tag"
        )


def _teachers_of(content: Any, teachers: Mapping[str, Teacher]) -> dict[str, tuple[str, ...]]:
    """Read the roles for which a stage of some teachers is run; a list may be empty."""
    entries = mapping(content, "teachers_of")
    check_keys(entries, TEACHER_LISTS, TEACHER_LISTS, "teachers_of")
    roles = {}
    for use in TEACHER_LISTS:
        path = f"teachers_of.{use}"
        if not isinstance(entries[use], (list, tuple)):
            raise ValueError(f"{path} is {entries[use]!r}; it must be a list of roles of teachers")
        roles[use] = tuple(known(role, teachers, f"teacher in {path}:") for role in entries[use])
    return roles


def _with_teachers(
    teachers_of: Mapping[str, tuple[str, ...]], teachers: Mapping[str, Teacher]
) -> dict[str, tuple[str, ...]]:
    """Keep the roles that a profile has."""
    return {
        use: tuple(role for role in roles if role in teachers) for use, roles in teachers_of.items()
    }


def _check_pretrained(content: Any, teachers: Mapping[str, Teacher]) -> None:
    """Raise ValueError where a teacher that is trained here is not the role's teacher."""
    for role, folder in mapping(content, "pretrained").items():
        known(role, teachers, "teacher in pretrained:")
        if folder != teachers[role].source:
            raise ValueError(
                f"pretrained.{role} is {folder!r} and teachers.{role}.source is "
                f"{teachers[role].source!r}; they are one folder"
            )


def _check_teachers_named(students: Any, path: str) -> None:
    for name, entry in mapping(students, path).items():
        if "teacher" not in mapping(entry, f"{path}.{name}"):
            raise ValueError(
                f"{path}.{name} lacks teacher: a role of `teachers`, e.g. teacher: class"
            )


def _check_name(name: Any, path: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", str(name)):
        raise ValueError(
            f"{path}: a name is made of a-z, 0-9 and '-', since it becomes a folder and a stage"
        )
    if len(str(name)) > LONGEST:
        raise ValueError(
            f"{path}: a name has at most {LONGEST} characters, since it becomes a folder, and "
            f"this one has {len(str(name))}"
        )


def _profile(content: Any, common: Mapping[str, Teacher], path: str) -> Profile:
    """Read one profile; its own teachers stand beside the `common` ones or replace them."""
    entry = mapping(content, path)
    keys = ("teachers", "published", *SECTIONS)
    check_keys(entry, keys, (*keys, "students"), path)
    sections = {}
    for name, section in SECTIONS.items():
        sections[name] = cast(Any, read(section, entry[name], f"{path}.{name}"))
    labelled = _candidates(sections["plan"].candidates, f"{path}.plan.candidates")
    sections["plan"] = dataclasses.replace(sections["plan"], candidates=labelled)
    own = _teachers(entry["teachers"], f"{path}.teachers")
    # a profile with students of its own runs none of the others, and needs no other teachers
    teachers = own if "students" in entry else {**common, **own}
    for role, teacher in teachers.items():
        for name, changes in teacher.changes.items():
            with_changes(sections[name], changes, f"{path}.teachers.{role}.{name}")
    published = {}
    for name, recipe in mapping(entry["published"], f"{path}.published").items():
        known(name, OPERATORS, f"operator in {path}.published:")
        recipe_path = f"{path}.published.{name}"
        published[name] = _published(recipe, sections["distill"], teachers, recipe_path)
    return Profile(teachers=teachers, published=published, **sections)


def _candidates(content: Any, path: str) -> dict[str, Student]:
    """Read the operators that a plan may give to a layer."""
    entries = _students(content, path)
    for label, entry in content.items():
        if kept := [key for key in STUDENT_KEYS if key in entry and key != "operator"]:
            raise ValueError(
                f"{path}.{label} has {kept[0]} {short(entry[kept[0]])}; leave it out: a candidate "
                "has its operator and options alone"
            )
    return entries


def _published(
    content: Any, common: Distill, teachers: Mapping[str, Teacher], path: str
) -> Published:
    """Read what a paper trained with, as changes of the profile's `common` settings."""
    changes = dict(mapping(content, path))
    start = {key: changes.pop(key) for key in reader.keys_of(Published) if key in changes}
    changes = {"layerwise_steps": 0, **changes}
    trained = read(Distill, {**vars(common), **changes}, path)
    published = read(Published, start, path)
    known(published.teacher, teachers, f"{path}.teacher")
    values = {name: getattr(trained, name) for name in changes}
    return dataclasses.replace(published, changes=values)


def _students(content: Any, path: str) -> dict[str, Student]:
    students = {}
    for name, value in mapping(content, path).items():
        students[name] = read_student(name, value, f"{path}.{name}")
    return students


def _importable(content: Any, path: str) -> dict[str, Student]:
    """Read a list of operators without those whose file cannot be imported."""
    entries = _students(content, path)
    for name, entry in entries.items():
        if entry.operator in OPERATORS.broken:
            warnings.warn(
                f"{path} leaves out {name}: {OPERATORS.broken[entry.operator]}", stacklevel=4
            )
    return {
        name: entry for name, entry in entries.items() if entry.operator not in OPERATORS.broken
    }


def read_student(name: str, content: Any, path: str) -> Student:
    """Read one entry of `students`.

    Args:
        name: the student's name.
        content: the mapping that the entry holds.
        path: where the entry stands, for errors.
    """
    _check_name(name, path)
    if re.match(OTHER_ROWS, name):
        raise _other_row(name, path)
    return _student(name, mapping(content, path), path)


def _other_row(name: str, path: str) -> ValueError:
    return ValueError(f"{path}: {name!r} is the name of another row of the report; choose another")


def _student(name: str, entry: Mapping[str, Any], path: str) -> Student:
    """Read one entry; keys that are not a student's own are options of its operator.

    A misspelt key of a student's own is named as such when the operator refuses it.
    """
    student = {key: value for key, value in entry.items() if key in STUDENT_KEYS}
    options = {key: value for key, value in entry.items() if key not in STUDENT_KEYS}
    return dataclasses.replace(read(Student, student, path), name=name, options=_plain(options))


def _resolved(student: Student, published: Mapping[str, Published], profile: str) -> Student:
    """Give a student of its paper's recipe its paper's teacher and initialisation too."""
    if student.recipe == "protocol":
        return student
    noun = f"published recipe of profile {profile} (students.{student.name}.recipe)"
    recipe = published[known(student.operator, published, noun)]
    return dataclasses.replace(student, teacher=recipe.teacher, initialise=recipe.initialise)


def _plain(value: Any) -> Any:
    """Return dictionaries, lists and values, free of the YAML reader's own classes."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
