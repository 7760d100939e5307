"""Linear, window, tile and mediator attention on tensors of (batch, tokens, heads, head_dim).

They run in Triton where there is a GPU and in PyTorch elsewhere; `reference` holds the definitions
that both are judged by.
"""

from linattn_kernels.launch import backend, use_backend
from linattn_kernels.linear import linear_attention
from linattn_kernels.mediator import mediator_attention
from linattn_kernels.reference import State
from linattn_kernels.tile import tile_attention
from linattn_kernels.window import window_attention

__all__ = [
    "State",
    "backend",
    "linear_attention",
    "mediator_attention",
    "tile_attention",
    "use_backend",
    "window_attention",
]
