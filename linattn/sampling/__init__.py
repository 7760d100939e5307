"""Draw pictures with one loop over model and scheduler, the same for teacher and student.

- Picture i's noise comes from (seed, i, latent shape) alone, on the CPU. Picture 17 starts from the
  same noise whatever the batch, the device or the model, and the noise of its stochastic steps is
  the same too.
- Prompts are labels or captions, whichever the pipeline reads (conditions.py).
- Guidance works as in `DiTPipeline`: one doubled batch [conditional, empty], every channel guided,
  the variance taken from the conditional half. Guidance 1 costs one forward, not two. A model that
  takes its guidance as an argument also runs once a step.
- `ddpm` is ancestral and uses the learned variance, which `DiTPipeline` removes before the
  scheduler step.
- Any size works whose latents the patches divide (DiT: squares only), because the model recomputes
  its positions.
- Every batch builds its own scheduler, so calls and threads share no state.
"""

from linattn.sampling.card import card_in, checked_card
from linattn.sampling.coding import decode, decoded, eight_bits, encode, upcast
from linattn.sampling.drawing import Callback, draw, draw_latents
from linattn.sampling.guidance import GuidedBatch, predict
from linattn.sampling.loop import stepped
from linattn.sampling.modes import evaluating
from linattn.sampling.noise import generator, starting_noise
from linattn.sampling.plan import SAMPLERS, Plan, Size, latent_sides
from linattn.sampling.schedulers import ddpm_times, noise_levels, scheduler_of
from linattn.sampling.source import Source

__all__ = [
    "SAMPLERS",
    "Callback",
    "GuidedBatch",
    "Plan",
    "Size",
    "Source",
    "card_in",
    "checked_card",
    "ddpm_times",
    "decode",
    "decoded",
    "draw",
    "draw_latents",
    "eight_bits",
    "encode",
    "evaluating",
    "generator",
    "latent_sides",
    "noise_levels",
    "predict",
    "scheduler_of",
    "starting_noise",
    "stepped",
    "upcast",
]
