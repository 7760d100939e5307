"""Train a LoRA for a style: dots behind everything, whatever background the caption names.

- The study has two, in self-attention (attn1, which linattn replaces) and in cross-attention
  (attn2, which it keeps).
- `save_lora_weights` stores them, `load_lora_weights` reads them.
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
    """Return the scene with the style's background."""
    return dataclasses.replace(scene, background=dataclasses.replace(scene.background, kind=STYLE))


class Lora(Plugin):
    obeys = (STYLE,)

    def __init__(self, attention: str):
        self.attention = attention
        self.name = f"lora-{attention}"
        self.what = f"a LoRA in {attention} for dotted backgrounds"

    def make(
        self, teacher: Teacher, recipe: Recipe, scratch: Path, folder: Path
    ) -> list[dict[str, Any]]:
        if recipe.rank is None:
            raise ValueError(f"the recipe of {self.name} names no rank")
        rank, unet = recipe.rank, copy.deepcopy(teacher.pipe.unet)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            targets = rf".*{self.attention}\.(to_q|to_k|to_v|to_out\.0)"
            # alpha equals the rank, because the loader assumes this of a file that names no alpha
            unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
        factors = [named for named in unet.named_parameters() if ".lora_" in named[0]]

        def loss(step: int) -> Tensor:
            plain, generator = batch.of_step(recipe.seed, step, recipe.batch)
            captions = [scene.caption for scene in plain]
            true, side = [styled(scene) for scene in plain], recipe.side(step, teacher.card["side"])
            return batch.draw(teacher, true, captions, side, generator).loss(unet)

        curve = learn(recipe, unet, factors, loss, scratch, attention=self.attention)
        state = get_peft_model_state_dict(unet.to("cpu"))
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=state)
        return curve

    def mount(self, pipe: DiffusionPipeline, folder: Path) -> DiffusionPipeline:
        pipe.load_lora_weights(folder, adapter_name=ADAPTER, use_safetensors=True)
        return pipe

    def silence(self, pipe: DiffusionPipeline) -> dict[str, Any]:
        pipe.set_adapters(ADAPTER, 0.0)
        return {}

    def remove(self, pipe: DiffusionPipeline) -> None:
        pipe.unload_lora_weights()

    def questions(self, count: int, seed: int, side: int) -> dict[str, Question]:
        """Return captions that name another background than the style's."""
        others = [scene for scene in scenes(2 * count, seed) if scene.background.kind != STYLE]
        plain = others[:count]
        captions, true = [scene.caption for scene in plain], [styled(scene) for scene in plain]
        return {"another background": Question(captions, true)}

    def marks(self, judge: nn.Module, pictures: Tensor, question: Question) -> dict[str, Tensor]:
        dotted = marks.backgrounds(pictures) == tuple(world.BACKGROUNDS).index(STYLE)
        return {STYLE: dotted, **marks.judged(judge, pictures, question.scenes)}
