"""DeltaNet (arXiv 2406.06484): a state that each token corrects where it is wrong, there and back.

- S_t = S_{t-1} + b_t k_t (v_t - S_{t-1}^T k_t)^T and o_t = S_t^T q_t, with q and k after SiLU of
  length 1, and b = sigmoid(w x + bias) of each head: one step of gradient descent on what the state
  gives back for k_t. w and bias are zero at first, so b is a half.
- The paper is causal. Here scans=2 reads the rows there and back and scans=4 the columns as well;
  their outputs are added and divided by their number, since the teacher's `to_out` expects a mean
  of values where the paper has a norm. Untrained, a plain sum errs by 112 % instead of 93 % on the
  small DiT and by 55 instead of 45 % on the small FLUX (16 pictures, noise .2, .5 and .8, seed 0).
- Text joins first: each scan of the picture begins with it. A text token would see no picture then,
  so that its own row stays softmax over everything.
- Chunk by chunk (the WY form): inside a chunk all corrections are one triangular system, between
  chunks the state is handed on. A long scan is products of chunk x chunk and head_dim x head_dim.
- `values.x` has no rows of text where text has projections of its own: b is the bias's alone there.
- flash-linear-attention's kernel scans half precision on a GPU, where the package `fla` is there.
"""

import importlib
import importlib.util
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn.attention.base import LayerShape, Operator, attend, common, scores
from linattn.attention.grid import Grid
from linattn.attention.options import Option, Values, whole
from linattn_kernels.launch import Backend

SCANS = (2, 4)
KERNEL = "fla.ops.delta_rule"
WIDEST = 256  # the widest head of fla's kernel


def directions(default: int) -> Option:
    """Take the number of scans: rows there and back, or columns too."""

    def checked(value: Any) -> int:
        if isinstance(value, bool) or value not in SCANS:
            raise ValueError("2 (rows there and back) or 4 (columns too)")
        return value

    return Option(default, checked)


def orders(grid: Grid, scans: int, device: torch.device) -> Tensor:
    """Return the tokens in the order of each scan, (scans, tokens), text first."""
    rows = torch.arange(grid.picture, device=device)
    columns = rows.view(grid.height, grid.width).T.flatten()
    picture = torch.stack([rows, rows.flip(0), columns, columns.flip(0)][:scans])
    text = torch.arange(grid.text, device=device).expand(scans, -1)
    return torch.cat([text, picture + grid.text], 1)


class Step(nn.Module):
    """Say how far each token corrects the state of each head: sigmoid(w x + bias)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, width))
        self.bias = nn.Parameter(torch.zeros(heads))

    def forward(self, x: Tensor | None, like: Tensor) -> Tensor:
        """Return (batch, tokens, heads) for tokens like (batch, tokens, heads, head_dim)."""
        weight, bias = self.weight.to(like.dtype), self.bias.to(like.dtype)
        alone = bias.expand(like.shape[:3])
        if x is None:
            return alone.sigmoid()
        logits = F.linear(x.to(like.dtype), weight, bias)
        return torch.cat([alone[:, : like.shape[1] - x.shape[1]], logits], 1).sigmoid()


class Delta(Operator):
    name = "delta"
    aliases = ("deltanet", "recurrent")
    gist = "a state that each token corrects, scanned there and back"
    about = (
        "DeltaNet keeps one state for all tokens, which each token reads and corrects by what it "
        "got wrong; the picture is scanned there and back."
    )
    paper = "DeltaNet, arXiv 2406.06484"
    text = "every scan begins with it; text tokens read everything by softmax"
    hue = "#7a4fb5"
    core_in_float32 = False
    table = {"scans": directions(2), "chunk": whole(64, least=1)}
    published = {"chunk": 64}
    forms = {"columns": {"scans": 4, "chunk": 5}}

    def __init__(self, shape: LayerShape, **options):
        super().__init__(shape, **options)
        self.step = Step(shape.width, shape.heads)

    def runs(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Backend:
        return kernel(device, dtype, self.shape.head_dim)

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        grid = grid.settled()
        of_text = attend(q[:, : grid.text], k, v, self.shape.head_dim**-0.5)
        dtype, wide = v.dtype, common(v, least=torch.float32)
        q, k = unit(q.to(wide)), unit(k.to(wide))
        order = orders(grid, values.scans, v.device)
        tensors = q, k, v.to(wide), self.step(x, k).unsqueeze(3)
        # (batch x scans, tokens, heads, head_dim)
        q, k, v, step = (tensor[:, order].flatten(0, 1) for tensor in tensors)
        if self.runs(v.device, dtype).path == "fla":
            out = fused(*(tensor.to(dtype) for tensor in (q, k, v, step)))
        else:
            out = chunked(q, k, v, step, self.chunk(grid, values))
        of_picture = back(out.unflatten(0, (-1, values.scans)), order)[:, grid.text :]
        return torch.cat([of_text, of_picture.to(dtype)], 1)

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        of_text = scores(q[:, : grid.text], k, self.shape.head_dim**-0.5).softmax(-1)
        step = self.step(values.x, k)
        q, k = F.silu(q), F.silu(k)
        q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
        scanned = [recurrent(q, k, step, order) for order in orders(grid, values.scans, q.device)]
        of_picture = torch.stack(scanned).mean(0)[:, :, grid.text :]
        return torch.cat([of_text, of_picture], 2)

    def cost(self, grid: Grid, values: Values) -> int:
        """Count the products of whole chunks, of the steps and of the text's softmax.

        The inverse of a chunk's triangle, chunk^2 / 6 a token, is a solution and no product.
        """
        chunk, head_dim = self.chunk(grid, values), self.shape.head_dim
        of_chunk = 5 * chunk**2 * head_dim + 3 * chunk * head_dim**2
        chunks = math.ceil(grid.tokens / chunk) * values.scans * self.shape.heads
        steps = grid.tokens * self.shape.width * self.shape.heads
        return chunks * of_chunk + steps + 2 * self.pairs(grid, values) * self.shape.channels

    def chunk(self, grid: Grid, values: Values) -> int:
        """Return how many tokens a chunk has: no more than there are."""
        return min(values.chunk, grid.tokens)

    def pairs(self, grid: Grid, values: Values) -> int:
        return grid.text * grid.tokens


def unit(tokens: Tensor) -> Tensor:
    """Return SiLU of the tokens, of length 1."""
    return F.normalize(F.silu(tokens), dim=-1)


def back(out: Tensor, order: Tensor) -> Tensor:
    """Bring (batch, scans, tokens, ...) into the tokens' own order, and average the scans."""
    places = order.argsort(1)
    scans = [out[:, number].index_select(1, places[number]) for number in range(len(order))]
    return torch.stack(scans).mean(0)


