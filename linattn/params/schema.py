"""Define what params.yaml may hold; distillation/settings.py has the training settings."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from linattn import project, reader
from linattn.attention import POLICIES
from linattn.distillation.settings import DTYPES, Settings
from linattn.names import known
from linattn.reader import Plain, between, choice, not_read, read

T = TypeVar("T")
RECIPES = ("protocol", "published")  # the profile's training settings, or its paper's own
SCORES = ("clip", "inception")


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Say where a role's teacher is, how it is loaded, and which numbers differ for it.

    Its shape is written down only where no folder tells it.
    """

    source: str  # a pipeline folder, of this repository or anywhere, or a hub id
    # of the nano profile on two cores: samples, students, evaluation
    minutes: int | None = between(1, default=None)
    revision: str | None = None  # a branch, tag or commit of the hub's repository
    heads: int = between(1, default=4)  # heads of the first layer
    head_dim: int = between(1, default=32)  # channels of a head
    text: bool = False  # text tokens take part in self-attention
    dtype: str = choice(DTYPES, default="float32")  # of the loaded weights
    # these four replace what the pipeline's card or diffusers' default says
    side: int | None = between(1, default=None)  # of its pictures in px
    guidance: float | None = between(1, default=None)  # 1 is none
    text_length: int | None = between(1, default=None)  # tokens of a prompt
    # a text file, one prompt a line, for a teacher that reads text; null: the repository's list
    prompts: str | None = None
    # what differs from these sections of the profile for this teacher and its students
    sample: Plain = dataclasses.field(default_factory=dict)  # by key of `sample`
    distill: Plain = dataclasses.field(default_factory=dict)  # by key of `distill`
    evaluate: Plain = dataclasses.field(default_factory=dict)  # by key of `evaluate`

    @property
    def folder(self) -> Path | None:
        """Return the teacher's folder, or None for one of the hub."""
        folder = project.ROOT / os.path.expanduser(self.source)
        local = self.source.startswith(("data/", ".", "/", "~")) or os.path.isdir(folder)
        return folder if local else None

    @property
    def name_or_path(self) -> str:
        """Return the first argument of `teachers.load`; `loading` holds the others."""
        return str(self.folder or self.source)

    @property
    def loading(self) -> Plain:
        """Return the keyword arguments of `teachers.load`."""
        options: Plain = {"card": self.card} if self.card else {}
        if self.revision and not self.folder:
            options["revision"] = self.revision
        if self.dtype != "float32":
            options["torch_dtype"] = DTYPES[self.dtype]
        return options

    @property
    def changes(self) -> dict[str, Plain]:
        """Return what differs from the profile's numbers, by section."""
        return {"sample": self.sample, "distill": self.distill, "evaluate": self.evaluate}

    @property
    def card(self) -> Plain:
        """Return what replaces entries of the pipeline's card."""
        values = {key: getattr(self, key) for key in ("side", "guidance", "text_length")}
        return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Say what each teacher draws for its students to learn from."""

    pictures: int = between(1)  # pictures that each teacher draws for its students
    steps: int = between(1, 1000)  # steps of a draw
    seed: int = between(0)  # of labels or captions and of noise
    shard: int = between(1)  # pictures in one file
    batch: int = between(1)  # pictures drawn at once


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Say how the teachers' attention is looked at."""

    pictures: int = between(1)  # over which the measures are averaged
    noise: tuple[float, ...] = between(0, 1)  # noise levels that are looked at, in [0, 1]
    layers: int | None = between(1)  # how many, evenly spread; null: all
    seed: int = between(0)  # of the noise, and of the new weights of converted layers


@dataclass(frozen=True, kw_only=True)
class Distill(Settings):
    """Hold the training settings of a profile; each student is trained once with each seed."""

    seeds: tuple[int, ...] = between(0, different=True)  # a training for each


@dataclass(frozen=True, kw_only=True)
class Published:
    """Hold what differs from the profile's `distill` in a paper's own training."""

    teacher: str  # a role
    initialise: str = choice(POLICIES, default="all")  # one of POLICIES
    changes: Plain = not_read(default_factory=dict)  # training settings by name


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Say how students are measured beside their teacher."""

    pictures: int = between(4)  # at least two of one thing and two of two, where captions are read
    steps: int = between(1, 1000)  # steps of a draw
    quick_pictures: int = between(4)  # of the rows that only bound the others
    quick_steps: int = between(1, 1000)  # steps of those rows
    cross: int = between(2, 64)  # times the side it was trained at
    cross_pictures: int = between(4)  # pictures at that side
    noise: tuple[float, ...] = between(0, 1)  # levels at which predictions are compared
    errors: int = between(2)  # pictures for the distance of predictions
    batch: int = between(1)  # pictures at once
    seed: int = between(0)  # of the evaluation's pictures and their noise
    # other papers' scores, of SCORES; what they need is no dependency, see evaluation/scores.py
    scores: tuple[str, ...] = choice(SCORES, empty=True, default=())


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Say how attention is timed."""

    tokens: tuple[int, ...] = between(1)  # lengths of the sequence that are timed
    heads: int = between(1)  # heads of the timed attention
    head_dim: int = between(1)  # channels of a head
    repeats: int = between(1)  # how often a point is timed
    seconds: float = between(0)  # most for one point; a slower one is not repeated
    sides: tuple[int, ...] = between(1)  # of the latents that whole steps are timed at


