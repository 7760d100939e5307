"""Hold what all rows of the study share: teacher, judge, bodies and the pipelines' pictures."""

import copy
import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from linattn import project, teachers
from linattn.seeds import of_step
from linattn.studies.plugins.body import SOFTMAX, Body
from linattn.studies.plugins.plugin import Plugin, Question
from linattn.studies.plugins.settings import Settings, folder
from linattn.world import judge


@dataclass(frozen=True)
class Bench:
    """Hold what all rows share, and cache the pictures without a plug-in, which they share too."""

    settings: Settings
    drawn: dict[Any, Tensor] = dataclasses.field(default_factory=dict)

    @cached_property
    def teacher(self) -> teachers.Teacher:
        return teachers.load(project.ROOT / self.settings.teacher, device=project.device())

    @cached_property
    def judge(self) -> nn.Module:
        """Load the judge."""
        return judge.load(project.ROOT / "data" / "judge").to(project.device())

    @property
    def side(self) -> int:
        return self.teacher.card["side"]

    @property
    def bodies(self) -> list[Body]:
        students = [
            Body(name, project.published(f"students/{name}")) for name in self.settings.students
        ]
        return [Body(SOFTMAX), *students]

    def pipe(self) -> DiffusionPipeline:
        """Return a copy of the teacher's pipeline, which the caller may change."""
        pipe = copy.deepcopy(self.teacher.pipe)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def questions(self, plugin: Plugin) -> dict[str, Question]:
        return plugin.questions(
            self.settings.measure.pictures, self.settings.measure.seed, self.side
        )

    def draw(
        self,
        pipe: Any,
        question: Question,
        plugin: Plugin | None = None,
        steps: int = 0,
        **extra: Any,
    ) -> Tensor:
        """Draw the question's pictures, (captions, 3, side, side) in [0, 1], rounded to 8 bits.

        The noise of picture i is seeded with (seed, i). `extra` are further keyword arguments of
        the pipeline.
        """
        measure = self.settings.measure
        kwargs = {
            "num_inference_steps": steps or measure.steps,
            "guidance_scale": self.teacher.card["guidance"],
        }
        kwargs |= {"height": self.side, "width": self.side, "output_type": "pt", **extra}
        pictures: list[Tensor] = []
        count = 0  # of pictures drawn
        for call in question.split(measure.batch):
            inputs = {} if plugin is None else plugin.call_arguments(pipe, call)
            indices = range(count, count + len(call.captions))
            generators = [of_step(measure.seed, index) for index in indices]
            output = pipe(list(call.captions), generator=generators, **kwargs, **inputs)
            pictures.append(output.images.float().cpu())
            count = indices.stop
        return torch.cat(pictures).mul(255).round().div(255)

    def without(self, body: Body, question: Question) -> Tensor:
        """Draw the same pictures without a plug-in, or return them where they were drawn before."""
        key = (body.name, tuple(question.captions), question.at_once)
        if key not in self.drawn:
            pipe = self.pipe()
            body.onto(pipe)
            self.drawn[key] = self.draw(pipe, question)
        return self.drawn[key]


def mounted(bench: Bench, plugin: Plugin, body: Body) -> DiffusionPipeline:
    """Return a fresh pipeline with the plug-in, and then with the student's layers."""
    pipe = plugin.mount(bench.pipe(), folder(plugin.name))
    body.onto(pipe, plugin.is_base)
    return pipe
