"""CLEAR (arXiv 2412.16112): the teacher's softmax over a disc on the picture.

- A picture token reads the picture tokens strictly inside the radius (dy^2 + dx^2 < radius^2,
  clipped at the border) and all text tokens; a text token reads everything. All heads alike.
- pool=f appends a pooled key and value for each f x f cell, made with one learnable f x f kernel a
  layer, the same for keys, values and heads, 1/f^2 at first. Picture tokens read all of them, text
  tokens none. Cells at the border of a picture that f does not divide are partial: the kernel is
  clipped and the sum runs over the positions there are. (The release refuses such sizes.) This part
  is quadratic, N^2 / f^2, as published.
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
from linattn.attention.options import Values, also, flag, number, whole
from linattn_kernels import window_attention
from linattn_kernels.check import MOST_SOFTMAX

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
        "proportional": flag(False, scheduled=True),
        "trained": whole(None, least=2),
    }
    published = {"radius": 8, "pool": 1, "proportional": False}
    forms = {
        "disc": {"radius": 3},
        "fraction": {"radius": 2.5, "proportional": True, "trained": 50},
        "single": {"radius": 0.5},
        "pool2": {"radius": 2, "pool": 2},
        "pool4": {"radius": 4, "pool": 4, "proportional": True, "trained": 50},
    }

    def __init__(self, shape: LayerShape, **options):
        super().__init__(shape, **options)
        proportional, trained = self.possible("proportional"), self.possible("trained")
        if True in proportional and None in trained and shape.trained is None:
            raise ValueError(NO_TRAINED)
        # One kernel for each factor of the schedule.
        factors = sorted({factor for factor in self.possible("pool") if factor > 1})
        self.pooling = Pooling(factors)

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
        return torch.einsum("byaxchd,ac->byxhd", cells, kernel).flatten(1, 2).to(tokens.dtype)

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        extra = None
        if values.pool > 1:
            extra = self.pooled(k, grid, values.pool), self.pooled(v, grid, values.pool)
        out = window_attention(
            q,
            k,
            v,
            height=grid.height,
            width=grid.width,
            radius=values.radius,
            text=grid.text,
            scale=self.scale(grid, values),
            extra=extra,
            backend=self.backend,
        )
        return cast(Tensor, out)  # without the log-sum-exp

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
        spread = self.spread(grid, values.pool, q.dtype)  # (cells, tokens)
        cells = torch.einsum("bhij,cj->bhic", scores(q, k, scale), spread)
        cells = torch.cat([torch.full_like(cells[:, :, :text], -math.inf), cells[:, :, text:]], 2)
        both = torch.cat([weight, cells], 3).softmax(-1)
        return both[..., : grid.tokens] + both[..., grid.tokens :] @ spread

    def spread(self, grid: Grid, factor: int, dtype: torch.dtype) -> Tensor:
        """Return the kernel's weight of each token in each cell, (cells, tokens)."""
        kernel = self.pooling(factor).to(dtype)
        token = torch.arange(grid.picture, device=kernel.device)
        y, x = token // grid.width, token % grid.width
        cell = (y // factor) * math.ceil(grid.width / factor) + x // factor
        cells = F.one_hot(cell, self.cells(grid, factor)).T.to(dtype)
        return F.pad(cells * kernel[y % factor, x % factor], (grid.text, 0))

    def cells(self, grid: Grid, factor: int) -> int:
        """Count the pooled cells; none without pooling."""
        if factor == 1:
            return 0
        return math.ceil(grid.height / factor) * math.ceil(grid.width / factor)

    def pairs(self, grid: Grid, values: Values) -> int:
        """Count the query-key pairs that are read.

        This is the ideal, which no tiling reaches: tiles of 8 x 8 at radius 8 compute 2.5 times it.
        """
        far = math.ceil(values.radius) - 1
        near = 0
        for dy in range(-min(far, grid.height - 1), min(far, grid.height - 1) + 1):
            width = _half_chord(dy, values.radius, grid.width)
            # Pairs dx apart in a row of w tokens: w - |dx|; summed over |dx| <= width.
            near += (grid.height - abs(dy)) * (grid.width * (2 * width + 1) - width * (width + 1))
        pairs = near + grid.text * grid.tokens + grid.picture * grid.text
        return pairs + grid.picture * self.cells(grid, values.pool)

    def cost(self, grid: Grid, values: Values) -> int:
        # Pooling of keys and of values, whose weights are learned.
        pooling = 2 * grid.picture * self.shape.channels if values.pool > 1 else 0
        return 2 * self.pairs(grid, values) * self.shape.channels + pooling

    def uncounted(self, grid: Grid, values: Values) -> Literal["pairs"] | None:
        return "pairs" if values.pool == 1 else None  # PyTorch's path multiplies whole tiles


def _half_chord(dy: int, radius: float, width: int) -> int:
    """Return the largest dx with dy^2 + dx^2 < radius^2, at most width - 1."""
    dx = 0
    while dx + 1 < width and dy * dy + (dx + 1) ** 2 < radius * radius:
        dx += 1
    return dx
