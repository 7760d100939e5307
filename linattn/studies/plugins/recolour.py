"""Fine-tune the teacher on a world where every colour's word means the colour two hues on.

- The result is a base model of its own. The study tests whether layers that were distilled on the
  teacher work in it without any training, as CLEAR and LinFusion claim of theirs:
  `linattn.load(pipe, student, strict=False)`.
- The UNet's `save_pretrained` stores it; text encoder and autoencoder stay the teacher's.
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
        unet = copy.deepcopy(teacher.pipe.unet)

        def loss(step: int) -> Tensor:
            named, generator = batch.of_step(recipe.seed, step, recipe.batch)
            captions = [scene.caption for scene in named]
            true, side = [turned(scene) for scene in named], recipe.side(step, teacher.card["side"])
            return batch.draw(teacher, true, captions, side, generator).loss(unet)

        curve = learn(recipe, unet, list(unet.named_parameters()), loss, scratch)
        unet.to("cpu").save_pretrained(folder)
        return curve

    def mount(self, pipe: DiffusionPipeline, folder: Path) -> DiffusionPipeline:
        unet = UNet2DConditionModel.from_pretrained(folder, use_safetensors=True).to(pipe.device)
        mounted = type(pipe)(**{**pipe.components, "unet": unet}, requires_safety_checker=False)
        mounted.set_progress_bar_config(disable=True)
        return mounted

    def remove(self, pipe: DiffusionPipeline) -> None:
        """Do nothing: `mount` makes a new pipeline and leaves `pipe` unchanged."""

    def questions(self, count: int, seed: int, side: int) -> dict[str, Question]:
        named = scenes(count, seed)
        captions, true = [scene.caption for scene in named], [turned(scene) for scene in named]
        return {"colours turned": Question(captions, true)}

    def marks(self, judge: nn.Module, pictures: Tensor, question: Question) -> dict[str, Tensor]:
        return marks.judged(judge, pictures, question.scenes)
