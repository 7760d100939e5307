"""The source of a draw: model, VAE, scheduler, card and conditions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from linattn import conditions, families
from linattn.conditions import Conditions
from linattn.sampling.card import card_in


@dataclass(frozen=True)
class Source:
    """Hold the parts of a teacher or a pipeline that a draw needs."""

    model: nn.Module  # the denoising model, a teacher's or a student's
    vae: Any  # diffusers' autoencoder
    scheduler: Any  # a diffusers scheduler
    card: Mapping[str, Any]  # steps, guidance and side, where the pipeline has a card
    conditions: Conditions  # how the pipeline is prompted

    @classmethod
    def of(cls, teacher_or_pipe: Any, model: nn.Module | None = None) -> "Source":
        """Return the source of a teacher, a pipeline or another source.

        `model` replaces the source's own, so that a student draws with its teacher's VAE, scheduler
        and card.
        """
        if isinstance(teacher_or_pipe, cls):
            if model is not None:
                _check_family(model, teacher_or_pipe.conditions)
            return teacher_or_pipe if model is None else replace(teacher_or_pipe, model=model)
        pipe = getattr(teacher_or_pipe, "pipe", teacher_or_pipe)
        card = getattr(teacher_or_pipe, "card", None) or _card_of(pipe)
        conditioner = conditions.of(pipe, card)
        model = conditioner.model if model is None else _check_family(model, conditioner)
        return cls(model, pipe.vae, pipe.scheduler, card, conditioner)

    @property
    def factor(self) -> int:
        """Return the number of pixels along one side of a latent position."""
        return self.conditions.factor(self.vae.config)

    @property
    def side(self) -> int:
        """Return the default side in pixels: the card's, or that of the model's training."""
        return self.card.get("side") or self.conditions.side * self.factor


def _check_family(model: nn.Module, conditions: Conditions) -> nn.Module:
    """Return a model that draws in place of the pipeline's, or raise."""
    made = type(getattr(model, "_orig_mod", model)).__name__  # of a compiled model, what it wraps
    known = families.FAMILIES.get(made)  # somebody's own module may be called as the pipeline's is
    if known is not None and known is not families.family(conditions.model):
        raise ValueError(
            f"model is a {type(model).__name__}, and the pipeline's a "
            f"{type(conditions.model).__name__}: pass a student of that pipeline"
        )
    return model


def _card_of(pipe: Any) -> dict[str, Any]:
    """Return the card of a pipeline that comes without a teacher.

    It is the card in the folder the pipeline was loaded from, or else the labels of the pipeline's
    config. Without its card, flux-nano would get captions of 512 tokens, although it was trained
    with 16.
    """
    config = getattr(pipe, "config", None) or {}
    folder = getattr(config, "_name_or_path", None)
    if folder and (card := card_in(folder)):
        return card
    labels = getattr(config, "id2label", None) or {}
    return {"labels": list(labels.values())} if labels else {}
