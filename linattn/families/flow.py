"""What the flow models SD3 and FLUX share: latents with a shift, and times that may depend on the
size.
"""

from typing import Any

from torch import Tensor

from linattn.families.captions import Captions


class FlowCaptions(Captions):
    """Condition a flow model on captions, with latents that have a scale and a shift."""

    def unscaled(self, latents: Tensor, vae: Any) -> Tensor:
        return latents / vae.config.scaling_factor + vae.config.shift_factor

    def scaled(self, latents: Tensor, vae: Any) -> Tensor:
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def shifted(scheduler: Any, tokens: int) -> dict[str, float]:
    """Return mu for timestep shifting by resolution, computed as in diffusers' pipelines."""
    config = scheduler.config
    if not config.use_dynamic_shifting:
        return {}
    base, most = config.base_image_seq_len, config.max_image_seq_len
    slope = config.max_shift - config.base_shift
    return {"mu": config.base_shift + slope * (tokens - base) / (most - base)}
