"""The implementations of attention that are compared: softmax's own ones, and the operators."""

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from linattn import attention, params
from linattn.advise.sizes import Layers, Size
from linattn.attention import OPERATORS
from linattn.names import known

# PyTorch's implementations of softmax, by the name under which they are spoken of.
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
SAGE = "sage"
SOFTMAX = (*BACKENDS, SAGE)
FEW = 16  # tokens of the call that says whether an implementation runs at all


@dataclass(frozen=True)
class Path:
    """Name an implementation of softmax, or an operator with its options."""

    name: str
    operator: str = ""  # its registered name; nothing for softmax
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_softmax(self) -> bool:
        return not self.operator


def operators(labels: Sequence[str] | None = None) -> list[Path]:
    """Return the operators of params.yaml's benchmark with their options there, then all others.

    `labels` chooses some of them. The operator `softmax` is left out: it is what softmax's own
    implementations are.
    """
    paths = {path.name: path for path in _benchmarked()}
    named = {path.operator for path in paths.values()} | {"softmax"}
    paths |= {name: Path(name, name) for name in OPERATORS if name not in named}
    if labels is None:
        return list(paths.values())
    return [paths[known(label, paths, "operator")] for label in labels]


def _benchmarked() -> list[Path]:
    """Return the benchmark's operators; outside a clone of the repository there are none."""
    try:
        benchmark = params.load().operators["benchmark"]
    except FileNotFoundError:
        return []
    return [Path(name, entry.operator, entry.options) for name, entry in benchmark.items()]


def absent(
    name: str, head_dims: Sequence[int], device: str, dtype: torch.dtype, backward: bool
) -> str:
    """Return why an implementation of softmax does not run here, or "" where it does."""
    if name == SAGE and importlib.util.find_spec("sageattention") is None:
        return "SageAttention is not installed"
    if name == SAGE and backward:
        return "SageAttention has no backward"
    call = softmax(name)
    for head_dim in head_dims:
        q = torch.ones(1, 1, FEW, head_dim, device=device, dtype=dtype)
        try:
            with warnings.catch_warnings(action="ignore"):  # PyTorch's, on what it cannot choose
                call(q, q, q)
        except (RuntimeError, AssertionError, ValueError) as error:
            return _why(str(error), f"heads of {head_dim}", device, dtype)
    return ""


def _why(message: str, heads: str, device: str, dtype: torch.dtype) -> str:
    """Return PyTorch's reason, or a plain one where it gives none."""
    if torch.device(device).type == "cpu":
        return "does not run on a CPU"
    lines = message.strip().splitlines()
    if not lines or "viable backend" in lines[0] or "available kernel" in lines[0]:
        return f"does not run on {device} with {heads} in {str(dtype).removeprefix('torch.')}"
    return lines[0]


def softmax(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return an implementation of softmax attention on (batch, heads, tokens, head_dim)."""
    if name == SAGE:
        sage = importlib.import_module("sageattention").sageattn
        return lambda q, k, v: sage(q, k, v, tensor_layout="HND", is_causal=False)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(BACKENDS[name]):
            return F.scaled_dot_product_attention(q, k, v)

    return call


def macs(path: Path, size: Size) -> int:
    """Count the multiply-accumulates of all layers' attention by the formula of a path."""
    return sum(layers.count * _macs_of_layer(path, layers) for layers in size.layers)


def _macs_of_layer(path: Path, layers: Layers) -> int:
    if path.is_softmax:
        return 2 * layers.grid.tokens**2 * layers.shape.channels
    with torch.device("meta"):
        operator = attention.create(path.operator, layers.shape, **path.options)
    return operator.macs(layers.grid)


@dataclass(frozen=True)
class Call:
    """Hold the forward of one layer's attention on tensors of its shape."""

    run: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]  # what a backward goes down to
    backend: str = ""  # which path of the kernels runs, where an operator has kernels


def tensors(layers: Layers, device: str, dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
    """Draw q, k, v (1, tokens, heads, head_dim) and the hidden states x (1, tokens, width)."""
    generator = torch.Generator(device).manual_seed(seed)
    shape, tokens = layers.shape, layers.grid.tokens
    options: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
    size = (1, tokens, shape.heads, shape.head_dim)
    q, k, v = (torch.randn(size, **options) for _ in range(3))
    return q, k, v, torch.randn(1, tokens, shape.width, **options)


def call_of(path: Path, layers: Layers, drawn: Sequence[Tensor], seed: int) -> Call:
    """Return the call of a path: softmax alone, or an operator with what it does to its inputs."""
    q, k, v, x = drawn
    if path.is_softmax:
        run = softmax(path.name)
        # transposed at every call: a backward goes down to q, k and v, not to earlier views
        return Call(lambda: run(*(tensor.transpose(1, 2) for tensor in (q, k, v))), (q, k, v))
    operator = _operator(path, layers, q, seed)

    def run_operator() -> Tensor:
        operator.inputs(x, layers.grid)
        return operator.mix(q, k, v, layers.grid, x=x)

    leaves = (q, k, v, *operator.parameters())
    return Call(run_operator, leaves, operator.runs(q.device, q.dtype).path)


def _operator(path: Path, layers: Layers, like: Tensor, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        operator: nn.Module = attention.create(path.operator, layers.shape, **path.options)
    return operator.to(like.device, like.dtype).eval()
