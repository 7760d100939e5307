"""Small teachers from scratch: an autoencoder and a denoiser, trained on the world, gated by the
judge.
"""

from pathlib import Path

from linattn.pretraining import dit, flux, sd, store
from linattn.pretraining.kind import Kind
from linattn.pretraining.recipe import Recipe, Stage
from linattn.pretraining.store import FailedGate

TEACHERS: dict[str, tuple[Kind, Recipe]] = {
    "dit-nano": (dit.DiT(), dit.RECIPE),
    "sd-nano": (sd.SD(), sd.RECIPE),
    "flux-nano": (flux.Flux(), flux.RECIPE),
}


def make(folder: Path, device: str | None = None) -> Path:
    """The teacher that the folder is named after."""
    kind, recipe = TEACHERS[Path(folder).name]
    return store.make(folder, kind, recipe, device)


__all__ = ["TEACHERS", "FailedGate", "Kind", "Recipe", "Stage", "make"]
