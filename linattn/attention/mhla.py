"""MHLA (arXiv 2601.07832): linear attention whose states of tiles are mixed anew for every tile.

- The picture is cut into rows x columns tiles, each with a state S_m = sum phi(k)^T v and
  z_m = sum phi(k), phi(z) = ReLU(z) + 1e-6. A query of tile n reads phi(q) S'_n / (phi(q) z'_n),
  where S'_n = sum_m A_nm S_m and z'_n alike.
- This is the paper's normaliser. The release sums finished products phi(q) z_m over tiles instead,
  so that a row is divided by numbers made of other tiles' queries.
- A is learned, one matrix a layer. It starts as 1 - distance / largest distance between tiles, each
  column divided by its sum. The release learns it freely, but with weights below 0 a denominator
  may be 0; here its logarithm is learned, and a softmax keeps columns positive and of sum 1. Tiles
  farthest apart start at FARTHEST instead of 0, which has no logarithm.
- The number of tiles stays at any size, and their size follows the picture. Where it has fewer rows
  or columns than tiles, some tiles are empty.
- Text is exact, as in MM-EDiT (features.py): it has no tile.
- A depth-wise convolution of the values is added, zero at conversion.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from linattn.attention import features
from linattn.attention.base import LayerShape, Operator
from linattn.attention.convolution import DepthwiseConvolution
from linattn.attention.features import SHIFTS
from linattn.attention.grid import Grid
from linattn.attention.options import Option, Values, kernel
from linattn_kernels import State, linear_attention
from linattn_kernels.check import MOST

MAP = "relu"
FARTHEST = 0.01  # tiles next to the farthest of 4 x 4 start at 0.15
MOST_TILES = 1024  # whose mixing has a million numbers


def sides(default: tuple[int, int]) -> Option:
    """Take (rows, columns) of tiles."""

    def checked(value: Any) -> tuple[int, int]:
        pair = isinstance(value, (list, tuple)) and len(value) == 2
        if not pair or not all(type(side) is int and side >= 1 for side in value):
            raise ValueError("(rows, columns), whole numbers from 1 on")
        if math.prod(value) > MOST_TILES:
            raise ValueError(f"(rows, columns) of at most {MOST_TILES:,} tiles")
        return value[0], value[1]

    return Option(default, checked, scheduled=False)


def nearness(rows: int, columns: int) -> Tensor:
    """Return the mixing's logarithm by the distance between tiles, (tiles, tiles)."""
    tile = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    distance = torch.cdist(tile, tile)
    return (1 - distance / distance.max().clamp_min(1)).clamp_min(FARTHEST).log()


