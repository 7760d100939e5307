"""Note what a teacher is, so that DVC can depend on any pipeline: `python -m linattn.source class`.

- A teacher may be a folder anywhere or a repository of the hub. DVC tracks neither; it depends on
  the notes in data/sources/<role>/: model.json has the revision, the digest of every file and how
  the model is loaded; sample.json, distill.json and evaluate.json hold the teacher's own numbers,
  so that an edit of one runs the stages of that one.
- A template of DVC's cannot go through the parts of a mixed student: parts/<student>.json has the
  digests of their operators' files, so that an edit of one runs that student again.
- The stage runs every time and writes the same bytes while nothing has changed.
- What cannot become a teacher is refused here in one sentence, before anything is drawn: a hub id
  without a revision or out of reach, a class without a family, a part that is not whole or would
  be unpickled (parts.py), prompts that are not there.
- Only configs are read. Digests of large files are kept in .scratch/ by size and time of change.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linattn import digests, params, parts, project, prompts, teachers
from linattn.attention.mixed import Mixed
from linattn.names import hint

NOTES = ("model", "sample", "distill", "evaluate")
LARGE = 1 << 24  # bytes from which a file's digest is kept
MODELS = ("transformer", "unet")  # the part of a pipeline that is the denoising model


def note(role: str, settings: params.Params) -> Path:
    """Write the notes of a teacher, and return their folder."""
    teacher = settings.teacher(role)
    folder = check(role, teacher)
    check_steps(role, settings, folder)
    texts = _texts(teacher, folder)
    contents = {
        "model": {
            "source": teacher.source if teacher.folder is None else folder.name,
            "revision": None if teacher.folder else _revision(teacher, folder),
            "files": {name: _digest(path) for name, path in _files(folder).items()},
            "dtype": teacher.dtype,
            "card": teacher.card,
        },
        "sample": {**teacher.sample, **_described("prompts", prompts.learned, texts)},
        "distill": teacher.distill,
        "evaluate": {**teacher.evaluate, **_described("prompts", prompts.held_out, texts)},
    }
    for name in NOTES:
        project.write_json(project.source(role, write=True) / f"{name}.json", contents[name])
    # of all students: a published recipe may move one to its paper's teacher
    for name, student in settings.students.items():
        path = project.source(role, write=True) / "parts" / f"{name}.json"
        project.write_json(path, files_of_parts(student))
    return project.source(role)


def files_of_parts(student: params.Student) -> dict[str, str]:
    """Return the digests of the files of a mixed student's operators; any other has no parts."""
    held = student.options.get("parts", []) if student.operator == Mixed.name else []
    names = sorted({f"linattn/attention/{part['operator']}.py" for part in held})
    paths = {name: project.ROOT / name for name in names}
    return {name: digests.of_file(path) for name, path in paths.items() if path.is_file()}


def _revision(teacher: params.Teacher, folder: Path) -> dict[str, Any]:
    """Return the revision as it was asked for, and the commit that it was."""
    return {"name": teacher.revision, "commit": folder.name}


def check(role: str, teacher: params.Teacher) -> Path:
    """Return the folder of a teacher's files, or raise a ValueError where it cannot be one."""
    _check_revision(role, teacher)
    folder = teacher.folder or _snapshot(role, teacher)
    index = _index(role, teacher, folder)
    _check_class(role, teacher, folder)
    parts.check(role, folder, index)
    _texts(teacher, folder)
    return folder


def _check_revision(role: str, teacher: params.Teacher) -> None:
    if teacher.folder and teacher.revision:
        raise ValueError(
            f"the {role} teacher, {teacher.source}, is a folder, which has no revision "
            f"{teacher.revision}: leave revision out, or move the folder where a hub id is meant"
        )


def check_steps(role: str, settings: params.Params, folder: Path) -> None:
    """Refuse numbers of steps below the fewest that the teacher's scheduler can take."""
    from linattn.families.registry import FAMILIES

    conditions = FAMILIES[_model(folder)].conditions
    path = folder / "scheduler" / "scheduler_config.json"
    if conditions is None or not path.is_file():
        return
    least, numbers = conditions.least_steps(params.described(path)), settings.of(role)
    counts = {
        "sample.steps": numbers.sample.steps,
        "evaluate.steps": numbers.evaluate.steps,
        "evaluate.quick_steps": numbers.evaluate.quick_steps,
    }
    for key, steps in counts.items():
        if steps < least:
            raise ValueError(
                f"the {role} teacher draws with {key}: {steps}, and its scheduler takes {least} "
                f"or more: write {key.replace('.', ': {')}: {least}}} in its entry in params.yaml"
            )


