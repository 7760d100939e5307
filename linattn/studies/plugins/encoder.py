"""Train the IP-Adapter's image encoder, a small CLIP vision model, to describe pictures.

- It is trained on exact descriptions (shape, colour, background, size and position) rather than
  against captions: its one vector must hold them.
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
POSITION = 3  # size, x, y


def build(side: int, seed: int = 0) -> CLIPVisionModelWithProjection:
    """Return an untrained encoder of pictures of a side."""
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
    }
    config = CLIPVisionConfig(
        **sizes, image_size=side, patch_size=PATCH, projection_dim=VECTOR, hidden_act="gelu"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPVisionModelWithProjection(config).eval()


def pixels(pictures: Tensor) -> Tensor:
    """Normalise pictures in [0, 1] of the encoder's own side as the image processor does."""
    processor = CLIPImageProcessor()
    mean = pictures.new_tensor(processor.image_mean)[:, None, None]
    std = pictures.new_tensor(processor.image_std)[:, None, None]
    return (pictures - mean) / std


class Describer(nn.Module):
    """Describe pictures by the encoder and a linear layer that reads out its vector."""

    def __init__(self, side: int, seed: int):
        super().__init__()
        self.encoder = build(side, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.readout = nn.Linear(VECTOR, sum(KINDS) + POSITION)

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of each kind, and size and position."""
        vector = self.encoder(pixels(pictures)).image_embeds
        return self.readout(vector).float().split([*KINDS, POSITION], dim=1)


def described(scenes: Sequence[world.Scene]) -> tuple[Tensor, Tensor]:
    """Return the true description of scenes of one thing.

    It is (scenes, 4) indices of shape, colour, background and tone, and (scenes, 3) size and
    position.
    """
    backgrounds, tones = tuple(world.BACKGROUNDS), tuple(world.TONES)
    indices, positions = [], []
    for scene in scenes:
        shape, colour = world.label_parts(scene.label)
        background = backgrounds.index(scene.background.kind)
        indices.append((shape, colour, background, tones.index(scene.background.colour)))
        positions += [(thing.size, thing.x, thing.y) for thing in scene.things]
    return torch.tensor(indices), torch.tensor(positions)


def train(
    recipe: Recipe, side: int, scratch: Path, device: torch.device
) -> tuple[CLIPVisionModelWithProjection, list[dict[str, Any]]]:
    """Train the encoder; return it with the rows of its curve."""
    describer = Describer(side, recipe.seed).to(device)

    def loss(step: int) -> Tensor:
        scenes, _ = batch.of_step(recipe.seed, step, recipe.batch)
        indices, positions = (tensor.to(device) for tensor in described(scenes))
        with torch.autocast(device.type, torch.bfloat16):
            *logits, predicted = describer(world.render(scenes, side).to(device))
        errors = [F.cross_entropy(*pair) for pair in zip(logits, indices.T, strict=True)]
        return sum(errors) + 10 * F.mse_loss(predicted, positions)

    curve = learn(recipe, describer, list(describer.named_parameters()), loss, scratch, side=side)
    return describer.encoder, curve
