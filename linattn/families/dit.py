"""DiT and PixArt: one stack of blocks on square patches, self-attention in attn1, no text in it."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linattn.attention.grid import Grid
from linattn.families.base import Family, Found, latents, noise_level, timesteps
from linattn.families.processors import SelfAttention


class DiT(Family):
    squares_only = True  # its last step takes the root of the number of tokens

    def attentions(self, model: nn.Module) -> Iterator[Found]:
        trained = (model.config.sample_size // model.config.patch_size) ** 2
        for index, block in enumerate(model.transformer_blocks):
            yield f"transformer_blocks.{index}.attn1", block.attn1, SelfAttention, trained

    def read(
        self, model: nn.Module, arguments: Mapping[str, Any]
    ) -> tuple[Grid, Tensor | None, Tensor]:
        # (batch, channels, height, width)
        sample, patch = arguments["hidden_states"], model.config.patch_size
        height, width = sample.shape[-2] // patch, sample.shape[-1] // patch
        if self.squares_only and height != width:
            raise ValueError(
                f"{type(model).__name__} draws squares only: latents of {sample.shape[-2]} x "
                f"{sample.shape[-1]} are "
                f"{height} x {width} tokens, which its last step would lay out as a square, "
                "scrambled; crop or pad them"
            )
        return Grid(height, width), noise_level(arguments.get("timestep"), sample), sample

    def example(
        self, model: nn.Module, side: int | None, batch: int, noise: float
    ) -> dict[str, Tensor]:
        sample = latents(model, side, batch, model.config.patch_size)
        labels = torch.zeros(batch, dtype=torch.long, device=sample.device)
        return {
            "hidden_states": sample,
            "timestep": timesteps(noise, batch, sample.device),
            "class_labels": labels,
        }


class PixArt(DiT):
    squares_only = False

    def example(
        self, model: nn.Module, side: int | None, batch: int, noise: float
    ) -> dict[str, Tensor]:
        sample = latents(model, side, batch, model.config.patch_size)
        given = {"hidden_states": sample, "timestep": timesteps(noise, batch, sample.device)}
        given["encoder_hidden_states"] = sample.new_zeros(batch, 8, model.config.caption_channels)
        if model.use_additional_conditions:  # the 1,024 px models of PixArt-alpha
            size = {
                "resolution": sample.new_ones(batch, 2),
                "aspect_ratio": sample.new_ones(batch, 1),
            }
        else:
            size = {"resolution": None, "aspect_ratio": None}
        return {**given, "added_cond_kwargs": size}
