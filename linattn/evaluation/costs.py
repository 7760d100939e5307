"""Measure what a model costs: multiply-accumulates, parameters, memory and seconds.

- macs.py counts and memory.py measures memory; their names are here too. This file times.
- Every time stands beside that of `scaled_dot_product_attention`, which runs in the same loop.
  Repeats are interleaved, and the time is their median.
- An operator is timed at no larger size once its last size predicts more than `limit` seconds; its
  row then says so.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn import attention, project
from linattn.attention.base import LayerShape
from linattn.attention.grid import Grid
from linattn.evaluation.growth import Row, exponents, predict
from linattn.evaluation.macs import count_macs, counted_macs, example, macs, parameters
from linattn.evaluation.memory import forward_memory, peak_memory
from linattn.names import short
from linattn.reader import between, checked, typed

__all__ = [
    "BASELINE",
    "WITH_INPUTS",
    "count_macs",
    "counted_macs",
    "example",
    "exponents",
    "facts",
    "forward_memory",
    "interleaved",
    "macs",
    "parameters",
    "peak_memory",
    "seconds_of",
    "sides",
    "time_operators",
    "timed",
    "with_inputs",
]

MOST_TOKENS = 1 << 40  # whose sides are found in a second
REPEATS = between(1, 10**6)
BASELINE = "scaled_dot_product_attention"
# suffix of a label whose time includes what the operator computes before the projections
WITH_INPUTS = " + inputs"


def facts(dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the facts without which a time means nothing."""
    device_type = torch.device(device).type
    return {
        "device": torch.cuda.get_device_name(device) if device_type == "cuda" else device_type,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


@checked(calls=typed(), repeats=REPEATS)
def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    repeats: int = 5,
    limit: float = math.inf,
    device: str | torch.device = "cpu",
) -> dict[str, list[float]]:
    """Time every repeat of every call in turns, so that a busy minute hits all calls alike.

    One warm-up of each call is thrown away, unless it took longer than `limit` seconds. Then the
    warm-up is the only measurement of its call.
    """
    _check_limit(limit)
    project.require_device(device)
    if wrong := [name for name, call in calls.items() if not callable(call)]:
        raise ValueError(f"{wrong[0]!r} is {short(calls[wrong[0]])}; pass functions to time")
    times: dict[str, list[float]] = {}
    fast = {}
    for name, call in calls.items():
        warm_up = seconds_of(call, device)
        times[name] = [warm_up] if warm_up > limit else []
        if not times[name]:
            fast[name] = call
    for _ in range(repeats):
        for name, call in fast.items():
            times[name].append(seconds_of(call, device))
    return times


def _check_limit(limit: float) -> None:
    """Refuse a limit that no time could be compared with; infinity is none."""
    number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
    if not number or not limit >= 0:
        raise ValueError(f"limit is {short(limit)}; it must be seconds from 0 on, or infinity")


def seconds_of(call: Callable[[], Any], device: str | torch.device) -> float:
    """Time one call, and wait for the GPU before and after it."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


@checked(
    operators=typed(),
    tokens=between(1),
    heads=between(1),
    head_dim=between(1),
    repeats=REPEATS,
    noise=between(0, 1),
    dtype=typed(),
)
@torch.no_grad()
def time_operators(
    operators: Mapping[str, tuple[str, Mapping[str, Any]]],
    tokens: Sequence[int] = (256, 1024, 4096, 16384),
    heads: int = 8,
    head_dim: int = 64,
    repeats: int = 5,
    *,
    limit: float = 60.0,
    memory: bool = True,
    noise: float | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Time `mix` alone against `scaled_dot_product_attention` on the same q, k, v in the same loop.

    - A call is one forward of one picture.
    - `operators` maps a label to (operator's name, options). An operator that computes something
      before its projections (LinFusion's MLPs) has a second label, see `with_inputs`, where this is
      timed as well.
    - A row is {operator, tokens, grid, seconds, fastest, slowest, repeats, ratio, baseline,
      baseline_seconds, bytes, backend} and the facts. `ratio` says how many times faster than the
      baseline; `backend` names the kernels' path.
    - A row that was not measured has seconds None, and `skipped` gives the reason.
    """
    _check_limit(limit)
    project.require_device(device)
    if not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}; attention is timed in floating-point numbers")
    for label, entry in operators.items():
        is_pair = isinstance(entry, Sequence) and len(entry) == 2 and not isinstance(entry, str)
        if not is_pair or not isinstance(entry[1], Mapping):
            raise ValueError(f"{label!r} is {short(entry)}; pass (operator's name, options)")
    timings: list[Row] = []
    cases = with_inputs(operators)
    labels = (BASELINE, *cases)
    for count in sorted(set(tokens)):
        grid = Grid(*sides(count))
        tensors = _tensors(grid, heads, head_dim, device, dtype)
        skipped = _skipped(timings, labels, count, limit)
        calls = {
            label: _call(label, cases, grid, tensors, noise)
            for label in labels
            if label not in skipped
        }
        times = interleaved(calls, repeats, limit, device)
        baseline_seconds = statistics.median(times[BASELINE]) if BASELINE in times else None
        for label in labels:
            row = {
                "operator": label,
                "tokens": count,
                "grid": [grid.height, grid.width],
                "baseline": BASELINE,
                **facts(dtype, device),
                "baseline_seconds": baseline_seconds,
            }
            if label != BASELINE:
                path = _operator(label, cases, tensors).runs(tensors[0].device, dtype).path
                row["backend"] = path
            if label in skipped:
                row |= {"seconds": None, "ratio": None, "skipped": skipped[label]}
            else:
                row |= timed(times[label], baseline_seconds)
                measured = memory and times[label][0] <= limit
                row["bytes"] = peak_memory(calls[label], device, warm=True) if measured else None
            timings.append(row)
            if progress is not None:
                progress(row)
    return timings


