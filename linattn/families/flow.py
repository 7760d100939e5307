"""What the flow models SD3, FLUX and Qwen-Image share: latents with a shift, times that may depend
on the size, and tokens of 2 x 2 latents.
"""

from typing import Any

from torch import Tensor

from linattn.families.captions import Captions
from linattn.families.conditions import Conditions


class FlowCaptions(Captions):
    """Condition a flow model on captions, with latents that have a scale and a shift."""

    def unscaled(self, latents: Tensor, vae: Any) -> Tensor:
        return latents / vae.config.scaling_factor + vae.config.shift_factor

    def scaled(self, latents: Tensor, vae: Any) -> Tensor:
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor


class Packed(Conditions):
    """Give the sizes of a model whose tokens are cells of 2 x 2 latents."""

    @property
    def channels(self) -> int:
        return self.config.in_channels // 4

    @property
    def divisor(self) -> int:
        return 2

    @property
    def side(self) -> int:
        return self.pipe.default_sample_size


def shifted(scheduler: Any, tokens: int) -> dict[str, float]:
    """Return mu for timestep shifting by resolution, computed as in diffusers' pipelines."""
    config = scheduler.config
    if not config.use_dynamic_shifting:
        return {}
    base, most = config.base_image_seq_len, config.max_image_seq_len
    slope = config.max_shift - config.base_shift
    return {"mu": config.base_shift + slope * (tokens - base) / (most - base)}


def set_times(scheduler: Any, steps: int, like: Tensor) -> None:
    """Set even times for latents whose cells of 2 x 2 are tokens, as diffusers' pipelines do."""
    sigmas = [1 - step / steps for step in range(steps)]
    shift = shifted(scheduler, like.shape[-2] * like.shape[-1] // 4)
    scheduler.set_timesteps(sigmas=sigmas, device=like.device, **shift)


def packed(latents: Tensor) -> Tensor:
    """Pack cells of 2 x 2 latents into tokens, (batch, tokens, 4 channels)."""
    # (batch, channels, rows, 2, columns, 2)
    cells = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(tokens: Tensor, like: Tensor) -> Tensor:
    """Unpack tokens (batch, tokens, 4 channels) into latents of the shape of `like`."""
    _, channels, height, width = like.shape
    cells = tokens.unflatten(1, (height // 2, width // 2)).unflatten(3, (channels, 2, 2))
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)
