"""UNets with text (SD 1.5, 2.1, SDXL): self-attention in attn1 of every transformer block.

Each level has its own grid, and the text is read by cross-attention.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import KAttentionBlock
from torch import Tensor

from linattn.attention.grid import Grid
from linattn.families.base import (
    TEXT,
    Family,
    Layer,
    Model,
    Slot,
    latents,
    required,
    timesteps,
)
from linattn.families.captions import Captions
from linattn.families.conditions import Conditioning, Conditions, Prompts, cast, denoiser
from linattn.families.processors import SelfAttention


class CrossCaptions(Captions):
    """Condition SD 1.5 and 2.1 on one caption a picture, through cross-attention."""

    latent_argument = "sample"

    @property
    def divisor(self) -> int:
        return 1

    def encode(self, prompts: Prompts) -> Conditioning:
        states, _ = self.pipe.encode_prompt(self.check(prompts), self.device, 1, False)
        return {"encoder_hidden_states": states}


class SizedCaptions(CrossCaptions):
    """Condition SDXL on two encoders' states, a pooled vector, and the size as six numbers."""

    def encode(self, prompts: Prompts) -> Conditioning:
        states, _, pooled, _ = self.pipe.encode_prompt(
            self.check(prompts), None, self.device, 1, False
        )
        return {"encoder_hidden_states": states, "text_embeds": pooled}

    def nothing(self) -> Conditioning:
        empty = self.encode([""])
        if not self.pipe.config.force_zeros_for_empty_prompt:
            return empty
        return {name: torch.zeros_like(tensor) for name, tensor in empty.items()}

    def arguments(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        kwargs = cast(conditioning, noisy.dtype)
        height, width = (side * self.pipe.vae_scale_factor for side in noisy.shape[-2:])
        sizes = noisy.new_tensor([height, width, 0, 0, height, width]).expand(len(noisy), 6)
        added = {"text_embeds": kwargs.pop("text_embeds"), "time_ids": sizes}
        return {self.latent_argument: noisy, "timestep": t, **kwargs, "added_cond_kwargs": added}


class UNet(Family):
    backbone = "UNet"
    models = "SD 1.5, 2.1, SDXL"
    conditions = CrossCaptions
    prompt_tokens = 77
    sample = "sample"

    def conditions_of(self, pipe: Any, card: Mapping[str, Any]) -> Conditions:
        model: Model = denoiser(pipe)
        if model.config.time_cond_proj_dim is not None:
            raise ValueError(
                f"this {type(model).__name__} is conditioned on its guidance by timestep_cond, "
                "as latent consistency models are, and linattn's loop does not pass it: "
                "linearize the model and draw with its own pipeline"
            )
        return SizedCaptions(pipe, card) if has_sizes(model) else CrossCaptions(pipe, card)

    def attentions(self, model: Model) -> Iterator[Slot]:
        side = model.config.sample_size
        for stage_name, level in _stages(model):
            trained = (side >> level) ** 2 if isinstance(side, int) else None
            stage = model.get_submodule(stage_name)
            for name, module in stage.named_modules(prefix=stage_name):
                # The upscaler's attn1 reads the text alone; a lone `Attention` of a block without
                # text is no attn1.
                if hasattr(module, "attn1") and not getattr(module, "only_cross_attention", False):
                    yield Slot(f"{name}.attn1", module.attn1, SelfAttention, trained)

    def layers(self, model: Model) -> list[Layer]:
        layers = super().layers(model)
        if not layers:
            blocks = (*model.down_blocks, *model.up_blocks)
            names = sorted({type(block).__name__ for block in blocks})
            raise ValueError(
                f"this {type(model).__name__} is not supported: an operator replaces attn1 of "
                f"transformer blocks, and its blocks, {', '.join(names)}, have none "
                "(SimpleCrossAttn ones, as in DeepFloyd IF and Kandinsky 2, read picture and text "
                "in one layer)"
            )
        return layers

    def grid(self, model: Model, arguments: Mapping[str, Any]) -> Grid:
        # (batch, channels, height, width)
        return Grid(*required(model, arguments, self.sample).shape[-2:])

    def levels(self, model: Model) -> list[Any]:
        resized = (Transformer2DModel, KAttentionBlock)
        return [module for module in model.modules() if isinstance(module, resized)]

    def example(self, model: Model, side: int | None, batch: int, noise: float) -> dict[str, Any]:
        sample, width = latents(model, side, batch), model.config.cross_attention_dim
        width = width[0] if isinstance(width, (list, tuple)) else width
        inputs: dict[str, Any] = {
            "sample": sample,
            "timestep": timesteps(noise, batch, sample.device),
            "encoder_hidden_states": sample.new_zeros(batch, TEXT, width),
        }
        if has_sizes(model):
            inputs["added_cond_kwargs"] = _pooled_and_sizes(model, sample)
        return inputs


def has_sizes(model: Model) -> bool:
    """Say whether the model is SDXL's: it takes a pooled text and six numbers on sizes."""
    return model.config.addition_embed_type == "text_time"


def _pooled_and_sizes(model: Model, sample: Tensor) -> dict[str, Tensor]:
    """Return zeros for the pooled text and for the six numbers on sizes."""
    sizes = 6 * model.config.addition_time_embed_dim
    pooled = model.config.projection_class_embeddings_input_dim - sizes
    return {
        "text_embeds": sample.new_zeros(len(sample), pooled),
        "time_ids": sample.new_zeros(len(sample), 6),
    }


def _stages(model: Model) -> Iterator[tuple[str, int]]:
    """Yield every block's name in forward order, with the number of times its sides were halved."""
    last = len(model.down_blocks) - 1
    for index in range(last + 1):
        yield f"down_blocks.{index}", index
    if model.mid_block is not None:
        yield "mid_block", last
    for index in range(last + 1):
        yield f"up_blocks.{index}", last - index
