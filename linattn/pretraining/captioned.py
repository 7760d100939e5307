"""Define what the teachers with text share: their captions, and the gate on held-out ones.

- Half of the pictures show one thing, half two.
- A dropped caption becomes the empty one, as the pipelines' own negative prompt is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor, nn

from linattn import project, world
from linattn.pretraining.backbone import (
    Backbone,
    Data,
    Model,
    encoded_world,
    parameter_count,
)
from linattn.pretraining.recipe import Recipe
from linattn.pretraining.store import save_grid
from linattn.world import judge, language, pairs
from linattn.world.marks import judge_accuracy


class Captioned(Backbone[Model]):
    def tokens(self, captions: list[str]) -> Data:
        """Return every tokenizer's ids, a row a caption."""
        raise NotImplementedError

    def times(self, count: int, rng: torch.Generator) -> Tensor:
        """Draw the times of a batch."""
        raise NotImplementedError

    def call_arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Return the arguments of the stock pipeline's call beside captions and steps."""
        raise NotImplementedError

    def data(self, vae: AutoencoderKL, recipe: Recipe, side: int, scratch: Path) -> Data:
        half, seed = recipe.pictures // 2, recipe.seed
        latents, captions = [], []
        for objects in (1, 2):
            latents.append(encoded_world(vae, scratch, side, half, seed, objects)[0])
            captions += _captions(world.scenes(half, seed, objects))
        return {"latents": torch.cat(latents), **self.tokens(captions)}

    def draw(self, recipe: Recipe, data: Data, count: int, rng: torch.Generator) -> Data:
        latents = data["latents"]
        indices = torch.randint(len(latents), (count,), generator=rng)
        t = self.times(count, rng)
        eps = torch.randn(count, *latents.shape[1:], generator=rng)
        dropped = torch.rand(count, 1, generator=rng) < recipe.label_drop
        ids = {}
        for name, empty in self.tokens([""]).items():
            ids[name] = torch.where(dropped, empty, data[name][indices])
        return {"clean": latents[indices], "eps": eps, "t": t, **ids}

    def measure(self, folder: Path, recipe: Recipe) -> dict[str, Any]:
        """Mark held-out captions of one thing and of two; the latter have chance beside them."""
        classifier, count = judge.load(project.ROOT / "data" / "judge"), recipe.gate["pictures"]
        one = world.scenes(count, recipe.seed, 1, world.HELD_OUT)
        two = world.scenes(count, recipe.seed, 2, world.HELD_OUT)
        single = self.drawn(folder, _captions(one), recipe)
        double = self.drawn(folder, _captions(two), recipe)
        save_grid(torch.cat([single[:36], double[:24]]), folder / "grid.png")
        marks = judge_accuracy(classifier, single, torch.tensor([scene.label for scene in one]))
        chance = pairs.chance(classifier, double, two)
        for name, share in pairs.shares(classifier, double, two).items():
            marks[name.replace("_", " ")] = {**share, "chance": round(chance[name], 4)}
        return marks

    @torch.no_grad()
    def drawn(self, folder: Path, captions: list[str], recipe: Recipe, batch: int = 50) -> Tensor:
        """Draw the captions with the stored pipeline, (captions, 3, side, side) in [0, 1]."""
        pipe: Any = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
        pipe.set_progress_bar_config(disable=True)
        steps = recipe.sampler["steps"]
        kwargs = {"num_inference_steps": steps, "output_type": "pt", **self.call_arguments(recipe)}
        rng, pictures = torch.Generator().manual_seed(recipe.gate["seed"]), []
        for start in range(0, len(captions), batch):
            prompts = captions[start : start + batch]
            pictures.append(pipe(prompts, generator=rng, **kwargs).images)
        return torch.cat(pictures).float()


def _captions(scenes: Sequence[world.Scene]) -> list[str]:
    return [scene.caption for scene in scenes]


def captioned_card(recipe: Recipe, models: dict[str, nn.Module]) -> dict[str, Any]:
    """Return the card's entries on data, text length and the parameters of each model."""
    counts = {name: parameter_count(model) for name, model in models.items()}
    data = (
        f"{recipe.pictures} captioned scenes of linattn.world, half with one thing, half two, "
        f"seed {recipe.seed}"
    )
    return {"data": data, "text_length": language.LENGTH, "parameters": counts}
