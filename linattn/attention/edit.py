"""EDiT (arXiv 2503.16726): ReLU linear attention with convolved queries and fewer keys.

- The query's projection sees x + f(x), with f = 3 x 3 convolution to width / `squeeze` channels,
  GroupNorm, LeakyReLU, 1 x 1 convolution back. The last convolution is zero at conversion. f sees
  the picture alone: in some layers of a family x has the text, in others it has not.
- Keys and values pass a depth-wise 3 x 3 convolution each, of `stride` and without bias, whose
  weights start at 1/9: the mean of a neighbourhood, zeros beyond the border. Text has no place on
  the picture, and its keys and values stay as they are.
- Queries and keys are ReLU(z), nothing added. The paper names no eps; ours is added to the
  mean-normalised denominator, and a query without a positive entry reads 0.
- text="exact" is MM-EDiT, which the paper takes where text attends; "joint" is one sum over text
  and pooled keys (features.py).
- Each channel of the values has a kernel of its own, and so a map of its own: `dense` has as many
  maps as there are channels.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn.attention import features
from linattn.attention.base import LayerShape, Operator, common
from linattn.attention.grid import Grid
from linattn.attention.options import Option, Values, choice, number, whole
from linattn_kernels import linear_attention
from linattn_kernels.check import MOST

GROUPS = 8  # of the norm
SIDE = 3  # of every kernel


def strides(default: int) -> Option:
    """Take a stride that leaves no token unread."""

    def checked(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= SIDE:
            raise ValueError(
                f"a whole number from 1 to {SIDE}, beyond which {SIDE} x {SIDE} kernels leave "
                "tokens unread"
            )
        return value

    return Option(default, checked)


class Block(nn.Module):
    """Compute f(x) on the picture, which is added to the input of a projection; zero at first."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        # A group of one channel has no deviation on a picture of one token.
        groups = next(n for n in range(GROUPS, 0, -1) if hidden % n == 0 and n < hidden)
        self.first = nn.Conv2d(width, hidden, SIDE, padding=SIDE // 2)
        self.norm = nn.GroupNorm(groups, hidden)
        self.last = nn.Conv2d(hidden, width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(cast(Tensor, self.last.bias))

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Return f(x) like x (batch, picture, width)."""
        # (batch, width, height, width of the picture), channels last
        picture = x.unflatten(1, (grid.height, grid.width)).permute(0, 3, 1, 2)
        shift = self.last(F.leaky_relu(self.norm(self.first(picture))))
        return shift.flatten(2).transpose(1, 2)  # (batch, picture, width)


class Pooling(nn.Module):
    """Pool the picture's tokens into cells, each channel by a kernel of its own."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, 1, SIDE, SIDE), 1 / SIDE**2))

    def forward(self, tokens: Tensor, grid: Grid, stride: int) -> Tensor:
        """Return the cells, (batch, cells, heads, head_dim), summed in float32 at least."""
        dtype = common(tokens, least=torch.float32)
        # (batch, channels, height, width), channels last
        picture = grid.rows(tokens).flatten(3).permute(0, 3, 1, 2).to(dtype)
        settings = {"stride": stride, "padding": SIDE // 2, "groups": picture.shape[1]}
        cells = F.conv2d(picture, self.weight.to(dtype), **settings)
        cells = cells.flatten(2).transpose(1, 2)  # (batch, cells, channels)
        return cells.unflatten(2, tokens.shape[2:]).to(tokens.dtype)

    def spread(self, grid: Grid, stride: int, dtype: torch.dtype) -> Tensor:
        """Return the weight of each token in each cell, (channels, cells, picture)."""
        down, across = (self._places(size, stride, dtype) for size in (grid.height, grid.width))
        kernel = self.weight[:, 0].to(dtype)
        return torch.einsum("ryd,cxe,kde->krcyx", down, across, kernel).flatten(3).flatten(1, 2)

    def _places(self, size: int, stride: int, dtype: torch.dtype) -> Tensor:
        """Say which entry of the kernel each cell has on each token, (cells, size, SIDE)."""
        token = torch.arange(size, device=self.weight.device)
        cell = torch.arange(0, size, stride, device=self.weight.device)
        place = token - cell[:, None] + SIDE // 2
        return (place[:, :, None] == torch.arange(SIDE, device=place.device)).to(dtype)


class EDiT(Operator):
    name = "edit"
    aliases = ("mm-edit", "convfusion", "compressed")
    gist = "ReLU linear attention, convolved queries, pooled keys"
    about = (
        "EDiT lets a small convolutional network move the queries, pools keys and values by "
        "learned kernels of stride 2, and reads them by plain linear attention."
    )
    paper = "EDiT, arXiv 2503.16726"
    text = (
        "text tokens read everything and are read by softmax, mixed with the picture by their "
        'shares; `text="joint"` reads all in one sum'
    )
    hue = "#7f5f00"
    max_head_dim, core_in_float32 = MOST, False
    table = {
        "squeeze": whole(4, least=1, scheduled=False),
        "stride": strides(2),
        "eps": number(1e-6, least=0),
        "text": choice("exact", ("exact", "joint"), needs="text"),
    }
    published = {"squeeze": 4, "stride": 2, "text": "exact"}
    # An epsilon large enough to be seen.
    forms = {"narrow": {"squeeze": 8, "stride": 3, "eps": 0.1}, "joint": {"text": "joint"}}

    def __init__(self, shape: LayerShape, **options):
        super().__init__(shape, **options)
        self.hidden = max(2, shape.width // self.values.squeeze)  # a norm needs two
        self.query = Block(shape.width, self.hidden)
        self.key_pooling, self.value_pooling = Pooling(shape.channels), Pooling(shape.channels)

    def inputs(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        text = x.shape[1] - grid.picture  # 0 where text has projections of its own
        shift = F.pad(self.query(x[:, text:], grid), (0, 0, text, 0))
        return x + shift, x, x

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        exact = features.is_exact(grid, values)
        own = 0 if exact else grid.text  # keys that stay as they are
        keys = torch.cat([k[:, :own], self.key_pooling(k, grid, values.stride)], 1)
        read = torch.cat([v[:, :own], self.value_pooling(v, grid, values.stride)], 1)
        queries = q[:, grid.text :] if exact else q
        options = {"feature_map": "relu", "eps": values.eps, "backend": self.backend}
        out = cast(Tensor, linear_attention(queries, keys, read, **options))
        return features.beside_text(out, q, k, v, grid) if exact else out

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        exact = features.is_exact(grid, values)
        own = 0 if exact else grid.text
        start = grid.text - own  # of the tokens that are read linearly
        # Each (channels, keys, tokens).
        of_keys, of_values = (
            self._spread(pooling, grid, values, own, q.dtype)
            for pooling in (self.key_pooling, self.value_pooling)
        )
        keys = torch.einsum("ctj,bjc->btc", of_keys, k[:, start:].flatten(2))
        keys = keys.unflatten(2, q.shape[2:])
        weights = torch.einsum("bihd,bthd->bhit", q[:, start:].relu(), keys.relu())
        denominator = weights.sum(-1, keepdim=True) + values.eps * keys.shape[1]
        # What is divided by 0 is 0 itself.
        weights = weights / denominator.masked_fill(denominator == 0, math.inf)
        of_values = of_values.unflatten(0, q.shape[2:])  # (heads, head_dim, keys, tokens)
        linear = torch.einsum("bhit,hdtj->bhdij", weights, of_values).flatten(1, 2)
        return features.map_beside_text(linear, q, k, grid) if exact else linear

    def _spread(
        self, pooling: Pooling, grid: Grid, values: Values, own: int, dtype: torch.dtype
    ) -> Tensor:
        """Return the weight of each token in each key, where `own` tokens are keys themselves."""
        spread = pooling.spread(grid, values.stride, dtype)
        alone = torch.eye(own, dtype=dtype, device=spread.device)
        return torch.stack([torch.block_diag(alone, cells) for cells in spread])

    def cost(self, grid: Grid, values: Values) -> int:
        channels, width = self.shape.channels, self.shape.width
        block = (SIDE**2 + 1) * grid.picture * width * self.hidden
        pooling = 2 * SIDE**2 * self._cells(grid, values) * channels
        read = features.linear_tokens(grid, values) + self._keys(grid, values)
        exact = 2 * features.exact_pairs(grid, values) * channels
        return block + pooling + read * channels * self.shape.head_dim + exact

    def _cells(self, grid: Grid, values: Values) -> int:
        return -(-grid.height // values.stride) * -(-grid.width // values.stride)

    def _keys(self, grid: Grid, values: Values) -> int:
        """Count the keys that are read linearly."""
        text = grid.text if values.text == "joint" else 0
        return text + self._cells(grid, values)

    def pairs(self, grid: Grid, values: Values) -> int:
        return features.exact_pairs(grid, values)

    def uncounted(self, grid: Grid, values: Values) -> int:
        return features.linear_tokens(grid, values) * self.shape.channels  # the denominator
