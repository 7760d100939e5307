"""A new operator in one file: softmax over the row and the column of a token.

    python examples/new_operator.py
    make row OPERATOR=examples/new_operator.py TEACHER=class    # trained: a row beside the others

`core` computes it, `dense` defines it, `cost` counts it: the operator `axial` in its shortest form,
without its options. check_operator holds it to all that the
operators here are held to; then it takes the place of softmax in the small FLUX of this repository.
For another model change the line MODEL, say to "stable-diffusion-v1-5/stable-diffusion-v1-5".
It writes one picture, the teacher's row above, and prints

    it is its definition, in float64 and in tiny models of every family
    crossing.png
"""

from pathlib import Path

import torch
from torch import Tensor

import linattn
from linattn import figures, sampling, teachers
from linattn.attention.base import Operator, attend, scores
from linattn.attention.grid import Grid
from linattn.attention.options import Values
from linattn.testing import check_operator

MODEL = Path(__file__).resolve().parents[1] / "data/teachers/flux-nano"
OUT = "crossing.png"
PROMPTS = ["a yellow square on black", "a red ring on sand stripes", "a green heart on slate"]


class Crossing(Operator):
    name = "crossing"
    gist = "softmax over a token's row and column"
    about = "Crossing keeps softmax, but a picture token reads only its own row and its own column."
    text = "picture tokens read all text, text tokens read everything"

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        # Scores of the row, the column and the text lie side by side under one softmax, so nothing
        # is as large as tokens x tokens.
        text, scale = grid.text, self.shape.head_dim**-0.5
        by_text = attend(q[:, :text], k, v, scale)
        text_k, text_v = k[:, :text], v[:, :text]
        q, k, v = (grid.rows(tensor) for tensor in (q * scale, k, v))  # (batch, y, x, heads, dim)
        row = torch.einsum("byxhd,byrhd->bhyxr", q, k)
        column = torch.einsum("byxhd,brxhd->bhyxr", q, k)
        itself = torch.eye(grid.height, dtype=torch.bool, device=q.device)
        column = column.masked_fill(itself[:, None], -torch.inf)  # its row has the token already
        words = torch.einsum("byxhd,brhd->bhyxr", q, text_k)
        weights = torch.cat([row, column, words], -1).softmax(-1)
        row, column, words = weights.split([grid.width, grid.height, text], -1)
        out = torch.einsum("bhyxr,byrhd->byxhd", row, v)
        out = out + torch.einsum("bhyxr,brxhd->byxhd", column, v)
        out = out + torch.einsum("bhyxr,brhd->byxhd", words, text_v)
        return torch.cat([by_text, out.flatten(1, 2)], 1)

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        # The definition that judges `core`: softmax over all tokens that a mask lets through.
        token = torch.arange(grid.tokens, device=q.device)
        is_text = token < grid.text
        y, x = (token - grid.text) // grid.width, (token - grid.text) % grid.width
        reads = (y[:, None] == y) | (x[:, None] == x) | is_text[:, None] | is_text
        return scores(q, k, self.shape.head_dim**-0.5).masked_fill(~reads, -torch.inf).softmax(-1)

    def cost(self, grid: Grid, values: Values) -> int:
        # Multiply-accumulates of one picture; `core` scores the token itself twice.
        pairs = grid.picture * (grid.height + grid.width) + grid.text * grid.tokens
        return 2 * (pairs + grid.picture * grid.text) * self.shape.channels


def main() -> None:
    check_operator(Crossing)
    print("it is its definition, in float64 and in tiny models of every family")

    teacher = teachers.load(MODEL)
    drawn = {"teacher": sampling.draw(teacher, PROMPTS, steps=10)}
    linattn.register(Crossing)  # from here on it is known by its name
    linattn.linearize(teacher.pipe, "crossing")
    drawn["crossing, not distilled"] = sampling.draw(teacher, PROMPTS, steps=10)
    Path(OUT).write_bytes(figures.grid(drawn, PROMPTS).png)
    print(OUT)


if __name__ == "__main__":
    main()
