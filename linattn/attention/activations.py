"""What a layer of the teacher saw and gave, for starts that begin from data."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from linattn.attention.grid import Grid

QKV = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Activations:
    """Hold what one layer of the teacher saw and gave for a batch of pictures.

    `x` is (batch, tokens, width), and `output` is what the attention gave for it after `to_out`,
    text tokens first. A layer with projections of its own for text has the picture alone in `x`
    and the text in `kwargs["encoder_hidden_states"]`; `kwargs["image_rotary_emb"]` is (cos, sin).
    """

    x: Tensor  # hidden states, (batch, tokens, width)
    output: Tensor  # what the attention gave for them
    grid: Grid  # how the tokens lie
    noise: Tensor | None = None  # noise levels, (batch,)
    kwargs: dict[str, Any] = field(default_factory=dict)  # what else the layer was called with
    # returns queries, keys and values as the operator gets them, of the weights that the layer has
    # at that moment: (batch, tokens, heads, head_dim), text first
    project: Callable[[], QKV] | None = None
    position: tuple[Tensor, Tensor] | None = None  # rotary positions, (tokens, head_dim) each

    def qkv(self) -> QKV:
        """Return queries, keys and values, or raise if they were not captured."""
        if self.project is None:
            raise ValueError(
                "these activations have no projections; pass data to linearize, which captures them"
            )
        return self.project()
