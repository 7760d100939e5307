"""Result files into `Report`: by the names in params.yaml, never by what lies in a folder.

A row that was not run on this machine is the committed run's, and says so. Beside one that was, the committed result is
kept for comparison.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linattn import project
from linattn.params import USUAL
from linattn.report import studies
from linattn.report.data import Data, Report, Result
from linattn.report.words import NO_RESULT

FIRST = "class"  # the role that anatomy and benchmark are about, and that an entry without a role means


def read(
    students: Mapping[str, Any],
    profile: str,
    show: int = 8,
    teachers: Mapping[str, Any] | None = None,
    committed: bool = False,
) -> Report:
    """Results of these students and no others; an entry is params.py's Student or params.yaml's dictionary.

    `teachers` maps a role to params.py's Teacher, for its name; without it the result files are asked. `committed`
    leaves out whatever was run on this machine.
    """
    entries = {name: _entry(entry) for name, entry in students.items()}
    roles = dict.fromkeys(role_of(entry) for entry in entries.values()) or {FIRST: None}
    parts = {}
    for role in roles:
        own = {name: entry for name, entry in entries.items() if role_of(entry) == role}
        data = Data(profile, own, role, _name((teachers or {}).get(role)), show=show)
        parts[role] = _part(data, project.published if committed else project.local)
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


def _part(data: Data, local: Callable[[str], Path]) -> Data:
    from linattn import world

    data.labels, data.shapes = world.LABELS, tuple(world.SHAPES)
    for name in data.students:
        _read_student(data, name, local)
    _read_teacher(data, local)
    files = {"teacher": project.teacher_row(data.role), **{name: name for name in data.students}}
    if data.role == FIRST:
        data.benchmark = _beside(data, "benchmark", "runs/benchmark.run.json", local)
        data.anatomy = _beside(data, "anatomy", "results/anatomy.json", local)
        files["anatomy"] = "anatomy"
    paths = {name: project.pictures(file) for name, file in files.items()}
    data.pictures = {name: _arrays(path) for name, path in paths.items() if path.exists()}
    asked = (result.get("captions") for result in (data.teacher, *data.results.values()))
    data.captions = tuple(next((captions for captions in asked if captions), ()))
    data.facts = next((run["facts"] for run in data.runs.values() if run.get("facts")), {})
    return data


def _read_student(data: Data, name: str, local: Callable[[str], Path]) -> None:
    row = _row(name, local, lambda result: _other_settings(data, name, result))
    data.runs[name] = row.run
    if row.published:
        data.published.add(name)
    if row.committed:
        data.committed.students[name] = row.committed
    if row.problem:
        data.failures[name] = row.problem
    else:
        data.results[name] = row.result


def _read_teacher(data: Data, local: Callable[[str], Path]) -> None:
    row = _row(project.teacher_row(data.role), local, lambda result: _other_teacher(data, result))
    chance = f"results/{project.chance_row(data.role)}.json"
    data.runs["teacher"], data.teacher_failure = row.run, row.problem or ""
    data.teacher = {} if row.problem else row.result
    data.folder = data.folder or data.teacher.get("folder") or ""
    guesses = [_json(root(chance)) or {} for root in (local, project.published)]
    here, committed = ({} if _other_teacher(data, guess) else guess for guess in guesses)
    data.chance = committed if row.published else here
    if row.published:
        data.published.add("teacher")
    if row.committed:
        data.committed.teacher, data.committed.chance = row.committed, committed


def _beside(data: Data, name: str, path: str, local: Callable[[str], Path]) -> Result:
    """Read what belongs to a teacher and is no row; the committed one only where the committed teacher fits."""
    here = _json(local(path))
    fits = "teacher" in data.published or data.committed.teacher
    committed = _json(project.published(path)) if fits else None
    if not here and committed:
        data.published.add(name)
    return here or committed or {}


@dataclass(frozen=True)
class Row:
    """One row's files: its run, its result or what is wrong with it, and the committed result beside one made here."""

    run: Result
    result: Result
    problem: str | None
    committed: Result | None = None
    published: bool = False  # not run here: all of it is the committed run's


def _row(name: str, local: Callable[[str], Path], misfit: Callable[[Result], str | None]) -> Row:
    """`misfit` says why a result is not of what params.yaml names. A committed one that is not is no comparison."""
    file, run_file = f"results/{name}.json", f"runs/{name}.run.json"
    committed = _json(project.published(file))
    if committed and misfit(committed):
        committed = None
    run = _json(local(run_file)) or {}
    result, problem = _result(local(file))
    problem = run.get("error") or problem
    if problem == NO_RESULT and committed:
        return Row(_json(project.published(run_file)) or {}, committed, None, published=True)
    return Row(run, result, problem or misfit(result), committed)


def _json(path: Path) -> Result | None:
    """Return a file's object, or None where there is none or it is damaged."""
    return _result(path)[0] or None


def _result(path: Path) -> tuple[Result, str | None]:
    """Return a file's object, and what is wrong with it."""
    if not path.exists():
        return {}, NO_RESULT
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return {}, f"the result file is damaged: {error}"
    if not isinstance(content, dict):
        return {}, f"the result file is damaged: {path.name} holds a {type(content).__name__} and no object"
    return content, None


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
    """The same of a teacher: its role may have been given to another folder, or the profile changed."""
    made, profile = result.get("folder"), result.get("profile")
    if data.folder and made and made != data.folder:
        return f"its result is of {made}, and params.yaml now names {data.folder}: make repro"
    if profile and profile != data.profile:
        return f"its result is of profile {profile}, and params.yaml now names {data.profile}: make repro"
    return None


def _arrays(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)
