"""What every plug-in answers: how it is trained and stored, mounted, silenced, asked and marked.

Siblings share these names and arguments; reading two of them teaches all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from linattn import world
from linattn.studies.plugins.recipe import Recipe
from linattn.teachers import Teacher


@dataclass(frozen=True)
class Question:
    """What is asked of a pipeline: a caption a picture, what a plug-in is shown, and what would be right."""

    captions: Sequence[str]
    scenes: Sequence[world.Scene]
    shown: Tensor | None = None  # (captions, 3, side, side) in [0, 1]
    at_once: int | None = None  # captions that a call takes: with an IP-Adapter one picture is for all of them

    def __getitem__(self, part: slice) -> "Question":
        shown = None if self.shown is None else self.shown[part]
        return Question(self.captions[part], self.scenes[part], shown, self.at_once)

    def split(self, size: int) -> Iterator["Question"]:
        """In calls of at most `size` captions."""
        size = self.at_once or size
        return (self[slice(start, start + size)] for start in range(0, len(self.captions), size))


class Plugin:
    name: str
    what: str  # in a few words
    obeys: tuple[str, ...]  # the marks that say whether its condition is obeyed; the others, what it leaves as it was
    is_base = False  # a model of its own, on which a student is mounted, rather than a part beside a student

    def make(self, teacher: Teacher, recipe: Recipe, scratch: Path, folder: Path) -> list[dict[str, Any]]:
        """Train on the teacher and write the published format into `folder`; rows of the curve."""
        raise NotImplementedError

    def mount(self, pipe: DiffusionPipeline, folder: Path) -> DiffusionPipeline:
        """The pipeline to call: `pipe` itself, or another of the same parts."""
        raise NotImplementedError

    def silence(self, pipe: DiffusionPipeline) -> dict[str, Any]:
        """Its scale to 0: what a call takes for that, if it is no state of the pipeline."""
        raise NotImplementedError

    def remove(self, pipe: DiffusionPipeline) -> None:
        """From the pipeline that was given to `mount`."""
        raise NotImplementedError

    def questions(self, count: int, seed: int, side: int) -> dict[str, Question]:
        raise NotImplementedError

    def given(self, pipe: DiffusionPipeline, question: Question) -> dict[str, Any]:
        """What a call of the mounted pipeline takes beside captions."""
        return {}

    def marks(self, eye: nn.Module, pictures: Tensor, question: Question) -> dict[str, Tensor]:
        """Named (pictures,) booleans: what obeys the condition."""
        raise NotImplementedError


def scenes(count: int, seed: int) -> list[world.Scene]:
    """Of one thing, never trained on."""
    return world.scenes(count, seed, start=world.HELD_OUT)
