"""What a small teacher is trained by, and the time that takes."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linattn import project


@dataclass(frozen=True)
class Stage:
    """One stretch of training: pictures of `side` px, the learning rate falling linearly from
    `rate` to `final`.
    """

    side: int
    steps: int
    rate: float
    final: float
    batch: int = 64

    def rate_at(self, step: int, warmup: int) -> float:
        falling = self.rate + (self.final - self.rate) * step / self.steps
        return falling * min(1.0, (step + 1) / warmup)


@dataclass(frozen=True)
class Recipe:
    stages: tuple[Stage, ...]
    kind: str = "dit"
    pictures: int = 32768
    width: int | tuple[int, ...] = 128  # of a UNet one for each level
    layers: int = 6
    heads: int | tuple[int, ...] = 4
    text: tuple[int, int, int] | None = None  # width, layers and heads of the text encoder
    muon: float = 4.0  # times the rate: a hidden matrix takes larger steps than AdamW would dare
    warmup: int = 100
    ema: float = 0.998
    label_drop: float = 0.1
    clip: float = 1.0
    seed: int = 0
    autoencoder: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, float] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """What the weights of one stage depend on, beside the stages themselves."""
        apart = ("stages", "autoencoder", "gate", "sampler")
        return {key: value for key, value in vars(self).items() if key not in apart}


class Stopwatch:
    """Seconds spent a part, over every run that was killed and went on."""

    def __init__(self, path: Path):
        self.path, self.began = path, time.monotonic()

    def read(self) -> dict[str, float]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def lap(self, part: str) -> float:
        seconds, self.began = time.monotonic() - self.began, time.monotonic()
        spent = self.read()
        project.write_json(self.path, spent | {part: round(spent.get(part, 0.0) + seconds, 1)})
        return seconds
