"""The depth-wise convolution on the values that LiT and Attention Mediators add to the attention's
output.

- Zero at first (weight and bias): a converted layer starts as its attention alone.
- Channels-last without a copy: tokens already lie as (height, width, channels). With channels
  first, the convolution takes longer than the linear attention it helps.
- `shared` > 1 heads use the same head_dim x k x k weights (LiT). A schedule may use a smaller
  side: the centre of the same weights. Text tokens do not lie on the picture and get nothing.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn.attention.grid import Grid


class DepthwiseConvolution(nn.Module):
    def __init__(self, channels: int, side: int, shared: int = 1):
        super().__init__()
        self.shared = shared  # heads that use the same weights
        self.weight = nn.Parameter(torch.zeros(channels // shared, 1, side, side))
        self.bias = nn.Parameter(torch.zeros(channels // shared))

    def forward(self, v: Tensor, grid: Grid, side: int) -> Tensor:
        if side == 0:
            return torch.zeros_like(v)
        weight, bias = self.kernel(side, v.dtype)
        # (batch, channels, height, width), channels last
        picture = grid.rows(v).flatten(3).permute(0, 3, 1, 2)
        out = F.conv2d(picture, weight, bias, padding=side // 2, groups=weight.shape[0])
        # (batch, picture, heads, head_dim)
        out = out.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, v.shape[2:])
        return F.pad(out, (0, 0, 0, 0, grid.text, 0)) if grid.text else out

    def kernel(self, side: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the centre of the weights, (channels, 1, side, side), and the bias.

        Shared weights are repeated for each head.
        """
        off = (self.weight.shape[-1] - side) // 2
        weight = self.weight[:, :, off : off + side, off : off + side].to(dtype)
        return weight.repeat(self.shared, 1, 1, 1), self.bias.to(dtype).repeat(self.shared)

    def definition(self, v: Tensor, grid: Grid, side: int) -> Tensor:
        """Compute the same by shifted sums: the judge of `forward`."""
        out = torch.zeros_like(v)
        if side == 0:
            return out
        weight, bias = self.kernel(side, v.dtype)
        picture = grid.rows(v).flatten(3)  # (batch, height, width, channels)
        padded = F.pad(picture, (0, 0, side // 2, side // 2, side // 2, side // 2))
        total = bias.expand_as(picture)
        for dy in range(side):
            for dx in range(side):
                shifted = padded[:, dy : dy + grid.height, dx : dx + grid.width]
                total = total + shifted * weight[:, 0, dy, dx]
        return torch.cat([out[:, : grid.text], total.flatten(1, 2).unflatten(2, v.shape[2:])], 1)
