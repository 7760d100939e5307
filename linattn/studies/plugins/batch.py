"""Draw the batch of one step of a plug-in's training: noised pictures of the world with captions.

Times are uniform, which is mostly noise. A plug-in's condition (where, which shape, which colour)
is decided at high noise; the teacher's own times favour the middle, and with them the plug-in
learns its condition later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn import seeds, world
from linattn.conditions import Conditioning
from linattn.teachers import Teacher

# share of empty captions, as in the teacher's own training: guidance needs both predictions
DROP = 0.1


@dataclass(frozen=True)
class Batch:
    pictures: Tensor  # (batch, 3, side, side) in [0, 1]
    noisy: Tensor  # latents
    t: Tensor  # (batch,)
    target: Tensor
    conditioning: Conditioning  # of the captions, by the argument names of the UNet's forward

    def loss(self, unet: nn.Module, **kwargs: Any) -> Tensor:
        """Return the squared error of the prediction.

        bfloat16 halves the time on a CPU that supports it.
        """
        with torch.autocast(self.noisy.device.type, torch.bfloat16):
            prediction = unet(self.noisy, self.t, **self.conditioning, **kwargs, return_dict=False)[
                0
            ]
        return F.mse_loss(prediction.float(), self.target)


@torch.no_grad()
def draw(
    teacher: Teacher,
    scenes: Sequence[world.Scene],
    captions: Sequence[str],
    side: int,
    rng: torch.Generator,
) -> Batch:
    """Draw a batch of pictures of `scenes` with `captions`, of which some are dropped."""
    pictures = world.render(scenes, side).to(teacher.device)
    clean = teacher.encode(pictures).float()
    t = teacher.diffusion.uniform_times(len(scenes), rng).to(teacher.device)
    eps = torch.randn(clean.shape, generator=rng).to(teacher.device)
    dropped = (torch.rand(len(scenes), generator=rng) < DROP).tolist()
    pairs = zip(captions, dropped, strict=True)
    prompts = ["" if is_dropped else caption for caption, is_dropped in pairs]
    process = teacher.diffusion
    noisy, target = process.noised(clean, eps, t), process.target(clean, eps, t)
    return Batch(pictures, noisy, t, target, teacher.conditions.encode(prompts))


def of_step(seed: int, step: int, count: int) -> tuple[list[world.Scene], torch.Generator]:
    """Return the scenes of one step, which no other step repeats, and the step's generator."""
    return world.scenes(count, seed, start=step * count), seeds.of_step(seed, step)
