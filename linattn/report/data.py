"""The data of the pages: one teacher with its students, and all teachers together."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from linattn.report.columns import measure
from linattn.report.contributed import Contributed
from linattn.report.looks import looks
from linattn.report.picture import Look
from linattn.report.studies import Section
from linattn.report.words import NO_RESULT, PROMPTS

Result = dict[str, Any]


@dataclass
class Measured:
    """Hold one run's results of one teacher: its own row, guessing, its students."""

    teacher: Result = field(default_factory=dict)
    chance: Result = field(default_factory=dict)
    students: dict[str, Result] = field(default_factory=dict)


@dataclass
class Data:
    """Hold all data of one teacher; `students` maps names to entries in params.yaml's order."""

    profile: str  # the profile's name
    students: dict[str, Result]  # entries of params.yaml by name
    role: str = ""  # of the teacher in params.yaml
    folder: str = ""  # the teacher's name
    model: str = ""  # the class of the teacher's model
    prompts: str = "labels"  # a key of words.PROMPTS
    results: dict[str, Result] = field(default_factory=dict)  # result files by student
    runs: dict[str, Result] = field(default_factory=dict)  # run files by row
    failures: dict[str, str] = field(default_factory=dict)  # what failed, in one line, by student
    # files that are no row and could not be read: a sentence for each
    problems: list[str] = field(default_factory=list)
    teacher: Result = field(default_factory=dict)  # the teacher's result file
    teacher_failure: str = ""  # what failed, in one line
    chance: Result = field(default_factory=dict)  # the result of guessing
    benchmark: Result = field(default_factory=dict)  # times of attention
    anatomy: Result = field(default_factory=dict)  # measures of the teacher's attention
    plan: Result = field(default_factory=dict)  # what its layers lose, and the plans that follow
    plan_run: Result = field(default_factory=dict)  # the run file beside it
    # arrays by row and name
    pictures: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    rehearsed: bool = False  # whether the teacher's weights are random
    foreign: bool = False  # whether its folder says that no judge knows what it draws
    labels: tuple[str, ...] = ()  # names of the classes
    captions: tuple[str, ...] = ()  # one for each picture, where the prompts are captions
    classes: tuple[str, ...] = ()  # one for each picture, of classes that are not the small world's
    shapes: tuple[str, ...] = ()  # names of the shapes that the judge knows
    facts: Result = field(default_factory=dict)  # of the machine and the versions
    show: int = 8  # pictures in a row
    # rows that were not run here: the committed run's are shown
    published: set[str] = field(default_factory=set)
    # the committed run's results of rows that were run here too
    committed: Measured = field(default_factory=Measured)

    @property
    def here(self) -> Measured:
        """Return the results of this machine's run."""
        students = {
            name: result for name, result in self.results.items() if name not in self.published
        }
        if "teacher" in self.published:
            return Measured({}, {}, students)
        return Measured(self.teacher, self.chance, students)

    @property
    def looks(self) -> dict[str, Look]:
        return looks({name: entry["operator"] for name, entry in self.students.items()})

    @property
    def name(self) -> str:
        return self.folder or self.role

    @property
    def judged(self) -> bool:
        """Say whether the judge marks this teacher's pictures; before any row, its folder tells."""
        results = [self.teacher, self.chance, *self.results.values()]
        qualities = [result.get("quality") or {} for result in results]
        if not any(qualities):
            return not self.foreign
        return any("shape" in quality for quality in qualities)

    @property
    def prompts_in_words(self) -> str:
        """Say what the teacher's prompts are."""
        return PROMPTS[self.prompts]

    @property
    def captioned(self) -> bool:
        """Say whether the prompts are captions."""
        return self.prompts != "labels"

    @property
    def eyed(self) -> bool:
        """Say whether any student was compared with its teacher by the eye."""
        return any(measure(result, "eye_distance") for result in self.results.values())

    @property
    def page(self) -> str:
        return f"pages/teacher-{self.role}.html"

    @property
    def all_published(self) -> bool:
        """Say whether every row is the committed run's: none was run here, and none is missing."""
        return {"teacher", *self.students} <= self.published

    def mark(self, row: str) -> str:
        """Return the mark of a row that was not run here, where other rows were."""
        return "committed run" if row in self.published and not self.all_published else ""

    @property
    def waiting(self) -> bool:
        """Say whether nothing ran yet, which is no failure."""
        return not self.done and {self.teacher_failure, *self.failures.values()} == {NO_RESULT}

    def is_control(self, name: str) -> bool:
        return self.students[name]["operator"] == "softmax"

    @property
    def done(self) -> list[str]:
        return [
            name for name in self.students if name in self.results and name not in self.failures
        ]

    @property
    def methods(self) -> list[str]:
        return [name for name in self.done if not self.is_control(name)]

    @property
    def controls(self) -> list[str]:
        return [name for name in self.done if self.is_control(name)]


@dataclass
class Report:
    """Hold all teachers by role, in the order in which the students name them, and the studies."""

    profile: str  # the profile's name
    parts: dict[str, Data]  # data by the teacher's role
    studies: list[Section] = field(default_factory=list)  # what the studies found
    # the rows that operators' files gave, by the teacher's role
    contributed: dict[str, list[Contributed]] = field(default_factory=dict)

    @property
    def published(self) -> set[str]:
        """Name the rows of all teachers that were not run here."""
        names: set[str] = set()
        for role, data in self.parts.items():
            names |= {f"{role}: {name}" for name in data.published}
        return names

    @property
    def several(self) -> bool:
        return len(self.parts) > 1

    @property
    def only(self) -> Data:
        """Return the teacher of a report that has one."""
        (data,) = self.parts.values()
        return data

    def of(self, student: str) -> Data:
        """Return the data of a student's teacher."""
        return next(data for data in self.parts.values() if student in data.students)

    @property
    def students(self) -> dict[str, Result]:
        return _merged(data.students for data in self.parts.values())

    @property
    def results(self) -> dict[str, Result]:
        return _merged(data.results for data in self.parts.values())

    @property
    def failures(self) -> dict[str, str]:
        return _merged(data.failures for data in self.parts.values())

    @property
    def looks(self) -> dict[str, Look]:
        """Return the looks, chosen by teacher, so that an operator has one colour on every page."""
        return _merged(data.looks for data in self.parts.values())

    @property
    def done(self) -> list[str]:
        names: list[str] = []
        for data in self.parts.values():
            names += data.done
        return names

    @property
    def runs(self) -> dict[str, Result]:
        """Return the runs by student, and each teacher's own run by the teacher's name."""
        runs = {}
        for data in self.parts.values():
            for name, run in data.runs.items():
                is_teacher = name == "teacher" and self.several
                runs[data.name if is_teacher else name] = run
        return runs

    @property
    def facts(self) -> Result:
        return next((data.facts for data in self.parts.values() if data.facts), {})


def _merged(mappings: Iterable[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for mapping in mappings:
        merged |= mapping
    return merged
