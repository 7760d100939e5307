"""Pictures at sizes nobody trained at: enlarge, noise, draw again (SDEdit), the same function for every family.

- What LinFusion shows (trained at one size, used at others) and CLEAR's recipe: draw small, `upscale`, and once more.
- `strength` is the share of the steps that are drawn again: 0.3 keeps the composition, 1 begins at pure noise.
- `ntk` multiplies FLUX's RoPE base (CLEAR: 10), for sides longer than it was trained at. The others rotate nothing: DiT
  and PixArt squeeze their positions into the trained range by themselves, a UNet has none.
- `proportional` scales CLEAR's scores with the number of tokens, as its high-resolution pipeline does; how many it was
  trained with says the option `trained`, or the model, or the side of the card and the length of its text.
- Decoders with a tiling of their own use it above `tile` px, so that their memory does not grow with the picture. A
  tile is normalised by itself: small ones shift colours, hence not the VAE's own default.
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

from linattn import families, sampling
from linattn.conditions import Asked
from linattn.sampling import Guided, Plan, Source

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
    """Pictures (N, 3, height, width) in [0, 1] at `factor` times their size.

    `pipe` is a teacher or pipeline, linearized or not, or `model` draws in its place. `asked` is what the pictures
    show, a label or caption each. With several doublings, upscale the result again.
    """
    source, image = Source.of(pipe, model), pictures(image)
    _check(image, factor, strength, ntk, batch)
    _check_scheduler(source.scheduler)
    size = tuple(round(side * factor) for side in image.shape[-2:])
    plan = Plan.of(source, size, steps, guidance, "card")
    asked = source.conditions.check(asked)
    if len(asked) != len(image):
        raise ValueError(f"{len(image)} pictures and {len(asked)} labels or captions; pass one for each picture")
    parts = []
    with sampling.evaluating(source.model), positions(source.model, ntk), proportions(source, asked, proportional):
        for first in range(0, len(image), batch):
            rows = slice(first, first + batch)
            numbers = range(first, first + len(image[rows]))
            generators = [sampling.generator(seed, number) for number in numbers]
            with tiles(source.vae, max(size), tile):
                clean = sampling.encode(source, enlarged(image[rows], size))
                latents = redrawn(source, plan, asked[rows], clean, strength, generators)
                parts.append(sampling.decode(source, latents, batch))
    return torch.cat(parts)


def pictures(image: Tensor | Image.Image | Sequence[Image.Image]) -> Tensor:
    """(N, 3, height, width) in [0, 1]; PIL's are read as RGB."""
    if isinstance(image, Tensor):
        return image
    images = [image] if isinstance(image, Image.Image) else list(image)
    if not images:
        raise ValueError("no pictures; pass one or more")
    if other := next((each for each in images if each.size != images[0].size), None):
        sizes = " and ".join("{} x {} px".format(*each.size) for each in (images[0], other))
        raise ValueError(f"pictures of {sizes} in one call; pass those of one size together, the others by themselves")
    arrays = [np.asarray(each.convert("RGB"), dtype=np.float32) / 255 for each in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def enlarged(image: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(image.float(), size=size, mode="bicubic", align_corners=False).clamp(0, 1)


def redrawn(
    source: Source, plan: Plan, asked: Asked, clean: Tensor, strength: float, generators: list[torch.Generator]
) -> Tensor:
    """The last `strength` of the steps, from the clean latents noised to where they begin."""
    scheduler = sampling.scheduler_of(source.scheduler, plan.sampler)
    source.conditions.set_times(scheduler, plan.steps, clean)
    # PNDM lists one time more than it has steps, Heun two for each: the stock pipelines count steps, too.
    first = first_step(plan.steps, strength) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):  # DDIM, DDPM and PNDM find the step by its time
        scheduler.set_begin_index(first)
    noise = torch.stack([torch.randn(clean.shape[1:], generator=each) for each in generators]).to(clean)
    # The scheduler's own: Euler's latents are clean + sigma eps, others' keep their variance.
    t = scheduler.timesteps[first].expand(len(clean))
    flow = hasattr(scheduler, "scale_noise")
    latents = scheduler.scale_noise(clean, t, noise) if flow else scheduler.add_noise(clean, noise, t)
    *_, (drawn, _) = sampling.stepped(source, scheduler, Guided.of(source, asked, plan), latents, generators, first)
    return drawn.float().cpu()


def first_step(steps: int, strength: float) -> int:
    """As Stable Diffusion's img2img counts (FLUX's rounds up): at least one step is drawn."""
    return steps - max(1, min(int(steps * strength), steps))


@contextlib.contextmanager
def positions(model: nn.Module, ntk: float) -> Iterator[None]:
    """RoPE's base times `ntk` on all axes, as CLEAR's pipeline has it."""
    rope = getattr(families.model_of(model), "pos_embed", None)
    if ntk == 1:
        yield
        return
    if not hasattr(rope, "theta"):
        raise ValueError(f"ntk is {ntk}, but {type(model).__name__} rotates no positions; leave it at 1")
    before = rope.theta
    rope.theta = before * ntk
    try:
        yield
    finally:
        rope.theta = before


@contextlib.contextmanager
def proportions(source: Source, asked: Asked, wanted: bool) -> Iterator[None]:
    """CLEAR's scale by the number of tokens, in every layer that has that option."""
    model = source.model
    with contextlib.ExitStack() as stack:
        operators = [layer.operator for layer in families.layers(model) if layer.operator is not None]
        able = [operator for operator in operators if "proportional" in operator.table]
        if wanted and any(operator.schedule for operator in able):
            raise ValueError(
                "proportional is True and the layers' options follow a schedule, which it would replace; "
                "linearize with proportional=True instead"
            )
        if wanted and not able:
            raise ValueError(f"proportional is for layers of clear, and {type(model).__name__} has none; leave it out")
        for operator in able if wanted else ():
            told = (operator.pinned or {}) | {"proportional": True}
            if operator.values.trained is None and operator.shape.trained is None:
                told["trained"] = trained_tokens(source, asked, operator.shape.has_text)
            stack.enter_context(operator.pin(**told))
        yield


def trained_tokens(source: Source, asked: Asked, text: bool) -> int:
    """At the side that the card names, with the text that this model is told."""
    height, width = sampling.latent_sides(source, None)
    told = source.conditions.rows(asked[:1]).get("encoder_hidden_states") if text else None
    return height * width // source.conditions.unit**2 + (0 if told is None else told.shape[1])


@contextlib.contextmanager
def tiles(vae: nn.Module, side: int, tile: int | None) -> Iterator[None]:
    """The VAE's own tiling, where it has one and the picture is larger than a tile."""
    names = ("use_tiling", "tile_sample_min_size", "tile_latent_min_size")
    if tile is None or side <= tile or not all(hasattr(vae, name) for name in names):
        yield
        return
    before = {name: getattr(vae, name) for name in names}
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size = True, tile, tile // scale
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)


