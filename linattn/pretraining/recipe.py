"""Define the recipe of a small teacher, and measure the time that its training takes."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linattn import project


@dataclass(frozen=True)
class Stage:
    """One stretch of training on pictures of `side` px.

    The learning rate falls linearly from `rate` to `final`.
    """

    side: int  # of the pictures, in px
    steps: int  # of the training
    rate: float  # the learning rate at the start
    final: float  # the learning rate at the end
    batch: int = 64  # pictures in one step

    def rate_at(self, step: int, warmup: int) -> float:
        falling = self.rate + (self.final - self.rate) * step / self.steps
        return falling * min(1.0, (step + 1) / warmup)


@dataclass(frozen=True)
class Recipe:
    """Say how a small teacher is built and trained, and what its pictures must pass."""

    stages: tuple[Stage, ...]  # one after the other, at growing sides
    kind: str = "dit"  # of the backbone: dit, sd or flux
    pictures: int = 32768  # how many pictures of the world it learns from
    width: int | tuple[int, ...] = 128  # of a UNet one for each level
    layers: int = 6  # blocks of the model; of a UNet, of each level
    heads: int | tuple[int, ...] = 4  # of a UNet one for each level
    text: tuple[int, int, int] | None = None  # width, layers and heads of the text encoder
    muon: float = 4.0  # times the rate: a hidden matrix tolerates larger steps than AdamW's
    warmup: int = 100  # steps in which the learning rate rises
    ema: float = 0.998  # decay of the average that is kept
    label_drop: float = 0.1  # share of prompts that are replaced by none
    clip: float = 1.0  # largest gradient norm
    seed: int = 0  # of the weights, the batches and their noise
    # settings of its training, or "of": the teacher whose autoencoder is taken
    autoencoder: dict[str, Any] = field(default_factory=dict)
    # least marks, and the pictures and the seed that they are measured on
    gate: dict[str, Any] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)  # steps, guidance and side of the card

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the weights of one stage depend on, beside the stages themselves."""
        others = ("stages", "autoencoder", "gate", "sampler")
        return {key: value for key, value in vars(self).items() if key not in others}

    @property
    def transformer(self) -> tuple[int, int]:
        """Width and heads of a transformer."""
        if isinstance(self.width, tuple) or isinstance(self.heads, tuple):
            raise ValueError(
                f"width is {self.width} and heads are {self.heads}; a transformer has one of each"
            )
        return self.width, self.heads

    @property
    def levels(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Widths and heads of a UNet's levels."""
        if not isinstance(self.width, tuple) or not isinstance(self.heads, tuple):
            raise ValueError(
                f"width is {self.width} and heads are {self.heads}; a UNet has one for each level"
            )
        return self.width, self.heads

    @property
    def encoder(self) -> tuple[int, int, int]:
        """Width, layers and heads of the text encoder."""
        if self.text is None:
            raise ValueError("text is None; a captioned teacher needs a text encoder's shape")
        return self.text


class Stopwatch:
    """Sum the seconds of each phase, over all runs that were killed and went on."""

    def __init__(self, path: Path):
        self.path, self.began = path, time.monotonic()

    def read(self) -> dict[str, float]:
        """Return the seconds by phase."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def lap(self, phase: str) -> float:
        """Add the seconds since the last lap to a phase, and return them."""
        seconds, self.began = time.monotonic() - self.began, time.monotonic()
        spent = self.read()
        spent[phase] = round(spent.get(phase, 0.0) + seconds, 1)
        project.write_json(self.path, spent)
        return seconds
