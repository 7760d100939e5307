"""Tell PyTorch's FlopCounterMode what the operations multiply, on the path that is taken.

- Products only, two operations each: maps, softmax, divisions and sums are not counted, as for
  PyTorch's own.
- A window counts its tiles with what they mask; `useful_pairs` are those of the definition.
- Importing this module registers the formulas; the package does not, since few callers count.
- A backward counts what its definition needs: twice the forward's products in linear attention, 5/2
  in softmax.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import (
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from linattn_kernels import launch, linear, mediator, tile, window  # noqa: F401 (registers the operations)


def useful_pairs(height: int, width: int, radius: float, text: int = 0) -> int:
    """Return the number of query-key pairs of a disc on a picture with text before it."""
    far, near = math.ceil(radius) - 1, 0
    for dy in range(-min(far, height - 1), min(far, height - 1) + 1):
        chord = min(math.isqrt(max(math.ceil(radius * radius - dy * dy) - 1, 0)), width - 1)
        near += (height - abs(dy)) * (width * (2 * chord + 1) - chord * (chord + 1))
    picture = height * width
    return near + text * (text + picture) + picture * text


def tiled_pairs(
    path: str,
    height: int,
    width: int,
    radius: float,
    text: int,
    extra: int,
    config: dict[str, int],
) -> int:
    """Return the number of query-key pairs in the tiles of a path, masked ones included."""
    far = math.ceil(radius) - 1
    dense = text * (text + height * width)  # the text's queries
    if path == "torch":
        return dense + _torch_pairs(height, width, far, text + extra)
    queries, keys = config["QY"] * config["QX"], config["KY"] * config["KX"]
    shared = -(-text // keys) + -(-extra // keys)  # tiles of keys that every query reads
    key_tiles = 0
    for y in range(0, height, config["QY"]):
        rows = min(y + config["QY"] + far, height) - max(y - far, 0)
        for x in range(0, width, config["QX"]):
            columns = min(x + config["QX"] + far, width) - max(x - far, 0)
            key_tiles += -(-rows // config["KY"]) * -(-columns // config["KX"]) + shared
    return key_tiles * queries * keys + dense


def _torch_pairs(height: int, width: int, far: int, shared: int) -> int:
    from linattn_kernels.window_torch import TILE

    rows = min(TILE + 2 * far, height)
    near = 0
    for x in range(0, width, TILE):
        queries = min(x + TILE, width) - x
        columns = min(x + TILE + far, width) - max(x - far, 0)
        near += queries * (rows * columns + shared)
    return near * -(-height // TILE) * TILE


def _window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Any,
    height: int,
    width: int,
    radius: float,
    text: int,
    *options: Any,
    **_: Any,
) -> int:
    path = options[-1]
    head_dim = max(q.shape[3], v.shape[3])
    tiles = path == "triton"
    config = launch.config("window_forward", q, head_dim, q.shape[1]) if tiles else {}
    extra = 0 if extra_k is None else extra_k.shape[1]
    pairs = tiled_pairs(path, height, width, radius, text, extra, config)
    return 2 * pairs * q.shape[0] * q.shape[2] * (q.shape[3] + v.shape[3])


def _tile(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mean_k: Tensor | None,
    mean_v: Any,
    kept: Tensor,
    height: int,
    width: int,
    side: int,
    text: int,
    *_: Any,
    **__: Any,
) -> int:
    """Count whole tiles, those at the border too, and the means of kept tiles."""
    tiles, count = kept.shape[2:]
    means = 0 if mean_k is None else tiles
    pairs = tiles * side * side * (count * side * side + text + means) + text * q.shape[1]
    return 2 * pairs * q.shape[0] * q.shape[2] * (q.shape[3] + v.shape[3])


def _tile_backward(*arguments: Any, **_: Any) -> int:
    inputs = (*arguments[3:9], *arguments[12:])  # without the gradients, out, lse and share
    return 5 * _tile(*inputs) // 2


def _state(k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return 2 * k.numel() * v.shape[3]


def _read(
    q: Tensor,
    norm_q: Any,
    kv: Tensor,
    z: Any,
    feature_map: str,
    shift: float,
    eps: float,
    normalise: bool,
    *_: Any,
    **__: Any,
) -> int:
    return 2 * q.numel() * (kv.shape[3] + normalise)


def _mediator(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return 2 * q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1] * (q.shape[3] + v.shape[3])


def _backward(
    forward: Callable[..., int], numerator: int, denominator: int, skipped: int
) -> Callable[..., int]:
    """Return a formula: a fraction of the forward's, whose arguments follow the `skipped` first."""

    def formula(*arguments: Any, **_: Any) -> int:
        return numerator * forward(*arguments[skipped:]) // denominator

    return formula


def _window_backward(*arguments: Any, **_: Any) -> int:
    inputs = (*arguments[2:7], *arguments[9:])  # without the gradients, out and lse
    return 5 * _window(*inputs) // 2


def _fused(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _fused_backward(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad_out.shape, q.shape, k.shape, v.shape)


_operations = torch.ops.linattn_kernels
_FORMULAS = {
    _operations.linear_state: _state,
    _operations.linear_state_backward: _backward(_state, 2, 1, skipped=3),
    _operations.linear_read: _read,
    _operations.linear_read_backward: _backward(_read, 2, 1, skipped=1),
    _operations.window: _window,
    _operations.window_backward: _window_backward,
    _operations.tile: _tile,
    _operations.tile_backward: _tile_backward,
    _operations.mediator_gather: _mediator,
    _operations.mediator_gather_backward: _backward(_mediator, 5, 2, skipped=1),
    _operations.mediator_spread: _mediator,
    _operations.mediator_spread_backward: _backward(_mediator, 5, 2, skipped=1),
    # What small calls and mediators run on a CPU; PyTorch's counter knows it on GPUs only.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _fused_backward,
}
for _operation, _formula in _FORMULAS.items():
    if _operation not in flop_registry:
        register_flop_formula(_operation, get_raw=True)(_formula)
