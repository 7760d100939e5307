"""sd-nano: a Stable Diffusion UNet and its CLIP text encoder, learned together on captions of one and of two things.

- Latents are dit-nano's: the same autoencoder.
- Self-attention at 16 x 16 and at 8 x 8 tokens. The text is read by cross-attention, which nobody replaces.
- A dropped caption is the empty one, as the pipeline's own negative prompt is.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from linattn import judge, language, metrics, project, world
from linattn.pretraining.kind import SCHEDULER, Data, Kind, diffusion, encoded_world, silence
from linattn.pretraining.recipe import Recipe, Stage
from linattn.pretraining.store import save_grid

HELD_OUT = 1 << 30  # scenes from this index on are never trained on
RECIPE = Recipe(
    kind="sd",
    autoencoder={"of": "dit-nano"},
    stages=(
        Stage(side=32, steps=6000, rate=1.0e-3, final=5e-4, batch=64),
        Stage(side=64, steps=8000, rate=7.0e-4, final=2e-5, batch=32),
    ),
    pictures=65536,
    width=(64, 96),
    heads=(2, 3),
    layers=1,
    text=(96, 3, 3),
    sampler={"steps": 20, "guidance": 4.0, "side": 64},
    gate={"shape": 0.85, "colour": 0.95, "pictures": 500, "seed": 0},
)


class Reader(nn.Module):
    """A UNet and the encoder it reads."""

    def __init__(self, unet: UNet2DConditionModel, text: nn.Module):
        super().__init__()
        self.unet, self.text = unet, text

    def forward(self, noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        states = self.text(ids)[0]  # (batch, LENGTH, width)
        return self.unet(noisy, t, encoder_hidden_states=states, return_dict=False)[0]


class SD(Kind):
    name = "sd-nano"

    def build(self, recipe: Recipe, latent_side: int = 16, channels: int = 4) -> Reader:
        width, layers, heads = recipe.text
        levels = len(recipe.width)
        unet = UNet2DConditionModel(
            sample_size=latent_side,
            in_channels=channels,
            out_channels=channels,
            down_block_types=["CrossAttnDownBlock2D"] * levels,
            up_block_types=["CrossAttnUpBlock2D"] * levels,
            block_out_channels=recipe.width,
            layers_per_block=recipe.layers,
            norm_num_groups=16,
            cross_attention_dim=width,
            attention_head_dim=recipe.heads,  # heads a level, whatever the name says
        )
        silence(unet.conv_out)
        return Reader(unet, language.clip_encoder(width, layers, heads))

    def is_hidden(self, name: str) -> bool:
        return ".attn" in name or ".ff." in name or ".self_attn." in name or ".mlp." in name

    def data(self, vae: AutoencoderKL, recipe: Recipe, side: int, scratch: Path) -> Data:
        """Half of the pictures show one thing, half two."""
        half = recipe.pictures // 2
        latents = [encoded_world(vae, scratch, side, half, recipe.seed, objects)[0] for objects in (1, 2)]
        scenes = [scene for objects in (1, 2) for scene in world.scenes(half, recipe.seed, objects)]
        return {"latents": torch.cat(latents), "ids": language.clip_ids([scene.caption for scene in scenes])}

    def draw(self, recipe: Recipe, data: Data, count: int, dice: torch.Generator) -> Data:
        rows = torch.randint(len(data["latents"]), (count,), generator=dice)
        t = diffusion().draw_times(count, dice)
        eps = torch.randn(count, *data["latents"].shape[1:], generator=dice)
        dropped = torch.rand(count, 1, generator=dice) < recipe.label_drop
        ids = torch.where(dropped, language.clip_ids([""]), data["ids"][rows])
        return {"clean": data["latents"][rows], "ids": ids, "eps": eps, "t": t}

    def loss(self, model: nn.Module, given: Data) -> Tensor:
        process, (clean, ids, eps, t) = diffusion(), (given[name] for name in ("clean", "ids", "eps", "t"))
        with torch.autocast(clean.device.type, torch.bfloat16):
            prediction = model(process.noised(clean, eps, t), t, ids)
        return F.mse_loss(prediction.float(), process.target(clean, eps, t))

    def assemble(self, model: Reader, vae: AutoencoderKL) -> StableDiffusionPipeline:
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=model.text,
            tokenizer=language.clip_tokenizer(),
            unet=model.unet,
            scheduler=DPMSolverMultistepScheduler(**SCHEDULER, steps_offset=1),  # another is overwritten at load
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def measure(self, folder: Path, recipe: Recipe) -> dict[str, Any]:
        """Held-out captions of one thing, judged for shape and colour."""
        scenes = world.scenes(recipe.gate["pictures"], recipe.seed, start=HELD_OUT)
        pictures = drawn(folder, [scene.caption for scene in scenes], recipe)
        save_grid(pictures[:60], folder / "grid.png")
        labels = torch.tensor([scene.label for scene in scenes])
        return metrics.judge_accuracy(judge.load(project.ROOT / "data" / "judge"), pictures, labels)

    def card(self, pipe: StableDiffusionPipeline, recipe: Recipe) -> dict[str, Any]:
        parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        data = (
            f"{recipe.pictures} captioned scenes of linattn.world, half of one thing, half of two, seed {recipe.seed}"
        )
        return {"data": data, "text_length": language.LENGTH, "parameters": counts}

    def described(self, card: dict[str, Any]) -> tuple[str, str]:
        counts, training = card["parameters"], card["training"]
        return (
            "A `StableDiffusionPipeline` that draws one or two coloured shapes before a background from a caption, "
            f"64 px. Captions are words of the world, {card['text_length']} tokens at most.",
            f"UNet: {counts['unet'] / 1e6:.2f} M parameters, widths {training['width']}, heads {training['heads']}, "
            f"256 and 64 tokens, velocity prediction; text encoder {counts['text_encoder'] / 1e6:.2f} M",
        )


@torch.no_grad()
def drawn(folder: Path, captions: list[str], recipe: Recipe, batch: int = 50) -> Tensor:
    """What the stored pipeline draws for them, (captions, 3, side, side) in [0, 1]."""
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": recipe.sampler["steps"], "guidance_scale": recipe.sampler["guidance"]}
    dice, found = torch.Generator().manual_seed(recipe.gate["seed"]), []
    for start in range(0, len(captions), batch):
        found.append(pipe(captions[start : start + batch], generator=dice, output_type="pt", **how).images)
    return torch.cat(found).float()
