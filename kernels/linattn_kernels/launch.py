"""Which path a call takes, and why: Triton on a GPU, PyTorch elsewhere, the definition on request.

- `backend(tensor)` answers for one tensor; `use_backend("torch")` decides for all calls inside it,
  in every thread, and a call's own `backend=` for that call.
- A call decides once: its backward takes the path its forward took, on whatever thread autograd
  runs it.
- Triton also runs on the CPU where its interpreter is on (TRITON_INTERPRET=1) and
  `use_backend("triton")` asks for it: for tests, thousands of times slower.
"""

import functools
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from linattn_kernels import check

PATHS = ("triton", "torch", "reference")
WIDEST = {"linear": check.MOST, "window": check.MOST_SOFTMAX, "mediator": check.MOST_SOFTMAX}
CAPABILITY = (8, 0)  # bf16 and asynchronous copies; what the configurations are compiled for
CLASSES = {
    torch.float16: "half",
    torch.bfloat16: "half",
    torch.float32: "single",
    torch.float64: "double",
}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# by `use_backend`, the newest last; each entry is an object of its own
_asked: list[list[str]] = []


class Backend(NamedTuple):
    path: str
    reason: str


@contextmanager
def use_backend(path: str) -> Iterator[None]:
    """Every call inside takes this path; where Triton cannot run, it is an error to ask for it."""
    entry = [valid(path)]
    _asked.append(entry)
    try:
        yield
    finally:  # not the last: blocks of several threads end in any order
        del _asked[next(place for place, each in enumerate(_asked) if each is entry)]


def valid(path: str) -> str:
    if path not in PATHS:
        raise ValueError(f"backend {path!r}; choose one of {', '.join(PATHS)}")
    return path


def backend(tensor: Tensor, kernel: str = "linear", asked: str | None = None) -> Backend:
    """The path a call of this kernel with this tensor takes, and why; `asked`: what that call asks
    for.
    """
    check.known("kernel", kernel, WIDEST)
    return choose(
        tensor.device, tensor.dtype, tensor.shape[-1] if tensor.ndim else 1, asked, WIDEST[kernel]
    )


def choose(
    device: torch.device,
    dtype: torch.dtype,
    dim: int = 1,
    asked: str | None = None,
    most: int | None = None,
) -> Backend:
    """The same before there is a tensor."""
    missing = obstacle(device)
    unfit = missing or _unfit(dtype, dim, most)
    if asked is None:
        asked = next((path for (path,) in _asked[-1:]), None)
    if asked is not None:
        path = valid(asked)
        if path == "triton" and unfit:
            raise RuntimeError(
                f"the triton backend was asked for, but {unfit}; leave the choice to the library"
            )
        return Backend(path, "asked for")
    if device.type == "cpu":
        # the interpreter is for those who ask for it
        return Backend("torch", "the tensors are on the CPU")
    if unfit is None:
        return Backend("triton", "a GPU that Triton compiles for")
    if missing and device.type == "cuda":
        _warn(missing)
    return Backend("torch", unfit)


def _unfit(dtype: torch.dtype, dim: int, most: int | None) -> str | None:
    if dtype == torch.float64 and not INTERPRETED:
        return "float64 has no kernels: it is what they are judged in"
    return (
        None
        if most is None or dim <= most
        else f"heads of {dim} are wider than the kernels' {most}"
    )


def obstacle(device: torch.device) -> str | None:
    """Why Triton cannot run there; None where it can."""
    return _constant(device.type, device.index)


@torch.compiler.assume_constant_result
def _constant(kind: str, index: int | None) -> str | None:
    return _obstacle(kind, index)  # a cached function would be traced through


@functools.cache
def _obstacle(kind: str, index: int | None) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if kind != "cuda" and not INTERPRETED:
        return f"the tensors are on {kind}"
    try:
        importlib.import_module("triton")
    except Exception as error:  # a library that is missing, another's version: whatever it says
        return f"Triton cannot be imported ({type(error).__name__}: {error})"
    if INTERPRETED:
        return None
    if torch.version.hip:
        return "the GPU is no NVIDIA one, which is all the kernels were compiled for"
    capability = torch.cuda.get_device_capability(index)
    if capability < CAPABILITY:
        return f"the GPU's compute capability is {capability[0]}.{capability[1]}, below {CAPABILITY[0]}.{CAPABILITY[1]}"
    return None


@torch.compiler.assume_constant_result
def _warn(missing: str) -> None:
    _warn_once(missing)


@functools.cache
def _warn_once(missing: str) -> None:
    warnings.warn(
        f"linattn_kernels takes its PyTorch paths on this GPU: {missing}",
        RuntimeWarning,
        stacklevel=5,
    )


def exact(function: Callable) -> Callable:
    """Without autocast: an operation's inside keeps the precision it was written in."""

    @functools.wraps(function)
    def inside(*arguments):
        kind = next(each for each in arguments if isinstance(each, Tensor)).device.type
        if not check.autocasts(kind):
            return function(*arguments)
        with torch.autocast(kind, enabled=False):
            return function(*arguments)

    return inside


