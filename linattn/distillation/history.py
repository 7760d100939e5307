"""Collect the curve of a training, and show how it goes on."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tqdm.auto import tqdm

from linattn import project


class History:
    """Collect the means of every `every` steps; the main process prints them or shows a bar."""

    def __init__(self, every: int, shown: bool = True):
        self.every, self.shown = every, shown
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0  # of training, summed over all runs if some were killed
        self.samples = 0
        self.sums: dict[str, float] = {}
        self.bar: Any = None

    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint must hold."""
        names = ("rows", "seconds", "samples", "sums")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        for name, value in state.items():
            setattr(self, name, value)

    def begin(self, stage: str, steps: int, batch: int) -> None:
        """Begin a stage of so many steps, each of a batch of pictures."""
        self.stage, self.steps, self.batch = stage, steps, batch
        self.sums, self.bar = {}, None

    @contextlib.contextmanager
    def running(self, start: int) -> Iterator[None]:
        """Measure the time of the steps from step `start` on, and show the bar meanwhile."""
        self.clock = time.monotonic()
        if self.shown and in_notebook():
            self.bar = tqdm(total=self.steps, initial=start, desc=self.stage, unit="step")
        try:
            yield
        finally:
            if self.bar is not None:
                self.bar.close()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of one step, and close a row where one is due."""
        now = time.monotonic()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        self.samples += self.batch
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.sums["steps"] = self.sums.get("steps", 0) + 1
        if self.bar is not None:
            self.bar.update()
        if (step + 1) % self.every == 0 or step + 1 == self.steps:
            self._close_row(step + 1)

    def _close_row(self, step: int) -> None:
        count = self.sums.pop("steps")
        means = {name: value / count for name, value in self.sums.items()}
        self.sums = {}
        seconds = round(self.seconds, 3)
        self.rows.append({"stage": self.stage, "step": step, "seconds": seconds, **means})
        if self.bar is not None:
            self.bar.set_postfix({name: f"{value:.4g}" for name, value in means.items()})
        elif self.shown:
            self._print(step, means)

    def _print(self, step: int, means: Mapping[str, float]) -> None:
        speed = self.samples / max(self.seconds, 1e-9)
        remaining = (self.steps - step) * self.batch / speed
        losses = " ".join(f"{name} {value:.4g}" for name, value in means.items())
        print(
            f"{self.stage} {step}/{self.steps} {losses} "
            f"| {speed:.1f} samples/s, {remaining:.0f} s left",
            flush=True,
        )


def in_notebook() -> bool:
    """Say whether this is a notebook that somebody watches.

    A pipeline's kernel is not one: its output goes to a log, where progress bars are noise.
    """
    return "ipykernel" in sys.modules and not project.in_pipeline()
