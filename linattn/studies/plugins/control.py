"""Train a ControlNet whose condition is the edges of a picture.

- Half of its training captions name the shape, half leave it out: the shape must then come from the
  edges.
- `save_pretrained` stores it, and the stock `StableDiffusionControlNetPipeline` calls it.
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

# the least change between neighbours that is an edge; the tones of the faintest pattern differ by
# .11 over two pixels
STEEP = 0.04


def edges(pictures: Tensor) -> Tensor:
    """Return 1 where pictures (batch, 3, side, side) in [0, 1] change, and 0 elsewhere."""
    down, right = torch.zeros_like(pictures), torch.zeros_like(pictures)
    down[:, :, :-1] = pictures.diff(dim=2).abs()
    right[..., :-1] = pictures.diff(dim=3).abs()
    edge = torch.maximum(down, right).amax(1, keepdim=True) > STEEP
    return edge.to(pictures.dtype).expand_as(pictures).contiguous()


def unnamed(scene: world.Scene) -> str:
    """Return a caption that names neither shape nor size."""
    thing = scene.things[0]
    return f"a {thing.colour} on {scene.background}"


class Control(Plugin):
    name = "control"
    what = "a ControlNet for edges"
    obeys = ("shape", "place")

    def make(
        self, teacher: Teacher, recipe: Recipe, scratch: Path, folder: Path
    ) -> list[dict[str, Any]]:
        unet = teacher.model.requires_grad_(False)
        control = _untrained(teacher, recipe.seed)

        def loss(step: int) -> Tensor:
            true, generator = batch.of_step(recipe.seed, step, recipe.batch)
            named = (torch.rand(len(true), generator=generator) < 0.5).tolist()
            captions = []
            for scene, is_named in zip(true, named, strict=True):
                captions.append(scene.caption if is_named else unnamed(scene))
            side = recipe.side(step, teacher.card["side"])
            drawn = batch.draw(teacher, true, captions, side, generator)
            inputs = {**drawn.conditioning, "controlnet_cond": edges(drawn.pictures)}
            with torch.autocast(drawn.noisy.device.type, torch.bfloat16):
                down, middle = control(drawn.noisy, drawn.t, **inputs, return_dict=False)
            return drawn.loss(
                unet, down_block_additional_residuals=down, mid_block_additional_residual=middle
            )

        curve = learn(recipe, control, list(control.named_parameters()), loss, scratch)
        control.to("cpu").save_pretrained(folder)
        return curve

    def mount(self, pipe: DiffusionPipeline, folder: Path) -> DiffusionPipeline:
        control = ControlNetModel.from_pretrained(folder, use_safetensors=True).to(pipe.device)
        mounted = StableDiffusionControlNetPipeline(
            **pipe.components, controlnet=control, requires_safety_checker=False
        )
        mounted.set_progress_bar_config(disable=True)
        return mounted

    def silence(self, pipe: DiffusionPipeline) -> dict[str, Any]:
        return {"controlnet_conditioning_scale": 0.0}

    def remove(self, pipe: DiffusionPipeline) -> None:
        """Do nothing: `mount` makes a new pipeline and leaves `pipe` unchanged."""

    def questions(self, count: int, seed: int, side: int) -> dict[str, Question]:
        """Return captions without the shape, with it, and with another than the edges show."""
        true = scenes(count, seed)
        shown = edges(world.render(true, side))
        captions = {
            "shape not named": [unnamed(scene) for scene in true],
            "shape named": [scene.caption for scene in true],
            "another shape named": [_with_next_shape(scene).caption for scene in true],
        }
        return {name: Question(texts, true, shown) for name, texts in captions.items()}

    def call_arguments(self, pipe: DiffusionPipeline, question: Question) -> dict[str, Any]:
        return {"image": question.shown}

    def marks(self, judge: nn.Module, pictures: Tensor, question: Question) -> dict[str, Tensor]:
        in_place = marks.overlap(pictures, question.scenes) >= marks.IN_PLACE
        return {**marks.judged(judge, pictures, question.scenes), "place": in_place}


def _untrained(teacher: Teacher, seed: int) -> ControlNetModel:
    """Return a ControlNet that copies the UNet's encoder.

    It halves its pictures as often as the autoencoder does.
    """
    widths = tuple(16 * 2**level for level in range(teacher.factor.bit_length()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        control = ControlNetModel.from_unet(
            teacher.model, conditioning_embedding_out_channels=widths
        ).eval()
        control.controlnet_cond_embedding.conv_out.reset_parameters()
        return control.to(teacher.device)


def _with_next_shape(scene: world.Scene) -> world.Scene:
    """Return the scene with the next shape."""
    (thing,), shapes = scene.things, tuple(world.SHAPES)
    shape = shapes[(shapes.index(thing.shape) + 1) % len(shapes)]
    return dataclasses.replace(scene, things=(dataclasses.replace(thing, shape=shape),))
