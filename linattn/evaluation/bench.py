"""Hold what all rows of a teacher share: settings, teacher, judge, and the pictures that the
teacher drew.

- Captions ask for one thing and for two things in turn. Pictures of one thing are marked for shape
  and colour; pictures of two things are marked for both shapes, both colours and their relation.
- No model was trained on these inputs: labels, noise and world pictures come from a separate seed
  and index.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from linattn import eye, params, project, prompts, roles, samples, sampling, sealed, teachers, world
from linattn.conditions import Labels, Prompts
from linattn.evaluation import likeness
from linattn.world import judge
from linattn.world.marks import judge_features


@dataclass(frozen=True)
class Bench:
    """Hold the settings, teacher, judge and reference pictures that all rows share."""

    settings: params.Params
    role: str

    @property
    def evaluation(self) -> params.Evaluate:
        """Return the settings of the evaluation, with what differs for this teacher."""
        return self.settings.of(self.role).evaluate

    @cached_property
    def teacher(self) -> teachers.Teacher:
        return roles.load(self.settings, self.role)

    @cached_property
    def judge(self) -> nn.Module:
        return judge.load(project.ROOT / "data" / "judge").to(project.device())

    @cached_property
    def eye(self) -> eye.Eye:
        return eye.load(device=project.device())

    @cached_property
    def reference(self) -> dict[str, Tensor]:
        path = project.reference(self.role)
        remedy = "remove it, and make repro draws it again"
        return sealed.load(path, remedy)

    @property
    def side(self) -> int:
        return self.teacher.card["side"]

    @property
    def judged(self) -> bool:
        """Say whether the judge knows what this teacher draws."""
        return self.teacher.judged

    @cached_property
    def captions(self) -> list[str] | None:
        """Return the prompts of a teacher that reads a file of them."""
        return prompts.to_evaluate_on(self.settings.teacher(self.role), self.teacher)

    @property
    def name(self) -> str:
        """Name the teacher's row."""
        return project.teacher_row(self.role)

    @property
    def captioned(self) -> bool:
        """Say whether the teacher's prompts are captions; otherwise they are labels."""
        return not isinstance(self.teacher.conditions, Labels)

    def prompts(self, count: int) -> Prompts:
        """Return the captions or labels of the first `count` pictures."""
        start = world.HELD_OUT if self.captioned and self.captions is None else 0
        numbers = range(start, start + count)
        return samples.prompts_of(
            self.teacher.conditions, numbers, self.evaluation.seed, self.captions
        )

    def scenes(self, count: int) -> list[world.Scene]:
        """Return scenes of the world with the same content as the first `count` pictures."""
        if self.captioned:
            return samples.scenes(
                range(world.HELD_OUT, world.HELD_OUT + count), self.evaluation.seed
            )
        seed, labels = self.evaluation.seed, self.labels(count).tolist()
        indices = range(world.HELD_OUT, world.HELD_OUT + count)
        return [world.scene(seed, i, label=label) for i, label in zip(indices, labels, strict=True)]

    def labels(self, count: int) -> Tensor:
        """Return the class of the first thing of each picture.

        Without labels and without the small world's captions it is the number of the prompt.
        """
        labels = self.prompts(count)
        if isinstance(labels, Tensor):
            return labels
        if self.captions is not None:
            return torch.arange(count) % len(self.captions)
        return torch.tensor([scene.label for scene in self.scenes(count)])

    def singles(self, count: int) -> slice:
        """Select those of `count` pictures that show one thing."""
        return slice(0, count, 2 if self.captioned else 1)

    def inputs(self, level: float) -> dict[str, Any]:
        """Return the arguments of one forward of one picture, at the teacher's trained side."""
        sides = sampling.latent_sides(sampling.Source.of(self.teacher), self.side)
        return self.teacher.conditions.example(*sides, self.prompts(1), level)

    def features(self, pictures: Tensor) -> Tensor:
        """Return the judge's features of 8-bit pictures."""
        return judge_features(self.judge, as_floats(pictures))

    def seen_by_eye(self, pictures: Tensor) -> Tensor:
        """Return the eye's features of 8-bit pictures."""
        return likeness.features(self.eye, pictures)

    @cached_property
    def eyed(self) -> dict[str, Tensor]:
        """Return the eye's features of the teacher's pictures, which all rows share."""
        names = ("pictures", "quick", "cross")
        return {name: self.seen_by_eye(self.reference[name]) for name in names}

    @cached_property
    def known(self) -> dict[str, Tensor]:
        """Return the judge's features of the teacher's pictures and of true pictures."""
        scenes = self.scenes(max(self.evaluation.pictures, self.evaluation.quick_pictures))
        features = {name: self.features(self.reference[name]) for name in ("pictures", "quick")}
        return features | {
            "world": self.features(sampling.eight_bits(world.render(scenes, self.side)))
        }


def say(message: str) -> None:
    """Print a line of progress at once."""
    print(message, flush=True)


def as_floats(pictures: Tensor) -> Tensor:
    """Convert 8-bit pictures to floats in [0, 1]."""
    return pictures.float() / 255


def on_device(pictures: Tensor) -> Tensor:
    """Convert 8-bit pictures to floats in [0, 1] on the project's device."""
    return as_floats(pictures).to(project.device())
