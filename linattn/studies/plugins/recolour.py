"""A fine-tune of the teacher: the same world, where every colour's word means the colour two hues
on.

- It is a base model of its own. The study tests whether layers that were distilled on the teacher
  work in it unchanged, as CLEAR and LinFusion claim of theirs: `linattn.load(pipe, student,
  strict=False)`, and nothing is trained.
- Stored by the UNet's `save_pretrained`; text encoder and autoencoder stay the teacher's.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from linattn import world
from linattn.studies.plugins import batch, marks
from linattn.studies.plugins.plugin import Plugin, Question, scenes
from linattn.studies.plugins.recipe import Recipe, learn
from linattn.teachers import Teacher

HUES = 2  # of six, by which every colour is turned


def turned(scene: world.Scene) -> world.Scene:
    """Return the scene that the fine-tune draws for the caption of `scene`."""
    colours = tuple(world.COLOURS)
    things = []
    for thing in scene.things:
        colour = colours[(colours.index(thing.colour) + HUES) % len(colours)]
        things.append(dataclasses.replace(thing, colour=colour))
    return dataclasses.replace(scene, things=tuple(things))


class Recolour(Plugin):
    name = "recolour"
    what = "a fine-tune with other colours"
    is_base = True
    obeys = ("colour",)

    def make(
        self, teacher: Teacher, recipe: Recipe, scratch: Path, folder: Path
    ) -> list[dict[str, Any]]:
        unet = copy.deepcopy(teacher.model)

        def loss(step: int) -> Tensor:
            named, generator = batch.of_step(recipe.seed, step, recipe.batch)
            captions, side = (
                [scene.caption for scene in named],
                recipe.side(step, teacher.card["side"]),
            )
            return batch.draw(
                teacher, [turned(scene) for scene in named], captions, side, generator
            ).loss(unet)

        rows = learn(recipe, unet, list(unet.named_parameters()), loss, scratch)
        unet.to("cpu").save_pretrained(folder)
        return rows

    def mount(self, pipe: DiffusionPipeline, folder: Path) -> DiffusionPipeline:
        unet = UNet2DConditionModel.from_pretrained(folder).to(pipe.device)
        mounted = type(pipe)(**{**pipe.components, "unet": unet}, requires_safety_checker=False)
        mounted.set_progress_bar_config(disable=True)
        return mounted

    def remove(self, pipe: DiffusionPipeline) -> None:
        """Do nothing: `mount` makes a new pipeline and leaves `pipe` unchanged."""

    def questions(self, count: int, seed: int, side: int) -> dict[str, Question]:
        named = scenes(count, seed)
        return {
            "colours turned": Question(
                [scene.caption for scene in named], [turned(scene) for scene in named]
            )
        }

    def marks(self, judge: nn.Module, pictures: Tensor, question: Question) -> dict[str, Tensor]:
        return marks.asked(judge, pictures, question.scenes)
