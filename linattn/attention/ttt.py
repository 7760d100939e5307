"""T5 (arXiv 2605.02772): a small network that one gradient step on the keys trains, read by the
queries.

- The inner model is v = silu(k W1) W2 of each head. One step of gradient descent on the mean over
  tokens of scale / 2 |silu(k W1) W2 - v|^2 gives W1 - G1 and W2 - G2, and o = silu(q (W1 - G1))
  (W2 - G2): test-time training (as in MoireXNet, arXiv 2506.15929) with the whole picture as batch.
- Before it q and k are scaled and shifted by channel (1 and 0 at first), k is normalised over the
  tokens with an epsilon of 1, and a depth-wise 3 x 3 convolution of each is added. As released, the
  convolutions are drawn and not zero.
- The output is mixed with softmax over a 5 x 5 neighbourhood of q and k as they come: `share`, half
  as released; 0 is the inner model alone.
- Silu of a matrix has no N x N map: `defined` loops over tokens.
- Text (not in the paper): its keys train the inner model and are in every neighbourhood; a text
  token reads everything by softmax. The convolutions see the picture.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn.attention import neighbourhood
from linattn.attention.base import LayerShape, Operator, after_text, scores
from linattn.attention.convolution import DepthwiseConvolution
from linattn.attention.grid import Grid
from linattn.attention.options import Option, Values, number, whole

SIDE = 3  # of the convolutions of queries and keys


class Prepared(nn.Module):
    """Prepare queries or keys for the inner model: scale, shift, norm and convolution."""

    def __init__(self, shape: LayerShape, normalises: bool):
        super().__init__()
        self.normalises = normalises
        self.gain = nn.Parameter(torch.ones(shape.heads, shape.head_dim))
        self.shift = nn.Parameter(torch.zeros(shape.heads, shape.head_dim))
        self.convolution = DepthwiseConvolution(shape.channels, SIDE)
        for parameter in self.convolution.parameters():  # as nn.Conv2d draws them
            nn.init.uniform_(parameter, -1 / SIDE, 1 / SIDE)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        tokens = tokens * self.gain.to(tokens.dtype) + self.shift.to(tokens.dtype)
        if self.normalises:
            variance, mean = torch.var_mean(tokens, 1, correction=0, keepdim=True)
            tokens = (tokens - mean) * (variance + 1).rsqrt()
        return tokens + self.convolution(tokens, grid, SIDE)

    def definition(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Compute the same by the letter: the judge of `forward`."""
        tokens = tokens * self.gain.to(tokens.dtype) + self.shift.to(tokens.dtype)
        if self.normalises:
            centred = tokens - tokens.sum(1, keepdim=True) / grid.tokens
            variance = centred.square().sum(1, keepdim=True) / grid.tokens
            tokens = centred / (variance + 1.0).sqrt()
        return tokens + self.convolution.definition(tokens, grid, SIDE)


def window(default: int) -> Option:
    """Take the side of a neighbourhood, an odd number."""
    positive = whole(default, least=1).check

    def checked(value: Any) -> int:
        if positive(value) % 2 == 0:
            raise ValueError("an odd number")
        return value

    return Option(default, checked)


