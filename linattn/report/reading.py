"""Read result files into a `Report`, by the names in params.yaml and never by a folder's files.

A row that was not run on this machine is the committed run's, and says so. For a row that was, the
committed result is kept for comparison.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linattn import params, project
from linattn.params import USUAL
from linattn.report import contributed, schema, stored, studies
from linattn.report.data import Data, Measured, Report, Result
from linattn.report.stored import Files, Stored
from linattn.report.words import NO_RESULT


def read(
    students: Mapping[str, Any],
    profile: str,
    show: int = 8,
    teachers: Mapping[str, Any] | None = None,
    committed: bool = False,
) -> Report:
    """Read the results of these students and no others.

    Args:
        students: maps a name to params.py's Student or to params.yaml's dictionary.
        profile: the profile's name, which the pages show.
        show: how many pictures a row has.
        teachers: maps a role to params.py's Teacher, whose folder tells its name and prompts;
            without it the result files do.
        committed: whether to leave out whatever was run on this machine. No row is then marked as
            the committed run's: the pages are those of the machine that made it.
    """
    entries = {name: _entry(entry) for name, entry in students.items()}
    roles = list(dict.fromkeys(entry["teacher"] for entry in entries.values()))
    files, parts = stored.of_run(committed), {}
    for role in roles or list(teachers or ())[:1]:
        of_role = {name: entry for name, entry in entries.items() if entry["teacher"] == role}
        teacher = (teachers or {}).get(role)
        data = Data(profile, of_role, role, _name(teacher), prompts="", show=show)
        problem = _describe(data, teacher)
        parts[role] = _fill(data, files)
        if problem:
            data.teacher, data.teacher_failure = {}, problem
        if committed:
            data.published, data.committed = set(), Measured()
    _make_names_unique(parts)
    file = _published_study if committed else project.study
    return Report(profile, parts, studies.read(file), contributed.read(parts, committed))


def _published_study(file: str) -> Path:
    return project.published(f"studies/{file}")


def options(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the operator's options in an entry of params.yaml."""
    return {
        key: value for key, value in entry.items() if key not in ("operator", "teacher", "recipe")
    }


def _entry(student: Any) -> Result:
    if isinstance(student, Mapping):
        return dict(student)
    entry = {"operator": student.operator, **student.options, "teacher": student.teacher}
    return {**entry, **student.settings}


def _describe(data: Data, teacher: params.Teacher | None) -> str:
    """Take what a teacher's folder says of it, or return what is wrong with the folder."""
    try:
        data.model = params.class_of(teacher) if teacher else ""
        data.prompts = _prompts(teacher)
        data.rehearsed, data.foreign = _is_rehearsed(teacher), _is_foreign(teacher)
    except (OSError, ValueError) as error:
        return str(error).replace(f"{project.ROOT}/", "")
    return ""


def _name(teacher: params.Teacher | None) -> str:
    """Return the last component of a folder or a hub id."""
    return Path(teacher.source).name if teacher is not None else ""


def _prompts(teacher: params.Teacher | None) -> str:
    """Return the key in words.PROMPTS of a teacher's prompts, or nothing where no folder tells.

    The card of a teacher of classes holds their labels; without a card, what has no tokenizer reads
    labels. A config with text in its attention reads captions by joint attention.
    """
    folder = teacher.folder if teacher else None
    if teacher is None or folder is None or not _is_there(folder):
        return ""
    card = _card(folder)
    reads_text = any(folder.glob("tokenizer*")) if card is None else "labels" not in card
    if not reads_text:
        return "labels"
    _, _, has_text = params.shape_of(teacher)
    return "joint" if has_text else "cross"


def _is_rehearsed(teacher: params.Teacher | None) -> bool:
    """Say whether a teacher's folder is one of a rehearsal, whose weights are random."""
    folder = teacher.folder if teacher else None
    return folder is not None and (folder / project.REHEARSAL).is_file()


def _is_foreign(teacher: params.Teacher | None) -> bool:
    """Say whether no judge knows what a teacher draws: only a card says that one passed its gate.

    Of a teacher whose files are not there, the results tell.
    """
    folder = teacher.folder if teacher else None
    if folder is None or not _is_there(folder):
        return False
    return "gate" not in (_card(folder) or {})


def _is_there(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("model_index.json", "card.json"))


def _card(folder: Path) -> Mapping[str, Any] | None:
    """Return a teacher's card, or None of a folder without one."""
    path = folder / "card.json"
    return params.described(path) if path.is_file() else None


