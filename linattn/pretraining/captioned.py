"""What the teachers with text share: captions of one and of two things, and a gate on held-out
ones.

- Half of the pictures show one thing, half two.
- A dropped caption is the empty one, as the pipelines' own negative prompt is.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor, nn

from linattn import project, world
from linattn.pretraining.kind import Data, Kind, encoded_world
from linattn.pretraining.recipe import Recipe
from linattn.pretraining.store import save_grid
from linattn.world import judge, language, pairs
from linattn.world.marks import judge_accuracy


class Captioned(Kind):
    def tokens(self, captions: list[str]) -> Data:
        """Every tokenizer's ids, a row a caption."""
        raise NotImplementedError

    def times(self, count: int, dice: torch.Generator) -> Tensor:
        raise NotImplementedError

    def asked(self, recipe: Recipe) -> dict[str, Any]:
        """What the stock pipeline is told beside captions and steps."""
        raise NotImplementedError

    def data(self, vae: AutoencoderKL, recipe: Recipe, side: int, scratch: Path) -> Data:
        half = recipe.pictures // 2
        latents = [
            encoded_world(vae, scratch, side, half, recipe.seed, objects)[0] for objects in (1, 2)
        ]
        scenes = [scene for objects in (1, 2) for scene in world.scenes(half, recipe.seed, objects)]
        return {"latents": torch.cat(latents), **self.tokens([scene.caption for scene in scenes])}

    def draw(self, recipe: Recipe, data: Data, count: int, dice: torch.Generator) -> Data:
        rows = torch.randint(len(data["latents"]), (count,), generator=dice)
        t = self.times(count, dice)
        eps = torch.randn(count, *data["latents"].shape[1:], generator=dice)
        dropped = torch.rand(count, 1, generator=dice) < recipe.label_drop
        empty = self.tokens([""])
        ids = {name: torch.where(dropped, each, data[name][rows]) for name, each in empty.items()}
        return {"clean": data["latents"][rows], "eps": eps, "t": t, **ids}

    def measure(self, folder: Path, recipe: Recipe) -> dict[str, Any]:
        """Held-out captions of one thing, judged for shape and colour; and of two, with chance
        beside them.
        """
        eye, count = judge.load(project.ROOT / "data" / "judge"), recipe.gate["pictures"]
        one, two = (world.scenes(count, recipe.seed, objects, world.HELD_OUT) for objects in (1, 2))
        single, double = (
            self.drawn(folder, [each.caption for each in scenes], recipe) for scenes in (one, two)
        )
        save_grid(torch.cat([single[:36], double[:24]]), folder / "grid.png")
        marks = judge_accuracy(eye, single, torch.tensor([scene.label for scene in one]))
        chance = pairs.chance(eye, double, two)
        shares = pairs.shares(eye, double, two)
        found = {
            name.replace("_", " "): {**each, "chance": round(chance[name], 4)}
            for name, each in shares.items()
        }
        return {**marks, **found}

    @torch.no_grad()
    def drawn(self, folder: Path, captions: list[str], recipe: Recipe, batch: int = 50) -> Tensor:
        """What the stored pipeline draws for them, (captions, 3, side, side) in [0, 1]."""
        pipe = DiffusionPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        how = {
            "num_inference_steps": recipe.sampler["steps"],
            "output_type": "pt",
            **self.asked(recipe),
        }
        dice, found = torch.Generator().manual_seed(recipe.gate["seed"]), []
        for start in range(0, len(captions), batch):
            found.append(pipe(captions[start : start + batch], generator=dice, **how).images)
        return torch.cat(found).float()


def captioned_card(recipe: Recipe, parts: dict[str, nn.Module]) -> dict[str, Any]:
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    data = f"{recipe.pictures} captioned scenes of linattn.world, half with one thing, half two, seed {recipe.seed}"
    return {"data": data, "text_length": language.LENGTH, "parameters": counts}