def _skipped(
    timings: Sequence[Row], labels: Sequence[str], count: int, limit: float
) -> dict[str, str]:
    """Return the reason for each label whose smaller sizes predict too long a call."""
    reasons = {}
    for label in labels:
        predicted = predict([row for row in timings if row["operator"] == label], count)
        if predicted > limit:
            reasons[label] = _why_skipped(predicted, limit)
    return reasons


def _why_skipped(predicted: float, limit: float) -> str:
    """Give the reason why a size is not measured."""
    if math.isinf(predicted):
        return "a smaller size was skipped already"
    return f"the last size predicts {predicted:.3g} s, more than the limit of {limit:g} s"


@checked(count=between(1, MOST_TOKENS))
def sides(count: int) -> tuple[int, int]:
    """Return the height and width nearest a square that make exactly `count` tokens.

    A prime number of tokens is one row.
    """
    height = next(height for height in range(math.isqrt(count), 0, -1) if count % height == 0)
    return height, count // height


def _tensors(
    grid: Grid, heads: int, head_dim: int, device: Any, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Draw q, k, v (1, tokens, heads, head_dim) and the layer's input x (1, tokens, width)."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, grid.tokens, heads, head_dim)
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
    x = torch.randn(1, grid.tokens, heads * head_dim, generator=generator).to(device, dtype)
    return q, k, v, x


def with_inputs(
    operators: Mapping[str, tuple[str, Mapping[str, Any]]],
) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Add a label '<label> + inputs' for operators that transform x before projecting.

    Under the second label this is timed as well.
    """
    cases, grid, x = {}, Grid(1, 1), torch.zeros(1, 1, 8)
    for label, (name, options) in operators.items():
        cases[label] = (name, options)
        projected = attention.create(name, LayerShape(8, 1, 8), **options).inputs(x, grid)
        if any(tensor is not x for tensor in projected):
            cases[label + WITH_INPUTS] = (name, options)
    return cases


def _call(
    label: str,
    operators: Mapping[str, tuple[str, Mapping[str, Any]]],
    grid: Grid,
    tensors: tuple[Tensor, ...],
    noise: float | None,
) -> Callable[[], Tensor]:
    """Return the call that is timed under a label."""
    q, k, v, x = tensors
    if label == BASELINE:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return lambda: F.scaled_dot_product_attention(q, k, v)
    operator = _operator(label, operators, tensors)
    level = None if noise is None else q.new_full((1,), noise)
    if label.endswith(WITH_INPUTS):
        return lambda: (operator.inputs(x, grid), operator.mix(q, k, v, grid, x=x, noise=level))[1]
    return lambda: operator.mix(q, k, v, grid, x=x, noise=level)


def _operator(
    label: str, operators: Mapping[str, tuple[str, Mapping[str, Any]]], tensors: tuple[Tensor, ...]
) -> attention.Operator:
    """Create the operator of a label, for the shape, device and dtype of the tensors."""
    name, options = operators[label]
    q = tensors[0]
    heads, head_dim = q.shape[2:]
    operator = attention.create(name, LayerShape(heads * head_dim, heads, head_dim), **options)
    return operator.to(q.device, q.dtype).eval()


def timed(seconds: Sequence[float], dense: float | None) -> Row:
    """Summarise the repeats of one call; `ratio` is the dense median over this median."""
    median = statistics.median(seconds)
    return {
        "seconds": median,
        "fastest": min(seconds),
        "slowest": max(seconds),
        "repeats": len(seconds),
        "ratio": None if dense is None else dense / median,
    }
