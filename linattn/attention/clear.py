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

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn.attention.base import LayerShape, Operator, common, scores
from linattn.attention.grid import Grid
from linattn.attention.options import Values, flag, number, whole
from linattn_kernels import window_attention
from linattn_kernels.check import MOST_SOFTMAX

UNTOLD = (
    "proportional needs to know how many tokens the model was trained with, and its config does "
    "not say: pass trained, "
    "text included (FLUX.1 at 1024 px: 4608)"
)


class Pooling(nn.Module):
    """A kernel for each factor. Called, not looked up: accelerate brings offloaded weights back for
    a call alone.
    """

    def __init__(self, factors: Sequence[int]):
        super().__init__()
        for factor in factors:
            self.register_parameter(
                str(factor), nn.Parameter(torch.full((factor, factor), 1 / factor**2))
            )

    def forward(self, factor: int) -> Tensor:
        return getattr(self, str(factor))


class Clear(Operator):
    name = "clear"
    max_head_dim, core_in_float32 = MOST_SOFTMAX, False
    table = {
        "radius": number(8, above=0),
        "pool": whole(1, least=1),
        "proportional": flag(False, scheduled=True),
        "trained": whole(None, least=2),
    }

    def __init__(self, shape: LayerShape, **options):
        super().__init__(shape, **options)
        if (
            True in self.ever("proportional")
            and None in self.ever("trained")
            and shape.trained is None
        ):
            raise ValueError(UNTOLD)
        # One kernel for each factor a schedule asks for.
        factors = sorted({factor for factor in self.ever("pool") if factor > 1})
        self.pooling = Pooling(factors)

    def scale(self, grid: Grid, values: Values) -> float:
        scale = self.shape.head_dim**-0.5
        if not values.proportional:
            return scale
        trained = values.trained or self.shape.trained
        if trained is None:
            raise ValueError(UNTOLD)
        tokens = grid.tokens * (10 if values.pool > 1 else 1)
        return scale * math.sqrt(math.log(tokens) / math.log(trained))

    def pooled(self, tokens: Tensor, grid: Grid, factor: int) -> Tensor:
        """(batch, cells, heads, head_dim); what lies beyond the border is zero and adds nothing."""
        wide = common(tokens, least=torch.float32)
        rows = grid.rows(tokens.to(wide))  # (batch, height, width, heads, head_dim)
        rows = F.pad(rows, (0, 0, 0, 0, 0, -grid.width % factor, 0, -grid.height % factor))
        cells = rows.unflatten(2, (-1, factor)).unflatten(1, (-1, factor))
        kernel = self.pooling(factor).to(wide)
        return torch.einsum("byaxchd,ac->byxhd", cells, kernel).flatten(1, 2).to(tokens.dtype)

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        extra = (
            tuple(self.pooled(each, grid, values.pool) for each in (k, v))
            if values.pool > 1
            else None
        )
        place = {
            "height": grid.height,
            "width": grid.width,
            "radius": values.radius,
            "text": grid.text,
        }
        how = {"scale": self.scale(grid, values), "extra": extra, "backend": self.backend}
        return window_attention(q, k, v, **place, **how)

    def allowed(self, grid: Grid, radius: float, device: torch.device) -> Tensor:
        """(tokens, tokens): whether the row reads the column."""
        place = torch.arange(grid.picture, device=device)
        y, x = place // grid.width, place % grid.width
        near = (y[:, None] - y).double() ** 2 + (x[:, None] - x).double() ** 2 < radius**2
        return F.pad(near, (grid.text, 0, grid.text, 0), value=True)

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        text, scale = grid.text, self.scale(grid, values)
        weight = scores(q, k, scale).masked_fill(
            ~self.allowed(grid, values.radius, q.device), -math.inf
        )
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
        """(cells, tokens): the kernel's weight of each token in each cell."""
        kernel = self.pooling(factor).to(dtype)
        place = torch.arange(grid.picture, device=kernel.device)
        y, x = place // grid.width, place % grid.width
        cell = (y // factor) * math.ceil(grid.width / factor) + x // factor
        cells = F.one_hot(cell, self.cells(grid, factor)).T.to(dtype)
        return F.pad(cells * kernel[y % factor, x % factor], (grid.text, 0))

    def cells(self, grid: Grid, factor: int) -> int:
        return math.ceil(grid.height / factor) * math.ceil(grid.width / factor) if factor > 1 else 0

    def pairs(self, grid: Grid, values: Values) -> int:
        """Query-key pairs that are read: the ideal, which no tiling reaches (8 x 8 tiles at radius
        8: 2.5 times).
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
        pooling = (
            2 * grid.picture * self.shape.channels if values.pool > 1 else 0
        )  # of keys and values, learned
        return 2 * self.pairs(grid, values) * self.shape.channels + pooling


def _half_chord(dy: int, radius: float, width: int) -> int:
    """The largest dx with dy^2 + dx^2 < radius^2, at most width - 1."""
    dx = 0
    while dx + 1 < width and dy * dy + (dx + 1) ** 2 < radius * radius:
        dx += 1
    return dx
