"""CLEAR (arXiv 2412.16112): the teacher's softmax over a disc on the picture.

- A picture token reads the picture tokens strictly inside the radius (dy^2 + dx^2 < radius^2,
  clipped at the border) and all text tokens; a text token reads everything. All heads alike.
- pool=f appends a pooled key and value for each f x f cell, made with one learnable f x f kernel a
  layer, the same for keys, values and heads, 1/f^2 at first. Picture tokens read all of them, text
  tokens none. Cells at the border of a picture that f does not divide are partial: the kernel is
  clipped and the sum runs over the positions there are. (The release refuses such sizes.) This part
  is quadratic, N^2 / f^2, as published.
- weight="one" reads a cell as one key, as released. weight="tokens" reads it as the n tokens it
  stands for: log n is added to its score. A partial cell counts the tokens there are, and its sums
  are divided by their share of the kernel's places, so that they too start as means. The window's
  own tokens stay in their cells and count twice: taking them off would need weights by query and
  cell, which the kernels do not have, for .3 of 3.4 % on the FLUX (docs/LOG.md, 2026-11-29).
- proportional multiplies the scale by sqrt(log(tokens) / log(training tokens)), text included, and
  with pooled keys sqrt(log(10 tokens) / ...), as released. Training tokens are option `trained`,
  else what the model's config says (`LayerShape.trained`); where neither does, it is refused: with
  FLUX.1's 4608 a small model's scores would soften.
"""

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn.attention.base import LayerShape, Operator, common, scores
from linattn.attention.grid import Grid
from linattn.attention.options import Values, also, choice, flag, number, whole
from linattn.attention.windows import near_pairs
from linattn_kernels import window_attention
from linattn_kernels.check import MOST_SOFTMAX

# Channels that carry the count of a cell to the kernels: two are used, log n in the precision of
# the keys and what that leaves, and eight keep rows of half precision at multiples of 16 bytes.
CHANNELS = 8
NO_TRAINED = (
    "proportional needs to know how many tokens the model was trained with, and its config does "
    "not say: pass trained, text included (FLUX.1 at 1024 px: 4608)"
)


class Pooling(nn.Module):
    """Hold one pooling kernel for each factor.

    It is called and not looked up, because accelerate brings offloaded weights back only for calls.
    """

    def __init__(self, factors: Sequence[int]):
        super().__init__()
        for factor in factors:
            kernel = torch.full((factor, factor), 1 / factor**2)
            self.register_parameter(str(factor), nn.Parameter(kernel))

    def forward(self, factor: int) -> Tensor:
        return getattr(self, str(factor))


