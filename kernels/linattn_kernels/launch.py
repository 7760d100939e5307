"""Choose the path of a call and the tiles of a launch.

- The paths are Triton on a GPU, PyTorch elsewhere, and the definition on request. `backend(tensor)`
  says which one a call would take. `use_backend("torch")` decides for all calls inside it, in every
  thread, and a call's own `backend=` decides for that call.
- A call decides once: its backward takes the path its forward took, whatever thread autograd runs
  it on.
- Triton also runs on the CPU where its interpreter is on (TRITON_INTERPRET=1) and
  `use_backend("triton")` asks for it: for tests, since it is thousands of times slower.
"""

import functools
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from linattn_kernels import check

PATHS = ("triton", "torch", "reference")
MAX_HEAD_DIM = {
    "linear": check.MOST,
    "window": check.MOST_SOFTMAX,
    "tile": check.MOST_SOFTMAX,
    "mediator": check.MOST_SOFTMAX,
}
CAPABILITY = (8, 0)  # the least that the configurations are compiled for: bf16, asynchronous copies
CLASSES = {
    torch.float16: "half",
    torch.bfloat16: "half",
    torch.float32: "single",
    torch.float64: "double",
}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# What `use_backend` blocks request, the newest last. Each entry is a list, so that `is` tells two
# blocks of the same path apart.
_requests: list[list[str]] = []


class Backend(NamedTuple):
    path: str
    reason: str


@contextmanager
def use_backend(path: str) -> Generator[None]:
    """Make every call inside the block take this path; "triton" raises where it cannot run.

    Args:
        path: "triton", "torch" or "reference".
    """
    entry = [valid(path)]
    _requests.append(entry)
    try:
        yield
    finally:  # the entry need not be the last one: blocks of several threads end in any order
        del _requests[next(n for n, request in enumerate(_requests) if request is entry)]


def valid(path: str) -> str:
    if path not in PATHS:
        raise ValueError(f"backend {path!r}; choose one of {', '.join(PATHS)}")
    return path


def backend(tensor: Tensor, kernel: str = "linear", asked: str | None = None) -> Backend:
    """Return the path that a call with this tensor takes, and why.

    Args:
        tensor: q of the call.
        kernel: "linear", "window", "tile" or "mediator".
        asked: the call's own `backend=`, if it has one.
    """
    check.name("kernel", kernel, MAX_HEAD_DIM)
    head_dim = tensor.shape[-1] if tensor.ndim else 1
    return choose(tensor.device, tensor.dtype, head_dim, asked, MAX_HEAD_DIM[kernel])


def choose(
    device: torch.device,
    dtype: torch.dtype,
    dim: int = 1,
    requested: str | None = None,
    max_dim: int | None = None,
) -> Backend:
    """Return the path and the reason where there is no tensor yet."""
    missing = obstacle(device)
    unsupported = missing or _unsupported(dtype, dim, max_dim)
    if requested is None and _requests:
        (requested,) = _requests[-1]
    if requested is not None:
        path = valid(requested)
        if path == "triton" and unsupported:
            raise RuntimeError(
                f"the triton backend was asked for, but {unsupported}; leave the choice to the "
                "library"
            )
        return Backend(path, "asked for")
    if device.type == "cpu":  # the interpreter runs on request only
        return Backend("torch", "the tensors are on the CPU")
    if unsupported is None:
        return Backend("triton", "a GPU that Triton compiles for")
    if missing and device.type == "cuda":
        _warn(missing)
    return Backend("torch", unsupported)


def _unsupported(dtype: torch.dtype, dim: int, max_dim: int | None) -> str | None:
    if dtype == torch.float64 and not INTERPRETED:
        return "float64 has no kernels: it is what they are judged in"
    if max_dim is not None and dim > max_dim:
        return f"heads of {dim} are wider than the kernels' {max_dim}"
    return None


def obstacle(device: torch.device) -> str | None:
    """Return why Triton cannot run on the device, or None where it can."""
    return _constant_obstacle(device.type, device.index)


@torch.compiler.assume_constant_result
def _constant_obstacle(device_type: str, index: int | None) -> str | None:
    return _obstacle(device_type, index)  # dynamo would trace into the cached function itself


@functools.cache
def _obstacle(device_type: str, index: int | None) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device_type != "cuda" and not INTERPRETED:
        return f"the tensors are on {device_type}"
    try:
        importlib.import_module("triton")
    except Exception as error:  # a missing library or a wrong version, whatever it raises
        return f"Triton cannot be imported ({type(error).__name__}: {error})"
    if INTERPRETED:
        return None
    if torch.version.hip:
        return "the GPU is no NVIDIA one, which is all the kernels were compiled for"
    capability = torch.cuda.get_device_capability(index)
    if capability < CAPABILITY:
        present, least = ("{}.{}".format(*version) for version in (capability, CAPABILITY))
        return f"the GPU's compute capability is {present}, below {least}"
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


def without_autocast(function: Callable) -> Callable:
    """Disable autocast inside an operation, which keeps the precision it was written in."""

    @functools.wraps(function)
    def inside(*arguments):
        tensor = next(argument for argument in arguments if isinstance(argument, Tensor))
        if not check.autocasts(tensor.device.type):
            return function(*arguments)
        with torch.autocast(tensor.device.type, enabled=False):
            return function(*arguments)

    return inside


class _FirstOrder(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, *grads: Tensor | None):
        if not torch.is_grad_enabled():
            return grads
        inputs = ctx.saved_tensors
        return tuple(None if grad is None else _NoGradient.apply(grad, *inputs) for grad in grads)


