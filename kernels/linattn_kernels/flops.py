"""What PyTorch's FlopCounterMode counts of the operations: multiplications as the path taken makes
them.

- Products only, two operations each: maps, softmax, divisions and sums are not counted, as for
  PyTorch's own.
- A window counts its tiles with what they mask; `useful` pairs are those of the definition.
- Importing this module registers them; the package does not, since few count.
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

from linattn_kernels import launch, linear, mediator, window  # noqa: F401 (the operations must be there)


def useful_pairs(height: int, width: int, radius: float, text: int = 0) -> int:
    """Query-key pairs of a disc on a picture with text before it."""
    far, near = math.ceil(radius) - 1, 0
    for dy in range(-min(far, height - 1), min(far, height - 1) + 1):
        chord = min(math.isqrt(max(math.ceil(radius * radius - dy * dy) - 1, 0)), width - 1)
        near += (height - abs(dy)) * (width * (2 * chord + 1) - chord * (chord + 1))
    picture = height * width
    return near + text * (text + picture) + picture * text


def tiled_pairs(
    path: str, height: int, width: int, radius: float, text: int, extra: int, how: dict[str, int]
) -> int:
    """Pairs that the tiles of a path make: rows of whole tiles, the keys any of their queries can
    reach.
    """
    far = math.ceil(radius) - 1
    if path == "torch":
        from linattn_kernels.window_torch import TILE

        rows = min(TILE + 2 * far, height)
        columns = (min(x + TILE, width) - x for x in range(0, width, TILE))
        spans = (min(x + TILE + far, width) - max(x - far, 0) for x in range(0, width, TILE))
        near = sum(
            queries * (rows * span + text + extra)
            for queries, span in zip(columns, spans, strict=True)
        )
        return near * -(-height // TILE) * TILE + text * (text + height * width)
    tile, keys = how["QY"] * how["QX"], how["KY"] * how["KX"]
    seen = 0
    for y in range(0, height, how["QY"]):
        rows = min(y + how["QY"] + far, height) - max(y - far, 0)
        for x in range(0, width, how["QX"]):
            columns = min(x + how["QX"] + far, width) - max(x - far, 0)
            seen += (
                -(-rows // how["KY"]) * -(-columns // how["KX"])
                + -(-text // keys)
                + -(-extra // keys)
            )
    return seen * tile * keys + text * (text + height * width)


def _pairs(
    q: Tensor,
    widest: int,
    extra: Tensor | None,
    height: int,
    width: int,
    radius: float,
    text: int,
    path: str,
) -> int:
    how = launch.config("window_forward", q, widest, q.shape[1]) if path == "triton" else {}
    return tiled_pairs(
        path, height, width, radius, text, 0 if extra is None else extra.shape[1], how
    )


def _window(
    q: Tensor, k: Tensor, v: Tensor, extra_k: Tensor | None, extra_v: Any, *place: Any, **_: Any
) -> int:
    height, width, radius, text, *_, path = place
    pairs = _pairs(q, max(q.shape[3], v.shape[3]), extra_k, height, width, radius, text, path)
    return 2 * pairs * q.shape[0] * q.shape[2] * (q.shape[3] + v.shape[3])


def _state(k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return 2 * k.numel() * v.shape[3]


def _read(q: Tensor, below: Any, values: Tensor, keys: Any, *how: Any, **_: Any) -> int:
    normalise = how[3]
    return 2 * q.numel() * (values.shape[3] + normalise)


def _short(a: Tensor, b: Tensor, c: Tensor, *_: Any, **__: Any) -> int:
    return 2 * a.shape[0] * a.shape[2] * a.shape[1] * b.shape[1] * (a.shape[3] + c.shape[3])


def _times(share: tuple[int, int], formula: Callable[..., int], skipped: int) -> Callable[..., int]:
    """Of a backward, whose first arguments are gradients and what was kept."""

    def counted(*given: Any, **_: Any) -> int:
        return share[0] * formula(*given[skipped:]) // share[1]

    return counted


def _window_backward(*given: Any) -> int:
    return _window(*given[2:7], *given[9:])  # without gradients, out and lse


def _fused(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _fused_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)


_operations = torch.ops.linattn_kernels
_FORMULAS = {
    _operations.linear_state: _state,
    _operations.linear_state_backward: _times((2, 1), _state, 3),
    _operations.linear_read: _read,
    _operations.linear_read_backward: _times((2, 1), _read, 1),
    _operations.window: _window,
    _operations.window_backward: _times((5, 2), _window_backward, 0),
    _operations.mediator_gather: _short,
    _operations.mediator_gather_backward: _times((5, 2), _short, 1),
    _operations.mediator_spread: _short,
    _operations.mediator_spread_backward: _times((5, 2), _short, 1),
    # What the small and the mediators call; PyTorch's counter knows it on GPUs only.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _fused_backward,
}
for _operation, _formula in _FORMULAS.items():
    if _operation not in flop_registry:
        register_flop_formula(_operation, get_raw=True)(_formula)
