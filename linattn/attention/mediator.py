"""Attention Mediators (arXiv 2408.05710): a few mediators read the keys, every query reads the
mediators.

- Mediators are queries averaged over a rows x columns partition of the picture (source="query").
  The same mediator is query of the first softmax and key of the second; both are scaled by
  1 / sqrt(head_dim).
- source="learned" is DBA (arXiv 2211.16368): C = softmax(p K^T) V and O = softmax(Q p'^T) C, with
  learned tokens p and p' of the layer, normal with deviation .02 at first. The kernels know one
  mediator for both softmaxes, so these are two calls of PyTorch's attention. DBA has no biases, and
  they are refused. Another count than the stored one is interpolated bilinearly, as biases are.
- Without biases nothing depends on the count, so one checkpoint serves several: count can follow
  the noise (few at the noisy end), which is what the paper's switching between three models comes
  down to.
- With biases (factorised: rows + columns, full: and a 7 x 7 table) they are stored at one size and
  interpolated to the count and the picture at hand: tables bilinearly, rows and columns linearly
  with aligned corners, as the paper does between resolutions. Zero at first.
- Text tokens (not in the paper): their keys are read by the mediators, their queries read the
  mediators; mediators are made of the picture's queries alone, and biases know the picture only.
- A depth-wise convolution of the values restores the detail that mediators average away.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from linattn.attention.base import LayerShape, Operator, attend, common, scores
from linattn.attention.convolution import DepthwiseConvolution
from linattn.attention.grid import Grid
from linattn.attention.options import Option, Values, also, choice, kernel
from linattn.attention.resample import along, averages, interpolation, resized
from linattn_kernels import mediator_attention
from linattn_kernels.check import MOST_SOFTMAX
from linattn_kernels.launch import Backend

Count = int | tuple[int, int]
TABLE = 7  # the paper's side of the tables
START = 0.02  # standard deviation of learned tokens
# length of the stored row and column biases: 256 tokens, what the paper trains its 256 px models
# with
SIDE = 16


def partition(count: Count, grid: Grid) -> tuple[int, int]:
    """Return the rows and columns of mediators.

    A pair is returned as it is. A square count gives a square, another the pair nearest to the
    picture's ratio.
    """
    if not isinstance(count, int):
        return count
    root = math.isqrt(count)
    if root * root == count:
        return root, root
    pairs = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    ratio = math.log(grid.height / grid.width)
    return min(pairs, key=lambda pair: (round(abs(math.log(pair[0] / pair[1]) - ratio), 9), pair))


def counts(default: Count) -> Option:
    """Take a number of mediators, or (rows, columns)."""

    def checked(value: Any) -> Count:
        pair = isinstance(value, (list, tuple))
        sides = tuple(value) if pair else (value,)
        if not all(_is_count(side) for side in sides) or (pair and len(sides) != 2):
            raise ValueError("a whole number from 1 on or (rows, columns)")
        return sides if len(sides) == 2 else sides[0]

    return Option(default, checked)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


class Bias(nn.Module):
    """Make the bias of one softmax between mediators and tokens, for any size of picture."""

    def __init__(self, heads: int, stored: tuple[int, int], full: bool):
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(heads, *stored, SIDE))
        self.columns = nn.Parameter(torch.zeros(heads, *stored, SIDE))
        self.cells: nn.Parameter | None = None
        if full:
            self.cells = nn.Parameter(torch.zeros(heads, *stored, TABLE, TABLE))

    def forward(self, rows: int, columns: int, grid: Grid, dtype: torch.dtype) -> Tensor:
        """Return (heads, mediators, tokens of the picture)."""
        # Stored mediators of all heads first; in the core's dtype, since half precision misplaces
        # the samples.
        down, across = (
            table.to(dtype).flatten(0, 2).unsqueeze(2) for table in (self.rows, self.columns)
        )
        # (mediators, height, 1)
        down = along(interpolation(SIDE, grid.height, down, corners=True), down)
        # (mediators, width, 1)
        across = along(interpolation(SIDE, grid.width, across, corners=True), across)
        bias = down.unsqueeze(2) + across.unsqueeze(1)  # (mediators, height, width, 1)
        if self.cells is not None:
            cells = self.cells.to(dtype).flatten(0, 2).unsqueeze(3)  # (mediators, TABLE, TABLE, 1)
            bias = bias + resized(cells, grid.height, grid.width)
        bias = bias.reshape(*self.rows.shape[:3], grid.picture)
        return resized(bias, rows, columns).flatten(1, 2)


class Mediator(Operator):
    name = "mediator"
    aliases = ("mediators", "agent")
    gist = "two softmaxes through a few pooled queries"
    about = (
        "Attention Mediators put a few pooled queries between queries and keys: they read all "
        "tokens, and the tokens read them. A depth-wise convolution gives detail back."
    )
    paper = "Attention Mediators, arXiv 2408.05710"
    text = (
        "mediators read its keys, its queries read the mediators; mediators are pooled from the "
        "picture"
    )
    hue = "#009e73"
    max_head_dim, core_in_float32 = MOST_SOFTMAX, False
    table = {
        "count": also(counts(64), "mediator_num", "agent_num"),
        "bias": choice("none", ("none", "factorised", "full")),
        "conv": kernel(3),
        "source": choice("query", ("query", "learned")),
    }
    published = {"count": 64, "bias": "none", "conv": 3, "source": "query"}
    forms = {
        "9": {"count": 9},
        "6": {"count": 6, "conv": 0},
        "factorised": {"count": (2, 3), "bias": "factorised"},
        "full": {"count": 4, "bias": "full"},
        "learned": {"count": 6, "source": "learned"},
    }

    def __init__(self, shape: LayerShape, **options):
        super().__init__(shape, **options)
        if self.values.source == "learned" and self.values.bias != "none":
            raise ValueError(
                f"mediator: bias={self.values.bias!r} is of pooled queries, and source='learned' "
                "has none: leave one of them out"
            )
        if side := max(self.possible("conv")):
            self.convolution = DepthwiseConvolution(shape.channels, side)
        # Stored at the largest count as a square picture has it. Other counts are interpolated from
        # it, and so is that count itself where a picture's ratio turns it: 8 is stored 2 x 4, and a
        # tall picture has 4 x 2.
        shapes = [partition(count, Grid(1, 1)) for count in self.possible("count")]
        stored = max(shapes, key=math.prod)
        self.reading_bias: Bias | None = None  # stage 1, mediators on keys
        self.query_bias: Bias | None = None  # stage 2, queries on mediators
        if self.values.bias != "none":
            full = self.values.bias == "full"
            self.reading_bias = Bias(shape.heads, stored, full)
            self.query_bias = Bias(shape.heads, stored, full)
        self.tokens: nn.Parameter | None = None
        if self.values.source == "learned":
            # p and p'; from zero, all tokens would stay equal for ever.
            self.tokens = nn.Parameter(torch.randn(2, *stored, shape.channels) * START)

    def runs(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Backend:
        """Say which path `mix` takes; learned mediators are read by PyTorch everywhere."""
        if self.tokens is not None:
            return Backend("torch", "two calls of PyTorch's attention")
        return super().runs(device, dtype)

    def mediators(self, q: Tensor, grid: Grid, rows: int, columns: int) -> Tensor:
        """Return (batch, mediators, heads, head_dim) of q's dtype, averaged in float32 at least."""
        picture = grid.rows(q).flatten(3)  # (batch, height, width, channels)
        picture = picture.to(common(q, least=torch.float32))
        # (batch, rows, width x channels)
        bands = averages(grid.height, rows, picture) @ picture.flatten(2)
        cells = averages(grid.width, columns, picture) @ bands.unflatten(2, (grid.width, -1))
        return cells.flatten(1, 2).unflatten(2, q.shape[2:]).to(q.dtype)

    def learned(self, tokens: Tensor, rows: int, columns: int, like: Tensor) -> list[Tensor]:
        """Return p and p', each (batch, mediators, heads, head_dim) of the dtype of queries."""
        cells = resized(tokens.to(common(like, least=torch.float32)), rows, columns)
        cells = cells.flatten(1, 2).unflatten(2, like.shape[2:]).to(like.dtype)
        return [part.expand(like.shape[0], -1, -1, -1) for part in cells.unsqueeze(1)]

    def biases(
        self, grid: Grid, rows: int, columns: int, dtype: torch.dtype
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return (heads, mediators, tokens) and (heads, tokens, mediators); zero for text."""
        if self.reading_bias is None or self.query_bias is None:
            return None, None
        reading = self.reading_bias(rows, columns, grid, dtype)
        query = self.query_bias(rows, columns, grid, dtype)
        # Transposed before it is padded: torch.compile mistakes the strides of a padded transposed
        # gradient.
        return F.pad(reading, (grid.text, 0)), F.pad(query.transpose(1, 2), (0, 0, grid.text, 0))

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        rows, columns = partition(values.count, grid)
        if self.tokens is not None:
            readers, answers = self.learned(self.tokens, rows, columns, q)
            scale = self.shape.head_dim**-0.5
            return attend(q, answers, attend(readers, k, v, scale), scale)
        mediators = self.mediators(q, grid, rows, columns)
        reading, query = self.biases(grid, rows, columns, common(q, least=torch.float32))
        return mediator_attention(
            q, k, v, mediators, bias_in=reading, bias_out=query, backend=self.backend
        )

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        rows, columns = partition(values.count, grid)
        readers, answers = self._mediators_by_cell(q, grid, rows, columns)
        reading, query = self.biases(grid, rows, columns, q.dtype)
        scale = self.shape.head_dim**-0.5
        first = scores(readers, k, scale)  # (batch, heads, mediators, tokens)
        first = first if reading is None else first + reading
        second = scores(q, answers, scale)  # (batch, heads, tokens, mediators)
        second = second if query is None else second + query
        return second.softmax(-1) @ first.softmax(-1)

    def _mediators_by_cell(
        self, q: Tensor, grid: Grid, rows: int, columns: int
    ) -> tuple[Tensor, Tensor]:
        """Return what reads the keys and what queries read, by PyTorch's own resizing."""
        if self.tokens is None:
            channels_first = grid.rows(q).flatten(3).permute(0, 3, 1, 2)
            cells = F.adaptive_avg_pool2d(channels_first, (rows, columns))
            mediators = cells.flatten(2).transpose(1, 2).unflatten(2, q.shape[2:])
            return mediators, mediators
        channels_first = self.tokens.to(q.dtype).permute(0, 3, 1, 2)
        # (2, channels, rows, columns)
        cells = F.interpolate(channels_first, (rows, columns), mode="bilinear")
        cells = cells.flatten(2).transpose(1, 2).unflatten(2, q.shape[2:])
        readers, answers = cells.unsqueeze(1).expand(-1, q.shape[0], -1, -1, -1)
        return readers, answers

    def cost(self, grid: Grid, values: Values) -> int:
        return 2 * self.pairs(grid, values) * self.shape.channels

    def pairs(self, grid: Grid, values: Values) -> int:
        """Count the weights of both softmaxes: mediators on keys, queries on mediators."""
        return 2 * math.prod(partition(values.count, grid)) * grid.tokens

    def uncounted(self, grid: Grid, values: Values) -> int:
        """Count averages and interpolation: matrix products here, and free in the papers."""
        rows, columns = partition(values.count, grid)
        q = torch.zeros(1, grid.tokens, self.shape.heads, self.shape.head_dim)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            if self.tokens is not None:
                self.learned(self.tokens, rows, columns, q)
            else:
                self.mediators(q, grid, rows, columns)
            self.biases(grid, rows, columns, torch.float32)
        return counter.get_total_flops() // 2