def places(grid: Grid, tiles: tuple[int, int], device: torch.device) -> Tensor:
    """Return the place of each of the picture's tokens among tiles of one size."""
    row, down = _along(grid.height, tiles[0], device)
    column, across = _along(grid.width, tiles[1], device)
    tile = row[:, None] * tiles[1] + column  # (height, width)
    within = down[:, None] * -(-grid.width // tiles[1]) + across
    return (tile * capacity(grid, tiles) + within).flatten()


def _along(size: int, tiles: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the tile of each position along a side, and the position inside the tile."""
    position = torch.arange(size, device=device)
    tile = position * tiles // size
    start = -(-tile * size // tiles)
    return tile, position - start


def capacity(grid: Grid, tiles: tuple[int, int]) -> int:
    """Return how many tokens the largest tile may have."""
    return -(-grid.height // tiles[0]) * -(-grid.width // tiles[1])


class MHLA(Operator):
    name = "mhla"
    aliases = ("tiles", "multi-head-linear")
    gist = "linear attention, states of tiles mixed by a learned matrix"
    about = (
        "MHLA sums up the keys of every tile of the picture by itself, and lets the queries of a "
        "tile read a mixture of these sums that starts by distance and is learned."
    )
    paper = "MHLA, arXiv 2601.07832"
    text = (
        "text tokens read everything and are read by softmax, mixed with the picture by their "
        "shares; tiles and convolution see the picture"
    )
    hue = "#2f6fb7"
    max_head_dim, core_in_float32 = MOST, False
    table = {"tiles": sides((4, 4)), "conv": kernel(3)}
    published = {"tiles": [4, 4]}
    forms = {"uneven": {"tiles": (2, 3), "conv": 0}}

    def __init__(self, shape: LayerShape, **options):
        super().__init__(shape, **options)
        self.nearness = nn.Parameter(nearness(*self.values.tiles))
        if side := max(self.possible("conv")):
            self.convolution = DepthwiseConvolution(shape.channels, side)

    def mixing(self, dtype: torch.dtype) -> Tensor:
        """Return A (tiles, tiles): how much a tile, the row, reads of every tile."""
        return self.nearness.to(dtype).softmax(0)

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        place = places(grid, values.tiles, q.device)
        source, filled = self._sources(place, capacity(grid, values.tiles))
        queries, keys, read = (self._tiled(t[:, grid.text :], source) for t in (q, k, v))
        state = self._mixed(self._states(keys, read, filled))
        out = self._read(queries, keys[:, :0], read[:, :0], state=state)
        # (batch, picture, heads, head_dim)
        out = out.unflatten(0, (-1, self.tiles)).flatten(1, 2).index_select(1, place)
        return features.beside_text(out, q, k, v, grid) if grid.text else out

    @property
    def tiles(self) -> int:
        return math.prod(self.values.tiles)

    def _sources(self, place: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return the token of each place, and whether there is one, (tiles x size,) both."""
        source = place.new_full((self.tiles * size,), -1)
        source = source.index_copy(0, place, torch.arange(len(place), device=place.device))
        return source.clamp_min(0), source >= 0

    def _tiled(self, tensor: Tensor, source: Tensor) -> Tensor:
        """Return the tokens of every tile, (batch x tiles, size, heads, head_dim)."""
        return tensor.index_select(1, source).unflatten(1, (self.tiles, -1)).flatten(0, 1)

    def _states(self, k: Tensor, v: Tensor, filled: Tensor) -> State:
        """Sum up the keys of every tile of every picture."""
        mask = filled.unflatten(0, (self.tiles, -1)).repeat(len(k) // self.tiles, 1)
        return self._read(k[:, :0], k, v, key_mask=mask, return_state=True)[1]

    def _mixed(self, state: State) -> State:
        """Return what every tile reads: sums over tiles, each with as much weight as tokens."""
        values, keys, count = (part.unflatten(0, (-1, self.tiles)) for part in state)
        share = (count / count.sum(1, keepdim=True)).unsqueeze(1) * self.mixing(count.dtype)
        values = share @ values.flatten(2)  # (batch, tiles, heads x head_dim x head_dim)
        keys = share @ keys.flatten(2)
        shapes = state.values.shape, state.keys.shape
        return State(values.view(shapes[0]), keys.view(shapes[1]), torch.ones_like(state.count))

    def _read(self, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Any:
        options = {"feature_map": MAP, "shift": SHIFTS[MAP], "eps": 0.0, "backend": self.backend}
        return linear_attention(q, k, v, **options, **more)

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        (rows, columns), token = values.tiles, torch.arange(grid.picture, device=q.device)
        y, x = token // grid.width, token % grid.width
        tile = y * rows // grid.height * columns + x * columns // grid.width
        mixed = self.mixing(q.dtype)[tile][:, tile]  # (picture, picture)
        q_map, k_map = (features.phi(tensor[:, grid.text :], MAP) for tensor in (q, k))
        weights = mixed * torch.einsum("bihd,bjhd->bhij", q_map, k_map)
        linear = weights / weights.sum(-1, keepdim=True)
        return features.map_beside_text(linear, q, k, grid) if grid.text else linear

    def cost(self, grid: Grid, values: Values) -> int:
        tokens = 2 * grid.picture + self.tiles**2  # that are multiplied with a state
        products = tokens * self.shape.head_dim + 2 * features.text_pairs(grid)
        return products * self.shape.channels

    def pairs(self, grid: Grid, values: Values) -> int:
        return features.text_pairs(grid)

    def uncounted(self, grid: Grid, values: Values) -> int:
        """Count what fills tiles up to one size, and denominators."""
        read = self.tiles * capacity(grid, values.tiles)
        filling = 2 * (read - grid.picture) * self.shape.head_dim
        return (filling + read + self.tiles**2) * self.shape.channels
