"""LoLCATs (arXiv 2410.10254): softmax inside a disc, learned linear attention for all other keys,
one normaliser for both.

- A picture token reads with weight g exp(s q.k - m) all text and the picture tokens strictly inside
  the radius, and with weight phi(q).phi(k) every other picture token; the weights are divided by
  their sum. m is the largest score of the exact part, s = head_dim ** -0.5. A text token reads
  everything by softmax. The paper has the latest tokens of a text where this has a disc.
- phi(x) is softmax(x W) and softmax(-x W) over a head's channels (Hedgehog), or ReLU(x W), with a W
  for the queries and one for the keys of each head, which starts as the identity.
- g = sigmoid(window_factor) is learned for each head and starts at 0.1, as released.
- The rest is the sum over all picture tokens minus that over the disc, in one product with the
  values: near pairs get g exp(s q.k - m) - phi(q).phi(k).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn.attention.base import LayerShape, Operator, after_text, scores
from linattn.attention.grid import Grid
from linattn.attention.options import Values, also, choice, number
from linattn.attention.windows import Windows, near_pairs
from linattn_kernels.reference import window_mask

FACTOR = math.log(0.1 / 0.9)  # the logit of the window's factor at the start
FEATURES = {"hedgehog": 2, "relu": 1}  # for each channel of a head
# Smaller exponents count as this one. On a CPU exp(-inf) takes 14 times as long as exp(-80), which
# is nothing beside the largest weight, exp(0).
LEAST = -80.0


class Lolcats(Operator):
    name = "lolcats"
    aliases = ("linear", "hedgehog", "hybrid")
    gist = "a disc exact, the rest linear, one normaliser"
    about = (
        "LoLCATs keeps softmax inside a disc and reads every other token linearly, through a "
        "learned feature map; one normaliser serves both, and each head learns their balance."
    )
    paper = "LoLCATs, arXiv 2410.10254"
    text = "picture tokens read all text by softmax, text tokens read everything by softmax"
    hue = "#8c6d1f"
    table = {
        "radius": also(number(3, above=0), "window_size"),
        "feature_map": choice("hedgehog", FEATURES),
    }
    published = {"feature_map": "hedgehog"}
    forms = {"relu": {"radius": 2.5, "feature_map": "relu"}}

    def __init__(self, shape: LayerShape, **options):
        super().__init__(shape, **options)
        start = torch.eye(shape.head_dim).repeat(shape.heads, 1, 1)
        self.query_map = nn.Parameter(start)
        self.key_map = nn.Parameter(start.clone())
        self.window_factor = nn.Parameter(torch.full((shape.heads,), FACTOR))

    @property
    def scale(self) -> float:
        return self.shape.head_dim**-0.5

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        layout = Windows(grid, values.radius)
        masks = layout.masks(q.shape[0], q)
        heads = []
        for head, qkv in enumerate(zip(q.unbind(2), k.unbind(2), v.unbind(2), strict=True)):
            heads.append(self._picture(head, *qkv, layout, masks, values.feature_map))
        return after_text(q, k, v, grid, layout.join(heads))

    def _picture(
        self,
        head: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Windows,
        masks: tuple[Tensor, Tensor],
        feature_map: str,
    ) -> Tensor:
        """Return what the picture's queries of one head read, in tiles.

        The tensors are (batch, tokens, head_dim), the result is (columns, batch, tiles, queries,
        head_dim).
        """
        text, (near, hidden) = layout.grid.text, masks
        query, key, value = layout.split(q[:, text:]), k[:, text:], v[:, text:]
        phi_q = phi(query, self.query_map[head], feature_map)
        phi_k = phi(key, self.key_map[head], feature_map)  # (batch, picture, features)
        num, den = _linear(phi_q, phi_k, value)
        on_text, exact = self._exact(head, query, key, k[:, :text], layout, hidden)
        if text:
            num = num + _product(on_text, v[:, :text])
            den = den + on_text.sum(-1, keepdim=True)
        linear = torch.bmm(phi_q.flatten(0, 2), layout.windows(phi_k).mT)
        weight = torch.addcmul(exact, linear, near, value=-1)
        num = torch.baddbmm(num.flatten(0, 2), weight, layout.windows(value))
        den = den.flatten(0, 2) + weight.sum(-1, keepdim=True)
        return (num / den).view_as(query)

    def _exact(
        self,
        head: int,
        query: Tensor,
        key: Tensor,
        text_key: Tensor,
        layout: Windows,
        hidden: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return g exp(s q.k - m) of the text's keys and of those in a tile's window.

        They are (columns, batch, tiles, queries, text) and (columns x batch x tiles, queries,
        keys).
        """
        score = torch.baddbmm(hidden, query.flatten(0, 2), layout.windows(key).mT, alpha=self.scale)
        top = score.amax(-1, keepdim=True)
        on_text = _product(query, text_key.mT) * self.scale
        if text_key.shape[1]:
            top = torch.maximum(top, on_text.amax(-1, keepdim=True).flatten(0, 2))
        top = top - F.logsigmoid(self.window_factor[head].to(top.dtype))
        on_text = (on_text - top.view(*query.shape[:4], 1)).exp()
        return on_text, (score - top).clamp_min_(LEAST).exp_()

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        text, score = grid.text, scores(q, k, self.scale)
        near = window_mask(grid.height, grid.width, values.radius).to(q.device)
        near = F.pad(near, (text, 0), value=True)  # (picture, tokens)
        exact = score[:, :, text:].masked_fill(~near, -math.inf)
        exact = (exact - exact.amax(-1, keepdim=True)).exp()
        exact = exact * self.window_factor.to(q.dtype).sigmoid()[:, None, None]
        linear = torch.einsum(
            "bihf,bjhf->bhij",
            _features(q[:, text:], self.query_map, values.feature_map),
            _features(k, self.key_map, values.feature_map),
        )
        weight = torch.where(near, exact, linear)  # (batch, heads, picture, tokens)
        weight = weight / weight.sum(-1, keepdim=True)
        return torch.cat([score[:, :, :text].softmax(-1), weight], 2)

    def cost(self, grid: Grid, values: Values) -> int:
        features = FEATURES[values.feature_map] * self.shape.head_dim
        exact = 2 * self.pairs(grid, values) * self.shape.channels
        # The products phi(q).phi(k) of the disc, which are taken off.
        off = near_pairs(grid, values.radius) * self.shape.heads * features
        # Both feature maps, the state, and what the queries read of it.
        linear = 2 * grid.picture * self.shape.channels * (self.shape.head_dim + features)
        return exact + off + linear

    def pairs(self, grid: Grid, values: Values) -> int:
        near = near_pairs(grid, values.radius)
        return near + grid.text * (grid.tokens + grid.picture)

    def uncounted(self, grid: Grid, values: Values) -> None:
        return None  # PyTorch multiplies whole tiles


