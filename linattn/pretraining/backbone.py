"""Define what differs between the small teachers, and encode the world that all of them learn."""

import functools
from pathlib import Path
from typing import Any, Generic, TypeVar

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
SHARD = 2048  # scenes that are encoded into one file
Data = dict[str, Tensor]  # tensors by name, a row a picture
Model = TypeVar("Model", bound=nn.Module)


class Backbone(Generic[Model]):
    """Build and train one family's small teacher."""

    name: str
    sampler = "DPM-Solver++(2M), trailing"

    def build(self, recipe: Recipe) -> Model:
        """Build all modules that learn."""
        raise NotImplementedError

    def is_hidden(self, name: str) -> bool:
        """Say whether Muon trains the matrix of this name."""
        raise NotImplementedError

    def data(self, vae: AutoencoderKL, recipe: Recipe, side: int, scratch: Path) -> Data:
        """Return the latents of the world with their labels or the ids of their captions."""
        raise NotImplementedError

    def draw(self, recipe: Recipe, data: Data, count: int, rng: torch.Generator) -> Data:
        """Draw a batch; all its randomness comes from the generator."""
        raise NotImplementedError

    def loss(self, model: Model, batch: Data) -> Tensor:
        """Return the training loss of a batch."""
        raise NotImplementedError

    def assemble(self, model: Model, vae: AutoencoderKL) -> DiffusionPipeline:
        """Return the stock pipeline."""
        raise NotImplementedError

    def measure(self, folder: Path, recipe: Recipe) -> dict[str, Any]:
        """Mark pictures of the stored files for the gate, and leave grid.png there."""
        raise NotImplementedError

    def card(self, pipe: DiffusionPipeline, recipe: Recipe) -> dict[str, Any]:
        """Return the entries of the folder's card that this backbone alone has."""
        raise NotImplementedError

    def described(self, card: dict[str, Any]) -> tuple[str, str]:
        """Describe for a person what the teacher draws, and what the model is made of."""
        raise NotImplementedError


@functools.cache
def diffusion() -> Diffusion:
    """Return the forward process of the teachers that diffuse, whose scheduler is SCHEDULER."""
    scheduler = DPMSolverMultistepScheduler(**SCHEDULER)
    return Diffusion(scheduler.alphas_cumprod.double(), "v_prediction")


def encoded_world(
    vae: AutoencoderKL, folder: Path, side: int, count: int, seed: int, objects: int = 1
) -> tuple[Tensor, Tensor]:
    """Return latents and labels of `count` scenes.

    They are kept in shards, so that a killed run goes on from the last one.
    """
    latents, labels = [], []
    for start in range(0, count, SHARD):
        path = folder / f"world-{side}-{objects}-{start}.safetensors"
        if not path.exists():
            scenes = world.scenes(min(SHARD, count - start), seed, objects, start)
            checkpoint.save(path, _encoded(vae, scenes, side))
        shard = checkpoint.load(path)
        latents.append(shard["latents"])
        labels.append(shard["labels"])
    return torch.cat(latents), torch.cat(labels)


@torch.no_grad()
def _encoded(vae: AutoencoderKL, scenes: list[world.Scene], side: int) -> Data:
    pictures = autoencoder.pictures(scenes, side).to(vae.device)
    latents = [vae.encode(batch).latent_dist.mean.cpu() for batch in pictures.split(256)]
    labels = torch.tensor([scene.label for scene in scenes])
    return {"latents": torch.cat(latents), "labels": labels}


def parameter_count(model: nn.Module) -> int:
    """Count the numbers in a model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def silence(layer: nn.Linear) -> None:
    """Set weight and bias of a layer to 0."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
