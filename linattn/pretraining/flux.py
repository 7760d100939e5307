"""flux-nano: double and single blocks, RoPE, a CLIP and a T5 encoder of its own, flow matching.

- FLUX packs 2 x 2 latents into a token: 256 tokens at 64 px take an autoencoder of factor 2.
- The straight path: noisy = (1 - sigma) clean + sigma eps, the model predicts eps - clean and is
  told sigma; times are logit-normal, as in the trials for SD3.
- T5's padding is read like words (the pipeline masks nothing), so text length is part of the model:
  the card names it.
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

from linattn.conditions import packed, places, unpacked
from linattn.pretraining.captioned import Captioned, captioned_card
from linattn.pretraining.kind import Data, silence
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


class Reader(nn.Module):
    """A FLUX transformer and the encoders it reads."""

    def __init__(self, transformer: FluxTransformer2DModel, clip: nn.Module, t5: nn.Module):
        super().__init__()
        self.transformer, self.clip, self.t5 = transformer, clip, t5

    def forward(self, noisy: Tensor, sigma: Tensor, clip_ids: Tensor, t5_ids: Tensor) -> Tensor:
        height, width = (side // 2 for side in noisy.shape[-2:])
        # RoPE knows distances in tokens: those of a small picture are told as far apart as they
        # will be in a large one.
        ids = places(height, width, noisy.device) * (SIDE / max(height, width))
        given = {
            "hidden_states": packed(noisy),
            "encoder_hidden_states": self.t5(t5_ids)[0],  # (batch, LENGTH, width)
            "pooled_projections": self.clip(clip_ids).pooler_output,
            "img_ids": ids,
            "txt_ids": ids.new_zeros(t5_ids.shape[1], 3),
        }
        # (batch, tokens, 4 channels)
        found = self.transformer(timestep=sigma, **given, return_dict=False)[0]
        return unpacked(found, noisy)


class Flux(Captioned):
    name = "flux-nano"
    sampler = "Euler along the straight path"

    def build(self, recipe: Recipe, channels: int = 4) -> Reader:
        width, layers, heads = recipe.text
        head_dim = recipe.width // recipe.heads
        side = (head_dim - 4) // 4 * 2  # axis 0 never turns in a picture: it gets little
        model = FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * channels,
            num_layers=recipe.layers,
            num_single_layers=2 * recipe.layers,
            attention_head_dim=head_dim,
            num_attention_heads=recipe.heads,
            joint_attention_dim=width,
            pooled_projection_dim=width,
            axes_dims_rope=(head_dim - 2 * side, side, side),
        )
        for block in model.transformer_blocks:  # adaLN-Zero: every block begins as the identity
            silence(block.norm1.linear)
            silence(block.norm1_context.linear)
        for block in model.single_transformer_blocks:
            silence(block.norm.linear)
        silence(model.proj_out)
        return Reader(
            model,
            language.clip_encoder(width, layers, heads),
            language.t5_encoder(width, layers, heads),
        )

    def is_hidden(self, name: str) -> bool:
        inside = (
            ".attn.",
            ".ff.",
            ".ff_context.",
            ".proj_mlp.",
            ".proj_out.",
            ".self_attn.",
            ".mlp.",
            "SelfAttention.",
        )
        return any(part in name for part in inside) or "DenseReluDense." in name

    def tokens(self, captions: list[str]) -> Data:
        return {"clip_ids": language.clip_ids(captions), "t5_ids": language.t5_ids(captions)}

    def times(self, count: int, dice: torch.Generator) -> Tensor:
        return torch.randn(count, generator=dice).sigmoid()

    def loss(self, model: nn.Module, given: Data) -> Tensor:
        clean, eps = given["clean"], given["eps"]
        sigma = given["t"].view(-1, 1, 1, 1)
        noisy = (1 - sigma) * clean + sigma * eps
        with torch.autocast(clean.device.type, torch.bfloat16):
            found = model(noisy, given["t"], given["clip_ids"], given["t5_ids"])
        return F.mse_loss(found.float(), eps - clean)

    def assemble(self, model: Reader, vae: AutoencoderKL) -> FluxPipeline:
        return FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=vae,
            text_encoder=model.clip,
            tokenizer=language.clip_tokenizer(),
            text_encoder_2=model.t5,
            tokenizer_2=language.t5_tokenizer(),
            transformer=model.transformer,
        )

    def asked(self, recipe: Recipe) -> dict[str, Any]:
        side, how = recipe.sampler["side"], {"max_sequence_length": language.LENGTH}
        return {
            **how,
            "height": side,
            "width": side,
            "negative_prompt": "",
            "true_cfg_scale": recipe.sampler["guidance"],
        }

    def card(self, pipe: FluxPipeline, recipe: Recipe) -> dict[str, Any]:
        parts = {"transformer": pipe.transformer, "text_encoder": pipe.text_encoder}
        return captioned_card(recipe, {**parts, "text_encoder_2": pipe.text_encoder_2})

    def described(self, card: dict[str, Any]) -> tuple[str, str]:
        counts, training = card["parameters"], card["training"]
        return (
            "A `FluxPipeline` that draws one or two coloured shapes before a background from a "
            "caption, 64 px.\n"
            f"Pass height=64, width=64, max_sequence_length={card['text_length']}, "
            "negative_prompt='' and\n"
            "true_cfg_scale (its guidance): captions are words of the world.",
            f"Transformer: {counts['transformer'] / 1e6:.2f} M parameters, width "
            f"{training['width']}, "
            f"{training['layers']} double and {2 * training['layers']} single blocks, "
            f"{training['heads']} heads, 256 "
            f"tokens, flow matching; text encoders {(counts['text_encoder'] + counts['text_encoder_2']) / 1e6:.2f} M",
        )
