"""Measure what is affordable, estimate what is not, and put both into one advice."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from linattn import families, project
from linattn.advise import backbone as backbones, paths, sizes
from linattn.advise.advice import BACKWARD, FORWARD, Advice, Outside, Point
from linattn.advise.paths import Path
from linattn.advise.sizes import Size
from linattn.advise.stopwatch import LEAST, Cost, Outcome, Stopwatch, Timer
from linattn.evaluation import costs
from linattn.evaluation.growth import predict

GB = 1e9
MOST_REPEATS = 10_000
SMALLER = "a smaller side was skipped"


def advise(
    model: Any,
    sides: Sequence[int],
    *,
    operators: Sequence[str] | None = None,
    backward: bool = False,
    seconds: float = 20.0,
    repeats: int = 3,
    text: int | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    timer: Timer | None = None,
    progress: Callable[[str], None] | None = None,
) -> Advice:
    """Measure every attention on a model's own shapes, and return what a step costs with each.

    Args:
        model: the name of a known shape, a pipeline's or model's folder, a hub id, or a loaded
            model or pipeline. Only its config is read.
        sides: sides of square pictures, in pixels.
        operators: labels of params.yaml's `operators.benchmark`, or registered names; None takes
            all.
        backward: whether forward and backward are measured too.
        seconds: what a point may take; a longer one is extrapolated and marked.
        repeats: how often a call is timed; the median counts.
        text: tokens of text; None takes the longest that the model's pipeline encodes.
        device: where it runs; None takes a GPU where there is one.
        dtype: of weights and tensors; None takes bfloat16 on a GPU and float32 elsewhere.
        seed: of all random tensors.
        timer: what measures instead of this device; tests bring one.
        progress: is called with a sentence before every side.
    """
    _check(seconds, repeats)
    device = device or project.device()
    project.require_device(device)
    dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
    chosen = paths.operators(operators)
    subject = backbones.find(model, text)
    wanted = sizes.checked(subject, sides)
    nn.Module.to(subject.model, dtype)  # diffusers' own warns of weights that it would not cast
    sizes.prepare(subject)
    measured = [sizes.measure(subject, side) for side in sizes.ladder(subject, wanted)]
    timer = timer or Stopwatch(device, dtype, repeats, seconds, seed)
    head_dims = sorted({layers.shape.head_dim for layers in measured[0].layers})
    outside: list[Outside] = []
    points: list[Point] = []
    missing: dict[str, str] = {}
    for mode in (FORWARD, BACKWARD) if backward else (FORWARD,):
        softmax, lacking = _softmax(head_dims, device, dtype, mode)
        missing |= lacking
        run = Run(timer, seconds, mode, measured, (*softmax, *chosen), progress)
        run.measure()
        outside += run.outside
        points += run.points
    shown = set(wanted)
    return Advice(
        model=subject.title,
        device=_device_name(device),
        dtype=str(dtype).removeprefix("torch."),
        sides=tuple(wanted),
        layers=len(families.layers(subject.model)),
        outside=tuple(entry for entry in outside if entry.side in shown),
        points=tuple(point for point in points if point.side in shown),
        missing=missing,
        facts=project.facts(),
    )


def _check(seconds: float, repeats: int) -> None:
    if not seconds > 0:
        raise ValueError(f"{seconds:g} seconds for a point; it needs more than 0")
    if not 1 <= repeats <= MOST_REPEATS:
        raise ValueError(f"{repeats} repeats; a median is taken of 1 to {MOST_REPEATS}")


def _device_name(device: str) -> str:
    name = costs.facts(device=device)["device"]
    return project.facts()["hardware"]["cpu"] if name == "cpu" else name


def _softmax(
    head_dims: Sequence[int], device: str, dtype: torch.dtype, mode: str
) -> tuple[list[Path], dict[str, str]]:
    """Return the implementations of softmax that run here, and why the others do not."""
    reasons = {
        name: paths.absent(name, head_dims, device, dtype, mode == BACKWARD)
        for name in paths.SOFTMAX
    }
    present = [Path(name) for name, reason in reasons.items() if not reason]
    return present, {name: reason for name, reason in reasons.items() if reason}


class Run:
    """Go up the sides in one mode: measure a point, or estimate it from those below."""

    def __init__(
        self,
        timer: Timer,
        limit: float,
        mode: str,
        ladder: Sequence[Size],
        chosen: Sequence[Path],
        progress: Callable[[str], None] | None,
    ):
        self.timer, self.limit, self.mode = timer, limit, mode
        self.ladder, self.chosen, self.progress = ladder, chosen, progress
        self.outside: list[Outside] = []
        self.points: list[Point] = []
        self.pass_seconds = 0.0  # of each different part once, where they ran last
        self.pass_macs = 0

    def measure(self) -> None:
        for size in self.ladder:
            if self.progress is not None:
                self.progress(f"{size.side} px, {self.mode}")
            outside = self._outside(size)
            self.outside.append(outside)
            self.points += [self._with_step(point, outside) for point in self._attention(size)]

    # Outside the attention

    def _outside(self, size: Size) -> Outside:
        """Time the parts, or take the rate at which they multiplied at a smaller side."""
        outcome: Outcome = "too long"
        if not self.outside or self._pass(size) * (LEAST - 1) <= self.limit:
            outcome = self.timer.outside(size, self.mode == BACKWARD)
        if isinstance(outcome, Cost):
            self.pass_seconds, self.pass_macs = outcome.call, size.macs
            return Outside(self.mode, size.side, size.macs, outcome.seconds, False)
        if not self.outside:
            raise ValueError(f"a side of {size.side} px outside the attention: {outcome}")
        last = self.outside[-1]
        return Outside(self.mode, size.side, size.macs, last.seconds * size.macs / last.macs, True)

    def _pass(self, size: Size) -> float:
        """Predict the seconds of running every different part once."""
        return self.pass_seconds * size.macs / self.pass_macs

    # The attention

    def _attention(self, size: Size) -> list[Point]:
        points = {path.name: self._unrun(path, size) for path in self.chosen}
        affordable = [path for path in self.chosen if points[path.name] is None]
        outcomes = self.timer.attention(size, affordable, self.mode == BACKWARD)
        for path in affordable:
            points[path.name] = self._run(path, size, outcomes[path.name])
        return [point for point in points.values() if point is not None]

    def _history(self, path: Path) -> list[Point]:
        return [point for point in self.points if point.path == path.name]

    def _expected(self, path: Path, size: Size, field: str) -> float:
        """Predict a number of a path by its growth, 0 where nothing is known yet.

        After a single size nothing has grown yet, and the products of the formula say how it will.
        """
        history = self._history(path)
        values = [max(getattr(point, field), 1e-9) for point in history]
        if len(history) == 1:
            return values[0] * paths.macs(path, size) / paths.macs(path, self.ladder[0])
        pairs = zip(history, values, strict=True)
        return predict([{"tokens": p.tokens, "seconds": value} for p, value in pairs], size.tokens)

    def _unrun(self, path: Path, size: Size) -> Point | None:
        """Return the point of a path that is not run at this size, or None where it is."""
        history = self._history(path)
        if history and history[-1].skipped:
            return self._point(path, size, skipped=SMALLER)
        needed, free = self._expected(path, size, "bytes"), self.timer.free()
        if needed > free:
            reason = f"by its growth it needs {needed / GB:.3g} GB, and {free / GB:.3g} GB are free"
            return self._point(path, size, skipped=reason)
        call = self._expected(path, size, "call")
        if call * LEAST <= self.limit:
            return None
        seconds = self._expected(path, size, "seconds")
        cost = Cost(seconds, call, round(needed), history[-1].backend)
        return self._point(path, size, cost=cost, estimated=True)

    def _run(self, path: Path, size: Size, outcome: Outcome) -> Point:
        """Return the point of a path that was run."""
        if isinstance(outcome, str):
            return self._point(path, size, skipped=outcome)
        return self._point(path, size, cost=outcome)

    def _point(
        self,
        path: Path,
        size: Size,
        *,
        cost: Cost | None = None,
        estimated: bool = False,
        skipped: str = "",
    ) -> Point:
        return Point(
            mode=self.mode,
            path=path.name,
            operator=path.operator,
            side=size.side,
            tokens=size.tokens,
            seconds=None if cost is None else cost.seconds,
            step=None,
            call=None if cost is None else cost.call,
            bytes=None if cost is None else cost.bytes,
            estimated=estimated,
            backend="" if cost is None else cost.backend,
            skipped=skipped,
        )

    def _with_step(self, point: Point, outside: Outside) -> Point:
        """Add what lies outside the attention."""
        if point.seconds is None:
            return point
        return dataclasses.replace(point, step=outside.seconds + point.seconds)
