"""Adjust a model for a larger picture while a block runs: its positions, its scale, its decoder."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from linattn import families, sampling
from linattn.attention import Operator
from linattn.conditions import Prompts
from linattn.sampling import Source

TILING = ("use_tiling", "tile_sample_min_size", "tile_latent_min_size")  # of diffusers' VAEs


@contextmanager
def positions(model: nn.Module, ntk: float) -> Generator[None]:
    """Multiply RoPE's base by `ntk` on all axes meanwhile, as CLEAR's pipeline does.

    Args:
        model: the model whose positions change; one without rotary positions is refused where ntk
            is not 1.
        ntk: what the base is multiplied by; 1 changes nothing.
    """
    if ntk == 1:
        yield
        return
    rope: Any = getattr(families.model_of(model), "pos_embed", None)
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


@contextmanager
def proportions(source: Source, prompts: Prompts, enabled: bool) -> Generator[None]:
    """Switch on CLEAR's scale by the number of tokens meanwhile, in each layer with that option.

    Args:
        source: the model with what is needed to count its trained tokens.
        prompts: prompts of the draw; the length of the first one's text counts.
        enabled: False changes nothing.
    """
    if not enabled:
        yield
        return
    with ExitStack() as stack:
        for operator in _scalable(source.model):
            options = {**(operator.pinned or {}), "proportional": True}
            if operator.values.trained is None and operator.shape.trained is None:
                options["trained"] = trained_tokens(source, prompts, operator.shape.has_text)
            stack.enter_context(operator.pin(**options))
        yield


def _scalable(model: nn.Module) -> list[Operator]:
    """Return the operators that have the option `proportional`, or raise if it cannot be set."""
    operators = [layer.operator for layer in families.layers(model) if layer.operator is not None]
    scalable = [operator for operator in operators if "proportional" in operator.table]
    if not scalable:
        raise ValueError(
            f"proportional is for layers of clear, and {type(model).__name__} has none; leave it "
            "out"
        )
    if any(operator.schedule for operator in scalable):
        raise ValueError(
            "proportional is True and the layers' options follow a schedule, which it would "
            "replace; linearize with proportional=True instead"
        )
    return scalable


def trained_tokens(source: Source, prompts: Prompts, text: bool) -> int:
    """Count the tokens of a picture at the card's side, plus those of its caption if `text`.

    Args:
        source: model, card and conditions.
        prompts: prompts of the draw; the first one's caption is encoded.
        text: whether the tokens of the caption count.
    """
    height, width = sampling.latent_sides(source, None)
    states = source.conditions.encode(prompts[:1]).get("encoder_hidden_states") if text else None
    text_tokens = 0 if states is None else states.shape[1]
    return height * width // source.conditions.divisor**2 + text_tokens


@contextmanager
def tiles(vae: Any, side: int, tile: int | None) -> Generator[None]:
    """Switch on the VAE's own tiling meanwhile, if it has one and the picture exceeds a tile.

    Args:
        vae: diffusers' autoencoder.
        side: the longer side of the picture in px.
        tile: side of a tile in px; None never tiles.
    """
    if tile is None or side <= tile or not all(hasattr(vae, name) for name in TILING):
        yield
        return
    original = {name: getattr(vae, name) for name in TILING}
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    if tile < 2 * scale:  # the VAE steps by three quarters of a tile, which must be a position
        raise ValueError(f"a tile of {tile} px; the VAE's latents need {2 * scale} or more")
    vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size = True, tile, tile // scale
    try:
        yield
    finally:
        for name, value in original.items():
            setattr(vae, name, value)
