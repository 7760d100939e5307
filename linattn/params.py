"""Typed parameters, read strictly from params.yaml.

- `load()` gives the numbers of the profile that the file names, or of another by name.
- One ValueError says the place (`students.clear.radius`), what stands there, what may stand there,
  the nearest name.
- Nothing has a default in a profile: a number that matters is written down where it can be read.
- YAML 1.2, as DVC reads it: 1e-4 is a number here (papermill's own reader would give the text
  '1e-4').
- A student's options are checked by building its operator on the meta device: an option's rules
  stand in one place.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from linattn import project
from linattn.names import known, similar

Plain = dict[str, Any]


def between(least: float, most: float = float("inf"), **more: Any) -> Any:
    """A number (or numbers) from `least` to `most`, both included."""
    return field(metadata={"least": least, "most": most}, **more)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Where a role's teacher is. Its shape is written down only where no folder tells it."""

    source: str  # a folder of this repository, or a hub id
    # of the nano profile on two cores: samples, students, evaluation
    minutes: int | None = between(1, default=None)
    revision: str | None = None
    heads: int = between(1, default=4)
    head_dim: int = between(1, default=32)
    text: bool = False  # text tokens take part in self-attention

    @property
    def folder(self) -> Path | None:
        """Where it lies in this repository; None: it is on the hub."""
        folder = project.ROOT / self.source
        return folder if self.source.startswith("data/") or folder.is_dir() else None

    @property
    def place(self) -> str:
        """What `teachers.load` takes, with `hub` beside it."""
        return str(self.folder or self.source)

    @property
    def hub(self) -> Plain:
        return {"revision": self.revision} if self.revision and not self.folder else {}


@dataclass(frozen=True, kw_only=True)
class Sample:
    pictures: int = between(1)
    steps: int = between(1, 1000)
    seed: int = between(0)
    shard: int = between(1)
    batch: int = between(1)


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    pictures: int = between(1)
    noise: tuple[float, ...] = between(0, 1)
    layers: int | None = between(1)  # how many, evenly spread; null: all
    seed: int = between(0)


@dataclass(frozen=True, kw_only=True)
class Distill:
    """As `distill.DistillConfig` names them."""

    layerwise_steps: int = between(0)  # every layer's output onto the teacher's, all layers at once
    steps: int = between(0)  # then the whole model
    batch: int = between(1)
    layerwise_learning_rate: float = between(0)
    learning_rate: float = between(0)
    optimizer: Literal["muon", "adamw"]
    schedule: Literal["cosine", "constant"]
    warmup: int = between(0)
    weight_decay: float = between(0)
    ema: float = between(0, 0.999999)  # decay of the moving average that is kept; 0: none
    clip: float | None = between(0)
    label_drop: float = between(0, 1)
    times: Literal["teacher", "uniform"]
    objective: Literal["protocol", "clear", "linfusion", "lit", "mediator"]
    trains: Literal["attention", "new", "all"]
    dtype: Literal["float32", "bfloat16"]
    seeds: tuple[int, ...] = between(0)
    log_every: int = between(1)
    checkpoint_every: int = between(1)

    def check(self, place: str) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"{place}.seeds is {list(self.seeds)}; it needs one seed or more, all different"
            )


@dataclass(frozen=True, kw_only=True)
class Published:
    """What differs from the profile's `distill` in a paper's own training."""

    teacher: str = "class"
    initialise: Literal["mlp_only", "out", "v", "all"] = "all"
    changes: Plain = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    pictures: int = between(4)  # at least two of one thing and two of two, where captions are read
    steps: int = between(1, 1000)
    quick_pictures: int = between(4)  # of the rows that only bound the others
    quick_steps: int = between(1, 1000)
    cross: int = between(2, 64)  # times the side it was trained at
    cross_pictures: int = between(4)
    noise: tuple[float, ...] = between(0, 1)
    errors: int = between(2)  # pictures for the distance of predictions
    batch: int = between(1)
    seed: int = between(0)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    tokens: tuple[int, ...] = between(1)
    heads: int = between(1)
    head_dim: int = between(1)
    repeats: int = between(1)
    seconds: float = between(0)  # most for one point; a slower one is not repeated
    sides: tuple[int, ...] = between(1)  # of the latents that whole steps are timed at


