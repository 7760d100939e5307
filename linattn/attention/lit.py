"""LiT (arXiv 2501.12976): ReLU linear attention with few heads and a depth-wise convolution on the
values.

- The teacher's channels are regrouped into fewer, wider heads: the weights stay loadable, what a
  head means does not.
- phi(z) = ReLU(z) + 1e-6; eps is added to the mean-normalised denominator.
- The convolution's head_dim x kernel x kernel weights serve all heads (shared_conv=False: each
  channel its own). The paper draws them as any convolution; a conversion starts them at zero.
- heads=None is the paper's number, elsewhere a quarter of the teacher's; more where those would be
  wider than the kernels' 288 (SD 1.5, SDXL, SD3.5-L, FLUX).
- The state has channels^2 / heads numbers: below about head_dim + 12 tokens softmax is cheaper.
- Text and picture tokens are read jointly, in one sum, unless text="exact" (features.py), whose
  softmax keeps the teacher's heads; the convolution sees the picture. `normaliser`, `rope` and
  `gate` stand there too; a gate has the few heads.
"""

from torch import Tensor

from linattn.attention import features
from linattn.attention.base import LayerShape, Operator
from linattn.attention.convolution import DepthwiseConvolution
from linattn.attention.features import JOINT, PUBLISHED, SHIFTS
from linattn.attention.grid import Grid
from linattn.attention.options import Values, choice, flag, kernel, number, whole
from linattn_kernels.check import MOST

PUBLISHED_HEADS = {384: 2, 768: 3, 1024: 4, 1152: 4}  # DiT-S, B, L, XL


def few_heads(shape: LayerShape) -> int:
    """Return the paper's number of heads for that width, else at most a quarter of the teacher's.

    Where those would be wider than the kernels take (a quarter of FLUX's is 6 heads of 512), the
    fewest that are not: the paper's own are 192 to 288 wide, and a default should not leave a GPU
    to PyTorch's path.
    """
    most = PUBLISHED_HEADS.get(shape.width) or max(1, shape.heads // 4)
    few = next(heads for heads in range(most, 0, -1) if shape.channels % heads == 0)
    fitting = (heads for heads in range(few, shape.channels + 1) if shape.channels % heads == 0)
    return next(heads for heads in fitting if shape.channels // heads <= MOST)


class LiT(Operator):
    name = "lit"
    aliases = ("linear", "relu")
    gist = "ReLU linear attention, few heads, a convolution"
    about = (
        "LiT uses plain linear attention with ReLU features and few, wide heads, plus a depth-wise "
        "convolution on the values for what is near."
    )
    paper = "LiT, arXiv 2501.12976"
    text = (
        'read in the same sum as the picture; `text="exact"` keeps softmax for it; the convolution '
        "sees the picture"
    )
    hue = "#b0508c"
    max_head_dim, core_in_float32 = MOST, False
    table = {
        "heads": whole(None, least=1, scheduled=False),
        "kernel": kernel(5),
        "feature_map": choice("relu", SHIFTS),
        "eps": number(1e-6, least=0),
        "shared_conv": flag(True),
        **JOINT,
    }
    published = {
        "heads": None,
        "kernel": 5,
        "feature_map": "relu",
        "eps": 1e-6,
        "shared_conv": True,
        **PUBLISHED,
    }
    # Epsilons large enough to be seen.
    forms = {
        "eps": {"eps": 0.1},
        "own-conv": {"heads": 2, "kernel": 3, "shared_conv": False, "eps": 0.1},
        "elu": {"heads": 4, "kernel": 0, "feature_map": "elu1"},
        "exact": {"heads": 2, "eps": 0.1, "text": "exact"},
        "numerator": {"heads": 1, "kernel": 0, "rope": "numerator"},
        "exact-numerator": {"eps": 0.1, "text": "exact", "rope": "numerator"},
        "after": {"heads": 2, "kernel": 0, "eps": 0.1, "text": "exact", "rope": "after"},
        "subtract": {"heads": 2, "kernel": 0, "normaliser": "subtract", "gate": 4},
    }

    def __init__(self, shape: LayerShape, **options):
        super().__init__(shape, **options)
        features.refuse_idle_rope(self.name, self.values)
        self.heads = self.values.heads or few_heads(shape)
        if shape.channels % self.heads:
            raise ValueError(
                f"lit: heads={self.heads} does not divide the layer's {shape.channels} channels"
            )
        if "exact" in self.possible("text") and shape.heads % self.heads:
            raise ValueError(
                f"lit: text=exact needs heads that divide the teacher's {shape.heads}; "
                f"{self.heads} do not"
            )
        self.gate = features.gate_of(shape, self.values, self.heads)
        if side := max(self.possible("kernel")):
            shared = self.heads if self.values.shared_conv else 1
            self.convolution = DepthwiseConvolution(shape.channels, side, shared)

    @property
    def head_dim(self) -> int:
        return self.shape.channels // self.heads

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        return features.read(q, k, v, grid, values, self.backend, self.heads, self.gate)

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        return features.dense(q, k, grid, values, self.heads, self.gate)

    def cost(self, grid: Grid, values: Values) -> int:
        state = 2 * features.linear_tokens(grid, values) * self.shape.channels * self.head_dim
        return state + 2 * features.exact_pairs(grid, values) * self.shape.channels

    def pairs(self, grid: Grid, values: Values) -> int:
        return features.exact_pairs(grid, values)

    def uncounted(self, grid: Grid, values: Values) -> int:
        return features.uncounted(grid, values, self.shape.channels, self.gate)

    def side(self, values: Values) -> int:
        return values.kernel
