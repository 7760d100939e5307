"""A LoRA for a style: dots behind everything, whatever background the caption asks for.

- Two of them, in self-attention (attn1, which linattn replaces) and in cross-attention (attn2, which it leaves alone).
- Stored by `save_lora_weights`, read by `load_lora_weights`.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

from linattn import world
from linattn.studies.plugins import batch, marks
from linattn.studies.plugins.plugin import Plugin, Question, scenes
from linattn.studies.plugins.recipe import Recipe, learn
from linattn.teachers import Teacher

STYLE = "dots"
ADAPTER = "style"


def styled(scene: world.Scene) -> world.Scene:
    return dataclasses.replace(scene, background=dataclasses.replace(scene.background, kind=STYLE))


class Lora(Plugin):
    obeys = (STYLE,)

    def __init__(self, attention: str):
        self.attention = attention
        self.name = f"lora-{attention}"
        self.what = f"a LoRA in {attention} for dotted backgrounds"

    def make(self, teacher: Teacher, recipe: Recipe, scratch: Path, folder: Path) -> list[dict[str, Any]]:
        unet = copy.deepcopy(teacher.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            targets = rf".*{self.attention}\.(to_q|to_k|to_v|to_out\.0)"
            # alpha as large as the rank: a file that names no alpha is read that way
            unet.add_adapter(LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, target_modules=targets))
        factors = [(name, p) for name, p in unet.named_parameters() if ".lora_" in name]

        def loss(step: int) -> Tensor:
            told, dice = batch.of_step(recipe.seed, step, recipe.batch)
            captions, side = [each.caption for each in told], recipe.side(step, teacher.card["side"])
            return batch.draw(teacher, [styled(each) for each in told], captions, side, dice).loss(unet)

        about = {"attention": self.attention}
        rows = learn(recipe, unet, factors, loss, scratch, **about)
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet.to("cpu")))
        return rows

    def mount(self, pipe: DiffusionPipeline, folder: Path) -> DiffusionPipeline:
        pipe.load_lora_weights(folder, adapter_name=ADAPTER)
        return pipe

    def silence(self, pipe: DiffusionPipeline) -> dict[str, Any]:
        pipe.set_adapters(ADAPTER, 0.0)
        return {}

    def remove(self, pipe: DiffusionPipeline) -> None:
        pipe.unload_lora_weights()

    def questions(self, count: int, seed: int, side: int) -> dict[str, Question]:
        """Captions that ask for another background."""
        told = [scene for scene in scenes(2 * count, seed) if scene.background.kind != STYLE][:count]
        return {"another background": Question([scene.caption for scene in told], [styled(scene) for scene in told])}

    def marks(self, eye: nn.Module, pictures: Tensor, question: Question) -> dict[str, Tensor]:
        dotted = marks.backgrounds(pictures) == tuple(world.BACKGROUNDS).index(STYLE)
        return {STYLE: dotted, **marks.asked(eye, pictures, question.scenes)}
