"""dit-nano: a DiT with learned variance, class-conditional, on the world of one thing.

- It learns first on the 8 x 8 latents of 32 px pictures, whose 64 positions are every second one of
  the 16 x 16 grid. So the weights carry over, and the stage that costs a quarter does more than
  half of the work.
- Labels are dropped once a step, and all blocks see the same drops.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel, DPMSolverMultistepScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from linattn import project, sampling, teachers, world
from linattn.diffusion import split
from linattn.pretraining.backbone import (
    SCHEDULER,
    Backbone,
    Data,
    diffusion,
    encoded_world,
    parameter_count,
    silence,
)
from linattn.pretraining.recipe import Recipe, Stage
from linattn.pretraining.store import save_grid
from linattn.world import judge
from linattn.world.marks import judge_accuracy

NULL_CLASS = 1000  # DiTPipeline's constant, however few classes there are
RECIPE = Recipe(
    autoencoder={"steps": 5000, "batch": 16, "learning_rate": 2e-3, "seed": 0},
    stages=(
        Stage(side=32, steps=5750, rate=1.5e-3, final=1.140625e-3, batch=64),
        Stage(side=64, steps=1800, rate=1.0e-3, final=2e-5, batch=32),
    ),
    sampler={"steps": 20, "guidance": 3.0, "side": 64},
    gate={"shape": 0.90, "colour": 0.97, "pictures": 600, "seed": 0},
)


class DiT(Backbone[DiTTransformer2DModel]):
    name = "dit-nano"

    def build(
        self, recipe: Recipe, latent_side: int = 16, channels: int = 4
    ) -> DiTTransformer2DModel:
        width, heads = recipe.transformer
        model = DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=channels,
            out_channels=2 * channels,
            num_layers=recipe.layers,
            sample_size=latent_side,
            patch_size=1,
            activation_fn="gelu-approximate",
            attention_bias=True,
            num_embeds_ada_norm=NULL_CLASS,
            norm_type="ada_norm_zero",
            norm_elementwise_affine=False,
        )
        for block in model.transformer_blocks:
            # Each block would draw its own label drops, so that the empty label would hardly ever
            # reach all blocks at once.
            block.norm1.emb.class_embedder.dropout_prob = 0.0
            silence(block.norm1.linear)  # adaLN-Zero: every block begins as the identity
            nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=0.02)
        silence(model.proj_out_1)
        silence(model.proj_out_2)
        return model

    def is_hidden(self, name: str) -> bool:
        return ".attn1." in name or ".ff." in name

    def data(self, vae: AutoencoderKL, recipe: Recipe, side: int, scratch: Path) -> Data:
        latents, labels = encoded_world(vae, scratch, side, recipe.pictures, recipe.seed)
        return {"latents": latents, "labels": labels}

    def draw(self, recipe: Recipe, data: Data, count: int, rng: torch.Generator) -> Data:
        latents = data["latents"]
        indices = torch.randint(len(latents), (count,), generator=rng)
        t = diffusion().draw_times(count, rng)
        eps = torch.randn(count, *latents.shape[1:], generator=rng)
        dropped = torch.rand(count, generator=rng) < recipe.label_drop
        labels = torch.where(dropped, NULL_CLASS, data["labels"][indices])
        return {"clean": latents[indices], "labels": labels, "eps": eps, "t": t}

    def loss(self, model: nn.Module, batch: Data) -> Tensor:
        """Return DiT's loss: squared error, plus the bound that trains the variance alone."""
        process, clean, eps, t = diffusion(), batch["clean"], batch["eps"], batch["t"]
        noisy = process.noised(clean, eps, t)
        with torch.autocast(clean.device.type, torch.bfloat16):
            output = model(noisy, timestep=t, class_labels=batch["labels"], return_dict=False)[0]
        prediction, raw = split(output.float())
        error = F.mse_loss(prediction, process.target(clean, eps, t))
        return error + process.variational_bound(prediction, raw, clean, noisy, t).mean()

    def assemble(
        self, model: nn.Module, vae: AutoencoderKL, labels: Sequence[str] = world.LABELS
    ) -> DiTPipeline:
        """Return the stock pipeline; its labels are registered, or saving would forget them."""
        names = dict(enumerate(labels))
        pipe = DiTPipeline(model, vae, DPMSolverMultistepScheduler(**SCHEDULER), id2label=names)
        pipe.register_to_config(id2label=names)
        return pipe

    def measure(self, folder: Path, recipe: Recipe) -> dict[str, Any]:
        """Mark shape and colour of pictures, of every class equally many."""
        teacher = teachers.load(folder)
        labels = torch.arange(recipe.gate["pictures"]) % teacher.classes
        pictures = sampling.draw(teacher, labels, seed=recipe.gate["seed"])
        save_grid(pictures[: teacher.classes], folder / "grid.png")
        return judge_accuracy(judge.load(project.ROOT / "data" / "judge"), pictures, labels)

    def card(self, pipe: DiTPipeline, recipe: Recipe) -> dict[str, Any]:
        data = f"{recipe.pictures} scenes of linattn.world, seed {recipe.seed}"
        count = parameter_count(pipe.transformer)
        return {"labels": list(world.LABELS), "data": data, "parameters": count}

    def described(self, card: dict[str, Any]) -> tuple[str, str]:
        training = card["training"]
        drawing = (
            "A `DiTPipeline` that draws one coloured shape before a background, 64 px, 60 classes "
            "(shape x colour)."
        )
        model = (
            f"Transformer: {card['parameters'] / 1e6:.2f} M parameters, width {training['width']}, "
            f"{training['layers']} layers, {training['heads']} heads, 256 tokens, velocity, "
            "learned variance"
        )
        return drawing, model
