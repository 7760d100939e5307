"""Gates of keys and values (LINA, arXiv 2601.22630): a learned factor for each head and place.

- k <- g k and v <- h v before the linear read; both factors are 1 at first. Rotation commutes with
  a factor, and so does ReLU while it is positive.
- They are stored for a square picture, that of the training, and resized bilinearly to any other.
- Text has no place on the picture, and its length differs from call to call: one factor a head
  serves all of its tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn.attention.grid import Grid
from linattn.attention.resample import resized


class Gate(nn.Module):
    def __init__(self, heads: int, side: int, has_text: bool):
        super().__init__()
        self.picture = nn.Parameter(torch.ones(2, heads, side, side))  # of keys, of values
        self.text = nn.Parameter(torch.ones(2, heads, 1)) if has_text else None

    def forward(self, grid: Grid, text: int, dtype: torch.dtype) -> Tensor:
        """Return the factors of keys and of values, (2, text + picture, heads, 1)."""
        table = self.picture.to(dtype).flatten(0, 1).unsqueeze(3)  # (2 x heads, side, side, 1)
        picture = resized(table, grid.height, grid.width).flatten(1).unflatten(0, (2, -1))
        return self._beside_text(picture, text).transpose(1, 2).unsqueeze(3)

    def definition(self, grid: Grid, text: int, dtype: torch.dtype) -> Tensor:
        """Compute the same by PyTorch's own interpolation: the judge of `forward`."""
        size = grid.height, grid.width
        picture = F.interpolate(self.picture.to(dtype), size, mode="bilinear").flatten(2)
        return self._beside_text(picture, text).transpose(1, 2).unsqueeze(3)

    def _beside_text(self, picture: Tensor, text: int) -> Tensor:
        """Return (2, heads, text + picture); 1 for the text where it has no gate."""
        if self.text is None or not text:
            return F.pad(picture, (text, 0), value=1)
        return torch.cat([self.text.to(picture.dtype).expand(-1, -1, text), picture], 2)

    def products(self, grid: Grid) -> int:
        """Count the products of the resizing."""
        tables, heads, side, _ = self.picture.shape
        if (grid.height, grid.width) == (side, side):
            return 0
        return tables * heads * grid.height * side * (side + grid.width)