# The scan
# ---------------------------------------------------------------------------------------------


def chunked(q: Tensor, k: Tensor, v: Tensor, step: Tensor, chunk: int) -> Tensor:
    """Scan sequences of (batch, tokens, heads, head_dim); the step is (batch, tokens, heads, 1).

    With the state S before a chunk, what its tokens write is U = T b v - T b k S, where T is the
    inverse of I + tril(b k k^T, -1), and the outputs are q S + tril(q k^T) U.
    """
    tokens = q.shape[1]
    q, k, v, step = (_cut(tensor, chunk) for tensor in (q, k, v, step))
    eye = torch.eye(chunk, dtype=k.dtype, device=k.device)
    # (batch, heads, chunks, chunk, chunk); only what is below the diagonal is read
    overlap = step * k @ k.mT
    inverse = torch.linalg.solve_triangular(overlap, eye, upper=False, unitriangular=True)
    states, written = _handed_on(k, inverse @ (step * v), inverse @ (step * k))
    out = q @ states + (q @ k.mT).tril() @ written  # (batch, heads, chunks, chunk, head_dim)
    return out.flatten(2, 3)[:, :, :tokens].transpose(1, 2)


def _cut(tensor: Tensor, chunk: int) -> Tensor:
    """Return (batch, heads, chunks, chunk, ...); keys of zero fill the last chunk."""
    filled = F.pad(tensor, (0, 0, 0, 0, 0, -tensor.shape[1] % chunk))
    return filled.transpose(1, 2).unflatten(2, (-1, chunk))


def _handed_on(k: Tensor, v: Tensor, erased: Tensor) -> tuple[Tensor, Tensor]:
    """Hand the state from chunk to chunk: the states before each, and what each writes."""
    state = k.new_zeros(*k.shape[:2], k.shape[4], v.shape[4])
    states, written = [], []
    for keys, new, old in zip(k.unbind(2), v.unbind(2), erased.unbind(2), strict=True):
        states.append(state)
        written.append(new - old @ state)  # (batch, heads, chunk, head_dim)
        state = state + keys.mT @ written[-1]
    return torch.stack(states, 2), torch.stack(written, 2)


def kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> Backend:
    """Say whether flash-linear-attention's kernel scans: it refuses float32."""
    half = dtype in (torch.float16, torch.bfloat16)
    if device.type != "cuda" or not half or head_dim > WIDEST:
        return Backend("torch", "PyTorch's own operations")
    if importlib.util.find_spec("fla") is None:
        return Backend("torch", "PyTorch's own operations; flash-linear-attention is not installed")
    return Backend("fla", "flash-linear-attention's kernel, half precision on a GPU")


def fused(q: Tensor, k: Tensor, v: Tensor, step: Tensor) -> Tensor:
    """Scan as `chunked` does, by flash-linear-attention's kernel."""
    scan = importlib.import_module(KERNEL).chunk_delta_rule
    return scan(q, k, v, step.squeeze(3), scale=1.0)[0]


def recurrent(q: Tensor, k: Tensor, step: Tensor, order: Tensor) -> Tensor:
    """Return the map of one scan, (batch, heads, tokens, tokens), token by token.

    The state is linear in the values: it is kept as its weight of each of them.
    """
    basis = torch.eye(len(order), dtype=k.dtype, device=k.device)
    state = k.new_zeros(*k.shape[:1], *k.shape[2:], len(order))  # (batch, heads, head_dim, tokens)
    rows = {}
    for token in order.tolist():
        key, query = k[:, token, :, :, None], q[:, token, :, None]  # columns and rows
        error = basis[token] - key.mT @ state
        state = state + step[:, token, :, None, None] * key @ error
        rows[token] = query @ state
    return torch.cat([rows[token] for token in sorted(rows)], 2)
