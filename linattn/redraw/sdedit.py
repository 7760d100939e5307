"""Enlarge pictures, noise them, and draw the last steps again."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from linattn import sampling, seeds
from linattn.conditions import Prompts
from linattn.reader import between, checked, typed
from linattn.redraw import images
from linattn.redraw.adjust import positions, proportions, tiles
from linattn.sampling import GuidedBatch, Plan, Source
from linattn.sampling.plan import RULES as DRAW

TILE = 512  # px
LARGEST = 64  # factor of one call
RULES = {
    **{
        name: rule
        for name, rule in DRAW.items()
        if name not in ("size", "sampler", "start", "callback")
    },
    **dict.fromkeys(("factor", "strength", "ntk"), typed()),
    "proportional": typed(),
    "tile": between(1),
}


@checked(**RULES)
@torch.no_grad()
def upscale(
    pipe: Any,
    image: Tensor | Image.Image | Sequence[Image.Image],
    factor: float = 2,
    strength: float = 0.4,
    *,
    prompts: Prompts,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    model: nn.Module | None = None,
    batch: int = 4,
    ntk: float = 1.0,
    proportional: bool = False,
    tile: int | None = TILE,
) -> Tensor:
    """Return pictures (N, 3, height, width) in [0, 1] at `factor` times their size.

    For several doublings, upscale the result again.

    Args:
        pipe: a teacher or pipeline, linearised or not.
        image: pictures (N, 3, height, width) in [0, 1], or PIL images of one size.
        factor: how many times the height and the width grow.
        strength: the share of the steps that are drawn again: 0.3 keeps the composition, 1 starts
            at pure noise.
        prompts: the prompts, one label or caption a picture.
        steps: steps of the whole draw; None takes the card's value.
        guidance: scale of the guidance; None takes the card's value.
        seed: picture i's noise depends on this seed and i alone.
        model: draws in place of the pipeline's own model where it is passed.
        batch: how many pictures are drawn at once.
        ntk: what FLUX's RoPE base is multiplied by (CLEAR: 10), for sides longer than the trained
            one.
        proportional: whether CLEAR's scores are scaled with the number of tokens.
        tile: side in px above which a VAE that can tile does so; None never tiles.
    """
    source, image = Source.of(pipe, model), images.pictures(image)
    images.check(image)
    _check(factor, strength, ntk)
    _check_scheduler(source.scheduler)
    height, width = image.shape[-2:]
    size = (round(height * factor), round(width * factor))
    plan = Plan.of(source, size, steps, guidance, "card")
    prompts = source.conditions.check(prompts)
    if len(prompts) != len(image):
        raise ValueError(
            f"{len(image)} pictures and {len(prompts)} labels or captions; pass one for each "
            "picture"
        )
    decoded = []
    with (
        sampling.evaluating(source.model),
        positions(source.model, ntk),
        proportions(source, prompts, proportional),
    ):
        for first in range(0, len(image), batch):
            chosen = slice(first, first + batch)
            numbers = range(first, first + len(image[chosen]))
            generators = [seeds.of_picture(seed, number) for number in numbers]
            with tiles(source.vae, max(size), tile):
                clean = sampling.encode(source, images.enlarged(image[chosen], size))
                latents = redrawn(source, plan, prompts[chosen], clean, strength, generators)
                decoded.append(sampling.decode(source, latents, batch))
    return torch.cat(decoded)


def redrawn(
    source: Source,
    plan: Plan,
    prompts: Prompts,
    clean: Tensor,
    strength: float,
    generators: list[torch.Generator],
) -> Tensor:
    """Noise clean latents to where the last `strength` of the steps begin, and take those steps.

    Args:
        source: model, VAE, scheduler, card and conditions.
        plan: size, steps, guidance and sampler of the draw.
        prompts: one label or caption a picture.
        clean: clean latents, (batch, channels, height, width).
        strength: the share of the steps that are taken.
        generators: one a picture, for its noise.
    """
    scheduler = sampling.scheduler_of(source.scheduler, plan.sampler)
    source.conditions.set_times(scheduler, plan.steps, clean)
    # PNDM lists one time more than it has steps, and Heun lists two a step. The stock pipelines
    # count steps too.
    first = first_step(plan.steps, strength) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)  # DDIM, DDPM and PNDM lack it and find a step by its time
    latents = _noised(scheduler, clean, first, generators)
    guided = GuidedBatch.of(source, prompts, plan)
    *_, (drawn, _) = sampling.stepped(source, scheduler, guided, latents, generators, first)
    return drawn.float().cpu()


def _noised(scheduler: Any, clean: Tensor, first: int, generators: list[torch.Generator]) -> Tensor:
    """Let the scheduler add the noise: Euler's latents are clean + sigma eps, others are scaled."""
    shape = clean.shape[1:]
    noise = torch.stack([torch.randn(shape, generator=stream) for stream in generators]).to(clean)
    t = scheduler.timesteps[first].expand(len(clean))
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(clean, t, noise)  # of a flow
    return scheduler.add_noise(clean, noise, t)


def first_step(steps: int, strength: float) -> int:
    """Return the number of the first step that is drawn again; at least one step is.

    The count rounds down as in Stable Diffusion's img2img. FLUX's pipeline rounds up.

    Args:
        steps: steps of the whole draw.
        strength: the share of the steps that are drawn again.
    """
    return steps - max(1, min(int(steps * strength), steps))


def _check(factor: float, strength: float, ntk: float) -> None:
    if not 1 <= factor <= LARGEST:
        raise ValueError(
            f"a factor of {factor}; 1 draws at the same size, 2 at twice the side, and {LARGEST} "
            "is the most"
        )
    if not 0 < strength <= 1:
        raise ValueError(
            f"a strength of {strength}; it is the share of the steps drawn again, above 0 and at "
            "most 1"
        )
    if not ntk > 0:
        raise ValueError(f"an ntk of {ntk}; RoPE's base is multiplied by it, 1 leaves it")


def _check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler whose step needs a learned variance.

    The loop removes the variance half of the output before the step; `draw` has its own loop for
    DDPM.
    """
    # A DDIM made from a DDPM's config carries variance_type along without using it, so the
    # signature decides.
    if "variance_type" not in inspect.signature(type(scheduler).__init__).parameters:
        return
    if (variance := scheduler.config.variance_type) in ("learned", "learned_range"):
        raise ValueError(
            f"{type(scheduler).__name__} with variance_type {variance!r} cannot draw again from "
            "the middle; take "
            "pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)"
        )
