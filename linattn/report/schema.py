"""Say what each sort of result file holds, as far as the pages need it, in JSON Schema.

A key that no page shows may hold anything, so that a file may grow. Beside JSON Schema's words
there are five: `alike` names lists of one length, `square` a table of the judge's shapes, `tables`
lists that have a line for each layer and a value for each noise level, `layered` losses that have
a line for each layer, and `tallied` says that all seeds have the levels and pictures of the
teacher.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from linattn.names import short

Schema = dict[str, Any]
NOTHING: Schema = {"type": "null"}
LARGEST = 1e30  # of a number: its square is still finite in every unit of the pages


def _described(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


def _or_null(schema: Schema) -> Schema:
    """Allow null; unlike anyOf this keeps the place of what is wrong within the value."""
    described = _described(schema, f"{schema['description']}, or null")
    return {"if": {"not": NOTHING}, "then": described, "description": described["description"]}


def _list(of: Schema, noun: str, **more: Any) -> Schema:
    return {"type": "array", "items": of, "description": f"a list of {noun}", **more}


def _names(to: Schema, noun: str, **more: Any) -> Schema:
    described = f"names with {noun}"
    return {"type": "object", "additionalProperties": to, "description": described, **more}


def _entry(description: str, required: Sequence[str] = (), **properties: Any) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "description": description,
    }


TEXT = _described({"type": "string"}, "a text")
NUMBER = _described(
    {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}, "a number of at most 1e30"
)
WHOLE = _described(
    {"type": "integer", "minimum": 0, "maximum": LARGEST}, "a whole number, 0 or more"
)
POSITIVE = _described({**NUMBER, "exclusiveMinimum": 0}, "a number above 0")
NOT_NEGATIVE = _described({**NUMBER, "minimum": 0}, "a number, 0 or more")
LEVEL = _described({"type": "number", "minimum": 0, "maximum": 1}, "a noise level in [0, 1]")
# both ends of an interval or none
ENDS = [
    {"required": ["low", "high"], "properties": {"low": NUMBER, "high": NUMBER}},
    {"properties": {"low": NOTHING, "high": NOTHING}},
]


def _measure(value: Schema) -> Schema:
    count = _or_null(WHOLE)
    words = "a measure, {value, low, high, n}, with both ends of its interval or none"
    return {
        "type": "object",
        "required": ["value"],
        "properties": {"value": value, "n": count},
        "anyOf": ENDS,
        "description": words,
    }


MEASURED = _measure(NUMBER)
MEASURES = _names(_or_null(_measure(_or_null(NUMBER))), "measures")
COST = _names(
    _or_null(NOT_NEGATIVE),
    "numbers",
    properties={name: _or_null(POSITIVE) for name in ("core_macs", "draw_macs")},
)
BY_NOISE = _entry(
    "the errors by noise level, {noise, error, undistilled}",
    ("noise", "error"),
    noise=_list(LEVEL, "noise levels", minItems=1),
    error=_list(MEASURED, "measures"),
    undistilled=_or_null(_list(MEASURED, "measures")),
) | {"alike": ["noise", "error", "undistilled"]}
SQUARES = _list(_list(NOT_NEGATIVE, "squares"), "squares for each noise level", minItems=1)
RIGHT = _described({"type": "string", "pattern": "^[01]+$"}, "a 1 or 0 for each picture")
OF_SEED = _entry(
    "what each picture adds to a row of one training seed, {error, marks}",
    ("error", "marks"),
    error=SQUARES,
    marks=_names(RIGHT, "a 1 or 0 for each picture"),
)
SEED = _described({"type": "string", "pattern": "^[0-9]{1,18}$"}, "a training seed")
TALLY = _entry(
    "what each picture adds, {teacher, seeds}",
    ("teacher", "seeds"),
    teacher=SQUARES,
    seeds=_names(OF_SEED, "what each picture adds", propertyNames=SEED, minProperties=1),
) | {"tallied": True}
CURVE = _entry(
    "a training curve, {step, loss, stage}",
    ("step", "loss"),
    step=_list(NUMBER, "steps"),
    loss=_list(NUMBER, "losses"),
    stage=_or_null(_list(TEXT, "names of stages")),
) | {"alike": ["step", "loss", "stage"]}
TRAINING = _entry(
    "what a training had, {steps, batch, ..}",
    curve=_or_null(CURVE),
    steps=_or_null(WHOLE),
    layerwise_steps=_or_null(WHOLE),
    batch=_or_null(WHOLE),
    samples=_or_null(WHOLE),
)
RESULT = {
    **dict.fromkeys(("student", "teacher", "operator", "profile", "folder", "recipe"), TEXT),
    "options": _entry("the operator's options by name"),
    "control": _described({"type": "boolean"}, "true or false"),
    "seeds": _list(WHOLE, "seeds"),
    "captions": _or_null(_list(TEXT, "captions")),
    "classes": _or_null(_list(TEXT, "names of classes")),
    "quality": MEASURES,
    "undistilled": _or_null(MEASURES),
    "by_noise": _or_null(BY_NOISE),
    "tally": _or_null(TALLY),
    "confusion": _or_null(
        _list(_list(NOT_NEGATIVE, "counts"), "counts for each shape", square=True)
    ),
    "cost": COST,
    "training": _or_null(TRAINING),
    "left_out": _or_null(_names(TEXT, "texts")),
}
ROW = _entry("the result of a row", (), **RESULT)
STUDENT = _entry("the result of a student", ("quality", "cost"), **RESULT)
SIZES = ("pictures", "steps", "quick_pictures", "quick_steps", "cross", "cross_pictures", "errors")
FEWER = _entry(
    "a draw with fewer steps, {steps, quality, cost}",
    ("steps", "quality", "cost"),
    steps=WHOLE,
    quality=MEASURES,
    cost=COST,
)
TEACHER = _entry(
    "the result of a teacher",
    ("quality", "cost", "pictures"),
    **RESULT,
    pictures=_entry("numbers of pictures and steps", SIZES, **dict.fromkeys(SIZES, WHOLE)),
    quick=_or_null(MEASURES),
    fewer=_or_null(_list(FEWER, "draws with fewer steps")),
)
CHANCE = _entry("the result of guessing", ("quality",), **RESULT)
HARDWARE = _entry(
    "a machine, {cpu, cores, gpu, ..}",
    ("cpu", "cores", "gpu"),
    cpu=TEXT,
    cores=WHOLE,
    gpu=_or_null(TEXT),
    memory_gb=_or_null(NUMBER),
)
FACTS = _entry(
    "the machine and the versions, {commit, hardware, versions, ..}",
    ("hardware", "versions"),
    commit=_or_null(TEXT),
    hardware=HARDWARE,
    system=TEXT,
    python=TEXT,
    versions=_names(_or_null(TEXT), "versions", required=["torch", "diffusers"]),
)
OF_RUN = {
    "facts": FACTS,
    "seconds": _or_null(_names(NOT_NEGATIVE, "seconds")),
    "memory": _or_null(NUMBER),
    "backend": _or_null(_names(TEXT, "texts")),
    "error": _or_null(TEXT),
}
RUN = _entry("what a run took", **OF_RUN)
TIMING = {"operator": TEXT, "tokens": _described({**WHOLE, "minimum": 1}, "a number of tokens")}
TIMING["seconds"] = _or_null(POSITIVE)
TIMED = _entry(
    "a time of attention, {operator, tokens, seconds, ..}",
    ("operator", "tokens", "seconds"),
    **TIMING,
    baseline=_or_null(TEXT),
)
# a dense step bounds the others, which are compared with it; one too slow to be timed does neither
COMPARED = {
    "if": {"properties": {"operator": {"const": "dense"}}},
    "then": _entry("a dense step", ("share", "most"), share=NUMBER, most=_or_null(NUMBER)),
    "else": _entry("a converted step", ("ratio",), ratio=NUMBER),
}
STEP = _entry(
    "a time of a step, {operator, tokens, seconds, ..}", ("operator", "tokens", "seconds"), **TIMING
) | {"if": {"properties": {"seconds": {"type": "number"}}}, "then": COMPARED}
BENCHMARK = _entry(
    "times of attention",
    ("rows",),
    **OF_RUN,
    rows=_list(TIMED, "times"),
    steps=_or_null(_list(STEP, "times of steps")),
    operators=_or_null(_names(TEXT, "names of operators")),
    baseline=_or_null(TEXT),
)
TABLE = _list(_list(_or_null(NUMBER), "numbers"), "lists of numbers")
ANATOMY = _entry(
    "measures of a teacher's attention",
    ("noise", "layers", "teacher"),
    noise=_list(LEVEL, "noise levels", minItems=1),
    layers=_list(WHOLE, "layers", minItems=1),
    layer_names=_or_null(_list(TEXT, "names of layers")),
    teacher=_names(TABLE, "tables"),
    units=_or_null(_names(TEXT, "texts")),
    query=WHOLE,
    order=_or_null(_list(TEXT, "names")),
    text=_or_null(TEXT),
) | {"alike": ["layers", "layer_names"], "tables": "teacher"}
CHOSEN = {"budget": POSITIVE, "cost": POSITIVE, "error": NOT_NEGATIVE}
PLANNED = _entry(
    "a plan, {budget, cost, error, choice}",
    (*CHOSEN, "choice"),
    **CHOSEN,
    choice=_list(_list(TEXT, "labels", minItems=1), "labels of each layer"),
)
UNMEASURED = _entry(
    "a choice without losses, {rule, budget, cost, error}",
    ("rule", *CHOSEN),
    **CHOSEN,
    rule=TEXT,
)
OF_LAYERS = _list(_list(NOT_NEGATIVE, "losses"), "losses of each layer", minItems=1)
PLANNED_STAGE = _entry(
    "what was measured, {losses, plans, choices}",
    ("losses", "plans", "choices"),
    losses=_names(OF_LAYERS, "losses of each layer"),
    plans=_list(PLANNED, "plans"),
    choices=_list(UNMEASURED, "choices without losses"),
)
PLAN = _entry(
    "the plans of a teacher",
    ("n", "seed", "noise", "layers", "layerwise_steps", "stages"),
    n=WHOLE,
    seed=WHOLE,
    noise=_list(LEVEL, "noise levels", minItems=1),
    until=_or_null(_list(LEVEL, "noise levels")),
    layers=_list(WHOLE, "layers", minItems=1),
    layer_names=_or_null(_list(TEXT, "names of layers")),
    layerwise_steps=WHOLE,
    stages=_names(PLANNED_STAGE, "what was measured"),
) | {"alike": ["layers", "layer_names"], "layered": "stages"}
OPERATOR_FILE = _entry(
    "the operator's file, {name, digest, paper}",
    ("name", "digest", "paper"),
    name=TEXT,
    digest=TEXT,
    paper=_or_null(TEXT),
)
CONTRIBUTED = _entry(
    "the result of an operator's file",
    ("student", "teacher", "operator", "options", "file", "quality", "cost"),
    **RESULT,
    file=OPERATOR_FILE,
)


# Reading


def parse(text: str) -> Any:
    """Return what a JSON text holds, or raise ValueError for NaN, Infinity and what is no JSON."""
    return json.loads(text, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def problem(content: Any, schema: Schema) -> str:
    """Say where content is not what a schema says, or nothing.

    Args:
        content: what a JSON file holds.
        schema: one of this module.
    """
    errors = sorted(_validator()(schema).iter_errors(content), key=lambda error: len(error.path))
    return _in_words(errors[0]) if errors else ""


def _in_words(error: Any) -> str:
    """Write an error as the place, the value there and what belongs there."""
    place = ".".join(str(step) for step in error.absolute_path)
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        return f"{place or 'it'} lacks {', '.join(missing)}"
    if error.validator in WORDS:
        return f"{place}: {error.message}" if place else error.message
    described = error.schema.get("description", error.message)
    return f"{place or 'it'} is {short(error.instance)}, and must be {described}"


def _alike(validator: Any, names: Iterable[str], content: Any, schema: Schema) -> Iterator[Any]:
    """Yield an error where lists differ in length; a list that is absent is none."""
    lengths = {name: len(content[name]) for name in names if _is_list(content, name)}
    if len(set(lengths.values())) > 1:
        counted = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        yield _error(f"lists of one length differ: {counted}")


def _tables(validator: Any, key: str, content: Any, schema: Schema) -> Iterator[Any]:
    """Yield an error for each table that is not layers by noise levels."""
    if not all(_is_list(content, name) for name in ("layers", "noise")):
        return
    shape = (len(content["layers"]), len(content["noise"]))
    tables = content.get(key)
    for name, table in tables.items() if isinstance(tables, Mapping) else ():
        if not _has_shape(table, *shape):
            yield _error(f"{key}.{name} has not {shape[0]} layers of {shape[1]} noise levels")


def _layered(validator: Any, key: str, content: Any, schema: Schema) -> Iterator[Any]:
    """Yield an error for each candidate whose losses are not those of every layer."""
    count = len(content["layers"]) if _is_list(content, "layers") else 0
    for stage, measured in _mapping(content, key).items():
        for label, losses in _mapping(measured, "losses").items():
            if count and (not isinstance(losses, list) or len(losses) != count):
                yield _error(f"{key}.{stage}.losses.{label} has not {count} layers")


def _mapping(content: Any, name: str) -> Mapping[str, Any]:
    """Return a mapping within another; nothing where one of them is none."""
    inner = content.get(name) if isinstance(content, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _square(validator: Any, _: bool, content: Any, schema: Schema) -> Iterator[Any]:
    """Yield an error where counts are no table of the judge's shapes; unjudged there are none."""
    from linattn import world

    count = len(world.SHAPES)
    if isinstance(content, list) and content and not _has_shape(content, count, count):
        yield _error(f"it has not {count} rows of {count} counts")


