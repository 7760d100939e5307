"""Ridge regression: where the delta rule (DeltaNet, arXiv 2406.06484) ends for keys without order.

- O = q (K^T K + lambda N I)^-1 K^T V: the linear map from keys to values that errs least, with
  lambda against large weights, applied to the queries. N counts the tokens, text included.
- Queries and keys pass SiLU and have length 1 thereafter.
- lambda is learned: LEAST + softplus(offset + c), with an offset a head that is zero at first and c
  such that lambda is then `strength`. K^T K / N has no eigenvalue above 1, so that the condition of
  the system is some 1 / LEAST at most, which float32 resolves. The core has float32 at least.
- Weights may be negative and rows do not sum to 1: it starts far from softmax and needs training.
- Text is read in the same sum as the picture.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn.attention.base import LayerShape, Operator
from linattn.attention.grid import Grid
from linattn.attention.options import Values, number

LEAST = 1e-4  # of lambda
ZERO = 1e-12  # length below which a direction is 0, as of F.normalize


def unit(x: Tensor) -> Tensor:
    """Return SiLU(x) of length 1, or 0."""
    return F.normalize(F.silu(x), dim=-1, eps=ZERO)


def _directions(x: Tensor) -> Tensor:
    """Return the same by the letter of the formula, (batch, heads, tokens, head_dim)."""
    mapped = (x * x.sigmoid()).transpose(1, 2)
    length = mapped.square().sum(-1, keepdim=True).sqrt()
    return mapped / length.clamp_min(ZERO)


class Ridge(Operator):
    name = "ridge"
    aliases = ("deltanet", "delta", "regression")
    gist = "the linear map from keys to values that errs least"
    about = (
        "Ridge regression solves a small system a head for the linear map that takes keys to their "
        "values with the least error, and applies it to the queries. The delta rule ends there."
    )
    paper = "DeltaNet without order, arXiv 2406.06484"
    text = "read in the same sum as the picture"
    hue = "#6a4fa3"
    table = {"strength": number(0.01, above=LEAST)}
    forms = {"strong": {"strength": 0.5}}

    def __init__(self, shape: LayerShape, **options):
        super().__init__(shape, **options)
        self.offset = nn.Parameter(torch.zeros(shape.heads))

    @property
    def reads_grid(self) -> bool:
        return False

    def lambdas(self, values: Values, dtype: torch.dtype) -> Tensor:
        """Return what is added to the diagonal of K^T K / N, (heads,)."""
        rest = values.strength - LEAST
        inverse = rest + math.log(-math.expm1(-rest))  # of softplus
        return LEAST + F.softplus(self.offset.to(dtype) + inverse)

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        q, k = unit(q), unit(k)
        # Means over tokens, (batch, heads, head_dim, head_dim).
        gram, moment = (torch.einsum("bnhd,bnhe->bhde", k, t) / grid.tokens for t in (k, v))
        ridge = self.lambdas(values, q.dtype)[:, None].expand(-1, gram.shape[-1])
        factor = torch.linalg.cholesky(gram + ridge.diag_embed())
        return torch.einsum("bnhd,bhde->bnhe", q, torch.cholesky_solve(moment, factor))

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        q, k = _directions(q), _directions(k)
        ridge = self.lambdas(values, q.dtype)[:, None, None] * grid.tokens
        system = k.mT @ k + ridge * torch.eye(q.shape[3], dtype=q.dtype, device=q.device)
        return q @ system.inverse() @ k.mT

    def cost(self, grid: Grid, values: Values) -> int:
        return 3 * grid.tokens * self.shape.channels * self.shape.head_dim + self._solving()

    def _solving(self) -> int:
        """Count the products of a factorisation and two triangular solves a head."""
        return 7 * self.shape.heads * self.shape.head_dim**3 // 6

    def uncounted(self, grid: Grid, values: Values) -> int:
        """Return less than 0: PyTorch's counter does not see how systems are solved."""
        return -self._solving()

    def pairs(self, grid: Grid, values: Values) -> int:
        return 0
