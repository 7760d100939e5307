"""What all rows of the study share: teacher, judge, bodies, and the stock pipelines' pictures from the same noise."""

import copy
import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from linattn import project, teachers
from linattn.checkpoint import generator
from linattn.studies.plugins.body import SOFTMAX, Body
from linattn.studies.plugins.plugin import Plugin, Question
from linattn.studies.plugins.settings import Settings, folder
from linattn.world import judge


@dataclass(frozen=True)
class Bench:
    """What all rows share, and the pictures without a plug-in, which several rows are compared with."""

    told: Settings
    drawn: dict[Any, Tensor] = dataclasses.field(default_factory=dict)

    @cached_property
    def teacher(self) -> teachers.Teacher:
        return teachers.load(project.ROOT / self.told.teacher, device=project.device())

    @cached_property
    def eye(self) -> nn.Module:
        return judge.load(project.ROOT / "data" / "judge").to(project.device())

    @property
    def side(self) -> int:
        return self.teacher.card["side"]

    @property
    def bodies(self) -> list[Body]:
        return [Body(SOFTMAX), *(Body(name, project.published(f"students/{name}")) for name in self.told.students)]

    def pipe(self) -> DiffusionPipeline:
        """Of one's own, to be changed."""
        pipe = copy.deepcopy(self.teacher.pipe)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def questions(self, plugin: Plugin) -> dict[str, Question]:
        return plugin.questions(self.told.measure.pictures, self.told.measure.seed, self.side)

    def draw(
        self, pipe: DiffusionPipeline, question: Question, plugin: Plugin | None = None, steps: int = 0, **more: Any
    ) -> Tensor:
        """(captions, 3, side, side) in [0, 1], of 8 bits. Picture i's noise is from (seed, i)."""
        part = self.told.measure
        how = {"num_inference_steps": steps or part.steps, "guidance_scale": self.teacher.card["guidance"]}
        how |= {"height": self.side, "width": self.side, "output_type": "pt", **more}
        dice, found = iter([generator(part.seed, number) for number in range(len(question.captions))]), []
        for some in question.split(part.batch):
            given = {} if plugin is None else plugin.given(pipe, some)
            noise = [next(dice) for _ in some.captions]
            found.append(pipe(list(some.captions), generator=noise, **how, **given).images.float().cpu())
        return torch.cat(found).mul(255).round().div(255)

    def without(self, body: Body, question: Question) -> Tensor:
        key = (body.name, tuple(question.captions), question.at_once)
        if key not in self.drawn:
            pipe = self.pipe()
            body.onto(pipe)
            self.drawn[key] = self.draw(pipe, question)
        return self.drawn[key]


def mounted(bench: Bench, plugin: Plugin, body: Body) -> DiffusionPipeline:
    """A fresh pipeline with both: plug-in first, student second."""
    pipe = plugin.mount(bench.pipe(), folder(plugin.name))
    body.onto(pipe, plugin.is_base)
    return pipe