def _make_names_unique(parts: Mapping[str, Data]) -> None:
    """Add the role to a teacher's name where several teachers have the same."""
    names = [data.name for data in parts.values()]
    for role, data in parts.items():
        if names.count(data.name) > 1 and data.name != role:
            data.folder = f"{data.name} ({role})"


def _fill(data: Data, files: Files) -> Data:
    """Read all files of a teacher."""
    from linattn import world

    data.labels, data.shapes = world.LABELS, tuple(world.SHAPES)
    for name in data.students:
        _read_student(data, name, files)
    _read_teacher(data, files)
    benchmark = f"runs/{project.benchmark_row(data.role)}.run.json"
    anatomy = f"results/{project.anatomy_row(data.role)}.json"
    data.benchmark = _beside(data, "benchmark", benchmark, schema.BENCHMARK, files)
    data.anatomy = _beside(data, "anatomy", anatomy, schema.ANATOMY, files)
    _read_plan(data, files)
    _read_pictures(data, "teacher", project.teacher_row(data.role), files)
    for name in data.students:
        _read_pictures(data, name, name, files)
    _read_pictures(data, "anatomy", project.anatomy_row(data.role), files)
    lists = (result.get("captions") for result in (data.teacher, *data.results.values()))
    data.captions = tuple(next((captions for captions in lists if captions), ()))
    data.classes = tuple(data.teacher.get("classes") or ())
    data.prompts = data.prompts or ("captions" if data.captions else "labels")
    data.facts = next((run["facts"] for run in data.runs.values() if run.get("facts")), {})
    return data


def _read_pictures(data: Data, name: str, file: str, files: Files) -> None:
    """Read a row's pictures; a row whose file is damaged has failed, since it shows them."""
    drawn = _pictures(data, name, file, files)
    problem = drawn.problem or _unlike(data, name, drawn.content)
    if not problem:
        data.pictures |= {name: drawn.content} if drawn.content else {}
    elif name == "teacher":
        data.teacher, data.teacher_failure = {}, problem
    elif name in data.students:
        data.results.pop(name, None)
        data.failures[name] = problem
    else:
        data.problems.append(problem)


def _unlike(data: Data, name: str, drawn: Mapping[str, np.ndarray]) -> str:
    """Say why a row's pictures or maps cannot stand beside what else is there."""
    if name == "anatomy":
        return _outside(data.anatomy.get("query", 0), drawn)
    teacher = data.pictures.get("teacher", drawn)
    sizes = [arrays["pictures"].shape[1:] for arrays in (teacher, drawn)] if drawn else []
    if len(set(sizes)) < 2:
        return ""
    return f"its pictures have shape {sizes[1]}, and its teacher's {sizes[0]}; make repro"


def _outside(query: int, drawn: Mapping[str, np.ndarray]) -> str:
    """Say that the token whose attention is shown lies outside of a map, or nothing."""
    for name, array in drawn.items():
        if name.startswith("map.") and query >= array.size:
            return f"the query is token {query}, and {name} has {array.size} tokens; make repro"
    return ""


def _read_student(data: Data, name: str, files: Files) -> None:
    def misfit(result: Result) -> str | None:
        return _other_settings(data, name, result)

    row = _row(data, name, schema.STUDENT, files, misfit)
    data.runs[name] = row.run
    if row.published:
        data.published.add(name)
    if row.committed:
        data.committed.students[name] = row.committed
    if row.problem:
        data.failures[name] = row.problem
    else:
        data.results[name] = row.result


def _read_teacher(data: Data, files: Files) -> None:
    def misfit(result: Result) -> str | None:
        return _other_teacher(data, result)

    row = _row(data, project.teacher_row(data.role), schema.TEACHER, files, misfit)
    data.runs["teacher"], data.teacher_failure = row.run, row.problem or ""
    data.teacher = {} if row.problem else row.result
    data.folder = data.folder or data.teacher.get("folder") or ""
    file = f"results/{project.chance_row(data.role)}.json"
    chances = []
    for path in (files.local(file), project.published(file)):
        chance = _noted(data, files.json(path, schema.CHANCE))
        chances.append({} if _other_teacher(data, chance) else chance)
    chance, committed_chance = chances
    data.chance = committed_chance if row.published else chance
    if row.published:
        data.published.add("teacher")
    if row.committed:
        data.committed.teacher, data.committed.chance = row.committed, committed_chance


def _beside(data: Data, name: str, file: str, expected: schema.Schema, files: Files) -> Result:
    """Read what belongs to a teacher and is no row.

    The committed file is read only where the committed teacher is the same.
    """
    here = files.json(files.local(file), expected)
    fits = "teacher" in data.published or data.committed.teacher
    if here.problem != NO_RESULT or not fits:
        return _noted(data, here)
    committed = _noted(data, files.json(project.published(file), expected))
    if committed:
        data.published.add(name)
    return committed


