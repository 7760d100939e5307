"""The interface of a plug-in: how it is trained and stored, mounted, silenced, prompted and marked.

All plug-ins share these names and arguments: who has read two of them knows them all.
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
    """Hold one caption for each picture, the plug-in's inputs, and the right scenes."""

    captions: Sequence[str]
    scenes: Sequence[world.Scene]
    shown: Tensor | None = None  # the plug-in's inputs, (captions, 3, side, side) in [0, 1]
    # captions in one call: an IP-Adapter uses one picture for a whole call
    at_once: int | None = None

    @property
    def pictures(self) -> Tensor:
        """The plug-in's inputs, for a plug-in that takes some."""
        if self.shown is None:
            raise ValueError("this question shows the plug-in no picture")
        return self.shown

    def __getitem__(self, indices: slice) -> "Question":
        shown = None if self.shown is None else self.shown[indices]
        return Question(self.captions[indices], self.scenes[indices], shown, self.at_once)

    def split(self, size: int) -> Iterator["Question"]:
        """Split into calls of at most `size` captions."""
        size = self.at_once or size
        return (self[slice(start, start + size)] for start in range(0, len(self.captions), size))


class Plugin:
    name: str
    what: str  # a description of a few words
    # marks that measure the plug-in's own condition; the other marks measure side effects
    obeys: tuple[str, ...]
    is_base = False  # True: a model on which a student is mounted, and not a part beside a student

    def make(
        self, teacher: Teacher, recipe: Recipe, scratch: Path, folder: Path
    ) -> list[dict[str, Any]]:
        """Train on the teacher, write the published format into `folder`, and return the curve."""
        raise NotImplementedError

    def mount(self, pipe: DiffusionPipeline, folder: Path) -> DiffusionPipeline:
        """Load the plug-in and return the pipeline to call.

        It is `pipe` itself, or a new one of the same models.
        """
        raise NotImplementedError

    def silence(self, pipe: DiffusionPipeline) -> dict[str, Any]:
        """Set the plug-in's scale to 0.

        Where the pipeline does not hold the scale, return the call arguments that set it.
        """
        raise NotImplementedError

    def remove(self, pipe: DiffusionPipeline) -> None:
        """Take the plug-in out of the pipeline that was passed to `mount`."""
        raise NotImplementedError

    def questions(self, count: int, seed: int, side: int) -> dict[str, Question]:
        """Return `count` prompts for each named way of asking."""
        raise NotImplementedError

    def call_arguments(self, pipe: DiffusionPipeline, question: Question) -> dict[str, Any]:
        """Return the arguments of the mounted pipeline's call beside captions."""
        return {}

    def marks(self, judge: nn.Module, pictures: Tensor, question: Question) -> dict[str, Tensor]:
        """Say by mark whether each picture obeys the condition, (pictures,) booleans."""
        raise NotImplementedError


def scenes(count: int, seed: int) -> list[world.Scene]:
    """Return held-out scenes of one thing."""
    return world.scenes(count, seed, start=world.HELD_OUT)
