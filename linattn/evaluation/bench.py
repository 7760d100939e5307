"""What all rows of a teacher share: settings, teacher, judge, and what the teacher drew.

- A teacher that reads captions is asked for one thing and for two in turn: shape and colour are marked where one was
  asked for; where it was two, both shapes, both colours and how they lie.
- Nothing here was trained on: labels, noise and world pictures come from a seed and an index of their own.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from linattn import params, project, samples, sampling, teachers, world
from linattn.conditions import Asked, Labels
from linattn.world import judge
from linattn.world.marks import judge_features


@dataclass(frozen=True)
class Bench:
    """What all rows share: settings, teacher, judge, and what the teacher drew."""

    settings: params.Params
    role: str = "class"

    @property
    def part(self) -> params.Evaluate:
        return self.settings.evaluate

    @cached_property
    def teacher(self) -> teachers.Teacher:
        entry = self.settings.teacher(self.role)
        return teachers.load(entry.place, device=project.device(), **entry.hub)

    @cached_property
    def judge(self) -> nn.Module:
        return judge.load(project.ROOT / "data" / "judge").to(project.device())

    @cached_property
    def reference(self) -> dict[str, Tensor]:
        return load_file(project.reference(self.role))

    @property
    def side(self) -> int:
        return self.teacher.card["side"]

    @property
    def name(self) -> str:
        """Of the teacher's own row."""
        return project.teacher_row(self.role)

    @property
    def reads(self) -> bool:
        """Whether it is told captions; else labels."""
        return not isinstance(self.teacher.conditions, Labels)

    def asked(self, count: int) -> Asked:
        """What the first `count` pictures are asked to show."""
        start = world.HELD_OUT if self.reads else 0
        return samples.asked(self.teacher.conditions, range(start, start + count), self.part.seed)

    def scenes(self, count: int) -> list[world.Scene]:
        """Pictures of the world of the same content, as it would have drawn them."""
        if self.reads:
            return samples.scenes(range(world.HELD_OUT, world.HELD_OUT + count), self.part.seed)
        labels = enumerate(self.asked(count).tolist(), start=world.HELD_OUT)
        return [world.scene(self.part.seed, number, label=label) for number, label in labels]

    def labels(self, count: int) -> Tensor:
        """The class of the first thing of each picture."""
        return torch.tensor([scene.label for scene in self.scenes(count)]) if self.reads else self.asked(count)

    def singles(self, count: int) -> slice:
        """Which of `count` pictures show one thing."""
        return slice(0, count, 2 if self.reads else 1)

    def inputs(self, level: float) -> dict[str, Any]:
        """Arguments of one forward of one picture at the side it was trained at."""
        sides = sampling.latent_sides(sampling.Source.of(self.teacher), self.side)
        return self.teacher.conditions.example(*sides, self.asked(1), level)

    def features(self, pictures: Tensor) -> Tensor:
        return judge_features(self.judge, unit(pictures))

    @cached_property
    def known(self) -> dict[str, Tensor]:
        """Features of what students are compared with."""
        scenes = self.scenes(max(self.part.pictures, self.part.quick_pictures))
        found = {name: self.features(self.reference[name]) for name in ("pictures", "quick")}
        return found | {"world": self.features(eight_bits(world.render(scenes, self.side)))}


def say(words: str) -> None:
    print(words, flush=True)


def eight_bits(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1] as they would be saved."""
    return pictures.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()


def unit(pictures: Tensor) -> Tensor:
    return pictures.float() / 255


def on_device(pictures: Tensor) -> Tensor:
    return unit(pictures).to(project.device())
