"""Draw pictures at sizes that no model was trained at: enlarge, noise and draw again (SDEdit), for
every family.

- LinFusion is trained at one size and shown at others, and CLEAR's recipe draws a small picture
  first: draw small, `upscale`, and `upscale` again.
- `strength` is the share of the steps that are drawn again: 0.3 keeps the composition, 1 starts at
  pure noise.
- `ntk` multiplies FLUX's RoPE base (CLEAR: 10), for sides longer than the trained one. Other
  families have no rotary positions: DiT and PixArt squeeze their positions into the trained range
  by themselves, and a UNet has none.
- `proportional` scales CLEAR's scores with the number of tokens, as its high-resolution pipeline
  does. The trained number of tokens comes from the option `trained`, or the model, or the card's
  side and the length of its text.
- Decoders that can tile do so above `tile` px, so that their memory does not grow with the picture.
  A decoder normalises every tile separately, and small tiles shift colours; `tile` is therefore not
  the VAE's own default.
"""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from linattn import families, sampling, seeds
from linattn.conditions import Asked
from linattn.sampling import GuidedBatch, Plan, Source

TILE = 512  # px


@torch.no_grad()
def upscale(
    pipe: Any,
    image: Tensor | Image.Image | Sequence[Image.Image],
    factor: float = 2,
    strength: float = 0.4,
    *,
    asked: Asked,
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

    `pipe` is a teacher or pipeline, linearized or not; `model` draws in its place where given.
    `asked` holds the prompts, one label or caption a picture. For several doublings, upscale the
    result again.
    """
    source, image = Source.of(pipe, model), pictures(image)
    _check(image, factor, strength, ntk, batch)
    _check_scheduler(source.scheduler)
    size = tuple(round(side * factor) for side in image.shape[-2:])
    plan = Plan.of(source, size, steps, guidance, "card")
    prompts = source.conditions.check(asked)
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
                clean = sampling.encode(source, enlarged(image[chosen], size))
                latents = redrawn(source, plan, prompts[chosen], clean, strength, generators)
                decoded.append(sampling.decode(source, latents, batch))
    return torch.cat(decoded)


def pictures(image: Tensor | Image.Image | Sequence[Image.Image]) -> Tensor:
    """Return pictures as a tensor (N, 3, height, width) in [0, 1]; PIL images are read as RGB."""
    if isinstance(image, Tensor):
        return image
    images = [image] if isinstance(image, Image.Image) else list(image)
    if not images:
        raise ValueError("no pictures; pass one or more")
    if other := next((picture for picture in images if picture.size != images[0].size), None):
        sizes = " and ".join("{} x {} px".format(*picture.size) for picture in (images[0], other))
        raise ValueError(
            f"pictures of {sizes} in one call; pass those of one size together, the others by "
            "themselves"
        )
    arrays = [np.asarray(picture.convert("RGB"), dtype=np.float32) / 255 for picture in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def enlarged(image: Tensor, size: tuple[int, ...]) -> Tensor:
    """Enlarge pictures bicubically, clamped to [0, 1]."""
    return F.interpolate(image.float(), size=size, mode="bicubic", align_corners=False).clamp(0, 1)


def redrawn(
    source: Source,
    plan: Plan,
    prompts: Asked,
    clean: Tensor,
    strength: float,
    generators: list[torch.Generator],
) -> Tensor:
    """Noise the clean latents to the level where the last `strength` of the steps begin, and take
    those steps.
    """
    scheduler = sampling.scheduler_of(source.scheduler, plan.sampler)
    source.conditions.set_times(scheduler, plan.steps, clean)
    # PNDM lists one time more than it has steps, and Heun lists two a step. The stock pipelines
    # count steps too.
    first = first_step(plan.steps, strength) * scheduler.order
    # DDIM, DDPM and PNDM lack it and find the step by its time
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    noise = torch.stack(
        [torch.randn(clean.shape[1:], generator=stream) for stream in generators]
    ).to(clean)
    # The scheduler adds the noise, because Euler's latents are clean + sigma eps and others keep
    # their variance.
    t = scheduler.timesteps[first].expand(len(clean))
    flow = hasattr(scheduler, "scale_noise")
    latents = (
        scheduler.scale_noise(clean, t, noise) if flow else scheduler.add_noise(clean, noise, t)
    )
    guided = GuidedBatch.of(source, prompts, plan)
    *_, (drawn, _) = sampling.stepped(source, scheduler, guided, latents, generators, first)
    return drawn.float().cpu()


def first_step(steps: int, strength: float) -> int:
    """Return the number of the first step that is drawn again; at least one step is.

    The count rounds down as in Stable Diffusion's img2img. FLUX's pipeline rounds up.
    """
    return steps - max(1, min(int(steps * strength), steps))


@contextlib.contextmanager
def positions(model: nn.Module, ntk: float) -> Iterator[None]:
    """Multiply RoPE's base by `ntk` on all axes meanwhile, as CLEAR's pipeline does."""
    rope = getattr(families.model_of(model), "pos_embed", None)
    if ntk == 1:
        yield
        return
    if not hasattr(rope, "theta"):
        raise ValueError(
            f"ntk is {ntk}, but {type(model).__name__} rotates no positions; leave it at 1"
        )
    original = rope.theta
    rope.theta = original * ntk
    try:
        yield
    finally:
        rope.theta = original


@contextlib.contextmanager
def proportions(source: Source, prompts: Asked, enabled: bool) -> Iterator[None]:
    """Switch on CLEAR's scale by the number of tokens meanwhile, in every layer that has that
    option.
    """
    model = source.model
    with contextlib.ExitStack() as stack:
        operators = [
            layer.operator for layer in families.layers(model) if layer.operator is not None
        ]
        clear = [operator for operator in operators if "proportional" in operator.table]
        if enabled and any(operator.schedule for operator in clear):
            raise ValueError(
                "proportional is True and the layers' options follow a schedule, which it would "
                "replace; "
                "linearize with proportional=True instead"
            )
        if enabled and not clear:
            raise ValueError(
                f"proportional is for layers of clear, and {type(model).__name__} has none; leave "
                "it out"
            )
        for operator in clear if enabled else ():
            options = (operator.pinned or {}) | {"proportional": True}
            if operator.values.trained is None and operator.shape.trained is None:
                options["trained"] = trained_tokens(source, prompts, operator.shape.has_text)
            stack.enter_context(operator.pin(**options))
        yield


def trained_tokens(source: Source, prompts: Asked, text: bool) -> int:
    """Count the tokens of a picture at the card's side, plus those of its caption if `text`."""
    height, width = sampling.latent_sides(source, None)
    states = source.conditions.rows(prompts[:1]).get("encoder_hidden_states") if text else None
    text_tokens = 0 if states is None else states.shape[1]
    return height * width // source.conditions.unit**2 + text_tokens


@contextlib.contextmanager
def tiles(vae: nn.Module, side: int, tile: int | None) -> Iterator[None]:
    """Switch on the VAE's own tiling meanwhile, where it has one and the picture is larger than a
    tile.
    """
    names = ("use_tiling", "tile_sample_min_size", "tile_latent_min_size")
    if tile is None or side <= tile or not all(hasattr(vae, name) for name in names):
        yield
        return
    original = {name: getattr(vae, name) for name in names}
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size = True, tile, tile // scale
    try:
        yield
    finally:
        for name, value in original.items():
            setattr(vae, name, value)


def _check(image: Tensor, factor: float, strength: float, ntk: float, batch: int) -> None:
    if image.ndim != 4 or image.shape[1] != 3 or len(image) == 0:
        raise ValueError(
            f"pictures are {tuple(image.shape)}; pass a tensor (N, 3, height, width) in [0, 1]"
        )
    if not image.is_floating_point() or image.min() < 0 or image.max() > 1:
        raise ValueError(
            f"pictures are {image.dtype} from {image.min():g} to {image.max():g}; pass "
            "floating-point numbers in "
            "[0, 1], bytes divided by 255"
        )
    if batch < 1:
        raise ValueError(f"a batch of {batch} pictures; draw at least 1 at a time")
    if not factor >= 1:
        raise ValueError(f"a factor of {factor}; 1 draws at the same size, 2 at twice the side")
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
    uses_variance = "variance_type" in inspect.signature(type(scheduler).__init__).parameters
    if uses_variance and (variance := scheduler.config.variance_type) in (
        "learned",
        "learned_range",
    ):
        raise ValueError(
            f"{type(scheduler).__name__} with variance_type {variance!r} cannot draw again from "
            "the middle; take "
            "pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)"
        )
