"""Linear, window and mediator attention on their own: (batch, tokens, heads, head_dim) in, the same
out.

Triton where there is a GPU, PyTorch elsewhere; `reference` holds what both are judged by.
"""

from linattn_kernels.launch import backend, use_backend
from linattn_kernels.linear import linear_attention
from linattn_kernels.mediator import mediator_attention
from linattn_kernels.reference import State
from linattn_kernels.window import window_attention

__all__ = [
    "State",
    "backend",
    "linear_attention",
    "mediator_attention",
    "use_backend",
    "window_attention",
]
