"""Describe everything that samples depend on, so that other samples are never taken for them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from linattn import digests, sampling
from linattn.conditions import Conditions, Labels
from linattn.names import short
from linattn.reader import between, checked
from linattn.sampling.plan import RULES as DRAW

FORMAT = 1
RULES: dict[str, Any] = {
    name: rule for name, rule in DRAW.items() if name not in ("start", "model", "callback")
} | {"shard": between(1)}
# The batch of a recipe that names none: profile nano's, whose samples keep their bytes so.
UNNAMED = 16


@checked(**RULES)
def describe(
    teacher: Any,
    seed: int,
    *,
    captions: Sequence[str] | None = None,
    shard: int = 256,
    size: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str = "card",
    batch: int = 64,
) -> dict[str, Any]:
    """Return the recipe: everything the pictures depend on, with the card's values filled in.

    Args:
        teacher: the Teacher that draws.
        seed: noise, labels and captions depend on it.
        captions: the caller's captions in place of the world's, for a teacher that reads text.
        shard: pictures in one file.
        size: side of the pictures in px; None takes the card's value.
        steps: steps of a draw; None takes the card's value.
        guidance: scale of the guidance; None takes the card's value.
        sampler: one of `linattn.sampling.SAMPLERS`; "card" is the pipeline's own scheduler.
        batch: pictures drawn at once, of which a shard limits the number.
    """
    source = sampling.Source.of(teacher)
    plan = sampling.Plan.of(source, size, steps, guidance, sampler)
    return {
        "format": FORMAT,
        "teacher": digests.of_weights(source.model),
        "scheduler": _scheduler_digest(source.scheduler),
        "seed": seed,
        "guidance": plan.guidance,
        "steps": plan.steps,
        "sampler": plan.sampler,
        **_prompt_recipe(source.conditions, captions),
        "shape": [source.conditions.channels, *plan.sides],
        "shard": shard,
        **_batch_recipe(min(batch, shard)),
    }


def _batch_recipe(batch: int) -> dict[str, int]:
    """Return the batch, on which a picture's last bits depend.

    Matrices of other sizes are multiplied in another order. In float32 on a CPU, latents of the
    three small teachers are the same bits in batches of 16 and 64. In batches of 1 and 64 they
    differ by up to 2e-4, and every picture has another bit.
    """
    return {} if batch == UNNAMED else {"batch": batch}


def _prompt_recipe(conditions: Conditions, captions: Sequence[str] | None) -> dict[str, Any]:
    """Return the part of the recipe that determines the prompts."""
    if isinstance(conditions, Labels):
        if captions is not None:
            raise ValueError(
                f"captions for {type(conditions.model).__name__}, which reads no text: it is "
                f"conditioned on its {conditions.classes} classes; leave captions out, or take a "
                "teacher that reads"
            )
        return {"classes": conditions.classes}
    return {
        "captions": "linattn.world" if captions is None else _texts_digest(conditions, captions),
        "readers": [digests.of_weights(encoder) for encoder in conditions.text_encoders],
        "text_length": conditions.card.get("text_length"),
    }


def _texts_digest(conditions: Conditions, captions: Sequence[str]) -> str:
    texts = list(conditions.check(captions))
    return f"{len(texts)} of {digests.of_settings(texts)}"


def _scheduler_digest(scheduler: Any) -> str:
    public = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    return digests.of_settings([type(scheduler).__name__, public])


def refuse_other(path: Path, recorded: Mapping[str, Any], requested: Mapping[str, Any]) -> None:
    """Raise if the file at `path` was drawn by another recipe than the one requested."""
    if recorded == requested:
        return
    names = sorted({*recorded, *requested})
    usual = {"batch": UNNAMED}
    recorded, requested = {**usual, **recorded}, {**usual, **requested}
    changes = [
        f"{name} {short(recorded.get(name))} (now {short(requested.get(name))})"
        for name in names
        if recorded.get(name) != requested.get(name)
    ]
    raise ValueError(
        f"{path} was drawn with {', '.join(changes)}; delete {path.parent}, or write to another "
        "folder"
    )