class _Once(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(each.view_as(each) for each in inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, *grads: Tensor | None):
        if not torch.is_grad_enabled():
            return grads
        return tuple(
            None if grad is None else _Refused.apply(grad, *ctx.saved_tensors) for grad in grads
        )


class _Refused(torch.autograd.Function):
    """A gradient that depends on the inputs, as it does, and cannot be followed to them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, *inputs: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad: Tensor):
        raise RuntimeError(
            "gradients of linattn_kernels' gradients: there is no autograd formula for them on any "
            "path"
        )


def once(*inputs: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the inputs with first-order gradients only: double backward raises on every path.

    The Triton path cannot provide it. torch's once_differentiable is not enough: its error is not
    on the way to the inputs, so `torch.autograd.grad` passes it by and silently returns a part of
    the answer. Compiled functions refuse by themselves.
    """
    learns = [each is not None and each.requires_grad for each in inputs]
    if not any(learns) or torch.compiler.is_compiling():
        return inputs
    guarded = iter(_Once.apply(*(each for each, does in zip(inputs, learns, strict=True) if does)))
    return tuple(next(guarded) if does else each for each, does in zip(inputs, learns, strict=True))


def cast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """As autocast would have them, where it is on."""
    kind = tensors[0].device.type
    if not check.autocasts(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(
        each if each is None or each.dtype == torch.float64 else each.to(dtype) for each in tensors
    )


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in."""
    return torch.promote_types(dtype, torch.float32)


def like(tensor: Tensor) -> Tensor:
    """Room for a result of that shape, whatever the strides."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def unit(tensor: Tensor | None) -> Tensor | None:
    """With unit stride in the last dimension, which is all that kernels ask of a layout."""
    if tensor is None or tensor.stride(-1) == 1 or tensor.shape[-1] == 1:
        return tensor
    return tensor.contiguous()


def on(device: torch.device):
    """Launches go to the tensors' own GPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def grid(*programs: int) -> tuple[int, ...]:
    """CUDA takes 65,535 programs in all dimensions but the first."""
    if max(programs[1:]) > 65535:
        raise ValueError(
            f"a batch of {programs[1]} heads in all; a launch takes 65535: split the batch"
        )
    return programs


def cdiv(size: int, tile: int) -> int:
    """How many tiles hold `size`."""
    return -(-size // tile)


def splits(tokens: int, programs: int, tile: int, device: torch.device) -> tuple[int, int]:
    """(splits, tokens a split): two programs a multiprocessor and none more, each with four tiles
    at least.

    None more: DiT's 16 heads in 17 splits are 8 programs more than an H200 holds at once, and took
    twice the time.
    """
    wanted = 2 * processors(device) // max(programs, 1)
    tiles = cdiv(tokens, tile)
    each = max(1, cdiv(tiles, max(1, min(wanted, tiles // 4))))
    return max(1, cdiv(tiles, each)), each * tile


@functools.cache
def processors(device: torch.device) -> int:
    return (
        torch.cuda.get_device_properties(device).multi_processor_count
        if device.type == "cuda"
        else 4
    )


def capability(device: torch.device) -> tuple[int, int]:
    """(0, 0) is the interpreter."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def config(kernel: str, like: Tensor, dim: int, tokens: int = 1) -> dict[str, int]:
    """Tile sizes and launch settings from the table: never searched for, never keyed by the exact
    length.
    """
    kinds = (str(like.dtype).removeprefix("torch."), CLASSES[like.dtype], "any")
    return _config(kernel, capability(like.device), kinds, dim, max(tokens, 1).bit_length() - 1)


@functools.cache
def _config(
    kernel: str, capability: tuple[int, int], kinds: tuple[str, ...], dim: int, bucket: int
) -> dict[str, int]:
    """The entry of the newest architecture, the narrowest head, the nearest kind and the longest
    sequence that fit.
    """
    if capability[0] == 12:  # Ada's shared memory and mma.sync; neither wgmma nor tcgen05
        capability = (8, 9)
    fitting = [
        entry
        for entry in table()[kernel]
        if entry["kind"] in kinds
        and tuple(entry["capability"]) <= capability
        and entry.get("dim", dim) >= dim
        and entry.get("bucket", 0) <= bucket
    ]
    if not fitting:
        raise ValueError(
            f"no configuration of {kernel} for {kinds[0]}, heads of {dim} and capability "
            f"{capability}"
        )

    def nearness(entry: dict[str, Any]) -> tuple[Any, ...]:
        kind = -kinds.index(entry["kind"])
        return entry["capability"], -entry.get("dim", 1 << 20), kind, entry.get("bucket", 0)

    return max(fitting, key=nearness)["with"]


@functools.cache
def table() -> dict[str, list[dict[str, Any]]]:
    """Every shipped configuration, by kernel."""
    folder = Path(__file__).parent / "configs"
    files = sorted(folder.glob("*.json"))
    if not files:
        raise FileNotFoundError(
            f"{folder} has no *.json: the Triton kernels' tile sizes were not installed with the "
            "package; install it "
            'again from its sources, or call inside use_backend("torch")'
        )
    return {name: rows for path in files for name, rows in json.loads(path.read_text()).items()}


def strides(tensor: Tensor | None, reach: int = 128) -> tuple[int, ...]:
    """Of batch, tokens and heads; the last is one. `reach`: tokens from a tile's first to its last."""
    if tensor is None:
        return (0, 0, 0)
    reach = min(reach, tensor.shape[1])
    if tensor.stride(1) * reach >= 1 << 31:
        raise ValueError(
            f"tokens that lie {tensor.stride(1)} numbers apart, {reach} of them in a tile: the "
            "kernels take less than "
            '2^31 numbers; make the tensor contiguous or ask for backend="torch"'
        )
    return tensor.stride()[:3]
