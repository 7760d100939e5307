"""What a model costs: multiply-accumulates, parameters, memory, seconds.

- MACs twice: by formula (what the papers count) and by torch's flop counter (what a fast path really multiplies,
  tiles and masked entries included). Softmax, norms, activations and other element-wise work are in neither.
- Memory is the peak of what PyTorch's allocator hands out during one call, above what was there before: inputs and
  weights are not in it, every temporary of a kernel that asks the allocator is, scratch inside a BLAS library is not.
  It does not depend on what the process did before, as the resident set does.
- Time is never a number alone: `scaled_dot_product_attention` runs in the same loop, repeats interleaved, medians.
- Sizes stop growing for an operator once the last one predicts more than `limit` seconds; its row says so.
"""

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from linattn import attention, families
from linattn.attention.base import LayerShape
from linattn.attention.grid import Grid
from linattn.evaluation.growth import Row, exponent, exponents, predict  # noqa: F401 (costs.exponents is typed)
from linattn.sampling import evaluating
from linattn_kernels import flops, use_backend  # noqa: F401 (flops tells torch's counter what the operations multiply)

BASELINE = "scaled_dot_product_attention"
WITH_INPUTS = " + inputs"  # the end of a label whose time includes what comes before the projections


def facts(dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> dict[str, Any]:
    """What a time must not be read without."""
    kind = torch.device(device).type
    return {
        "device": torch.cuda.get_device_name(device) if kind == "cuda" else kind,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


# Multiply-accumulates ------------------------------------------------------------------------------------------------


@torch.no_grad()
def macs(
    model: nn.Module, side: int | None = None, noise: float = 0.5, inputs: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """By formula, of one picture with latents side x side: self-attention cores, their projections, and the rest.

    `inputs` are arguments of the forward that know better: a text as long as it really is.

    The core is the operator's own `macs`, or 2 N^2 channels where the layer is dense. Linear layers and convolutions
    and cross-attention are counted as one forward meets them (on the meta device too), so nothing is assumed about a
    block.
    """
    model = families.model_of(model)
    inputs = inputs or example(model, side, noise=noise)
    layers = families.layers(model)
    inside = {id(module) for layer in layers for module in layer.attn.modules()}
    added = {id(module) for layer in layers if layer.operator is not None for module in layer.operator.modules()}
    counts = {"projections": 0, "rest": 0}

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        counts["projections" if id(module) in inside else "rest"] += output.numel() * _products(module)

    def count_scores(attn: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        x, text = args[0] if args else kwargs["hidden_states"], kwargs["encoder_hidden_states"]
        counts["rest"] += 2 * x.shape[0] * x.shape[1] * text.shape[1] * attn.inner_dim

    counted = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and id(m) not in added]
    cross = [m for m in families.attentions(model) if id(m) not in inside]
    hooks = [module.register_forward_hook(count) for module in counted]
    hooks += [module.register_forward_hook(count_scores, with_kwargs=True) for module in cross]
    try:
        with evaluating(model):
            grids = families.grids(model, **inputs)
    finally:
        for hook in hooks:
            hook.remove()
    core = sum(_core(layer, grid, noise) for layer, grid in zip(layers, grids, strict=True))
    return {"core": core, **counts, "total": core + sum(counts.values()), "tokens": max(grid.tokens for grid in grids)}


def _products(module: nn.Module) -> int:
    """Multiplications for one number of the output."""
    if isinstance(module, nn.Linear):
        return module.in_features
    return module.in_channels // module.groups * math.prod(module.kernel_size)


def _core(layer: Any, grid: Grid, noise: float) -> int:
    if layer.operator is None:
        return 2 * grid.tokens**2 * layer.shape.channels
    return layer.operator.macs(grid, noise)


@torch.no_grad()
def counted_macs(
    model: nn.Module, side: int | None = None, noise: float = 0.5, inputs: Mapping[str, Any] | None = None
) -> int:
    """By torch's flop counter, of the same forward. Fused attention would count as nothing: it is taken apart here.

    Of PyTorch's paths, whose tiles are the same on every machine.
    """
    model = families.model_of(model)
    inputs = inputs or example(model, side, noise=noise)
    with use_backend("torch"):
        return count_macs(lambda: model(**inputs), model)


def count_macs(call: Callable[[], Any], model: nn.Module | None = None) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), evaluating(nn.Identity() if model is None else model), counter:
        call()
    return counter.get_total_flops() // 2


def example(model: nn.Module, side: int | None = None, batch: int = 1, noise: float = 0.5) -> dict[str, Any]:
    """Arguments for a forward of `batch` pictures at one noise level, on the model's device and in its dtype."""
    return families.family(model).example(model, side, batch, noise)


# Parameters ----------------------------------------------------------------------------------------------------------


def parameters(model: nn.Module, trained: Iterable[str] | None = None) -> dict[str, int]:
    """Total, added by the operators, and trained: those named, else those that require a gradient."""
    model = families.model_of(model)
    every = dict(model.named_parameters())
    if trained is None:
        names = {name for name, parameter in every.items() if parameter.requires_grad}
    else:
        names = set(trained)
        if unknown := sorted(names - every.keys()):
            raise ValueError(f"{unknown[0]!r} is no parameter of {type(model).__name__} ({len(unknown)} unknown names)")
    return {
        "total": sum(parameter.numel() for parameter in every.values()),
        "added": sum(_added(layer.operator) for layer in families.layers(model) if layer.operator is not None),
        "trained": sum(every[name].numel() for name in names),
    }


def _added(operator: nn.Module) -> int:
    own = dict(operator.named_parameters())
    return sum(own[name].numel() for name in operator.new_parameters())


# Memory --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def peak_memory(call: Callable[[], Any], device: str | torch.device = "cpu", warm: bool = False) -> int:
    """Bytes handed out at the worst moment of the second call, above those held when it began.

    The first call fills caches; it is left out where they are `warm`. On the CPU the allocator's events are recorded by
    torch.profiler and summed in their order; on a GPU the allocator keeps the peak itself.
    """
    if not warm:
        call()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """Kineto announces itself on the file descriptor of stderr, whatever its log level."""
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except (OSError, AttributeError):
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(sink)
        os.close(kept)


def forward_memory(
    model: nn.Module,
    side: int | None = None,
    batch: int = 1,
    noise: float = 0.5,
    inputs: Mapping[str, Any] | None = None,
) -> int:
    """Peak bytes of one forward without gradients."""
    model = families.model_of(model)
    inputs = inputs or example(model, side, batch, noise)
    with evaluating(model):
        return peak_memory(lambda: model(**inputs), next(model.parameters()).device)


# Time ----------------------------------------------------------------------------------------------------------------


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    repeats: int = 5,
    limit: float = math.inf,
    device: str | torch.device = "cpu",
) -> dict[str, list[float]]:
    """Seconds of every repeat of every call, in turns, so that a busy minute hits all alike.

    One warm-up each is thrown away, unless it took longer than `limit` seconds: then it is the one measurement.
    """
    if repeats < 1:
        raise ValueError(f"{repeats} repeats; a median needs at least 1")
    first = {name: seconds_of(call, device) for name, call in calls.items()}
    slow = {name for name, seconds in first.items() if seconds > limit}
    found: dict[str, list[float]] = {name: [first[name]] if name in slow else [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            if name not in slow:
                found[name].append(seconds_of(call, device))
    return found


def seconds_of(call: Callable[[], Any], device: str | torch.device) -> float:
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


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
    """`mix` alone, one picture, forward, against `scaled_dot_product_attention` on the same q, k, v in the same loop.

    `operators`: label -> (operator's name, options). One that computes something before its projections (LinFusion's
    MLPs) has a second label, `with_inputs`, where that is timed as well. A row is {operator, tokens, grid, seconds,
    fastest, slowest, repeats, ratio, baseline, baseline_seconds, bytes, backend} and the facts; ratio: how many times
    faster than the baseline; backend: the kernels' path. A row that was not measured has seconds None and `skipped`,
    the reason.
    """
    rows: list[Row] = []
    shared = facts(dtype, device)
    cases = with_inputs(operators)
    for count in sorted(set(tokens)):
        grid = Grid(*sides(count))
        shared_row = {"tokens": count, "grid": [grid.height, grid.width], "baseline": BASELINE, **shared}
        given = _tensors(grid, heads, head_dim, device, dtype)
        calls, skipped = {}, {}
        for label in (BASELINE, *cases):
            predicted = predict([row for row in rows if row["operator"] == label], count)
            if predicted > limit:
                skipped[label] = _why_skipped(predicted, limit)
            else:
                calls[label] = _call(label, cases, grid, given, noise)
        found = interleaved(calls, repeats, limit, device)
        dense = statistics.median(found[BASELINE]) if BASELINE in found else None
        for label in (BASELINE, *cases):
            if label in skipped:
                measured = {"seconds": None, "ratio": None, "skipped": skipped[label]}
            else:
                measured = timed(found[label], dense)
                fits = memory and found[label][0] <= limit
                measured["bytes"] = peak_memory(calls[label], device, warm=True) if fits else None
            taken = (
                {} if label == BASELINE else {"backend": _made(label, cases, given).runs(given[0].device, dtype).path}
            )
            rows.append({"operator": label, **shared_row, "baseline_seconds": dense, **taken, **measured})
            if progress is not None:
                progress(rows[-1])
    return rows


def _why_skipped(predicted: float, limit: float) -> str:
    if math.isinf(predicted):
        return "a smaller size was skipped already"
    return f"the last size predicts {predicted:.3g} s, more than the limit of {limit:g} s"


def sides(count: int) -> tuple[int, int]:
    """The rows and columns nearest a square that make exactly `count` tokens; a prime is one row."""
    if count < 1:
        raise ValueError(f"{count} tokens; a picture has at least 1")
    height = next(rows for rows in range(math.isqrt(count), 0, -1) if count % rows == 0)
    return height, count // height


def _tensors(grid: Grid, heads: int, head_dim: int, device: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """q, k, v (1, tokens, heads, head_dim) and the layer's input x (1, tokens, width)."""
    draw = torch.Generator().manual_seed(0)
    shape = (1, grid.tokens, heads, head_dim)
    q, k, v = (torch.randn(shape, generator=draw).to(device, dtype) for _ in range(3))
    return q, k, v, torch.randn(1, grid.tokens, heads * head_dim, generator=draw).to(device, dtype)


def with_inputs(operators: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Add an entry '<label> + inputs' for operators that transform x before projecting, so that it is timed too."""
    found, grid, x = {}, Grid(1, 1), torch.zeros(1, 1, 8)
    for label, (name, options) in operators.items():
        found[label] = (name, options)
        seen = attention.create(name, LayerShape(8, 1, 8), **options).inputs(x, grid)
        if any(each is not x for each in seen):
            found[label + WITH_INPUTS] = (name, options)
    return found


def _call(
    label: str,
    operators: Mapping[str, tuple[str, Mapping[str, Any]]],
    grid: Grid,
    given: tuple[Tensor, ...],
    noise: float | None,
) -> Callable[[], Tensor]:
    q, k, v, x = given
    if label == BASELINE:
        dense = [each.transpose(1, 2) for each in (q, k, v)]  # (1, heads, tokens, head_dim)
        return lambda: F.scaled_dot_product_attention(*dense)
    operator = _made(label, operators, given)
    level = None if noise is None else q.new_full((1,), noise)
    if label.endswith(WITH_INPUTS):
        return lambda: (operator.inputs(x, grid), operator.mix(q, k, v, grid, x=x, noise=level))[1]
    return lambda: operator.mix(q, k, v, grid, x=x, noise=level)


def _made(
    label: str, operators: Mapping[str, tuple[str, Mapping[str, Any]]], given: tuple[Tensor, ...]
) -> attention.Operator:
    name, options = operators[label]
    heads, head_dim = given[0].shape[2:]
    operator = attention.create(name, LayerShape(heads * head_dim, heads, head_dim), **options)
    return operator.to(given[0].device, given[0].dtype).eval()


def timed(seconds: Sequence[float], dense: float | None) -> Row:
    median = statistics.median(seconds)
    return {
        "seconds": median,
        "fastest": min(seconds),
        "slowest": max(seconds),
        "repeats": len(seconds),
        "ratio": None if dense is None else dense / median,
    }
