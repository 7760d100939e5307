"""LinFusion (arXiv 2409.02097): normalised linear attention whose queries and keys pass a small
learned function.

- Q = Wq (x + f_q(x)), K = Wk (x + f_k(x)), V = Wv x, with f = Linear, LayerNorm, LeakyReLU, Linear
  of width `hidden`.
- The last Linear is zero at conversion, so f = 0 and the student starts as ELU + 1 linear attention
  with the teacher's projections. This is the paper's recipe and the first public trainer's. The
  later public trainer re-initialises all weights, which we treat as a bug.
- hidden=0 is no function at all. The public code doubles x there; this one does not.
- eps is added to the mean-normalised denominator; the papers' 1e-4 keeps fp16 finite where 1e-6
  gave NaN.
- Text and picture tokens are read jointly, in one sum, unless text="exact" (features.py), where
  `normaliser`, `rope` and `gate` stand too.
- conv > 0 adds a depth-wise convolution of the values, as mediators have; the paper has none.
"""

from torch import Tensor, nn

from linattn.attention import features
from linattn.attention.base import LayerShape, Operator
from linattn.attention.convolution import DepthwiseConvolution
from linattn.attention.features import JOINT, PUBLISHED, SHIFTS
from linattn.attention.grid import Grid
from linattn.attention.options import Values, also, choice, kernel, number, whole
from linattn_kernels.check import MOST


class Shift(nn.Sequential):
    """Compute f(x), which is added to the input of a projection; zero at first."""

    def __init__(self, width: int, hidden: int):
        # `first` is drawn before `last`, so that a seed gives the weights that it always gave.
        first, last = nn.Linear(width, hidden), nn.Linear(hidden, width)
        super().__init__(first, nn.LayerNorm(hidden), nn.LeakyReLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


class LinFusion(Operator):
    name = "linfusion"
    aliases = ("linear", "elu")
    gist = "one normalised linear read of all tokens"
    about = (
        "LinFusion replaces softmax by a normalised product of positive features, with queries and "
        "keys passed through small networks, so that one sum over all tokens serves every query."
    )
    paper = "LinFusion, arXiv 2409.02097"
    text = 'read in the same sum as the picture; `text="exact"` keeps softmax for it'
    hue = "#d55e00"
    max_head_dim, core_in_float32 = MOST, False
    table = {
        "feature_map": choice("elu1", SHIFTS),
        "hidden": also(whole(None, least=0, scheduled=False), "projection_mid_dim"),
        "eps": number(1e-4, least=0),
        "conv": kernel(0),
        **JOINT,
    }
    published = {"feature_map": "elu1", "hidden": None, "eps": 1e-4, "conv": 0, **PUBLISHED}
    # Epsilons large enough to be seen.
    forms = {
        "eps": {"eps": 0.1},
        "relu": {"eps": 0.1, "feature_map": "relu", "hidden": 0},
        "small": {"eps": 0.1, "hidden": 8},
        "exact": {"eps": 0.1, "text": "exact"},
        "numerator": {"eps": 0.1, "rope": "numerator"},
        "exact-numerator": {"hidden": 0, "text": "exact", "rope": "numerator"},
        "after": {"eps": 0.1, "hidden": 0, "rope": "after", "gate": 3},
        "none": {"hidden": 0, "conv": 3, "normaliser": "none"},
    }

    def __init__(self, shape: LayerShape, **options):
        super().__init__(shape, **options)
        features.refuse_idle_rope(self.name, self.values)
        hidden = self.values.hidden
        self.hidden = shape.width if hidden is None else hidden
        self.query = Shift(shape.width, self.hidden) if self.hidden else None
        self.key = Shift(shape.width, self.hidden) if self.hidden else None
        self.gate = features.gate_of(shape, self.values, shape.heads)
        if side := max(self.possible("conv")):
            self.convolution = DepthwiseConvolution(shape.channels, side)

    def inputs(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        if self.query is None or self.key is None:
            return x, x, x
        return x + self.query(x), x + self.key(x), x

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        return features.read(q, k, v, grid, values, self.backend, self.shape.heads, self.gate)

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        return features.dense(q, k, grid, values, self.shape.heads, self.gate)

    def cost(self, grid: Grid, values: Values) -> int:
        state = 2 * features.linear_tokens(grid, values) * self.shape.channels * self.shape.head_dim
        exact = 2 * features.exact_pairs(grid, values) * self.shape.channels
        return state + exact + 4 * grid.tokens * self.shape.width * self.hidden

    def pairs(self, grid: Grid, values: Values) -> int:
        return features.exact_pairs(grid, values)

    def uncounted(self, grid: Grid, values: Values) -> int:
        return features.uncounted(grid, values, self.shape.channels, self.gate)