@dataclass(frozen=True, kw_only=True)
class Report:
    pictures: int = between(1)
    query: int = between(0)  # the token whose map is shown


@dataclass(frozen=True, kw_only=True)
class Student:
    """One entry of `students`: an operator with its options, for one teacher."""

    operator: str
    # of `students` each names its own, since DVC's templates know no default
    teacher: str = "class"
    layers: str | tuple[int | str, ...] = "all"
    initialise: Literal["mlp_only", "out", "v", "all"] = "all"
    recipe: Literal["protocol", "published"] = "protocol"
    name: str = ""
    options: Plain = field(default_factory=dict)

    @property
    def settings(self) -> Plain:
        """Layers, initialise and recipe as an entry has them: what is usual is left out."""
        return {
            key: getattr(self, key) for key, usual in USUAL.items() if getattr(self, key) != usual
        }


USUAL = {key: getattr(Student, key) for key in ("layers", "initialise", "recipe")}


@dataclass(frozen=True, kw_only=True)
class Params:
    profile: str
    students: dict[str, Student]
    operators: dict[str, dict[str, Student]]  # lists of their own for anatomy and benchmark
    teachers: dict[str, Teacher]  # by role
    sample: Sample
    anatomy: Anatomy
    distill: Distill
    published: dict[str, Published]
    evaluate: Evaluate
    benchmark: Benchmark
    report: Report

    def student(self, name: str) -> Student:
        return self.students[known(name, self.students, "student")]

    def of_teacher(self, role: str) -> list[str]:
        """Its students."""
        return [name for name, student in self.students.items() if student.teacher == role]

    def teacher(self, role: str) -> Teacher:
        return self.teachers[known(role, self.teachers, f"teacher of profile {self.profile}")]

    def recipe(self, name: str) -> Distill:
        """The training settings of one student: the common recipe, or its paper's."""
        student = self.student(name)
        if student.recipe == "protocol":
            return self.distill
        return dataclasses.replace(self.distill, **self.published[student.operator].changes)


def load(profile: str | None = None, path: Path | None = None) -> Params:
    path = Path(path or project.ROOT / "params.yaml")
    return parse(_read(path), profile, path.name)


def _read(path: Path) -> Plain:
    try:
        content = YAML(typ="safe").load(path)
    except FileNotFoundError:
        raise ValueError(f"no {path.name} in {path.parent}") from None
    except YAMLError as error:
        raise ValueError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from None
    return content


def parse(content: Any, profile: str | None = None, file: str = "params.yaml") -> Params:
    """The parameters of one profile; the whole file is checked, other profiles too."""
    top = _mapping(content, file)
    _keys(top, ("profile", "teachers", "students", "profiles", "operators"), (), file)
    teachers = _teachers(top["teachers"], "teachers")
    profiles = _mapping(top["profiles"], "profiles")
    chosen = known(profile or top["profile"], profiles, "profile")
    if not profile:
        known(top["profile"], profiles, f"{file}: profile")
    parts = {
        name: _profile(entry, teachers, f"profiles.{name}") for name, entry in profiles.items()
    }
    _named_teachers(top["students"])
    students = {
        name: _resolved(student, parts[chosen]["published"], chosen)
        for name, student in _students(top["students"], "students").items()
    }
    _keys(_mapping(top["operators"], "operators"), OPERATOR_LISTS, (), "operators")
    operators = {
        use: _students(top["operators"][use], f"operators.{use}") for use in OPERATOR_LISTS
    }
    params = Params(profile=chosen, students=students, operators=operators, **parts[chosen])
    _check_students(params)
    return params


OPERATOR_LISTS = ("anatomy", "benchmark")
PARTS = {
    "sample": Sample,
    "anatomy": Anatomy,
    "distill": Distill,
    "evaluate": Evaluate,
    "benchmark": Benchmark,
    "report": Report,
}


def _teachers(content: Any, place: str) -> dict[str, Teacher]:
    entries = _mapping(content, place)
    for role in entries:
        _check_name(role, f"{place}.{role}")
    return {role: read(Teacher, value, f"{place}.{role}") for role, value in entries.items()}


def _named_teachers(students: Any) -> None:
    for name, entry in _mapping(students, "students").items():
        if "teacher" not in _mapping(entry, f"students.{name}"):
            raise ValueError(
                f"students.{name} lacks teacher: a role of `teachers`, e.g. teacher: class"
            )