class _NoGradient(torch.autograd.Function):
    """Pass a gradient through that depends on the inputs, and raise where autograd follows it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, *inputs: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads: Tensor):
        raise RuntimeError(
            "gradients of linattn_kernels' gradients: there is no autograd formula for them on any "
            "path"
        )


def first_order_only(*inputs: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the inputs with first-order gradients only: double backward raises on every path.

    The Triton path cannot provide it. torch's once_differentiable is not enough: its error is not
    on the way to the inputs, so `torch.autograd.grad` passes it by and silently returns a part of
    the answer. Compiled functions refuse by themselves.
    """
    learns = [tensor is not None and tensor.requires_grad for tensor in inputs]
    if not any(learns) or torch.compiler.is_compiling():
        return inputs
    pairs = list(zip(inputs, learns, strict=True))
    guarded = iter(_FirstOrder.apply(*(tensor for tensor, learnt in pairs if learnt)))
    return tuple(next(guarded) if learnt else tensor for tensor, learnt in pairs)


def cast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in autocast's precision where it is on; float64 stays."""
    device_type = tensors[0].device.type
    if not check.autocasts(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(
        tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors
    )


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision that sums are accumulated in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def empty_like(tensor: Tensor) -> Tensor:
    """Return an empty contiguous tensor of that shape, whatever the strides."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


@overload
def unit_stride(tensor: Tensor) -> Tensor: ...
@overload
def unit_stride(tensor: None) -> None: ...
def unit_stride(tensor: Tensor | None) -> Tensor | None:
    """Return the tensor with stride 1 in its last dimension, all that kernels ask of a layout."""
    if tensor is None or tensor.stride(-1) == 1 or tensor.shape[-1] == 1:
        return tensor
    return tensor.contiguous()


def on_device(device: torch.device):
    """Return a context in which launches go to the tensors' own GPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def grid(*programs: int) -> tuple[int, ...]:
    """Return the launch grid; CUDA takes 65,535 programs in all dimensions but the first."""
    if max(programs[1:]) > 65535:
        raise ValueError(
            f"a batch of {programs[1]} heads in all; a launch takes 65535: split the batch"
        )
    return programs


def cdiv(size: int, tile: int) -> int:
    """Return how many tiles hold `size`."""
    return -(-size // tile)


def splits(tokens: int, programs: int, tile: int, device: torch.device) -> tuple[int, int]:
    """Return (splits, tokens a split) that fill the GPU once.

    That is two programs a multiprocessor and no more, each with four tiles at least. DiT's 16 heads
    in 17 splits are 8 programs more than an H200 holds at once, and took twice the time.
    """
    wanted = 2 * processors(device) // max(programs, 1)
    tiles = cdiv(tokens, tile)
    tiles_a_split = max(1, cdiv(tiles, max(1, min(wanted, tiles // 4))))
    return max(1, cdiv(tiles, tiles_a_split)), tiles_a_split * tile


@functools.cache
def processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


def capability(device: torch.device) -> tuple[int, int]:
    """Return the GPU's compute capability, (0, 0) for the interpreter."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def config(kernel: str, like: Tensor, dim: int, tokens: int = 1) -> dict[str, int]:
    """Return tile sizes and launch settings from the table.

    They are never searched for at run time, and never keyed by the exact length.
    """
    dtypes = (str(like.dtype).removeprefix("torch."), CLASSES[like.dtype], "any")
    return _config(kernel, capability(like.device), dtypes, dim, max(tokens, 1).bit_length() - 1)


@functools.cache
def _config(
    kernel: str, capability: tuple[int, int], dtypes: tuple[str, ...], dim: int, bucket: int
) -> dict[str, int]:
    """Return the best entry that fits.

    The newest architecture comes first, then the narrowest head, the nearest precision and the
    longest sequence.
    """
    if capability[0] == 12:  # Ada's shared memory and mma.sync; neither wgmma nor tcgen05
        capability = (8, 9)
    fitting = [
        entry
        for entry in table()[kernel]
        if entry["kind"] in dtypes
        and tuple(entry["capability"]) <= capability
        and entry.get("dim", dim) >= dim
        and entry.get("bucket", 0) <= bucket
    ]
    if not fitting:
        raise ValueError(
            f"no configuration of {kernel} for {dtypes[0]}, heads of {dim} and capability "
            f"{capability}"
        )

    def nearness(entry: dict[str, Any]) -> tuple[Any, ...]:
        dtype_rank = -dtypes.index(entry["kind"])
        return entry["capability"], -entry.get("dim", 1 << 20), dtype_rank, entry.get("bucket", 0)

    return max(fitting, key=nearness)["with"]


@functools.cache
def table() -> dict[str, list[dict[str, Any]]]:
    """Return every shipped configuration, by kernel."""
    folder = Path(__file__).parent / "configs"
    files = sorted(folder.glob("*.json"))
    if not files:
        raise FileNotFoundError(
            f"{folder} has no *.json: the Triton kernels' tile sizes were not installed with the "
            'package; install it again from its sources, or call inside use_backend("torch")'
        )
    configs: dict[str, list[dict[str, Any]]] = {}
    for path in files:
        configs |= json.loads(path.read_text())
    return configs


def strides(tensor: Tensor | None, reach: int = 128) -> tuple[int, ...]:
    """Return the strides of batch, tokens and heads; that of the channels is 1.

    `reach` is the number of tokens from a tile's first to its last. Offsets within a tile are of 32
    bits, so that many tokens must lie within 2^31 numbers.
    """
    if tensor is None:
        return (0, 0, 0)
    reach = min(reach, tensor.shape[1])
    if tensor.stride(1) * reach >= 1 << 31:
        raise ValueError(
            f"tokens that lie {tensor.stride(1)} numbers apart, {reach} of them in a tile: the "
            "kernels take less than 2^31 numbers; make the tensor contiguous or ask for "
            'backend="torch"'
        )
    return tensor.stride()[:3]
