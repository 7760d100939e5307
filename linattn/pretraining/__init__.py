"""Train small teachers from scratch on the world: an autoencoder and a denoiser, behind a gate."""

from pathlib import Path
from typing import Any

from linattn.pretraining import dit, flux, sd, store
from linattn.pretraining.backbone import Backbone
from linattn.pretraining.recipe import Recipe, Stage
from linattn.pretraining.store import FailedGate

TEACHERS: dict[str, tuple[Backbone[Any], Recipe]] = {
    "dit-nano": (dit.DiT(), dit.RECIPE),
    "sd-nano": (sd.SD(), sd.RECIPE),
    "flux-nano": (flux.Flux(), flux.RECIPE),
}


def make(folder: Path, device: str | None = None) -> Path:
    """Train the teacher that the folder is named after.

    Args:
        folder: where the teacher is written; its name is one of `TEACHERS`.
        device: where the training runs; None takes a GPU where there is one.
    """
    backbone, recipe = TEACHERS[Path(folder).name]
    return store.make(folder, backbone, recipe, device)


__all__ = ["TEACHERS", "Backbone", "FailedGate", "Recipe", "Stage", "make"]