def _read_plan(data: Data, files: Files) -> None:
    """Read a teacher's plans, and the run file that was written with them."""
    row = project.plan_row(data.role)
    data.plan = _beside(data, "plan", f"results/{row}.json", schema.PLAN, files)
    file = project.published if "plan" in data.published else files.local
    if data.plan:
        data.plan_run = _noted(data, files.json(file(f"runs/{row}.run.json"), schema.RUN))


def _noted(data: Data, file: Stored) -> Result:
    """Return what a file holds; the damage of one that is no row is noted for the page."""
    if file.damaged:
        data.problems.append(file.damaged)
    return file.content


@dataclass(frozen=True)
class Row:
    """Hold one row: its run, and its result or the problem with it."""

    run: Result
    result: Result
    problem: str | None
    committed: Result | None = None  # the committed result beside one that was made here
    published: bool = False  # whether run and result are the committed ones


def _row(
    data: Data,
    name: str,
    expected: schema.Schema,
    files: Files,
    misfit: Callable[[Result], str | None],
) -> Row:
    """Read one row's files.

    `misfit` says why a result belongs to other settings than those in params.yaml. A committed
    result that does is not used for comparison.
    """
    file, run_file = f"results/{name}.json", f"runs/{name}.run.json"
    committed = files.json(project.published(file), expected)
    fits = bool(committed.content) and not misfit(committed.content)
    run = files.json(files.local(run_file), schema.RUN)
    result = files.json(files.local(file), expected)
    problem = run.content.get("error") or run.damaged or result.problem
    if problem == NO_RESULT and (fits or committed.damaged):
        run = files.json(project.published(run_file), schema.RUN)
        problem = committed.damaged or run.damaged
        return Row(run.content, committed.content, problem or None, published=not problem)
    _noted(data, committed)
    problem = problem or misfit(result.content)
    return Row(run.content, result.content, problem, committed.content if fits else None)


def _other_settings(data: Data, name: str, result: Mapping[str, Any]) -> str | None:
    """Say why a result is of other settings: params.yaml was edited since the stage ran."""
    folder = result.get("folder") or data.folder
    actual = _settings_of_result(result) | {"folder": folder}
    expected = _settings_of_entry(data, name) | {"folder": data.folder or folder}
    expected = json.loads(json.dumps(expected))  # as the result went through JSON: tuples are lists
    if actual == expected:
        return None
    keys = [key for key in {**actual, **expected} if actual.get(key) != expected.get(key)]
    differences = ", ".join(f"{key} {actual.get(key)!r}" for key in keys)
    return f"its result is of other settings ({differences}): make repro"


def _settings_of_result(result: Mapping[str, Any]) -> dict[str, Any]:
    settings = {
        "profile": result.get("profile"),
        "operator": result.get("operator"),
        **(result.get("options") or {}),
    }
    for key, default in USUAL.items():
        settings[key] = result.get(key, default)
    return settings | {"teacher": result.get("teacher")}


def _settings_of_entry(data: Data, name: str) -> dict[str, Any]:
    entry = data.students[name]
    settings = {"profile": data.profile, "operator": entry["operator"], **options(entry)}
    for key, default in USUAL.items():
        settings[key] = entry.get(key, default)
    return settings | {"teacher": data.role}


def _other_teacher(data: Data, result: Mapping[str, Any]) -> str | None:
    """Say why a result is of another folder or profile than params.yaml now names."""
    folder, profile = result.get("folder"), result.get("profile")
    if data.folder and folder and folder != data.folder:
        return f"its result is of {folder}, and params.yaml now names {data.folder}: make repro"
    if profile and profile != data.profile:
        return (
            f"its result is of profile {profile}, and params.yaml now names {data.profile}: make "
            "repro"
        )
    return None


def _pictures(data: Data, name: str, file: str, files: Files) -> Stored:
    """Read a row's pictures: those of this machine's run, or the committed run's few from Git.

    An anatomy's maps are few anyway, and Git has their file as it was made.
    """
    path = project.pictures(file)
    needed = "picture" if file == project.anatomy_row(data.role) else "pictures"
    if name not in data.published:
        return files.pictures(path, needed)
    committed_sheet = project.published(f"pictures/{file}.png")
    if committed_sheet.exists():
        return files.sheet(committed_sheet, needed)
    return files.pictures(project.published(f"pictures/{file}{path.suffix}"), needed)
