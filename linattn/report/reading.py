"""Result files into `Report`: by the names in params.yaml, never by what lies in a folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from linattn import project
from linattn.params import USUAL
from linattn.report import studies
from linattn.report.data import Data, Report, Result
from linattn.report.words import NO_RESULT

FIRST = "class"  # the role that anatomy and benchmark are about, and that an entry without a role means


def read(students: Mapping[str, Any], profile: str, show: int = 8, teachers: Mapping[str, Any] | None = None) -> Report:
    """Results of these students and no others; an entry is params.py's Student or params.yaml's dictionary.

    `teachers` maps a role to params.py's Teacher, for its name; without it the result files are asked.
    """
    entries = {name: _entry(entry) for name, entry in students.items()}
    roles = dict.fromkeys(role_of(entry) for entry in entries.values()) or {FIRST: None}
    parts = {}
    for role in roles:
        own = {name: entry for name, entry in entries.items() if role_of(entry) == role}
        parts[role] = _part(role, own, profile, show, _name((teachers or {}).get(role)))
    _tell_apart(parts)
    return Report(profile, parts, studies.read())


def role_of(entry: Mapping[str, Any]) -> str:
    return entry.get("teacher", FIRST)


def options(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry of params.yaml says to the operator itself."""
    return {key: value for key, value in entry.items() if key not in ("operator", "teacher", "recipe")}


def _entry(student: Any) -> Result:
    if isinstance(student, Mapping):
        return dict(student)
    own = {} if student.teacher == FIRST else {"teacher": student.teacher}
    return {"operator": student.operator, **student.options, **own, **student.settings}


def _name(teacher: Any) -> str:
    """The last part of a folder or a hub id."""
    return Path(teacher.source).name if teacher is not None else ""


def _tell_apart(parts: Mapping[str, Data]) -> None:
    names = [part.name for part in parts.values()]
    for role, part in parts.items():
        if names.count(part.name) > 1 and part.name != role:
            part.folder = f"{part.name} ({role})"


def _part(role: str, students: dict[str, Result], profile: str, show: int, folder: str) -> Data:
    from linattn import world

    data = Data(profile, students, role, folder, show=show)
    data.labels, data.shapes = world.LABELS, tuple(world.SHAPES)
    for name in students:
        _read_student(data, name)
    _read_teacher(data)
    if role == FIRST:
        data.benchmark = _json(project.run_result("benchmark")) or _json(project.result("benchmark")) or {}
        data.anatomy = _json(project.result("anatomy")) or {}
    files = {"teacher": project.teacher_row(role), **{name: name for name in students}}
    files |= {"anatomy": "anatomy"} if role == FIRST else {}
    paths = {name: project.pictures(file) for name, file in files.items()}
    data.pictures = {name: _arrays(path) for name, path in paths.items() if path.exists()}
    asked = (result.get("captions") for result in (data.teacher, *data.results.values()))
    data.captions = tuple(next((captions for captions in asked if captions), ()))
    data.facts = next((run["facts"] for run in data.runs.values() if run.get("facts")), {})
    return data


def _read_student(data: Data, name: str) -> None:
    data.runs[name] = _json(project.run_result(name)) or {}
    result, problem = _result(project.result(name))
    problem = problem or _other_settings(data, name, result)
    problem = data.runs[name].get("error") or problem
    if problem:
        data.failures[name] = problem
    elif result:
        data.results[name] = result


def _read_teacher(data: Data) -> None:
    own = project.teacher_row(data.role)
    data.runs["teacher"] = _json(project.run_result(own)) or {}
    result, problem = _result(project.result(own))
    problem = problem or _other_teacher(data, result)
    data.teacher_failure = data.runs["teacher"].get("error") or problem or ""
    data.teacher = {} if data.teacher_failure else result
    data.folder = data.folder or data.teacher.get("folder") or ""
    data.chance = _json(project.result(project.chance_row(data.role))) or {}


def _json(path: Path) -> Result | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _result(path: Path) -> tuple[Result | None, str | None]:
    if not path.exists():
        return None, NO_RESULT
    try:
        return json.loads(path.read_text()), None
    except ValueError as error:
        return None, f"the result file is damaged: {error}"


def _other_settings(data: Data, name: str, result: Mapping[str, Any]) -> str | None:
    """Why a result that is there is not this student's: params.yaml was edited and the stage has not run since."""
    entry = data.students[name]
    made = {"profile": result.get("profile"), "operator": result.get("operator"), **(result.get("options") or {})}
    asked = {"profile": data.profile, "operator": entry["operator"], **options(entry)}
    made |= {key: result.get(key, usual) for key, usual in USUAL.items()}
    asked |= {key: entry.get(key, usual) for key, usual in USUAL.items()}
    made |= {"teacher": result.get("teacher", FIRST), "folder": result.get("folder") or data.folder}
    asked |= {"teacher": data.role, "folder": data.folder or made["folder"]}
    asked = json.loads(json.dumps(asked))
    if made == asked:
        return None
    told = ", ".join(f"{key} {made.get(key)!r}" for key in {**made, **asked} if made.get(key) != asked.get(key))
    return f"its result is of other settings ({told}): make repro"


def _other_teacher(data: Data, result: Mapping[str, Any]) -> str | None:
    """The same of a teacher: its role may have been given to another folder."""
    made = result.get("folder")
    if not data.folder or not made or made == data.folder:
        return None
    return f"its result is of {made}, and params.yaml now names {data.folder}: make repro"


def _arrays(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)
