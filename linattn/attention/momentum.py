"""Momentum Transformer (arXiv 2208.00579): linear attention whose sum of keys has a momentum.

- The paper's sum follows a gradient with momentum beta and step g: p_i = beta p_{i-1} + phi(k_i)
  v_i^T, s_i = s_{i-1} + g p_i, o_i = phi(q_i)^T s_i. Written out, token i reads token j by
  phi(q_i) . phi(k_j) times g (1 - beta^(i-j+1)) / (1 - beta): what is far has more weight, up to
  1 / (1 - beta) times that of a token's own value. beta=0 is linear attention.
- The paper is causal. Here the rows are scanned there and back, and what is added is token j at the
  distance |i - j| along the rows, itself once.
- The paper divides by a sum of keys without momentum, whose rows sum to anything up to g / (1 -
  beta). Here the normaliser has the same weights, so that a row sums to 1 up to the epsilon; `step`
  cancels but for that.
- Chunk by chunk: inside one the weights are a matrix, between chunks p and s are handed on from
  either side. (1 - beta^n) / (1 - beta) is summed up and never divided, so that beta may be 1,
  where it is n. The difference of two sums, s - beta p, would cancel as beta nears 1.
- Text is exact, as in features.py: a text token reads all by softmax, a picture token the picture
  by the scans and the text by softmax, mixed by their shares of the tokens.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn.attention import features
from linattn.attention.base import Operator, scores
from linattn.attention.features import SHIFTS, phi
from linattn.attention.grid import Grid
from linattn.attention.options import Values, choice, number

CHUNK = 64  # tokens whose weights are a matrix


class Momentum(Operator):
    name = "momentum"
    aliases = ("heavy-ball",)
    gist = "linear attention that grows with the distance along the rows"
    about = (
        "The Momentum Transformer lets the sum of a linear attention move on like a heavy ball: "
        "scanned there and back, a token reads what is far more than what is near."
    )
    paper = "Momentum Transformer, arXiv 2208.00579"
    text = (
        "text tokens read everything by softmax, picture tokens the text by softmax, mixed by "
        "their shares"
    )
    hue = "#a6761d"
    table = {
        "beta": number(0.9, least=0, most=1),
        "step": number(1.0, above=0),
        "feature_map": choice("elu1", SHIFTS),
        "eps": number(1e-6, least=0),
    }
    published = {"beta": 0.9, "step": 1.0, "feature_map": "elu1"}
    # An epsilon large enough to be seen.
    forms = {"slow": {"beta": 0.5, "step": 0.3, "feature_map": "relu", "eps": 0.1}}

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        grid = grid.settled()
        text = grid.text
        out = self.scanned(q[:, text:], k[:, text:], v[:, text:], values)
        return features.beside_text(out, q, k, v, grid) if text else out

    def scanned(self, q: Tensor, k: Tensor, v: Tensor, values: Values) -> Tensor:
        """Compute the normalised sum of both scans over (batch, tokens, heads, head_dim)."""
        tokens = q.shape[1]
        counted = F.pad(v, (0, 1), value=1)  # the normaliser is the sum of ones
        queries, keys = (phi(tensor, values.feature_map) for tensor in (q, k))
        # (batch, heads, chunks, chunk, head_dim)
        queries, keys, counted = (_cut(tensor) for tensor in (queries, keys, counted))
        weight = weights(values.beta, values.step, q)
        place = torch.arange(CHUNK, device=q.device)
        near = weight[(place[:, None] - place).abs() + 1]
        out = (queries @ keys.mT * near) @ counted
        out = out + _before(queries, keys, counted, weight, values.beta)
        queries, keys, counted = (tensor.flip(2, 3) for tensor in (queries, keys, counted))
        out = out + _before(queries, keys, counted, weight, values.beta).flip(2, 3)
        out = out.flatten(2, 3)[:, :, :tokens].transpose(1, 2)
        num, den = out[..., :-1] / tokens, out[..., -1:] / tokens
        return num / (den + values.eps)

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        text = grid.text
        token = torch.arange(grid.picture, dtype=q.dtype, device=q.device)
        length = (token[:, None] - token).abs() + 1
        momentum = length  # the limit of beta = 1
        if values.beta < 1:
            momentum = (1 - values.beta**length) / (1 - values.beta)
        queries, keys = (phi(tensor[:, text:], values.feature_map) for tensor in (q, k))
        weight = values.step * momentum * scores(queries, keys, 1) / grid.picture
        on_picture = weight / (weight.sum(-1, keepdim=True) + values.eps)
        return features.map_beside_text(on_picture, q, k, grid) if text else on_picture

    def cost(self, grid: Grid, values: Values) -> int:
        """Count the products of whole chunks, and of what is handed on from either side."""
        width = self.shape.head_dim
        of_token = 2 * CHUNK * width + 8 * width**2
        scans = _chunks(grid) * CHUNK * self.shape.heads * of_token
        return scans + 2 * self.pairs(grid, values) * self.shape.channels

    def uncounted(self, grid: Grid, values: Values) -> int:
        """Count the normaliser, which is one more value of every token."""
        return _chunks(grid) * CHUNK * self.shape.heads * (CHUNK + 8 * self.shape.head_dim)

    def pairs(self, grid: Grid, values: Values) -> int:
        return features.text_pairs(grid)


def weights(beta: float, step: float, like: Tensor) -> Tensor:
    """Return step (1 - beta^n) / (1 - beta) for n = 0 .. CHUNK as a sum of powers of beta."""
    powers = beta ** torch.arange(CHUNK, dtype=like.dtype, device=like.device)
    return step * F.pad(powers.cumsum(0), (1, 0))


def _chunks(grid: Grid) -> int:
    return math.ceil(grid.picture / CHUNK)


def _cut(tensor: Tensor) -> Tensor:
    """Return (batch, heads, chunks, CHUNK, ...); zeros fill the last chunk and add nothing."""
    filled = F.pad(tensor, (0, 0, 0, 0, 0, -tensor.shape[1] % CHUNK))
    return filled.transpose(1, 2).unflatten(2, (-1, CHUNK))


def _before(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, beta: float) -> Tensor:
    """Read the chunks before each: q_a (s + beta weight_a p), of (..., chunks, CHUNK, head_dim).

    p is the momentum and s the sum as they stand where the chunk begins.
    """
    place = torch.arange(1, CHUNK + 1, dtype=q.dtype, device=q.device)[:, None]
    fading, grown = beta ** (CHUNK - place), weight[1:].flip(0)[:, None]
    momentum, total = _handed_on((k * fading).mT @ v, (k * grown).mT @ v, weight[-1], beta)
    return q @ total + (q * beta * weight[1:, None]) @ momentum


def _handed_on(fresh: Tensor, grown: Tensor, last: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Hand momentum and sum on: what they are before each chunk, (batch, heads, chunks, d, e)."""
    momentum, total = torch.zeros_like(fresh[:, :, 0]), torch.zeros_like(grown[:, :, 0])
    momenta, totals = [], []
    for new, more in zip(fresh.unbind(2), grown.unbind(2), strict=True):
        momenta.append(momentum)
        totals.append(total)
        total = total + beta * last * momentum + more
        momentum = beta**CHUNK * momentum + new
    return torch.stack(momenta, 2), torch.stack(totals, 2)
