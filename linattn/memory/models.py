"""Name the published models whose memory the table shows, by their shapes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from linattn import shapes
from linattn.diffusion import Diffusion, Flow
from linattn.memory.step import Shapes


@dataclass(frozen=True)
class Published:
    """Name a model of `linattn.shapes`, the side of its pictures and its text in tokens."""

    short: str
    side: int  # px
    text: int
    flow: bool = False

    def shapes(self, dtype: torch.dtype = torch.bfloat16) -> Shapes:
        """Build the model on the meta device."""
        published = shapes.shape(self.short)
        side = self.side // published.factor
        sized: dict[str, Any] = {"sample_size": side} if self.short == "pixart" else {}
        model = shapes.on_meta(lambda: published.build(**sized))
        process = Flow() if self.flow else linear()
        return Shapes(nn.Module.to(model, dtype), process, side, self.text)


def linear() -> Diffusion:
    """Return a process of 1,000 steps; memory does not depend on its values."""
    return Diffusion((1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)).cumprod(0))


MODELS = {
    "SD 1.5": Published("sd15", 512, 77),
    "PixArt-Sigma 512": Published("pixart", 512, 300),
    "PixArt-Sigma 1024": Published("pixart", 1024, 300),
    "SD3.5-M": Published("sd35", 1024, 77 + 256, flow=True),
    "FLUX.1-dev": Published("flux", 1024, 512, flow=True),
}