def _check(image: Tensor, factor: float, strength: float, ntk: float, batch: int) -> None:
    if image.ndim != 4 or image.shape[1] != 3 or len(image) == 0:
        raise ValueError(f"pictures are {tuple(image.shape)}; pass a tensor (N, 3, height, width) in [0, 1]")
    if not image.is_floating_point() or image.min() < 0 or image.max() > 1:
        raise ValueError(
            f"pictures are {image.dtype} from {image.min():g} to {image.max():g}; pass floating-point numbers in "
            "[0, 1], bytes divided by 255"
        )
    if batch < 1:
        raise ValueError(f"a batch of {batch} pictures; draw at least 1 at a time")
    if not factor >= 1:
        raise ValueError(f"a factor of {factor}; 1 draws at the same size, 2 at twice the side")
    if not 0 < strength <= 1:
        raise ValueError(f"a strength of {strength}; it is the share of the steps drawn again, above 0 and at most 1")
    if not ntk > 0:
        raise ValueError(f"an ntk of {ntk}; RoPE's base is multiplied by it, 1 leaves it")


def _check_scheduler(scheduler: Any) -> None:
    # Its step wants the variance half of the output, which the loop has cut away before; `draw` walks DDPM by itself.
    # A DDIM made from a DDPM's config carries the setting along and has no use for it.
    told = "variance_type" in inspect.signature(type(scheduler).__init__).parameters
    if told and (variance := scheduler.config.variance_type) in ("learned", "learned_range"):
        raise ValueError(
            f"{type(scheduler).__name__} with variance_type {variance!r} cannot draw again from the middle; take "
            "pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)"
        )