def _snapshot(role: str, teacher: params.Teacher) -> Path:
    """Return the folder in the hub's cache that holds a repository's revision."""
    if not teacher.revision:
        raise ValueError(
            f"the {role} teacher, {teacher.source}, has no revision: write the commit beside it "
            "(revision: 40 hexadecimal digits, from the hub's page of its files), or no two runs "
            "need be of the same weights; there is no folder of this name"
        )
    from diffusers import DiffusionPipeline
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    words: dict[str, Any] = {"revision": teacher.revision, "use_safetensors": True}
    try:
        with teachers.quiet():
            return Path(DiffusionPipeline.download(teacher.source, **words))
    except (HfHubHTTPError, OSError, ValueError) as error:
        offline = constants.HF_HUB_OFFLINE
        reason = "the hub is not asked (HF_HUB_OFFLINE=1)" if offline else _in_short(error)
        raise ValueError(
            f"the {role} teacher, {teacher.source} at revision {teacher.revision}, is not in this "
            f"machine's cache, and {reason}; with network and HF_HUB_OFFLINE=0 it is fetched "
            "once, or name a folder that holds it"
        ) from error


def _in_short(error: Exception) -> str:
    """Return the beginning of what the hub's library says."""
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"the hub did not give it: {first[:160]}"


def _index(role: str, teacher: params.Teacher, folder: Path) -> Mapping[str, Any]:
    """Return what model_index.json says."""
    path = folder / "model_index.json"
    if path.is_file():
        return params.described(path)
    neighbours = sorted(found.parent.name for found in folder.parent.glob("*/model_index.json"))
    question = hint(folder.name, neighbours)
    raise ValueError(
        f"the {role} teacher, {teacher.source}, is not there: {folder} has no model_index.json"
        f"{f'; {question}' if question else ''}. {_remedy(role, teacher)}, or run another teacher "
        "alone: make repro TEACHER=ROLE"
    )


def _remedy(role: str, teacher: params.Teacher) -> str:
    """Say where a folder that is missing comes from."""
    if teacher.source.startswith("data/"):
        train = f"python -m linattn.notebooks teacher --teacher {role}"
        return f"Get a clone that holds it, train it if it is one of this repository's ({train})"
    if teacher.source.startswith(".scratch/rehearse/"):
        return f"make rehearse TEACHER={role} writes it and runs all stages"
    return "Name the folder in which a pipeline was saved (save_pretrained)"


def _model(folder: Path) -> str:
    """Name the class of a pipeline's denoising model, or nothing where it has none."""
    from linattn.configs import class_name

    configs = [folder / part / "config.json" for part in MODELS]
    names = [class_name(params.described(path)) for path in configs if path.is_file()]
    return names[0] if names else ""


def _check_class(role: str, teacher: params.Teacher, folder: Path) -> None:
    """Refuse a pipeline whose model has no family, or a family that cannot draw."""
    from linattn.families.registry import FAMILIES, refusal

    name = _model(folder)
    if not name:
        raise ValueError(
            f"the {role} teacher, {teacher.source}, has no denoising model (transformer or unet "
            "with a config.json): it cannot be a teacher"
        )
    if name not in FAMILIES:
        raise ValueError(
            f"the {role} teacher, {teacher.source}, holds a {name}, which is not supported: "
            f"{refusal(name)}"
        )
    if FAMILIES[name].conditions is None:
        raise ValueError(
            f"the {role} teacher, {teacher.source}, holds a {name}, which is converted, saved "
            "and looked into, but not drawn with: it cannot be a teacher"
        )


def _texts(teacher: params.Teacher, folder: Path) -> list[str]:
    """Return the prompts of a teacher that reads a file of them, else nothing."""
    card = folder / "card.json"
    judged = card.is_file() and "gate" in params.described(card)
    reads = any((folder / name).is_dir() for name in ("tokenizer", "tokenizer_2", "tokenizer_3"))
    if judged or not reads:
        prompts.refuse_file(teacher, "reads no file of them")
        return []
    return prompts.read(prompts.file_of(teacher))


def _described(key: str, chosen: Any, texts: list[str]) -> dict[str, Any]:
    """Return the number and the digest of the prompts that a stage takes."""
    if not texts:
        return {}
    taken = chosen(texts)
    return {key: {"count": len(taken), "digest": digests.of_settings(taken)}}


def _files(folder: Path) -> dict[str, Path]:
    """Return the files that are a pipeline, by their relative names."""
    index = params.described(folder / "model_index.json")
    files = [folder / name for name in ("model_index.json", "card.json")]
    for part in parts.of(index):
        files += sorted((folder / part).rglob("*"))
    return {path.relative_to(folder).as_posix(): path for path in files if path.is_file()}


def _digest(path: Path) -> str:
    """Return the sha256 of a file; the hub's cache names large files by it."""
    target = path.resolve()
    if target.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", target.name):
        return target.name
    status = target.stat()
    if status.st_size < LARGE:
        return digests.of_file(target)
    memory = project.ROOT / ".scratch" / "digests.json"
    kept = project.read_json(memory) if memory.is_file() else {}
    key = f"{target} {status.st_size} {status.st_mtime_ns}"
    if key not in kept:
        kept[key] = digests.of_file(target)
        project.write_json(memory, kept)
    return kept[key]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m linattn.source", description="Note what a teacher is, for DVC."
    )
    parser.add_argument("role", help="a role of params.yaml")
    options = parser.parse_args(arguments)
    try:
        with project.pipeline():
            note(options.role, params.load())
    except ValueError as error:
        print(f"linattn: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
