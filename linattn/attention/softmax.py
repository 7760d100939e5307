"""The dense control: the teacher's own softmax attention, with or without a convolution on the
values.

- conv=0 is the teacher, exactly: what distillation does to a model that lost nothing.
- conv=3 or 5 is the control that the papers lack: their gain over softmax mixes the operator with
  its convolution.
"""

from torch import Tensor

from linattn.attention.base import LayerShape, Operator, attend, scores
from linattn.attention.convolution import DepthwiseConvolution
from linattn.attention.grid import Grid
from linattn.attention.options import Values, kernel


class Softmax(Operator):
    name = "softmax"
    aliases = ("dense", "full", "sdpa")
    gist = "softmax over all tokens"
    about = (
        "Softmax attention as the teacher has it, every token looking at every token: a control "
        "that spends the same training without saving anything."
    )
    paper = "control"
    text = "as the teacher has it"
    hue = "#4a4f57"
    core_in_float32 = False
    table = {"conv": kernel(0)}
    published = {"conv": 0}
    forms = {"conv": {"conv": 5}}

    def __init__(self, shape: LayerShape, **options):
        super().__init__(shape, **options)
        if side := max(self.possible("conv")):
            self.convolution = DepthwiseConvolution(shape.channels, side)

    @property
    def reads_grid(self) -> bool:
        return self.convolution is not None

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        return attend(q, k, v, self.shape.head_dim**-0.5)

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        return scores(q, k, self.shape.head_dim**-0.5).softmax(-1)

    def cost(self, grid: Grid, values: Values) -> int:
        return 2 * self.pairs(grid, values) * self.shape.channels

    def pairs(self, grid: Grid, values: Values) -> int:
        return grid.tokens**2
