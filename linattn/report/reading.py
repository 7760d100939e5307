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

from linattn import params, project, sealed
from linattn.params import USUAL
from linattn.report import contributed, sheet, studies
from linattn.report.data import Data, Measured, Report, Result
from linattn.report.words import NO_RESULT

REMEDY = "remove it, and make repro makes it again"


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
    parts = {}
    for role in roles or list(teachers or ())[:1]:
        of_role = {name: entry for name, entry in entries.items() if entry["teacher"] == role}
        teacher = (teachers or {}).get(role)
        model = params.class_of(teacher) if teacher else ""
        prompts = _prompts(teacher)
        data = Data(profile, of_role, role, _name(teacher), model, prompts, show=show)
        data.rehearsed, data.foreign = _is_rehearsed(teacher), _is_foreign(teacher)
        parts[role] = _fill(data, _nowhere if committed else project.local)
        if committed:
            data.published, data.committed = set(), Measured()
    _make_names_unique(parts)
    file = _published_study if committed else project.study
    return Report(profile, parts, studies.read(file), contributed.read(parts, committed))


def _nowhere(path: str) -> Path:
    """Return a path at which no run leaves a file."""
    return project.ROOT / "reports" / "nowhere" / path


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


def _card(folder: Path) -> Result | None:
    """Return a teacher's card, or None of a folder without one."""
    path = folder / "card.json"
    return project.read_json(path) if path.is_file() else None


def _make_names_unique(parts: Mapping[str, Data]) -> None:
    """Add the role to a teacher's name where several teachers have the same."""
    names = [data.name for data in parts.values()]
    for role, data in parts.items():
        if names.count(data.name) > 1 and data.name != role:
            data.folder = f"{data.name} ({role})"


def _fill(data: Data, local: Callable[[str], Path]) -> Data:
    """Read all files of a teacher; `local` gives the path of a file of this machine's run."""
    from linattn import world

    data.labels, data.shapes = world.LABELS, tuple(world.SHAPES)
    for name in data.students:
        _read_student(data, name, local)
    _read_teacher(data, local)
    files = {"teacher": project.teacher_row(data.role), **{name: name for name in data.students}}
    files["anatomy"] = anatomy = project.anatomy_row(data.role)
    benchmark = project.benchmark_row(data.role)
    data.benchmark = _beside(data, "benchmark", f"runs/{benchmark}.run.json", local)
    data.anatomy = _beside(data, "anatomy", f"results/{anatomy}.json", local)
    for name, file in files.items():
        _read_pictures(data, name, file)
    lists = (result.get("captions") for result in (data.teacher, *data.results.values()))
    data.captions = tuple(next((captions for captions in lists if captions), ()))
    data.classes = tuple(data.teacher.get("classes") or ())
    data.prompts = data.prompts or ("captions" if data.captions else "labels")
    data.facts = next((run["facts"] for run in data.runs.values() if run.get("facts")), {})
    return data


def _read_pictures(data: Data, name: str, file: str) -> None:
    """Read a row's pictures; a row whose file is damaged has failed, since it shows them."""
    try:
        if pictures := _pictures(file, name in data.published):
            data.pictures[name] = pictures
    except (OSError, ValueError) as error:
        problem = str(error).replace(f"{project.ROOT}/", "")
        if name == "teacher":
            data.teacher, data.teacher_failure = {}, problem
        elif name in data.students:
            data.results.pop(name, None)
            data.failures[name] = problem
        else:
            data.anatomy = {}


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
    data.runs["teacher"], data.teacher_failure = row.run, row.problem or ""
    data.teacher = {} if row.problem else row.result
    data.folder = data.folder or data.teacher.get("folder") or ""
    chance_file = f"results/{project.chance_row(data.role)}.json"
    chances = [_json(path(chance_file)) or {} for path in (local, project.published)]
    chances = [{} if _other_teacher(data, chance) else chance for chance in chances]
    chance, committed_chance = chances
    data.chance = committed_chance if row.published else chance
    if row.published:
        data.published.add("teacher")
    if row.committed:
        data.committed.teacher, data.committed.chance = row.committed, committed_chance


def _beside(data: Data, name: str, path: str, local: Callable[[str], Path]) -> Result:
    """Read what belongs to a teacher and is no row.

    The committed file is read only where the committed teacher is the same.
    """
    here = _json(local(path))
    fits = "teacher" in data.published or data.committed.teacher
    committed = _json(project.published(path)) if fits else None
    if not here and committed:
        data.published.add(name)
    return here or committed or {}


@dataclass(frozen=True)
class Row:
    """Hold one row: its run, and its result or the problem with it."""

    run: Result
    result: Result
    problem: str | None
    committed: Result | None = None  # the committed result beside one that was made here
    published: bool = False  # whether run and result are the committed ones


def _row(name: str, local: Callable[[str], Path], misfit: Callable[[Result], str | None]) -> Row:
    """Read one row's files.

    `misfit` says why a result belongs to other settings than those in params.yaml. A committed
    result that does is not used for comparison.
    """
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
        name = type(content).__name__
        return {}, f"the result file is damaged: {path.name} holds a {name} and no object"
    return content, None


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


def _pictures(file: str, published: bool) -> dict[str, np.ndarray]:
    """Read a row's pictures: those of this machine's run, or the committed run's few from Git.

    An anatomy's maps are few anyway, and Git has their file as it was made.
    """
    path = project.pictures(file)
    if published:
        path, committed_sheet = (
            project.published(f"pictures/{file}{suffix}") for suffix in (path.suffix, ".png")
        )
        if committed_sheet.exists():
            return sheet.read(committed_sheet)
    return sealed.load(path, REMEDY, "np") if path.exists() else {}