@dataclass(frozen=True, kw_only=True)
class Planning:
    """Say what the layers of a teacher are measured under, and for which budgets it is planned."""

    pictures: int = between(1)  # on which predictions are compared
    noise: tuple[float, ...] = between(0, 1)  # noise levels at which they are compared
    # falling noise levels at which a layer may change its operator; none: it keeps one
    until: tuple[float, ...] = between(0, 1, empty=True, default=())
    candidates: Plain  # {operator, and its options} by a label; softmax is always among them
    layerwise_steps: int = between(1)  # that each candidate has before it is measured again
    budgets: tuple[float, ...] = between(0, 1, different=True)  # shares of softmax's cost
    batch: int = between(1)  # pictures of one forward
    seed: int = between(0)  # of new weights, batches and noise


@dataclass(frozen=True, kw_only=True)
class Report:
    """Say how much the report shows."""

    pictures: int = between(1)  # pictures in a row
    query: int = between(0)  # the token whose map is shown


@dataclass(frozen=True, kw_only=True)
class Student:
    """Describe one entry of `students`: an operator with its options, for one teacher."""

    operator: str  # one of OPERATORS
    # a role; entries of `students` must name one, those of `operators` belong to no teacher
    teacher: str = ""
    layers: str | tuple[int | str, ...] = "all"  # which layers are replaced, as in `linearize`
    initialise: str = choice(POLICIES, default="all")  # one of POLICIES
    # one of RECIPES: the profile's training, or that of the paper
    recipe: str = choice(RECIPES, default="protocol")
    name: str = not_read(default="")  # of the entry
    options: Plain = not_read(default_factory=dict)  # values of the operator's options

    @property
    def settings(self) -> Plain:
        """Layers, initialise and recipe as an entry has them: defaults are left out."""
        values = {key: getattr(self, key) for key in USUAL}
        return {key: value for key, value in values.items() if value != USUAL[key]}


USUAL = {key: getattr(Student, key) for key in ("layers", "initialise", "recipe")}
STUDENT_KEYS = reader.keys_of(Student)  # all other keys of an entry are options of its operator

# The sections that every profile has, beside `teachers` and `published`.
SECTIONS = {
    "sample": Sample,
    "anatomy": Anatomy,
    "distill": Distill,
    "evaluate": Evaluate,
    "benchmark": Benchmark,
    "plan": Planning,
    "report": Report,
}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Hold the numbers of one profile."""

    teachers: dict[str, Teacher]  # by role
    sample: Sample  # what the teachers draw for their students
    anatomy: Anatomy  # how the teachers' attention is looked at
    distill: Distill  # how students are trained
    published: dict[str, Published]  # by operator
    evaluate: Evaluate  # how students are measured
    benchmark: Benchmark  # how attention is timed
    plan: Planning  # what decides which layer gets which operator
    report: Report  # what the report shows


@dataclass(frozen=True, kw_only=True)
class Params(Profile):
    """Hold all of params.yaml, with the numbers of one profile."""

    profile: str  # the profile's name
    students: dict[str, Student]  # by name
    operators: dict[str, dict[str, Student]]  # lists of their own for anatomy and benchmark
    teachers_of: dict[str, tuple[str, ...]]  # roles by the stage that is run for them

    def student(self, name: str) -> Student:
        return self.students[known(name, self.students, "student")]

    def of_teacher(self, role: str) -> list[str]:
        """List the names of the teacher's students."""
        return [name for name, student in self.students.items() if student.teacher == role]

    def teacher(self, role: str) -> Teacher:
        return self.teachers[known(role, self.teachers, f"teacher of profile {self.profile}")]

    def of(self, role: str) -> "Params":
        """Return these parameters with the numbers that differ for one teacher."""
        teacher = self.teacher(role)
        changed = {name: changes for name, changes in teacher.changes.items() if changes}
        sections = {
            name: with_changes(getattr(self, name), changes, f"teachers.{role}.{name}")
            for name, changes in changed.items()
        }
        return dataclasses.replace(self, **sections)

    def recipe(self, name: str) -> Distill:
        """Return a student's training settings: those of its teacher's profile, or its paper's."""
        student = self.student(name)
        distill = self.of(student.teacher).distill
        if student.recipe == "protocol":
            return distill
        return dataclasses.replace(distill, **self.published[student.operator].changes)


def with_changes(section: T, changes: Plain, path: str) -> T:
    """Return a section of a profile with other values, or raise ValueError for a wrong one."""
    return read(type(section), {**vars(section), **changes}, path)