def _check_name(name: Any, place: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", str(name)):
        raise ValueError(
            f"{place}: a name is made of a-z, 0-9 and '-', since it becomes a folder and a stage"
        )


def _profile(content: Any, usual: Mapping[str, Teacher], place: str) -> Plain:
    entry = _mapping(content, place)
    _keys(entry, ("teachers", "published", *PARTS), (), place)
    parts: Plain = {
        name: read(part, entry[name], f"{place}.{name}") for name, part in PARTS.items()
    }
    parts["teachers"] = {**usual, **_teachers(entry["teachers"], f"{place}.teachers")}
    published = _mapping(entry["published"], f"{place}.published")
    parts["published"] = {
        name: _published(value, parts["distill"], parts["teachers"], f"{place}.published.{name}")
        for name, value in published.items()
    }
    return parts


def _published(
    content: Any, common: Distill, teachers: Mapping[str, Teacher], place: str
) -> Published:
    entry = dict(_mapping(content, place))
    own = {name: entry.pop(name) for name in ("teacher", "initialise") if name in entry}
    whole = read(Distill, {**_plain(common), **({"layerwise_steps": 0} | entry)}, place)
    known(own.get("teacher", "class"), teachers, f"{place}.teacher")
    changes = {name: getattr(whole, name) for name in ("layerwise_steps", *entry)}
    return dataclasses.replace(read(Published, own, place), changes=changes)


def _plain(part: Any) -> Plain:
    return {
        f.name: list(v) if isinstance(v := getattr(part, f.name), tuple) else v
        for f in dataclasses.fields(part)
    }


def _students(content: Any, place: str) -> dict[str, Student]:
    students = {}
    for name, value in _mapping(content, place).items():
        here = f"{place}.{name}"
        _check_name(name, here)
        if re.match(r"(teacher|chance|index)(-|$)", name):
            raise ValueError(
                f"{here}: {name!r} is the name of another row of the report; choose another"
            )
        entry = dict(_mapping(value, here))
        fixed = [f.name for f in dataclasses.fields(Student) if f.name not in ("name", "options")]
        own = {key: entry.pop(key) for key in fixed if key in entry}
        # What is left are the operator's options: a misspelt key of our own is named as such when
        # it builds.
        students[name] = dataclasses.replace(
            read(Student, own, here), name=name, options=_listless(entry)
        )
    return students


def _resolved(student: Student, published: Mapping[str, Published], profile: str) -> Student:
    """A student of its paper's recipe has its paper's teacher and start as well."""
    if student.recipe == "protocol":
        return student
    what = f"published recipe of profile {profile} (students.{student.name}.recipe)"
    own = published[known(student.operator, published, what)]
    return dataclasses.replace(student, teacher=own.teacher, initialise=own.initialise)


def _listless(value: Any) -> Any:
    """Plain dictionaries, lists and values, free of the reader's own classes."""
    if isinstance(value, Mapping):
        return {str(key): _listless(item) for key, item in value.items()}
    return [_listless(item) for item in value] if isinstance(value, (list, tuple)) else value


def _check_students(params: Params) -> None:
    for student in params.students.values():
        teacher = params.teachers[
            known(student.teacher, params.teachers, f"students.{student.name}.teacher")
        ]
        check_operator(student, *shape_of(teacher), place=f"students.{student.name}")
    shapes = {
        "anatomy": shape_of(params.teacher("class")),
        "benchmark": (params.benchmark.heads, params.benchmark.head_dim, False),
    }
    for use, operators in params.operators.items():
        for operator in operators.values():
            check_operator(operator, *shapes[use], place=f"operators.{use}.{operator.name}")


def shape_of(teacher: Teacher) -> tuple[int, int, bool]:
    """(heads, head_dim, has text) of the first layer: from the folder where there is one."""
    for part, read_shape in (("transformer", _transformer_shape), ("unet", _unet_shape)):
        config = teacher.folder and teacher.folder / part / "config.json"
        if config and config.is_file():
            return read_shape(project.read_json(config))
    return teacher.heads, teacher.head_dim, teacher.text


def _transformer_shape(config: Mapping[str, Any]) -> tuple[int, int, bool]:
    return (
        config["num_attention_heads"],
        config["attention_head_dim"],
        "joint_attention_dim" in config,
    )


def _unet_shape(config: Mapping[str, Any]) -> tuple[int, int, bool]:
    heads = config["attention_head_dim"]  # of a UNet this is how many, whatever the name says
    heads = heads[0] if isinstance(heads, (list, tuple)) else heads
    return heads, config["block_out_channels"][0] // heads, False


def check_operator(student: Student, heads: int, head_dim: int, text: bool, place: str) -> None:
    import torch

    from linattn import attention

    known(student.operator, attention.OPERATORS, f"{place}.operator")
    shape = attention.LayerShape(
        width=heads * head_dim, heads=heads, head_dim=head_dim, has_text=text
    )
    try:
        with torch.device("meta"):
            attention.create(student.operator, shape, **student.options)
    except (ValueError, TypeError) as error:
        raise ValueError(_operator_error(student, place, str(error))) from None


def _operator_error(student: Student, place: str, message: str) -> str:
    """The operator's own words, after the place of the option that they are about."""
    quoted = sorted(
        (message.index(repr(key)), key) for key in student.options if repr(key) in message
    )
    # an unknown one is quoted, before the nearest that is known
    named = [key for _, key in quoted[:1]]
    named += [key for key in student.options if re.search(rf"\b{re.escape(key)}\b", message)]
    if not named:
        return f"{place}: {message}"
    own = [f.name for f in dataclasses.fields(Student) if f.name not in ("name", "options")]
    key = similar(named[0], own, least=0.75)
    hint = f" (or did you mean {key!r}, a student's own key?)" if key else ""
    return f"{place}.{named[0]} is {student.options[named[0]]!r}: {message}{hint}"


# The reader: one dataclass field at a time, by its annotation.


def read(part: type, content: Any, place: str) -> Any:
    entry = _mapping(content, place)
    fields = {
        f.name: f for f in dataclasses.fields(part) if f.name not in ("name", "options", "changes")
    }
    required = [
        name for name, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING
    ]
    _keys(entry, required, [name for name in fields if name not in required], place)
    hints = typing.get_type_hints(part)
    values = {
        name: _value(hints[name], value, f"{place}.{name}", fields[name].metadata)
        for name, value in entry.items()
    }
    made = part(**values)
    if hasattr(made, "check"):
        made.check(place)
    return made


def _mapping(content: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{place} is {content!r}; it must be a mapping of names to values")
    return content


def _keys(
    entry: Mapping[str, Any], required: Iterable[str], optional: Iterable[str], place: str
) -> None:
    for key in entry:
        known(key, [*required, *optional], f"key of {place}:")
    missing = [key for key in required if key not in entry]
    if missing:
        raise ValueError(f"{place} lacks {', '.join(missing)}")


def _value(kind: Any, value: Any, place: str, limits: Mapping[str, Any]) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _union(kind, value, place, limits)
    if origin is Literal:
        if isinstance(value, bool):
            raise ValueError(
                f"{place} is {value!r}, a truth value; write it in quotes: one of "
                f"{typing.get_args(kind)}"
            )
        return known(value, typing.get_args(kind), f"value of {place}:")
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or not value:
            raise ValueError(f"{place} is {value!r}; it must be a list of one or more values")
        inner = typing.get_args(kind)[0]
        return tuple(
            _value(inner, item, f"{place}[{index}]", limits) for index, item in enumerate(value)
        )
    return _plain_value(kind, value, place, limits)


def _union(kind: Any, value: Any, place: str, limits: Mapping[str, Any]) -> Any:
    choices = typing.get_args(kind)
    if value is None and types.NoneType in choices:
        return None
    errors = []
    for choice in choices:
        if choice is types.NoneType:
            continue
        try:
            return _value(choice, value, place, limits)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _plain_value(kind: type, value: Any, place: str, limits: Mapping[str, Any]) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise ValueError(
            f"{place} is {value!r} ({type(value).__name__}); it must be "
            f"{words.get(kind, kind.__name__)}"
        )
    least, most = limits.get("least", -float("inf")), limits.get("most", float("inf"))
    if isinstance(value, (int, float)) and not least <= value <= most:
        top = f" and at most {most}" if most != float("inf") else ""
        raise ValueError(f"{place} is {value!r}; it must be at least {least}{top}")
    return value
