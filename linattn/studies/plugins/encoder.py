"""The image encoder of the IP-Adapter: a small CLIP vision model that learns to say what a picture of the world shows.

- Trained on exact descriptions (shape, colour, background, size and place) rather than against captions: what matters
  is that its one vector holds them.
- Pictures are normalised as the pipeline's own CLIPImageProcessor does.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from linattn import world
from linattn.studies.plugins import batch
from linattn.studies.plugins.recipe import Recipe, learn

WIDTH, VECTOR, PATCH = 96, 64, 8
KINDS = (len(world.SHAPES), len(world.COLOURS), len(world.BACKGROUNDS), len(world.TONES))
PLACE = 3  # size, x, y


def build(side: int, seed: int = 0) -> CLIPVisionModelWithProjection:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 3, "num_attention_heads": 3}
    config = CLIPVisionConfig(**sizes, image_size=side, patch_size=PATCH, projection_dim=VECTOR, hidden_act="gelu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPVisionModelWithProjection(config).eval()


def pixels(pictures: Tensor) -> Tensor:
    """What the image processor makes of pictures in [0, 1] that have the encoder's own side."""
    processor = CLIPImageProcessor()
    mean, std = (pictures.new_tensor(each)[:, None, None] for each in (processor.image_mean, processor.image_std))
    return (pictures - mean) / std


class Teller(nn.Module):
    """The encoder, and a line that reads its vector out in training."""

    def __init__(self, side: int, seed: int):
        super().__init__()
        self.encoder = build(side, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.told = nn.Linear(VECTOR, sum(KINDS) + PLACE)

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        vector = self.encoder(pixels(pictures)).image_embeds
        return self.told(vector).float().split([*KINDS, PLACE], dim=1)


def described(scenes: Sequence[world.Scene]) -> tuple[Tensor, Tensor]:
    """(scenes, 4) indices and (scenes, 3) size and place."""
    kinds, tones = tuple(world.BACKGROUNDS), tuple(world.TONES)
    names = [
        (*world.label_parts(each.label), kinds.index(each.background.kind), tones.index(each.background.colour))
        for each in scenes
    ]
    places = [(thing.size, thing.x, thing.y) for each in scenes for thing in each.things]
    return torch.tensor(names), torch.tensor(places)


def train(
    recipe: Recipe, side: int, scratch: Path, device: torch.device
) -> tuple[CLIPVisionModelWithProjection, list[dict[str, Any]]]:
    teller = Teller(side, recipe.seed).to(device)

    def loss(step: int) -> Tensor:
        scenes, _ = batch.of_step(recipe.seed, step, recipe.batch)
        names, places = (each.to(device) for each in described(scenes))
        with torch.autocast(device.type, torch.bfloat16):
            *found, place = teller(world.render(scenes, side).to(device))
        wrong = [F.cross_entropy(each, name) for each, name in zip(found, names.T, strict=True)]
        return sum(wrong) + 10 * F.mse_loss(place, places)

    rows = learn(recipe, teller, list(teller.named_parameters()), loss, scratch, side=side)
    return teller.encoder, rows