def phi(x: Tensor, weight: Tensor, feature_map: str) -> Tensor:
    """Return the features of one head's tokens, (..., features)."""
    weight = weight.to(x.dtype)
    if feature_map == "relu":
        return (x @ weight).relu()
    both = x @ torch.cat([weight, -weight], 1)
    return both.unflatten(-1, (2, -1)).softmax(-1).flatten(-2)


def _linear(phi_q: Tensor, phi_k: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted sum over the whole picture, and the sum of its weights, in tiles."""
    state = value.mT @ phi_k  # (batch, head_dim, features)
    total = phi_k.sum(1, keepdim=True)
    return _product(phi_q, state.mT), _product(phi_q, total.mT)


def _product(tiles: Tensor, matrix: Tensor) -> Tensor:
    """Multiply (columns, batch, tiles, queries, a) by each picture's matrix, (batch, a, b)."""
    return (tiles.flatten(2, 3) @ matrix).unflatten(2, tiles.shape[2:4])


# The definition
# ---------------------------------------------------------------------------------------------


def _features(x: Tensor, weight: Tensor, feature_map: str) -> Tensor:
    """Return phi of every head by the letter, (batch, tokens, heads, features)."""
    mapped = torch.einsum("bihd,hde->bihe", x, weight.to(x.dtype))
    if feature_map == "relu":
        return mapped.clamp(min=0)
    return torch.cat([mapped.softmax(-1), (-mapped).softmax(-1)], -1)
