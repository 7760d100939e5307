"""Time attentions and parts on this device, and measure what they need beside their inputs.

Repeats are interleaved, and a time is their median: `evaluation.costs` says why.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psutil  # pyrefly: ignore[untyped-import]
import torch
from torch import Tensor

from linattn.advise.parts import Dice, Part, running
from linattn.advise.paths import Call, Path, call_of, tensors
from linattn.advise.sizes import Layers, Size
from linattn.evaluation.costs import interleaved, seconds_of
from linattn.evaluation.memory import peak_memory

UNTIMED = 4  # calls beside the repeats: two that say how long it takes, a warm-up, the memory
LEAST = 3  # calls of what is too long to be repeated: one that may compile, the time, the memory


@dataclass(frozen=True)
class Cost:
    """Hold what a measurement gave."""

    seconds: float  # of one step
    call: float  # of running every different call once
    bytes: int = 0  # of the call that needs most, beside its inputs
    backend: str = ""  # which path of the kernels ran


Outcome = Cost | str  # a string says why nothing was measured


class Timer(Protocol):
    """What `advise` measures with; tests bring one that computes."""

    def attention(self, size: Size, paths: Sequence[Path], backward: bool) -> dict[str, Outcome]:
        """Return what all layers' attention costs by each path, or why it cannot run."""
        ...

    def outside(self, size: Size, backward: bool) -> Outcome:
        """Return what the model costs outside its attention."""
        ...

    def free(self) -> int:
        """Return the bytes that a call may take."""
        ...


@dataclass(frozen=True)
class Stopwatch:
    """Measure on a device, with about `limit` seconds for each point."""

    device: str
    dtype: torch.dtype
    repeats: int
    limit: float
    seed: int

    def attention(self, size: Size, paths: Sequence[Path], backward: bool) -> dict[str, Outcome]:
        totals: dict[str, Outcome] = {}
        largest = max(size.layers, key=_numbers)  # its calls need the most memory
        for layers in size.layers:
            wanted = [path for path in paths if not isinstance(totals.get(path.name), str)]
            limit = self.limit / len(size.layers)
            costs = self._layer(layers, wanted, backward, limit, layers is largest)
            for name, cost in costs.items():
                totals[name] = _sum(totals.get(name), cost, layers.count)
        return totals

    def _layer(
        self, layers: Layers, paths: Sequence[Path], backward: bool, limit: float, memory: bool
    ) -> dict[str, Outcome]:
        """Measure one call of each path on the tensors of one layer."""
        drawn = tensors(layers, self.device, self.dtype, self.seed)
        calls: dict[str, Call] = {}
        outcomes: dict[str, Outcome] = {}
        for path in paths:
            try:
                calls[path.name] = call_of(path, layers, drawn, self.seed)
            except (RuntimeError, ValueError) as error:
                outcomes[path.name] = _first_line(error)
        runs = {name: _run(call, backward) for name, call in calls.items()}
        for name, outcome in self.timed(runs, limit, memory).items():
            if isinstance(outcome, Cost):
                outcome = Cost(outcome.seconds, outcome.call, outcome.bytes, calls[name].backend)
            outcomes[name] = outcome
        return outcomes

    def outside(self, size: Size, backward: bool) -> Outcome:
        dice, times = Dice(self.device, self.seed), []
        counts: dict[Any, int] = {}
        firsts: dict[Any, Part] = {}
        for part in size.parts:
            counts[part.signature] = counts.get(part.signature, 0) + 1
            firsts.setdefault(part.signature, part)
        for signature, part in firsts.items():
            with running(part, dice, backward) as run:
                outcome = self.timed({"part": run}, self.limit / len(firsts))["part"]
            if isinstance(outcome, str):
                return outcome
            times.append((outcome, counts[signature]))
        seconds = sum(cost.seconds * count for cost, count in times)
        return Cost(seconds, sum(cost.call for cost, _ in times))

    def timed(
        self, runs: Mapping[str, Callable[[], Any]], limit: float, memory: bool = False
    ) -> dict[str, Outcome]:
        """Time the calls in turns; one that would take longer than the limit is timed once."""
        outcomes: dict[str, Outcome] = {}
        seconds: dict[str, list[float]] = {}
        for name, run in runs.items():
            try:
                seconds[name] = [seconds_of(run, self.device)]
            except (RuntimeError, ValueError, AssertionError) as error:
                outcomes[name] = _first_line(error)
        most = limit / (self.repeats + UNTIMED)
        for name, times in seconds.items():
            if times[0] > most:  # the first call compiles its kernels
                seconds[name] = [seconds_of(runs[name], self.device)]
        fast = {name: runs[name] for name, times in seconds.items() if times[0] <= most}
        if fast:
            seconds |= interleaved(fast, self.repeats, device=self.device)
        for name, times in seconds.items():
            peak = peak_memory(runs[name], self.device, warm=True) if memory else 0
            median = statistics.median(times)
            outcomes[name] = Cost(median, median, peak)
        return outcomes

    def free(self) -> int:
        if torch.device(self.device).type == "cuda":
            # what the allocator holds and nobody uses is free as well
            unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
            return torch.cuda.mem_get_info(self.device)[0] + unused
        return psutil.virtual_memory().available


def _numbers(layers: Layers) -> int:
    """Count the numbers of one of q, k, v."""
    return layers.grid.tokens * layers.shape.channels


def _run(call: Call, backward: bool) -> Callable[[], Any]:
    """Return a call of the forward alone, or of forward and backward."""
    if not backward:
        return torch.no_grad()(call.run)
    leaves = [tensor.requires_grad_() for tensor in call.leaves]

    @torch.enable_grad()  # memory is measured without gradients by default
    def both() -> Any:
        out: Tensor = call.run()
        return torch.autograd.grad(out, leaves, torch.ones_like(out), allow_unused=True)

    return both


def _sum(total: Outcome | None, cost: Outcome, count: int) -> Outcome:
    """Add `count` layers of one shape to what the layers before cost."""
    if isinstance(cost, str):
        return cost
    if not isinstance(total, Cost):
        return Cost(cost.seconds * count, cost.call, cost.bytes, cost.backend)
    return Cost(
        total.seconds + cost.seconds * count,
        total.call + cost.call,
        max(total.bytes, cost.bytes),
        cost.backend,
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
