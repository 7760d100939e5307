"""Measure the memory of a call.

It is the peak that PyTorch's allocator hands out during one call, above what was allocated before.
It holds every temporary that a kernel takes from the allocator, and neither inputs, weights, nor
scratch inside a BLAS library. Unlike the resident set, it does not depend on what the process did
before.
"""

import os
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from linattn import families
from linattn.evaluation.macs import example
from linattn.sampling import evaluating


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
