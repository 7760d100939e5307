"""The plan of a draw: validated size, steps, guidance and sampler."""

from dataclasses import dataclass
from typing import Any

from linattn import families
from linattn.names import nearest
from linattn.reader import between, choice, typed
from linattn.sampling.source import Source

SAMPLERS = ("card", "dpm", "ddim", "ddpm")

# What a draw is called with, as `reader.checked` holds it to.
RULES: dict[str, Any] = {
    # `Plan` knows what the model can draw
    **dict.fromkeys(("size", "steps", "guidance", "seed"), typed()),
    "sampler": choice(SAMPLERS),
    "batch": between(1),
    "start": between(0),
    "model": typed(),
    "callback": typed(),
}

Size = int | tuple[int, int] | None  # a side or (height, width) in pixels; None: the card's


@dataclass(frozen=True)
class Plan:
    """Hold the validated settings of a draw.

    The pictures depend on them, on weights, prompts and seed, and on nothing else.
    """

    sides: tuple[int, int]  # of the latents: height, width
    steps: int  # steps of the whole draw
    guidance: float  # scale of the guidance; 1 is none
    sampler: str  # one of SAMPLERS

    @classmethod
    def of(
        cls, source: Source, size: Size, steps: int | None, guidance: float | None, sampler: str
    ) -> "Plan":
        """Fill in defaults and validate.

        None takes the card's value, or the pipeline's where the card has none.
        """
        defaults = {**source.conditions.defaults(), **source.card}
        sides = latent_sides(source, size)
        steps = _checked_steps(source, defaults["steps"] if steps is None else steps)
        guidance = _checked_guidance(defaults["guidance"] if guidance is None else guidance)
        return cls(sides, steps, guidance, _checked_sampler(source, sampler))


def latent_sides(source: Source, size: Size) -> tuple[int, int]:
    """Return (height, width) in latents, or raise if the model cannot draw that size.

    Args:
        source: the model with its VAE, scheduler and card.
        size: a side in px, or (height, width); None takes the default side.
    """
    size = source.side if size is None else size
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    for side in sides:
        _check_side(source, side)
    draws_squares = families.family(source.conditions.model).squares_only
    if len(sides) != 2 or (draws_squares and sides[0] != sides[1]):
        raise ValueError(
            f"a size of {sides} px; {type(source.model).__name__} draws squares: pass one side"
        )
    height, width = sides
    return height // source.factor, width // source.factor


def _check_side(source: Source, side: int) -> None:
    divisor = source.factor * source.conditions.divisor
    if isinstance(side, int) and side >= divisor and side % divisor == 0:
        return
    nearest = ""
    if isinstance(side, (int, float)):
        nearest = f"; the nearest is {max(divisor, round(side / divisor) * divisor)}"
    raise ValueError(
        f"a side of {side} px is no multiple of {divisor} (VAE {source.factor} x patch "
        f"{source.conditions.divisor}){nearest}"
    )


def _checked_steps(source: Source, steps: int) -> int:
    most = source.scheduler.config.num_train_timesteps
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most:
        raise ValueError(f"{steps} steps; the schedule has room for 1 to {most}")
    return steps


def _checked_guidance(guidance: float) -> float:
    if not guidance >= 1:
        raise ValueError(f"a guidance of {guidance}; 1 means none, larger follows the label more")
    return float(guidance)


def _checked_sampler(source: Source, sampler: str) -> str:
    if sampler not in SAMPLERS:
        raise nearest("sampler", sampler, SAMPLERS)
    if sampler != "card" and not hasattr(source.scheduler, "alphas_cumprod"):
        raise ValueError(
            f"sampler {sampler!r} is for noise and velocities; a flow needs its own sampler, 'card'"
        )
    return sampler
