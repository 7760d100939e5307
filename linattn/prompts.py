"""Read the prompts of a teacher that reads text: a file with one prompt a line.

- Students learn from four fifths of the prompts and are evaluated on every fifth, which no student
  saw. A list of fewer than five is used for both.
- The small teachers know the captions of the small world and nothing else, so they have no file.
"""

from pathlib import Path
from typing import Any

from linattn import params, project
from linattn.conditions import Labels

DEFAULT = "data/prompts/prompts.txt"  # 500 prompts of this repository
EVERY = 5  # of so many prompts one is held out
LONGEST = 2000  # characters; no text encoder here reads more


def file_of(teacher: params.Teacher) -> Path:
    """Return the file with a teacher's prompts: its own, or the repository's list."""
    return project.ROOT / Path(teacher.prompts or DEFAULT).expanduser()


def read(path: Path) -> list[str]:
    """Return the prompts of a file, or raise a ValueError that says what is wrong with it.

    Args:
        path: a text file in UTF-8; empty lines are left out, and a prompt that stands there twice
            is one, or it might be learned and held out.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise ValueError(f"no file of prompts {path}: write one, one prompt a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no text file in UTF-8 that can be read: {error}") from None
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise ValueError(f"{path} is empty: write one prompt a line")
    for number, prompt in enumerate(lines, 1):
        if len(prompt) > LONGEST:
            raise ValueError(
                f"{path}, line {number}: a prompt of {len(prompt)} characters; at most {LONGEST} "
                "are read, one prompt a line"
            )
    return prompts


def learned(prompts: list[str]) -> list[str]:
    """Return the prompts that students learn from."""
    kept = [prompt for index, prompt in enumerate(prompts) if index % EVERY != EVERY - 1]
    return kept if len(prompts) >= EVERY else prompts


def held_out(prompts: list[str]) -> list[str]:
    """Return the prompts that students are evaluated on."""
    return prompts[EVERY - 1 :: EVERY] if len(prompts) >= EVERY else prompts


def of_teacher(entry: params.Teacher, teacher: Any) -> list[str] | None:
    """Return a loaded teacher's prompts; None where labels or the small world's captions serve.

    Args:
        entry: the teacher's entry in params.yaml.
        teacher: the loaded Teacher.
    """
    if isinstance(teacher.conditions, Labels):
        refuse_file(entry, f"is conditioned on its {teacher.conditions.classes} classes")
        return None
    if teacher.judged:
        refuse_file(entry, "knows the captions of the small world and nothing else")
        return None
    return read(file_of(entry))


def refuse_file(entry: params.Teacher, reason: str) -> None:
    """Raise a ValueError where an entry names a file of prompts that its teacher cannot read.

    Args:
        entry: the teacher's entry in params.yaml.
        reason: why not, after "which".
    """
    if entry.prompts is not None:
        raise ValueError(
            f"prompts: {entry.prompts} for {entry.source}, which {reason}: leave prompts out"
        )


def to_learn_from(entry: params.Teacher, teacher: Any) -> list[str] | None:
    """Return the captions of a teacher's samples, as `linattn.samples.write` takes them.

    Args:
        entry: the teacher's entry in params.yaml.
        teacher: the loaded Teacher.
    """
    prompts = of_teacher(entry, teacher)
    return None if prompts is None else learned(prompts)


def to_evaluate_on(entry: params.Teacher, teacher: Any) -> list[str] | None:
    """Return the captions of a teacher's evaluation.

    Args:
        entry: the teacher's entry in params.yaml.
        teacher: the loaded Teacher.
    """
    prompts = of_teacher(entry, teacher)
    return None if prompts is None else held_out(prompts)
