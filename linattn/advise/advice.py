"""What is known of a model on a device, with every number measured, estimated or said to lack."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORWARD, BACKWARD = "forward", "forward and backward"


@dataclass(frozen=True)
class Outside:
    """Say what the model costs outside its attention, at one side."""

    mode: str  # "forward", or "forward and backward"
    side: int  # pixels
    macs: int  # multiply-accumulates of one forward
    seconds: float  # of one step
    estimated: bool  # by the rate of a smaller side, since it was not run


@dataclass(frozen=True)
class Point:
    """Say what all layers' attention costs by one path at one side."""

    mode: str  # "forward", or "forward and backward"
    path: str  # softmax's implementation, or the operator's label
    operator: str  # the operator's registered name; empty for softmax
    side: int  # pixels
    tokens: int  # of the largest grid, text included
    seconds: float | None  # of all layers' attention in one step; None where it cannot run
    step: float | None  # of the whole step
    call: float | None  # of running every different call once
    bytes: int | None  # of the largest call, beside its inputs
    estimated: bool  # extrapolated from the two sizes before by their growth, since it was not run
    backend: str = ""  # which path of the kernels ran, where there are kernels
    skipped: str = ""  # why there is no time

    @property
    def is_softmax(self) -> bool:
        return not self.operator


@dataclass(frozen=True)
class Advice:
    """Hold what each path costs a model on this device, by side."""

    model: str  # as a table calls it
    device: str  # its name
    dtype: str  # of weights and tensors
    sides: tuple[int, ...]  # pixels, ascending
    layers: int  # self-attentions of the model
    outside: tuple[Outside, ...]  # one for each mode and side
    points: tuple[Point, ...]  # one for each mode, side and path
    missing: Mapping[str, str]  # softmax's implementations that do not run here, with the reason
    facts: Mapping[str, Any]  # the machine and the versions

    @property
    def modes(self) -> tuple[str, ...]:
        """Return the modes that were measured, forward first."""
        return tuple(dict.fromkeys(outside.mode for outside in self.outside))

    def at(self, mode: str, side: int) -> list[Point]:
        """Return the points of one side, in the order of the paths."""
        return [point for point in self.points if (point.mode, point.side) == (mode, side)]

    def outside_at(self, mode: str, side: int) -> Outside:
        """Return what lies outside the attention at one side."""
        matching = (entry for entry in self.outside if (entry.mode, entry.side) == (mode, side))
        return next(matching)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, from which `from_json` makes the same advice."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Advice":
        """Return the advice of a file that `--json` wrote.

        Args:
            content: what the file holds; keys that are no fields are left out.
        """
        fields = {field.name: content[field.name] for field in dataclasses.fields(cls)}
        fields["sides"] = tuple(fields["sides"])
        fields["outside"] = tuple(Outside(**entry) for entry in fields["outside"])
        fields["points"] = tuple(Point(**entry) for entry in fields["points"])
        return cls(**fields)
