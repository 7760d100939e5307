"""What the pages show, as read: one teacher with its students, and all teachers together."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from linattn.report.picture import Look, looks
from linattn.report.studies import Section
from linattn.report.words import NO_RESULT, ROLES

Result = dict[str, Any]


@dataclass
class Measured:
    """What one run measured of one teacher: its own row, guessing, its students."""

    teacher: Result = field(default_factory=dict)
    chance: Result = field(default_factory=dict)
    students: dict[str, Result] = field(default_factory=dict)


@dataclass
class Data:
    """One teacher; `students` maps name to its entry in params.yaml, in that order."""

    profile: str
    students: dict[str, Result]
    role: str = "class"
    folder: str = ""  # the teacher's name
    results: dict[str, Result] = field(default_factory=dict)
    runs: dict[str, Result] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    teacher: Result = field(default_factory=dict)
    teacher_failure: str = ""
    chance: Result = field(default_factory=dict)
    benchmark: Result = field(default_factory=dict)
    anatomy: Result = field(default_factory=dict)
    pictures: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()  # one a picture, where captions were asked for
    shapes: tuple[str, ...] = ()
    facts: Result = field(default_factory=dict)
    show: int = 8  # pictures a row
    published: set[str] = field(default_factory=set)  # rows that were not run here: the committed run's stand for them
    committed: Measured = field(default_factory=Measured)  # the committed run, of the rows that were run here too

    @property
    def here(self) -> Measured:
        """What this machine's run measured."""
        students = {name: result for name, result in self.results.items() if name not in self.published}
        own = "teacher" not in self.published
        return Measured(self.teacher if own else {}, self.chance if own else {}, students)

    @property
    def looks(self) -> dict[str, Look]:
        return looks({name: entry["operator"] for name, entry in self.students.items()})

    @property
    def name(self) -> str:
        return self.folder or self.role

    @property
    def told(self) -> str:
        """What the teacher is told to draw, in words."""
        return ROLES.get(self.role, f"role {self.role}")

    @property
    def captioned(self) -> bool:
        """Also before anything of it is there."""
        return bool(self.captions) or self.role.startswith("text")

    @property
    def page(self) -> str:
        return f"pages/teacher-{self.role}.html"

    @property
    def all_published(self) -> bool:
        """Every row is the committed run's: nothing was run on this machine, and nothing is missing."""
        return {"teacher", *self.students} <= self.published

    def mark(self, row: str) -> str:
        """What to say beside a row, where some rows were run here and others not."""
        return "committed run" if row in self.published and not self.all_published else ""

    @property
    def waiting(self) -> bool:
        """Nothing ran yet, which is no failure."""
        return not self.done and {self.teacher_failure, *self.failures.values()} == {NO_RESULT}

    def is_control(self, name: str) -> bool:
        return self.students[name]["operator"] == "softmax"

    @property
    def done(self) -> list[str]:
        return [name for name in self.students if name in self.results and name not in self.failures]

    @property
    def methods(self) -> list[str]:
        return [name for name in self.done if not self.is_control(name)]

    @property
    def controls(self) -> list[str]:
        return [name for name in self.done if self.is_control(name)]


@dataclass
class Report:
    """All teachers by role, in the order in which params.yaml first names them, and the side studies."""

    profile: str
    parts: dict[str, Data]
    studies: list[Section] = field(default_factory=list)

    @property
    def published(self) -> set[str]:
        """Rows of all teachers that were not run here."""
        return {f"{role}: {name}" for role, part in self.parts.items() for name in part.published}

    @property
    def several(self) -> bool:
        return len(self.parts) > 1

    @property
    def only(self) -> Data:
        (part,) = self.parts.values()
        return part

    def of(self, student: str) -> Data:
        return next(part for part in self.parts.values() if student in part.students)

    @property
    def students(self) -> dict[str, Result]:
        return _merged(part.students for part in self.parts.values())

    @property
    def results(self) -> dict[str, Result]:
        return _merged(part.results for part in self.parts.values())

    @property
    def failures(self) -> dict[str, str]:
        return _merged(part.failures for part in self.parts.values())

    @property
    def looks(self) -> dict[str, Look]:
        """Each teacher's students by themselves, so that an operator has one colour on every page."""
        return _merged(part.looks for part in self.parts.values())

    @property
    def done(self) -> list[str]:
        return [name for part in self.parts.values() for name in part.done]

    @property
    def runs(self) -> dict[str, Result]:
        """By student, and each teacher's own by its name."""
        return _merged(
            {part.name if name == "teacher" and self.several else name: run for name, run in part.runs.items()}
            for part in self.parts.values()
        )

    @property
    def facts(self) -> Result:
        return next((part.facts for part in self.parts.values() if part.facts), {})


def _merged(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}
