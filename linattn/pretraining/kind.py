"""What differs between the small teachers, and the latents of the world that all of them learn
from.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, DPMSolverMultistepScheduler
from torch import Tensor, nn

from linattn import checkpoint, world
from linattn.diffusion import Diffusion
from linattn.pretraining import autoencoder
from linattn.pretraining.recipe import Recipe

SCHEDULER = {
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",  # few steps must begin at pure noise
}
Data = dict[str, Tensor]


class Kind:
    """One family's small teacher. Data and batches are tensors by name, a row a picture."""

    name: str
    sampler = "DPM-Solver++(2M), trailing"

    def build(self, recipe: Recipe) -> nn.Module:
        """Everything that learns."""
        raise NotImplementedError

    def is_hidden(self, name: str) -> bool:
        """Whether a matrix is one of those that Muon is for."""
        raise NotImplementedError

    def data(self, vae: AutoencoderKL, recipe: Recipe, side: int, scratch: Path) -> Data:
        raise NotImplementedError

    def draw(self, recipe: Recipe, data: Data, count: int, dice: torch.Generator) -> Data:
        """A batch, all of whose randomness is from the generator."""
        raise NotImplementedError

    def loss(self, model: nn.Module, given: Data) -> Tensor:
        raise NotImplementedError

    def assemble(self, model: nn.Module, vae: AutoencoderKL) -> DiffusionPipeline:
        """The stock pipeline."""
        raise NotImplementedError

    def measure(self, folder: Path, recipe: Recipe) -> dict[str, Any]:
        """The gate, on the stored files; leaves grid.png there."""
        raise NotImplementedError

    def card(self, pipe: DiffusionPipeline, recipe: Recipe) -> dict[str, Any]:
        """What the folder's card says of this kind alone."""
        raise NotImplementedError

    def described(self, card: dict[str, Any]) -> tuple[str, str]:
        """For a person: what it is, and what the model is made of."""
        raise NotImplementedError


@functools.cache
def diffusion() -> Diffusion:
    return Diffusion.of(DPMSolverMultistepScheduler(**SCHEDULER))


def encoded_world(
    vae: AutoencoderKL, folder: Path, side: int, count: int, seed: int, objects: int = 1
) -> tuple[Tensor, Tensor]:
    """Latents and labels of `count` scenes, kept in shards so that a killed run goes on where it
    was.
    """
    latents, labels = [], []
    for start in range(0, count, 2048):
        path = folder / f"world-{side}-{objects}-{start}.safetensors"
        if not path.exists():
            scenes = world.scenes(min(2048, count - start), seed, objects, start)
            picture = autoencoder.pictures(scenes, side).to(vae.device)
            with torch.no_grad():
                parts = [vae.encode(part).latent_dist.mean.cpu() for part in picture.split(256)]
            checkpoint.save(
                path,
                {"latents": torch.cat(parts), "labels": torch.tensor([s.label for s in scenes])},
            )
        shard = checkpoint.load(path)
        latents.append(shard["latents"])
        labels.append(shard["labels"])
    return torch.cat(latents), torch.cat(labels)


def silence(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
