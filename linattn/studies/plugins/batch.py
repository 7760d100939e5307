"""What one step of a plug-in's training sees: true pictures of the world, noised, with their captions.

Times are uniform, which is mostly noise: what a plug-in says (where, which shape, which colour) is decided there, and
the teacher's own times, that favour the middle, teach it later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn import world
from linattn.checkpoint import generator
from linattn.conditions import Rows
from linattn.teachers import Teacher

DROP = 0.1  # of the captions are empty, as in the teacher's own training: guidance needs both


@dataclass(frozen=True)
class Batch:
    pictures: Tensor  # (batch, 3, side, side) in [0, 1]
    noisy: Tensor  # latents
    t: Tensor  # (batch,)
    target: Tensor
    rows: Rows  # the captions, by the names of the UNet's forward

    def loss(self, unet: nn.Module, **more: Any) -> Tensor:
        """Squared error of the prediction; bfloat16 takes half of the time on a CPU that has it."""
        with torch.autocast(self.noisy.device.type, torch.bfloat16):
            found = unet(self.noisy, self.t, **self.rows, **more, return_dict=False)[0]
        return F.mse_loss(found.float(), self.target)


@torch.no_grad()
def draw(
    teacher: Teacher, scenes: Sequence[world.Scene], captions: Sequence[str], side: int, dice: torch.Generator
) -> Batch:
    """Pictures of `scenes` told as `captions`, of which some are dropped."""
    pictures = world.render(scenes, side).to(teacher.device)
    clean = teacher.encode(pictures).float()
    t = teacher.diffusion.uniform_times(len(scenes), dice).to(teacher.device)
    eps = torch.randn(clean.shape, generator=dice).to(teacher.device)
    dropped = (torch.rand(len(scenes), generator=dice) < DROP).tolist()
    told = ["" if empty else caption for empty, caption in zip(dropped, captions, strict=True)]
    process = teacher.diffusion
    return Batch(
        pictures, process.noised(clean, eps, t), t, process.target(clean, eps, t), teacher.conditions.rows(told)
    )


def of_step(seed: int, step: int, count: int) -> tuple[list[world.Scene], torch.Generator]:
    """The scenes of one step, never any twice, and its dice."""
    return world.scenes(count, seed, start=step * count), generator(seed, step)
