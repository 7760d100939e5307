"""A ControlNet that is shown the edges of a picture.

- Half of its captions name the shape, half leave it out: what a picture shows must then come from the edges.
- Stored by `save_pretrained`, called by the stock `StableDiffusionControlNetPipeline`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, DiffusionPipeline, StableDiffusionControlNetPipeline
from torch import Tensor, nn

from linattn import world
from linattn.studies.plugins import batch, marks
from linattn.studies.plugins.plugin import Plugin, Question, scenes
from linattn.studies.plugins.recipe import Recipe, learn
from linattn.teachers import Teacher

STEEP = 0.04  # change from a pixel to the next that is an edge: the faintest pattern's tones differ by .11 over two


def edges(pictures: Tensor) -> Tensor:
    """(batch, 3, side, side) of 0 and 1, white where a picture in [0, 1] changes."""
    down, right = torch.zeros_like(pictures), torch.zeros_like(pictures)
    down[:, :, :-1] = pictures.diff(dim=2).abs()
    right[..., :-1] = pictures.diff(dim=3).abs()
    found = torch.maximum(down, right).amax(1, keepdim=True) > STEEP
    return found.to(pictures.dtype).expand_as(pictures).contiguous()


def unnamed(scene: world.Scene) -> str:
    """A caption that names neither shape nor size."""
    thing = scene.things[0]
    return f"a {thing.colour} on {scene.background}"


class Control(Plugin):
    name = "control"
    what = "a ControlNet for edges"
    obeys = ("shape", "place")

    def make(self, teacher: Teacher, recipe: Recipe, scratch: Path, folder: Path) -> list[dict[str, Any]]:
        unet = teacher.model.requires_grad_(False)
        control = _fresh(teacher, recipe.seed)

        def loss(step: int) -> Tensor:
            told, dice = batch.of_step(recipe.seed, step, recipe.batch)
            named = torch.rand(len(told), generator=dice) < 0.5
            captions = [s.caption if full else unnamed(s) for s, full in zip(told, named.tolist(), strict=True)]
            given = batch.draw(teacher, told, captions, recipe.side(step, teacher.card["side"]), dice)
            with torch.autocast(given.noisy.device.type, torch.bfloat16):
                more = control(
                    given.noisy, given.t, **given.rows, controlnet_cond=edges(given.pictures), return_dict=False
                )
            return given.loss(unet, down_block_additional_residuals=more[0], mid_block_additional_residual=more[1])

        rows = learn(recipe, control, list(control.named_parameters()), loss, scratch)
        control.to("cpu").save_pretrained(folder)
        return rows

    def mount(self, pipe: DiffusionPipeline, folder: Path) -> DiffusionPipeline:
        control = ControlNetModel.from_pretrained(folder).to(pipe.device)
        mounted = StableDiffusionControlNetPipeline(
            **pipe.components, controlnet=control, requires_safety_checker=False
        )
        mounted.set_progress_bar_config(disable=True)
        return mounted

    def silence(self, pipe: DiffusionPipeline) -> dict[str, Any]:
        return {"controlnet_conditioning_scale": 0.0}

    def remove(self, pipe: DiffusionPipeline) -> None:
        """It lives in a pipeline of its own: the one it was given is as it was."""

    def questions(self, count: int, seed: int, side: int) -> dict[str, Question]:
        """The caption does not name the shape, names it, or names another than the edges show."""
        told = scenes(count, seed)
        shown = edges(world.render(told, side))
        captions = {
            "shape not named": [unnamed(scene) for scene in told],
            "shape named": [scene.caption for scene in told],
            "another shape named": [_other(scene).caption for scene in told],
        }
        return {name: Question(each, told, shown) for name, each in captions.items()}

    def given(self, pipe: DiffusionPipeline, question: Question) -> dict[str, Any]:
        return {"image": question.shown}

    def marks(self, eye: nn.Module, pictures: Tensor, question: Question) -> dict[str, Tensor]:
        place = marks.overlap(pictures, question.scenes) >= marks.IN_PLACE
        return {**marks.asked(eye, pictures, question.scenes), "place": place}


def _fresh(teacher: Teacher, seed: int) -> ControlNetModel:
    """The encoder's copy; its pictures are halved as often as the autoencoder does."""
    widths = tuple(16 * 2**level for level in range(teacher.factor.bit_length()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        control = ControlNetModel.from_unet(teacher.model, conditioning_embedding_out_channels=widths).eval()
        control.controlnet_cond_embedding.conv_out.reset_parameters()
        return control.to(teacher.device)


def _other(scene: world.Scene) -> world.Scene:
    """The same with the next shape."""
    (thing,), shapes = scene.things, tuple(world.SHAPES)
    shape = shapes[(shapes.index(thing.shape) + 1) % len(shapes)]
    return dataclasses.replace(scene, things=(dataclasses.replace(thing, shape=shape),))
