"""Measure what a model costs: multiply-accumulates, parameters, memory, seconds.

- MACs are counted twice: by formula, as the papers do, and by torch's flop counter, which sees what
  a fast path really multiplies, tiles and masked entries included. Neither count holds softmax,
  norms, activations or other element-wise work.
- Memory is the peak that PyTorch's allocator hands out during one call, above what was allocated
  before. It holds every temporary that a kernel takes from the allocator. It does not hold inputs,
  weights, or scratch inside a BLAS library. Unlike the resident set, it does not depend on what the
  process did before.
- Every time stands beside that of `scaled_dot_product_attention`, which runs in the same loop.
  Repeats are interleaved, and the time is their median.
- An operator is timed at no larger size once its last size predicts more than `limit` seconds; its
  row then says so.
"""

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

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
from linattn.families import Layer
from linattn.sampling import evaluating
from linattn_kernels import flops, use_backend  # noqa: F401 (flops registers the operations with torch's flop counter)

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


# Multiply-accumulates
# ---------------------------------------------------------------------------------------------


@torch.no_grad()
def macs(
    model: nn.Module,
    side: int | None = None,
    noise: float = 0.5,
    inputs: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """Count the MACs of one picture by formula: attention cores, their projections, and the rest.

    The latents are side x side. `inputs` replaces the arguments of the forward, for example with a
    text of its real length.

    The core is the operator's `macs`, or 2 N^2 channels where the layer is dense. Linear layers,
    convolutions and cross-attention are counted by hooks during one forward, on the meta device
    too, so the count assumes nothing about the structure of a block.
    """
    model = families.model_of(model)
    inputs = inputs or example(model, side, noise=noise)
    layers = families.layers(model)
    products = ProductCount(model, layers)
    handles = products.hooks()
    try:
        with evaluating(model):
            grids = families.grids(model, **inputs)
    finally:
        for handle in handles:
            handle.remove()
    core = sum(_core_macs(layer, grid, noise) for layer, grid in zip(layers, grids, strict=True))
    return {
        "core": core,
        "projections": products.projections,
        "rest": products.rest,
        "total": core + products.projections + products.rest,
        "tokens": max(grid.tokens for grid in grids),
    }


class ProductCount:
    """Count the multiplications of a forward outside the self-attention cores, by hooks."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer]):
        self.model, self.projections, self.rest = model, 0, 0
        self.attention_ids: set[int] = set()
        self.operator_ids: set[int] = set()
        for layer in layers:
            self.attention_ids.update(id(module) for module in layer.attn.modules())
            if layer.operator is not None:
                self.operator_ids.update(id(module) for module in layer.operator.modules())

    def hooks(self) -> list[Any]:
        """Register the hooks and return their handles."""
        handles: list[Any] = []
        for module in self.model.modules():
            is_product = isinstance(module, (nn.Linear, nn.Conv2d))
            if is_product and id(module) not in self.operator_ids:
                handles.append(module.register_forward_hook(self.count_product))
        for attn in families.attentions(self.model):
            if id(attn) not in self.attention_ids:
                count = self.count_cross_attention
                handles.append(attn.register_forward_hook(count, with_kwargs=True))
        return handles

    def count_product(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        count = output.numel() * _products_per_output(module)
        if id(module) in self.attention_ids:
            self.projections += count
        else:
            self.rest += count

    def count_cross_attention(
        self, attn: Any, args: tuple, kwargs: dict[str, Any], output: Tensor
    ) -> None:
        x, text = args[0] if args else kwargs["hidden_states"], kwargs["encoder_hidden_states"]
        self.rest += 2 * x.shape[0] * x.shape[1] * text.shape[1] * attn.inner_dim


def _products_per_output(module: nn.Module) -> int:
    """Count the multiplications for one number of the output."""
    if isinstance(module, nn.Linear):
        return module.in_features
    convolution = cast(nn.Conv2d, module)
    return convolution.in_channels // convolution.groups * math.prod(convolution.kernel_size)


def _core_macs(layer: Any, grid: Grid, noise: float) -> int:
    """Count the MACs of one self-attention core by formula."""
    if layer.operator is None:
        return 2 * grid.tokens**2 * layer.shape.channels
    return layer.operator.macs(grid, noise)


@torch.no_grad()
def counted_macs(
    model: nn.Module,
    side: int | None = None,
    noise: float = 0.5,
    inputs: Mapping[str, Any] | None = None,
) -> int:
    """Count the MACs of the same forward by torch's flop counter.

    Fused attention would count as nothing, so PyTorch's unfused attention runs here. The operators
    run their PyTorch paths, whose tiles are the same on every machine.
    """
    model = families.model_of(model)
    inputs = inputs or example(model, side, noise=noise)
    with use_backend("torch"):
        return count_macs(lambda: model(**inputs), model)


def count_macs(call: Callable[[], Any], model: nn.Module | None = None) -> int:
    """Count the MACs of one call by torch's flop counter, with `model` in evaluation mode."""
    counter = FlopCounterMode(display=False)
    evaluated = nn.Identity() if model is None else model
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), evaluating(evaluated), counter:
        call()
    return counter.get_total_flops() // 2