def _tallied(validator: Any, _: bool, content: Any, schema: Schema) -> Iterator[Any]:
    """Yield an error for each seed whose squares or marks are not of as many pictures."""
    if not isinstance(content, Mapping) or not isinstance(content.get("seeds"), Mapping):
        return
    lengths = _lengths(content.get("teacher"))
    first: dict[str, int] | None = None
    if len(set(lengths)) > 1:
        yield _error(f"teacher has levels of {lengths} pictures")
    for seed, entry in content["seeds"].items():
        of_seed = entry if isinstance(entry, Mapping) else {}
        if _lengths(of_seed.get("error")) != lengths:
            yield _error(f"seeds.{seed}.error has not the levels and pictures of teacher")
        counted = _marks(of_seed.get("marks"))
        first = counted if first is None else first
        if counted != first:
            yield _error(f"seeds.{seed}.marks has not the marks and pictures of the first seed")


def _lengths(levels: Any) -> list[int]:
    """Count the pictures of each level."""
    lists = levels if isinstance(levels, list) else []
    return [len(pictures) if isinstance(pictures, list) else 0 for pictures in lists]


def _marks(marks: Any) -> dict[str, int]:
    """Count the pictures of each mark."""
    texts = marks if isinstance(marks, Mapping) else {}
    return {name: len(text) for name, text in texts.items() if isinstance(text, str)}


def _has_shape(table: Any, down: int, across: int) -> bool:
    lines = table if isinstance(table, list) else []
    return len(lines) == down and all(isinstance(x, list) and len(x) == across for x in lines)


def _is_list(content: Any, name: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(name), list)


def _error(message: str) -> Any:
    from jsonschema import ValidationError  # pyrefly: ignore[untyped-import] has no stubs

    return ValidationError(message)


WORDS = {
    "alike": _alike,
    "layered": _layered,
    "square": _square,
    "tables": _tables,
    "tallied": _tallied,
}


@functools.cache
def _validator() -> Any:
    """Return the class of validators; nothing but the report needs jsonschema."""
    from jsonschema import (  # pyrefly: ignore[untyped-import] has no stubs
        Draft202012Validator,
        validators,
    )

    return validators.extend(Draft202012Validator, WORDS)