class Clear(Operator):
    name = "clear"
    aliases = ("local", "window", "disc")
    gist = "softmax inside a disc around each token"
    about = (
        "CLEAR keeps softmax and the teacher's weights, but lets a token look only at those inside "
        "a disc around it; pooled keys, where there are any, give back a coarse view of the rest."
    )
    paper = "CLEAR, arXiv 2412.16112"
    text = "picture tokens read all text, text tokens read everything"
    hue = "#0072b2"
    max_head_dim, core_in_float32 = MOST_SOFTMAX, False
    table = {
        "radius": also(number(8, above=0), "window_size"),
        "pool": also(whole(1, least=1), "down_factor"),
        "weight": choice("one", ("one", "tokens")),
        "proportional": flag(False, scheduled=True),
        "trained": whole(None, least=2),
    }
    published = {"radius": 8, "pool": 1, "weight": "one", "proportional": False}
    forms = {
        "disc": {"radius": 3},
        "fraction": {"radius": 2.5, "proportional": True, "trained": 50},
        "single": {"radius": 0.5},
        "pool2": {"radius": 2, "pool": 2},
        "pool4": {"radius": 4, "pool": 4, "proportional": True, "trained": 50},
        "pool-tokens": {
            "radius": 2.5,
            "pool": 3,
            "weight": "tokens",
            "proportional": True,
            "trained": 50,
        },
    }

    def __init__(self, shape: LayerShape, **options):
        super().__init__(shape, **options)
        proportional, trained = self.possible("proportional"), self.possible("trained")
        if True in proportional and None in trained and shape.trained is None:
            raise ValueError(NO_TRAINED)
        # One kernel for each factor of the schedule.
        factors = sorted({factor for factor in self.possible("pool") if factor > 1})
        if self.values.weight == "tokens" and not factors:
            raise ValueError(
                "clear: weight='tokens' is about pooled keys, and pool=1 has none: pass pool=2 or "
                "more, or leave weight out"
            )
        self.pooling = Pooling(factors)

    @property
    def head_dim(self) -> int:
        return self.shape.head_dim + (CHANNELS if self.values.weight == "tokens" else 0)

    def scale(self, grid: Grid, values: Values) -> float:
        scale = self.shape.head_dim**-0.5
        if not values.proportional:
            return scale
        trained = values.trained or self.shape.trained
        if trained is None:
            raise ValueError(NO_TRAINED)
        tokens = grid.tokens * (10 if values.pool > 1 else 1)
        return scale * math.sqrt(math.log(tokens) / math.log(trained))

    def pooled(self, tokens: Tensor, grid: Grid, factor: int) -> Tensor:
        """Pool each cell's tokens into one, (batch, cells, heads, head_dim).

        What lies beyond the border is zero and adds nothing.
        """
        dtype = common(tokens, least=torch.float32)
        picture = grid.rows(tokens.to(dtype))  # (batch, height, width, heads, head_dim)
        picture = F.pad(picture, (0, 0, 0, 0, 0, -grid.width % factor, 0, -grid.height % factor))
        cells = picture.unflatten(2, (-1, factor)).unflatten(1, (-1, factor))
        kernel = self.pooling(factor).to(dtype)
        pooled = torch.einsum("byaxchd,ac->byxhd", cells, kernel).flatten(1, 2)
        if self.values.weight == "tokens":
            pooled = pooled * (factor**2 / counts(grid, factor, pooled))[:, None, None]
        return pooled.to(tokens.dtype)

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        extra, scale, width = None, self.scale(grid, values), v.shape[3]
        if values.pool > 1:
            extra = self.pooled(k, grid, values.pool), self.pooled(v, grid, values.pool)
            if values.weight == "tokens":
                number = counts(grid, values.pool, q)
                q, k, v, extra = _counted(q, k, v, extra, number.log() / scale)
        out = window_attention(
            q,
            k,
            v,
            height=grid.height,
            width=grid.width,
            radius=values.radius,
            text=grid.text,
            scale=scale,
            extra=extra,
            backend=self.backend,
        )
        return cast(Tensor, out)[..., :width]  # without the log-sum-exp

    def allowed(self, grid: Grid, radius: float, device: torch.device) -> Tensor:
        """Say for each pair whether the first token reads the second, (tokens, tokens)."""
        token = torch.arange(grid.picture, device=device)
        y, x = token // grid.width, token % grid.width
        near = (y[:, None] - y).double() ** 2 + (x[:, None] - x).double() ** 2 < radius**2
        return F.pad(near, (grid.text, 0, grid.text, 0), value=True)

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        text, scale = grid.text, self.scale(grid, values)
        hidden = ~self.allowed(grid, values.radius, q.device)
        weight = scores(q, k, scale).masked_fill(hidden, -math.inf)
        if values.pool == 1:
            return weight.softmax(-1)
        # A pooled key is a sum of keys, so its score is that sum of scores and its weight goes to
        # the same values.
        member = self.members(grid, values.pool, q.dtype)  # (cells, tokens)
        spread = member * self.places(grid, values.pool, q.dtype)
        number = member.sum(1, keepdim=True)
        if values.weight == "tokens":
            spread = spread * values.pool**2 / number
        cells = torch.einsum("bhij,cj->bhic", scores(q, k, scale), spread)
        if values.weight == "tokens":
            cells = cells + number.log().T
        cells = torch.cat([torch.full_like(cells[:, :, :text], -math.inf), cells[:, :, text:]], 2)
        both = torch.cat([weight, cells], 3).softmax(-1)
        return both[..., : grid.tokens] + both[..., grid.tokens :] @ spread

    def members(self, grid: Grid, factor: int, dtype: torch.dtype) -> Tensor:
        """Return 1 for the tokens of each cell and 0 for all others, (cells, tokens)."""
        token = torch.arange(grid.picture, device=self.pooling(factor).device)
        y, x = token // grid.width, token % grid.width
        cell = (y // factor) * math.ceil(grid.width / factor) + x // factor
        member = F.one_hot(cell, self.cells(grid, factor)).T.to(dtype)
        return F.pad(member, (grid.text, 0))

    def places(self, grid: Grid, factor: int, dtype: torch.dtype) -> Tensor:
        """Return the kernel's weight of each token by its place in its cell, (tokens,)."""
        kernel = self.pooling(factor).to(dtype)
        token = torch.arange(grid.picture, device=kernel.device)
        y, x = token // grid.width, token % grid.width
        return F.pad(kernel[y % factor, x % factor], (grid.text, 0))

    def cells(self, grid: Grid, factor: int) -> int:
        """Count the pooled cells; none without pooling."""
        if factor == 1:
            return 0
        return math.ceil(grid.height / factor) * math.ceil(grid.width / factor)

    def pairs(self, grid: Grid, values: Values) -> int:
        """Count the query-key pairs that are read.

        This is the ideal, which no tiling reaches: tiles of 8 x 8 at radius 8 compute 2.5 times it.
        """
        near = near_pairs(grid, values.radius)
        pairs = near + grid.text * grid.tokens + grid.picture * grid.text
        return pairs + grid.picture * self.cells(grid, values.pool)

    def cost(self, grid: Grid, values: Values) -> int:
        # Pooling of keys and of values, whose weights are learned.
        pooling = 2 * grid.picture * self.shape.channels if values.pool > 1 else 0
        return 2 * self.pairs(grid, values) * self.shape.channels + pooling

    def uncounted(self, grid: Grid, values: Values) -> Literal["pairs"] | None:
        return "pairs" if values.pool == 1 else None  # PyTorch's path multiplies whole tiles


def counts(grid: Grid, factor: int, like: Tensor) -> Tensor:
    """Count the tokens of each cell, (cells,), in float32 at least."""
    dtype = common(like, least=torch.float32)
    rows, columns = (
        (side - torch.arange(0, side, factor, device=like.device)).clamp(max=factor).to(dtype)
        for side in (grid.height, grid.width)
    )
    return torch.outer(rows, columns).flatten()


def _counted(
    q: Tensor, k: Tensor, v: Tensor, pooled: tuple[Tensor, Tensor], bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Append channels by whose products q k of pooled keys grows by the bias, (cells,).

    Values are widened too: where widths differ the PyTorch path copies every window of values, at
    16,384 tokens, 8 heads of 64, radius 8 and pool 4 2.1 s instead of 1.6 s on one core.
    """
    pooled_k, pooled_v = pooled
    coarse = bias.to(q.dtype)
    channels = torch.stack([coarse, (bias - coarse).to(q.dtype)], 1)  # (cells, 2)
    channels = channels[:, None].expand(*pooled_k.shape[:3], -1)
    pooled_k = torch.cat([pooled_k, channels], 3)
    q = F.pad(q, (0, 2), value=1)
    width = v.shape[3] + CHANNELS
    q, k, v, pooled_k, pooled_v = (_widened(t, width) for t in (q, k, v, pooled_k, pooled_v))
    return q, k, v, (pooled_k, pooled_v)


def _widened(tensor: Tensor, width: int) -> Tensor:
    return F.pad(tensor, (0, width - tensor.shape[3]))
