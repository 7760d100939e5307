"""flux-nano: a FLUX with a CLIP and a T5 encoder of its own, which learn together by flow matching.

- FLUX packs 2 x 2 latents into a token: 256 tokens at 64 px take an autoencoder of factor 2.
- It learns the straight path: noisy = (1 - sigma) clean + sigma eps. The model gets sigma and
  predicts eps - clean. Times are logit-normal, as in the trials for SD3.
- T5's padding is read like words, because the pipeline masks nothing. So the text length is a
  property of the model, and the card names it.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor, nn
from torch.nn import functional as F

from linattn.families.flow import packed, unpacked
from linattn.families.flux import positions
from linattn.pretraining.backbone import Data, silence
from linattn.pretraining.captioned import Captioned, captioned_card
from linattn.pretraining.recipe import Recipe, Stage
from linattn.world import language

RECIPE = Recipe(
    kind="flux",
    autoencoder={"steps": 3000, "batch": 16, "learning_rate": 2e-3, "seed": 0, "factor": 2},
    stages=(
        Stage(side=32, steps=9600, rate=1.5e-3, final=3.736e-4, batch=64),
        Stage(side=64, steps=2400, rate=5.5e-4, final=2e-5, batch=32),
    ),
    pictures=65536,
    width=128,
    heads=4,
    layers=2,  # double blocks, and twice as many single ones
    text=(96, 3, 3),
    sampler={"steps": 20, "guidance": 4.0, "side": 64},
    gate={"shape": 0.85, "colour": 0.95, "pictures": 500, "seed": 0},
)
SIDE = 16  # tokens of a side at 64 px
# What the names of matrices inside the blocks contain, of the transformer and of both encoders.
HIDDEN = (
    ".attn.",
    ".ff.",
    ".ff_context.",
    ".proj_mlp.",
    ".proj_out.",
    ".self_attn.",
    ".mlp.",
    "SelfAttention.",
    "DenseReluDense.",
)


class TextFlux(nn.Module):
    """Hold a FLUX transformer and the encoders whose states it reads."""

    def __init__(self, transformer: FluxTransformer2DModel, clip: nn.Module, t5: nn.Module):
        super().__init__()
        self.transformer, self.clip, self.t5 = transformer, clip, t5

    def forward(self, noisy: Tensor, sigma: Tensor, clip_ids: Tensor, t5_ids: Tensor) -> Tensor:
        height, width = (side // 2 for side in noisy.shape[-2:])
        # RoPE measures distances in tokens. Tokens of a small picture get positions as far apart as
        # those of a large one.
        ids = positions(height, width, noisy.device) * (SIDE / max(height, width))
        inputs = {
            "hidden_states": packed(noisy),
            "encoder_hidden_states": self.t5(t5_ids)[0],  # (batch, LENGTH, width)
            "pooled_projections": self.clip(clip_ids).pooler_output,
            "img_ids": ids,
            "txt_ids": ids.new_zeros(t5_ids.shape[1], 3),
        }
        # (batch, tokens, 4 channels)
        prediction = self.transformer(timestep=sigma, **inputs, return_dict=False)[0]
        return unpacked(prediction, noisy)


class Flux(Captioned[TextFlux]):
    name = "flux-nano"
    sampler = "Euler along the straight path"

    def build(self, recipe: Recipe, channels: int = 4) -> TextFlux:
        text_width, text_layers, text_heads = recipe.encoder
        width, heads = recipe.transformer
        head_dim = width // heads
        # All tokens of a picture have position 0 on axis 0, which therefore gets few channels.
        side = (head_dim - 4) // 4 * 2
        model = FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * channels,
            num_layers=recipe.layers,
            num_single_layers=2 * recipe.layers,
            attention_head_dim=head_dim,
            num_attention_heads=heads,
            joint_attention_dim=text_width,
            pooled_projection_dim=text_width,
            axes_dims_rope=(head_dim - 2 * side, side, side),
        )
        for block in model.transformer_blocks:  # adaLN-Zero: every block begins as the identity
            silence(block.norm1.linear)
            silence(block.norm1_context.linear)
        for block in model.single_transformer_blocks:
            silence(block.norm.linear)
        silence(model.proj_out)
        clip = language.clip_encoder(text_width, text_layers, text_heads)
        t5 = language.t5_encoder(text_width, text_layers, text_heads)
        return TextFlux(model, clip, t5)

    def is_hidden(self, name: str) -> bool:
        return any(marker in name for marker in HIDDEN)

    def tokens(self, captions: list[str]) -> Data:
        return {"clip_ids": language.clip_ids(captions), "t5_ids": language.t5_ids(captions)}

    def times(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randn(count, generator=rng).sigmoid()

    def loss(self, model: nn.Module, batch: Data) -> Tensor:
        clean, eps = batch["clean"], batch["eps"]
        sigma = batch["t"].view(-1, 1, 1, 1)
        noisy = (1 - sigma) * clean + sigma * eps
        with torch.autocast(clean.device.type, torch.bfloat16):
            prediction = model(noisy, batch["t"], batch["clip_ids"], batch["t5_ids"])
        return F.mse_loss(prediction.float(), eps - clean)

    def assemble(self, model: TextFlux, vae: AutoencoderKL) -> FluxPipeline:
        return FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=vae,
            text_encoder=model.clip,
            tokenizer=language.clip_tokenizer(),
            text_encoder_2=model.t5,
            tokenizer_2=language.t5_tokenizer(),
            transformer=model.transformer,
        )

    def call_arguments(self, recipe: Recipe) -> dict[str, Any]:
        side = recipe.sampler["side"]
        return {
            "max_sequence_length": language.LENGTH,
            "height": side,
            "width": side,
            "negative_prompt": "",
            "true_cfg_scale": recipe.sampler["guidance"],
        }

    def card(self, pipe: FluxPipeline, recipe: Recipe) -> dict[str, Any]:
        names = ("transformer", "text_encoder", "text_encoder_2")
        return captioned_card(recipe, {name: getattr(pipe, name) for name in names})

    def described(self, card: dict[str, Any]) -> tuple[str, str]:
        counts, training = card["parameters"], card["training"]
        encoders = counts["text_encoder"] + counts["text_encoder_2"]
        drawing = (
            "A `FluxPipeline` that draws one or two coloured shapes before a background from a "
            "caption, 64 px.\n"
            f"Pass height=64, width=64, max_sequence_length={card['text_length']}, "
            "negative_prompt='' and\n"
            "true_cfg_scale (its guidance): captions are words of the world."
        )
        model = (
            f"Transformer: {counts['transformer'] / 1e6:.2f} M parameters, "
            f"width {training['width']}, {training['layers']} double and "
            f"{2 * training['layers']} single blocks, {training['heads']} heads, 256 "
            f"tokens, flow matching; text encoders {encoders / 1e6:.2f} M"
        )
        return drawing, model
