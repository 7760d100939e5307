"""sd-nano: a Stable Diffusion UNet and its CLIP text encoder, which learn together.

- Captions are of one and of two things.
- It draws in dit-nano's latents, by the same autoencoder.
- Self-attention runs at 16 x 16 and at 8 x 8 tokens. Cross-attention reads the text; no operator
  replaces it.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from torch.nn import functional as F

from linattn.pretraining.backbone import SCHEDULER, Data, diffusion, silence
from linattn.pretraining.captioned import Captioned, captioned_card
from linattn.pretraining.recipe import Recipe, Stage
from linattn.world import language

RECIPE = Recipe(
    kind="sd",
    autoencoder={"of": "dit-nano"},
    stages=(
        Stage(side=32, steps=6500, rate=1.0e-3, final=5.9375e-4, batch=64),
        Stage(side=64, steps=3000, rate=7.0e-4, final=2e-5, batch=32),
    ),
    pictures=65536,
    width=(64, 96),
    heads=(2, 3),
    layers=1,
    text=(96, 3, 3),
    sampler={"steps": 20, "guidance": 4.0, "side": 64},
    gate={"shape": 0.85, "colour": 0.95, "pictures": 500, "seed": 0},
)


class TextUNet(nn.Module):
    """Hold a UNet and the encoder whose states it reads."""

    def __init__(self, unet: UNet2DConditionModel, text: nn.Module):
        super().__init__()
        self.unet, self.text = unet, text

    def forward(self, noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        states = self.text(ids)[0]  # (batch, LENGTH, width)
        return self.unet(noisy, t, encoder_hidden_states=states, return_dict=False)[0]


class SD(Captioned[TextUNet]):
    name = "sd-nano"

    def build(self, recipe: Recipe, latent_side: int = 16, channels: int = 4) -> TextUNet:
        text_width, text_layers, text_heads = recipe.encoder
        widths, heads = recipe.levels
        levels = len(widths)
        unet = UNet2DConditionModel(
            sample_size=latent_side,
            in_channels=channels,
            out_channels=channels,
            down_block_types=["CrossAttnDownBlock2D"] * levels,
            up_block_types=["CrossAttnUpBlock2D"] * levels,
            block_out_channels=widths,
            layers_per_block=recipe.layers,
            norm_num_groups=16,
            cross_attention_dim=text_width,
            attention_head_dim=heads,  # heads a level, whatever the name says
        )
        silence(unet.conv_out)
        return TextUNet(unet, language.clip_encoder(text_width, text_layers, text_heads))

    def is_hidden(self, name: str) -> bool:
        return ".attn" in name or ".ff." in name or ".self_attn." in name or ".mlp." in name

    def tokens(self, captions: list[str]) -> Data:
        return {"ids": language.clip_ids(captions)}

    def times(self, count: int, rng: torch.Generator) -> Tensor:
        return diffusion().draw_times(count, rng)

    def loss(self, model: nn.Module, batch: Data) -> Tensor:
        process, clean, eps, t = diffusion(), batch["clean"], batch["eps"], batch["t"]
        with torch.autocast(clean.device.type, torch.bfloat16):
            prediction = model(process.noised(clean, eps, t), t, batch["ids"])
        return F.mse_loss(prediction.float(), process.target(clean, eps, t))

    def assemble(self, model: TextUNet, vae: AutoencoderKL) -> StableDiffusionPipeline:
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=model.text,
            tokenizer=language.clip_tokenizer(),
            unet=model.unet,
            # diffusers overwrites any other steps_offset when it loads the pipeline
            scheduler=DPMSolverMultistepScheduler(**SCHEDULER, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def call_arguments(self, recipe: Recipe) -> dict[str, Any]:
        return {"guidance_scale": recipe.sampler["guidance"]}

    def card(self, pipe: StableDiffusionPipeline, recipe: Recipe) -> dict[str, Any]:
        return captioned_card(recipe, {"unet": pipe.unet, "text_encoder": pipe.text_encoder})

    def described(self, card: dict[str, Any]) -> tuple[str, str]:
        counts, training = card["parameters"], card["training"]
        drawing = (
            "A `StableDiffusionPipeline` that draws one or two coloured shapes before a background "
            "from a caption, 64 px. Captions are words of the world, "
            f"{card['text_length']} tokens at most."
        )
        model = (
            f"UNet: {counts['unet'] / 1e6:.2f} M parameters, widths {training['width']}, heads "
            f"{training['heads']}, 256 and 64 tokens, velocity prediction; text encoder "
            f"{counts['text_encoder'] / 1e6:.2f} M"
        )
        return drawing, model
