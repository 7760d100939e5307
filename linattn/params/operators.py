"""Check the operators of params.yaml by building each on the meta device.

An operator's own checks are therefore the only ones, and no option's rules stand twice.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from linattn import attention, project
from linattn.configs import class_name
from linattn.files import Damaged
from linattn.names import known, short, similar
from linattn.params.schema import STUDENT_KEYS, Params, Student, Teacher

CARD = "card.json"  # of a teacher of this repository; it may say nothing
REMEDY = "copy or save the pipeline whole, or take it from Git again: git checkout HEAD -- its path"


def check_students(params: Params) -> None:
    """Raise ValueError for the first student or operator that its layers cannot have.

    What a broken file of an operator or of a teacher's says nothing of is left to its own stage,
    which fails by name, so that the others go on.
    """
    for student in params.students.values():
        path = f"students.{student.name}"
        role = known(student.teacher, params.teachers, f"{path}.teacher")
        shape = _known_shape(params.teachers[role])
        if shape and student.operator not in attention.OPERATORS.broken:
            check_operator(student, *shape, path=path)
    shown = [_known_shape(params.teacher(role)) for role in params.teachers_of["anatomy"]]
    timed = (params.benchmark.heads, params.benchmark.head_dim, False)
    shapes = {"anatomy": list(filter(None, shown)), "benchmark": [timed]}
    for use, operators in params.operators.items():
        for operator in operators.values():
            for shape in shapes[use]:
                check_operator(operator, *shape, path=f"operators.{use}.{operator.name}")
    planned = [_known_shape(params.teacher(role)) for role in params.teachers_of["plan"]]
    for candidate in params.plan.candidates.values():
        for shape in filter(None, planned):
            path = f"profiles.{params.profile}.plan.candidates.{candidate.name}"
            check_operator(candidate, *shape, path=path)


def _known_shape(teacher: Teacher) -> tuple[int, int, bool] | None:
    """Return a teacher's shape, or None where its config is broken."""
    try:
        return shape_of(teacher)
    except Damaged:  # source.py names the file before anything is drawn
        return None


def shape_of(teacher: Teacher) -> tuple[int, int, bool]:
    """Return (heads, head_dim, has text) of the first layer, from the folder where there is one.

    Args:
        teacher: where the teacher is, and its shape where no folder says it.
    """
    for part, read_shape in SHAPES.items():
        if path := _config(teacher, part):
            return read_shape(described(path), path)
    return teacher.heads, teacher.head_dim, teacher.text


def described(path: Path) -> Mapping[str, Any]:
    """Return what a JSON file of a teacher's folder says, or raise Damaged, which names it.

    Args:
        path: the teacher's card.json, model_index.json or a part's config.json.
    """
    try:
        content = project.read_json(path)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{error}; {REMEDY}") from None
    if not isinstance(content, dict) or not (content or path.name == CARD):
        raise Damaged(f"{path} is damaged: it holds {short(content)}; {REMEDY}")
    return content


def _transformer_shape(config: Mapping[str, Any], path: Path) -> tuple[int, int, bool]:
    has_text = "joint_attention_dim" in config
    heads = _count(config.get("num_attention_heads"), "num_attention_heads", path)
    return heads, _count(config.get("attention_head_dim"), "attention_head_dim", path), has_text


def _count(value: Any, key: str, path: Path) -> int:
    """Return a whole number above 0 of a config; a list has one for each block."""
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    if isinstance(first, bool) or not isinstance(first, int) or first < 1:
        raise Damaged(
            f"{path} is damaged: its {key} is {short(value)}, and must be a whole number above 0; "
            f"{REMEDY}"
        )
    return first


def class_of(teacher: Teacher) -> str:
    """Return the class of the model in a teacher's folder, or nothing where no folder says it.

    Args:
        teacher: where the teacher is.
    """
    paths = (_config(teacher, part) for part in SHAPES)
    return class_name(next((described(path) for path in paths if path), {}))


def _config(teacher: Teacher, part: str) -> Path | None:
    """Return the config of a part of a teacher's pipeline, or None where it has no such part."""
    path = teacher.folder and teacher.folder / part / "config.json"
    return path if path and path.is_file() else None


def _unet_shape(config: Mapping[str, Any], path: Path) -> tuple[int, int, bool]:
    # of a UNet this is how many heads, whatever the name says
    heads = _count(config.get("attention_head_dim"), "attention_head_dim", path)
    width = _count(config.get("block_out_channels"), "block_out_channels", path)
    return heads, width // heads, False


SHAPES = {"transformer": _transformer_shape, "unet": _unet_shape}  # by the part of a pipeline


def check_operator(student: Student, heads: int, head_dim: int, text: bool, path: str) -> None:
    """Raise ValueError if a layer of this shape cannot have the student's operator.

    Args:
        student: the student with its operator and options.
        heads: heads of the layer.
        head_dim: channels of a head.
        text: whether text tokens take part in self-attention.
        path: where the student stands in params.yaml, for the error.
    """
    if student.operator not in attention.OPERATORS:
        raise attention.unknown(student.operator, f"{path}.operator")
    shape = attention.LayerShape(
        width=heads * head_dim, heads=heads, head_dim=head_dim, has_text=text
    )
    try:
        with torch.device("meta"):
            attention.create(student.operator, shape, **student.options)
    except (ValueError, TypeError) as error:
        raise ValueError(_message(student, path, str(error))) from None
    except Exception as error:  # an operator of anybody's may raise anything
        message = f"{student.operator} cannot be built: {type(error).__name__}: {error}"
        raise ValueError(f"{path}: {message}") from error


def _message(student: Student, path: str, message: str) -> str:
    """Put the operator's message after the path of the option that it is about."""
    option = _option_of(student.options, message)
    if option is None:
        return f"{path}: {message}"
    key = similar(option, STUDENT_KEYS, least=0.75)
    question = f" (or did you mean {key!r}, a student's own key?)" if key else ""
    return f"{path}.{option} is {student.options[option]!r}: {message}{question}"


def _option_of(options: Mapping[str, Any], message: str) -> str | None:
    """Find the option that a message names."""
    # A message quotes an unknown option before the nearest known one.
    quoted = [option for option in options if repr(option) in message]
    if quoted:
        return min(quoted, key=lambda option: (message.index(repr(option)), option))
    for option in options:
        if re.search(rf"\b{re.escape(option)}\b", message):
            return option
    return None