class TTT(Operator):
    name = "ttt"
    aliases = ("t5", "test-time training")
    gist = "a small network that the keys train, and what is near"
    about = (
        "T5 trains a network of two layers by one gradient step on keys and values, and lets the "
        "queries read it; half of the output is softmax over the nearest tokens."
    )
    paper = "T5, arXiv 2605.02772"
    text = (
        "its keys train the inner network and are in every neighbourhood; text tokens read "
        "everything by softmax"
    )
    hue = "#8c3b3b"
    has_map = False
    table = {"window": window(5), "share": number(0.5, least=0, most=1)}
    published = {"window": 5, "share": 0.5}
    forms = {"alone": {"share": 0}, "narrow": {"window": 3, "share": 0.25}}

    def __init__(self, shape: LayerShape, **options):
        super().__init__(shape, **options)
        self.queries, self.keys = Prepared(shape, False), Prepared(shape, True)
        size = shape.heads, shape.head_dim, shape.head_dim
        self.first = nn.Parameter(nn.init.trunc_normal_(torch.empty(size), std=0.02))
        self.second = nn.Parameter(nn.init.trunc_normal_(torch.empty(size), std=0.02))

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        grid = grid.settled()
        out = self.learned(self.queries(q, grid), self.keys(k, grid), v)[:, grid.text :]
        if values.share:
            scale = self.shape.head_dim**-0.5
            near = neighbourhood.near(q, k, v, grid, values.window, scale)
            out = (1 - values.share) * out + values.share * near
        return after_text(q, k, v, grid, out)

    def learned(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Train the inner model by one step on k and v, and read it by q."""
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))  # (batch, heads, tokens, dim)
        first, second = self.first.to(k.dtype), self.second.to(k.dtype)
        before = k @ first
        hidden, open_ = F.silu(before), before.sigmoid()
        error = (hidden @ second - v) * (self.shape.head_dim**-0.5 / k.shape[2])
        slope = error @ second.mT * open_ * (1 + before * (1 - open_))
        first, second = first - k.mT @ slope, second - hidden.mT @ error
        return (F.silu(q @ first) @ second).transpose(1, 2)

    def defined(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        weights = scores(q[:, : grid.text], k, self.shape.head_dim**-0.5).softmax(-1)
        of_text = torch.einsum("bhij,bjhd->bihd", weights, v)
        first, second = self._trained(self.keys.definition(k, grid), v)
        queries, rows = self.queries.definition(q, grid), []
        for token in range(grid.text, grid.tokens):
            hidden = torch.einsum("bhd,bhde->bhe", queries[:, token], first)
            hidden = hidden / (1 + (-hidden).exp())
            own = torch.einsum("bhd,bhde->bhe", hidden, second)
            near = self._near(q, k, v, grid, token, values.window)
            rows.append((1 - values.share) * own + values.share * near)
        return torch.cat([of_text, torch.stack(rows, 1)], 1)

    def _trained(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the gradient over tokens, one by one, and take the step."""
        first, second = self.first.to(k.dtype), self.second.to(k.dtype)
        of_first, of_second = (torch.zeros_like(first[None]) for _ in range(2))
        scale = self.shape.head_dim**-0.5 / k.shape[1]
        for key, value in zip(k.unbind(1), v.unbind(1), strict=True):  # (batch, heads, head_dim)
            before = torch.einsum("bhd,hde->bhe", key, first)
            open_ = 1 / (1 + (-before).exp())
            hidden = before * open_
            error = scale * (torch.einsum("bhd,hde->bhe", hidden, second) - value)
            slope = torch.einsum("bhe,hde->bhd", error, second)
            slope = slope * (open_ + before * open_ * (1 - open_))
            of_first = of_first + torch.einsum("bhd,bhe->bhde", key, slope)
            of_second = of_second + torch.einsum("bhd,bhe->bhde", hidden, error)
        return first - of_first, second - of_second

    def _near(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, token: int, side: int) -> Tensor:
        """Compute softmax of one token over its square and the text, (batch, heads, head_dim)."""
        y, x = divmod(token - grid.text, grid.width)
        top = min(max(y - side // 2, 0), max(grid.height - side, 0))
        left = min(max(x - side // 2, 0), max(grid.width - side, 0))
        square = (slice(None), slice(top, top + side), slice(left, left + side))
        keys, read = (
            torch.cat([tensor[:, : grid.text], grid.rows(tensor)[square].flatten(1, 2)], 1)
            for tensor in (k, v)
        )
        weights = torch.einsum("bhd,bjhd->bhj", q[:, token], keys) * self.shape.head_dim**-0.5
        return torch.einsum("bhj,bjhd->bhd", weights.softmax(-1), read)

    def cost(self, grid: Grid, values: Values) -> int:
        """Count the inner model's seven products, both convolutions and what softmax reads."""
        inner = 7 * grid.tokens * self.shape.head_dim + 2 * SIDE**2 * grid.picture
        return (inner + 2 * self.pairs(grid, values)) * self.shape.channels

    def pairs(self, grid: Grid, values: Values) -> int:
        of_text = grid.text * grid.tokens
        if not values.share:
            return of_text
        square = neighbourhood.pairs(grid, values.window)
        return of_text + square + grid.text * grid.picture

    def uncounted(self, grid: Grid, values: Values) -> int:
        """Count the pairs that tiles multiply and a mask hides."""
        if not values.share:
            return 0
        read = neighbourhood.pairs(grid, values.window) + grid.text * grid.picture
        hidden = neighbourhood.multiplied(grid, values.window) - read
        return 2 * hidden * self.shape.channels