def example(
    model: nn.Module, side: int | None = None, batch: int = 1, noise: float = 0.5
) -> dict[str, Any]:
    """Return a forward's arguments at one noise level, in the model's dtype on its device."""
    return families.family(model).example(model, side, batch, noise)


# Parameters
# ---------------------------------------------------------------------------------------------


def parameters(model: nn.Module, trained: Iterable[str] | None = None) -> dict[str, int]:
    """Count the parameters: in total, added by the operators, and trained.

    The trained ones are those named in `trained`, or those that require a gradient where nothing is
    named.
    """
    model = families.model_of(model)
    named = dict(model.named_parameters())
    if trained is None:
        names = {name for name, parameter in named.items() if parameter.requires_grad}
    else:
        names = set(trained)
        if unknown := sorted(names - named.keys()):
            model_name = type(model).__name__
            raise ValueError(
                f"{unknown[0]!r} is no parameter of {model_name} ({len(unknown)} unknown names)"
            )
    operators = [layer.operator for layer in families.layers(model)]
    return {
        "total": sum(parameter.numel() for parameter in named.values()),
        "added": sum(_added_parameters(operator) for operator in operators if operator),
        "trained": sum(named[name].numel() for name in names),
    }


def _added_parameters(operator: attention.Operator) -> int:
    """Count the parameters that an operator adds to its layer."""
    named = dict(operator.named_parameters())
    return sum(named[name].numel() for name in operator.new_parameters())


# Memory
# ---------------------------------------------------------------------------------------------


@torch.no_grad()
def peak_memory(
    call: Callable[[], Any], device: str | torch.device = "cpu", warm: bool = False
) -> int:
    """Return the peak of allocated bytes during the second call, above the bytes allocated when it
    began.

    The first call fills caches; it is left out where the caches are `warm`. On the CPU,
    torch.profiler records the allocator's events, which are summed in their order. On a GPU the
    allocator keeps the peak itself.
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
    recording = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _silent_stderr(), recording as profiler:
        call()
    return _peak_of(cast(Any, profiler).profiler.kineto_results.events())


def _peak_of(events: Iterable[Any]) -> int:
    """Return the peak of the allocator's events, summed in their order."""
    allocations = [event for event in events if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(allocations, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


@contextmanager
def _silent_stderr() -> Generator[None, None, None]:
    """Redirect the file descriptor of stderr to nothing.

    Kineto announces itself there, whatever its log level.
    """
    try:
        sys.stderr.flush()
        stderr = os.dup(2)
    except (OSError, AttributeError):
        yield
        return
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(devnull)
        os.close(stderr)


def forward_memory(
    model: nn.Module,
    side: int | None = None,
    batch: int = 1,
    noise: float = 0.5,
    inputs: Mapping[str, Any] | None = None,
) -> int:
    """Return the peak bytes of one forward without gradients."""
    model = families.model_of(model)
    inputs = inputs or example(model, side, batch, noise)
    with evaluating(model):
        return peak_memory(lambda: model(**inputs), next(model.parameters()).device)


# Time
# ---------------------------------------------------------------------------------------------


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
    if repeats < 1:
        raise ValueError(f"{repeats} repeats; a median needs at least 1")
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


def sides(count: int) -> tuple[int, int]:
    """Return the height and width nearest a square that make exactly `count` tokens.

    A prime number of tokens is one row.
    """
    if count < 1:
        raise ValueError(f"{count} tokens; a picture has at least 1")
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
