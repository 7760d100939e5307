"""The contract of every operator: what a layer needs of its attention.

- An operator belongs to one layer and sees (batch, tokens, heads, head_dim), text tokens first,
  after the family's own projections, qk-norm and RoPE. It keeps parameters only: grid and noise
  come with every call.
- `mix` is the fast path; `attention_map` and `local` are the definition, written apart from it and
  judging it.
- A subclass writes `core`, `dense`, `cost` and, if it has a convolution, `convolution`. `values`
  are its options at the noise of that call, so that any of them can follow the noise without the
  subclass knowing. `values.position` is the (cos, sin) by which the family has rotated q and k, or
  None; `values.x` are the hidden states, or None, for weights that depend on them.
- An operator that is no matrix times v sets `has_map = False` and writes `defined`, a loop say, in
  the place of `dense`. Nobody can look at its map then, and whoever tries gets one sentence.
- Autocast is off in the core, which gets float32 at least: half precision overflows in N-long sums
  (LiT reports NaN), and float64 stays float64. An operator that sums in float32 by itself sets
  `core_in_float32 = False` and gets the tensors as they are.
- `backend` names one of the kernels' paths; `runs` says which one is taken on a device, and why.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from linattn.attention import schedule as schedules
from linattn.attention.activations import Activations
from linattn.attention.convolution import DepthwiseConvolution
from linattn.attention.grid import Grid
from linattn.attention.options import Option, Values, check, check_names, resolve
from linattn.attention.policies import POLICIES, draw_afresh
from linattn.names import nearest
from linattn_kernels.launch import Backend, choose

__all__ = ["LayerShape", "Operator", "Position", "after_text", "attend", "common", "scores"]

Position = tuple[Tensor, Tensor]  # cos and sin of rotary positions, (tokens, head_dim)


@dataclass(frozen=True)
class LayerShape:
    """Describe one self-attention layer as far as its operator must know it."""

    width: int  # channels of what the attention is given
    heads: int  # how many heads the layer has
    head_dim: int  # channels of a head
    has_text: bool = False  # whether text tokens are in the same sequence
    index: int = 0  # the layer's number in forward order
    # tokens, text included, at the size the model was trained at, where its config says
    trained: int | None = None

    def __post_init__(self):
        for name in ("width", "heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"a layer's {name} is at least 1, not {getattr(self, name)}")

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim


class Operator(nn.Module):
    """Replace the softmax attention of one layer; a subclass has name, core, dense and cost.

    Args:
        shape: the layer's width, heads and text.
        options: values of `table`, and `schedule`: entries that hold up to a noise level (`until`).
    """

    name: ClassVar[str]
    table: ClassVar[dict[str, Option]] = {}
    # The largest head_dim that its Triton kernel takes; None: no kernel, always PyTorch.
    max_head_dim: ClassVar[int | None] = None
    # Whether half precision is widened before the core.
    core_in_float32: ClassVar[bool] = True
    # Whether it is a matrix times v, which `dense` gives; if not, `defined` is its definition.
    has_map: ClassVar[bool] = True

    # Other words for it: the error for an unknown operator names it where one of them is asked for.
    aliases: ClassVar[tuple[str, ...]] = ()

    # What is said about it; the report, the README's tables and the figures read these.
    gist: ClassVar[str] = ""  # a few words for a table
    about: ClassVar[str] = ""  # a sentence or two for a reader of the report
    paper: ClassVar[str] = ""  # as in "CLEAR, arXiv 2412.16112"
    text: ClassVar[str] = ""  # what it does with text tokens
    hue: ClassVar[str] = ""  # its colour, as in "#0072b2"; without one it gets a spare hue
    published: ClassVar[dict[str, Any]] = {}  # options as its paper has them: the table's defaults
    # Options in which every test runs it, by a label; the defaults are run besides.
    forms: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, shape: LayerShape, **options: Any):
        super().__init__()
        self.shape = shape
        self.convolution: DepthwiseConvolution | None = None
        self.backend: str | None = None  # None: the kernels' own choice, by device
        entries = options.pop("schedule", None)
        check_names(self.name, {**self.table, **_SCHEDULE}, options)
        self.values = Values(resolve(self.name, self.table, options))
        self.schedule = schedules.read(self.name, entries or [], self._checked)
        self._pinned: dict[str, Any] | None = None

    # Options and their schedule over the noise

    @property
    def options(self) -> dict[str, Any]:
        """Return plain JSON values that build this operator again."""
        options = {}
        for name, value in self.values.by_name.items():
            if self.shape.has_text or not self.table[name].needs:
                options[name] = _plain(value)
        if self.schedule:
            options["schedule"] = _plain(schedules.write(self.schedule))
        return options

    @property
    def choices(self) -> list[dict[str, Any]]:
        """Return what the schedule chooses from: training draws one a step and pins it."""
        return [changes for _, changes in self.schedule]

    @property
    def pinned(self) -> dict[str, Any] | None:
        """Return the values that hold whatever the noise; None: the schedule decides."""
        return self._pinned

    @pinned.setter
    def pinned(self, values: dict[str, Any] | None) -> None:
        self._pinned = None if values is None else self._checked(values)

    @contextmanager
    def pin(self, **values: Any) -> Iterator[None]:
        """Hold these values whatever the noise, inside the block."""
        before = self.pinned
        self.pinned = values
        try:
            yield
        finally:
            self._pinned = before

    def possible(self, option: str) -> list[Any]:
        """Return every value that the option can take: its own, then the schedule's."""
        scheduled = [changes[option] for changes in self.choices if option in changes]
        return [getattr(self.values, option), *scheduled]

    def _checked(self, values: dict[str, Any]) -> dict[str, Any]:
        free = [name for name, option in self.table.items() if option.scheduled]
        check_names(self.name, {**self.table, **_SCHEDULE}, values)
        for name in values:
            if name not in free:
                can = ", ".join(free) or "nothing"
                raise ValueError(f"{self.name}: {name} cannot follow the noise; what can: {can}")
        return {name: check(self.name, self.table, name, value) for name, value in values.items()}

    def at(self, noise: float | None = None) -> Values:
        """Return the options that hold at one noise level.

        Without a level, and below the last `until`, those are the operator's own.
        """
        if self._pinned is not None:
            return self.values.replace(self._pinned)
        if noise is None or not self.schedule:
            return self.values
        level = torch.tensor([noise], dtype=torch.float64)
        return self._values_at(schedules.positions(self.schedule, level)[0])

    def _values_at(self, position: int) -> Values:
        return self.values.replace(schedules.changes(self.schedule, position))

    def _by_noise(
        self, function: Callable[..., Tensor], noise: Tensor | None, *tensors: Tensor | None
    ) -> Tensor:
        """Run function(values, *tensors) on the pictures of each entry, in the batch's order."""
        if self._pinned is not None or noise is None or not self.schedule:
            return function(self.at(), *tensors)
        batch = next(tensor.shape[0] for tensor in tensors if tensor is not None)
        if noise.numel() not in (1, batch):
            raise ValueError(
                f"{self.name}: noise has {noise.numel()} levels for a batch of {batch}; "
                f"give 1 or {batch}"
            )

        def at_position(position: int, *tensors: Tensor | None) -> Tensor:
            return function(self._values_at(position), *tensors)

        if torch.compiler.is_exporting():
            return schedules.by_choice(at_position, self.schedule, noise, *tensors)
        positions = schedules.positions(self.schedule, noise)
        return schedules.by_position(at_position, positions, *tensors)

    # What the layer calls

    def inputs(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the projections of query, key and value see."""
        return x, x, x

    def mix(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grid: Grid,
        x: Tensor | None = None,
        noise: Tensor | None = None,
        position: Position | None = None,
    ) -> Tensor:
        """Compute the attention, (batch, tokens, heads, head_dim) like v.

        Args:
            q: queries, (batch, tokens, heads, head_dim), text first.
            k: keys of the same shape.
            v: values of the same shape.
            grid: how the tokens lie: text, height and width.
            x: hidden states that the layer's projections saw, (batch, tokens, width).
            noise: noise levels, (batch,); 1 is pure noise.
            position: rotary positions (cos, sin), each (tokens, head_dim).
        """
        self._fits(grid, q, k, v)
        if v.shape[0] == 0:
            return v.clone()  # without a picture nothing can be cut into tiles
        dtype = common(q, k, v, least=torch.float32 if self.core_in_float32 else None)

        def mixed(values: Values, q: Tensor, k: Tensor, v: Tensor, x: Tensor | None) -> Tensor:
            out = self.core(q, k, v, grid, x, values.replace({"position": position, "x": x}))
            if self.convolution is None:
                return out
            return out + self.convolution(v, grid, self.side(values))

        with torch.autocast(v.device.type, enabled=False):
            return self._by_noise(mixed, noise, q.to(dtype), k.to(dtype), v.to(dtype), x).to(
                v.dtype
            )

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute `mix`. Layers call the operator, so that accelerate's hooks bring its weights."""
        return self.mix(*args, **kwargs)

    def runs(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Backend:
        """Say which path `mix` takes on a device, and why; "none" where it would raise."""
        if self.max_head_dim is None:
            return Backend("torch", "PyTorch's own operations")
        try:
            return choose(device, dtype, self.head_dim, self.backend, self.max_head_dim)
        except RuntimeError as error:
            return Backend("none", str(error))

    @property
    def has_kernels(self) -> bool:
        """Say whether there are paths of the kernels to choose among."""
        return self.max_head_dim is not None

    def take_path(self, backend: str | None) -> None:
        """Keep the path that was asked for, where there is one to choose.

        Args:
            backend: triton, torch or reference; None leaves the choice to the device.
        """
        self.backend = backend if self.has_kernels else None

    @property
    def reads_grid(self) -> bool:
        """Say whether it matters where a token lies; if not, any sequence of tokens is served."""
        return True

    @property
    def head_dim(self) -> int:
        """Return the width of the heads that the core works with."""
        return self.shape.head_dim

    def initialise(
        self, attn: nn.Module, policy: str = "all", activations: Activations | None = None
    ) -> None:
        """Keep of the teacher's projections what the policy names, and start the others afresh.

        A policy with `fit` gets the activations of the layer that is replaced.
        """
        if policy not in POLICIES:
            raise nearest("initialise policy", policy, POLICIES)
        draw_afresh(attn, POLICIES[policy].keeps)
        fit = POLICIES[policy].fit
        if fit is None:
            return
        if activations is None:
            raise ValueError(
                f"initialise {policy!r} starts from the teacher's activations: pass "
                "data=lambda model: ..., which runs the model once"
            )
        fit(self, attn, activations)

    # What it stands for

    def attention_map(
        self,
        q: Tensor,
        k: Tensor,
        grid: Grid,
        x: Tensor | None = None,
        noise: Tensor | None = None,
        position: Position | None = None,
    ) -> Tensor:
        """Return the N x N matrix of every head, (batch, heads, tokens, tokens).

        Row i says which tokens token i reads.
        """
        self.require_map()
        self._fits(grid, q, k)
        dtype = common(q, k, least=torch.float32)

        def dense(values: Values, q: Tensor, k: Tensor, x: Tensor | None) -> Tensor:
            return self.dense(q, k, grid, values.replace({"position": position, "x": x}))

        with torch.autocast(q.device.type, enabled=False):
            return self._by_noise(dense, noise, q.to(dtype), k.to(dtype), x)

    def require_map(self) -> None:
        """Raise a ValueError where there is no N x N matrix."""
        if not self.has_map:
            raise ValueError(
                f"{self.name} has no attention map, since its output is no matrix times v; "
                "`definition` computes what it stands for"
            )

    def local(self, v: Tensor, grid: Grid, noise: Tensor | None = None) -> Tensor:
        """Return what a convolution adds to map @ v; zeros without one."""
        self._fits(grid, v)
        convolution = self.convolution
        if convolution is None:
            return torch.zeros_like(v)

        def convolved(values: Values, v: Tensor) -> Tensor:
            return convolution.definition(v, grid, self.side(values))

        return self._by_noise(convolved, noise, v.to(common(v, least=torch.float32)))

    def definition(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grid: Grid,
        x: Tensor | None = None,
        noise: Tensor | None = None,
        position: Position | None = None,
    ) -> Tensor:
        """Compute what `mix` must equal: `defined` + `local`, in float32 at least."""
        self._fits(grid, q, k, v)
        dtype = common(q, k, v, least=torch.float32)

        def defined(values: Values, q: Tensor, k: Tensor, v: Tensor, x: Tensor | None) -> Tensor:
            return self.defined(q, k, v, grid, x, values.replace({"position": position, "x": x}))

        with torch.autocast(v.device.type, enabled=False):
            out = self._by_noise(defined, noise, q.to(dtype), k.to(dtype), v.to(dtype), x)
        return out + self.local(v, grid, noise)

    # What it costs

    def macs(self, grid: Grid, noise: float | None = None) -> int:
        """Count the multiply-accumulates of this layer's core and added modules for one picture.

        The teacher's projections, softmax, averages and divisions are not counted, as in the
        papers. CLEAR's pooling is counted, because its weights are learned.
        """
        values = self.at(noise)
        side = 0 if self.convolution is None else self.side(values)
        return self.cost(grid, values) + side * side * grid.picture * self.shape.channels

    def density(self, grid: Grid, noise: float | None = None) -> float | None:
        """Return the weights that softmax computes, as a share of dense attention's N x N.

        It is 1 for softmax, the window's share for a window, and 0 without softmax. Two softmaxes
        through few tokens count both, pooled keys count as keys, and a convolution reads no pair.
        None where `pairs` does not know.
        """
        pairs = self.pairs(grid, self.at(noise))
        return None if pairs is None else pairs / grid.tokens**2

    def new_parameters(self) -> list[str]:
        """Name the parameters that the teacher does not have."""
        return [name for name, _ in self.named_parameters()]

    # What a subclass writes. q, k, v have one dtype, in `dense` and `defined` float32 at least.

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        """Compute the attention, shaped like v, without an N x N tensor or the convolution.

        Args:
            q: queries, (batch, tokens, heads, head_dim), text first.
            k: keys of the same shape.
            v: values of the same shape.
            grid: how the tokens lie: text, height and width.
            x: hidden states that the layer's projections saw, (batch, tokens, width), or None.
            values: the options that hold at this noise level, `position` and `x`.
        """
        raise NotImplementedError

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        """Return the N x N matrix, by the letter of the paper.

        Args:
            q: queries, (batch, tokens, heads, head_dim), text first.
            k: keys of the same shape.
            grid: how the tokens lie: text, height and width.
            values: the options that hold at this noise level, `position` and `x`.
        """
        raise NotImplementedError

    def defined(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        """Compute the attention by its definition: the map @ v, v regrouped to the map's heads.

        An operator without a map writes it anew, apart from `core`, whose arguments it has.
        """
        weights = self.dense(q, k, grid, values)  # (batch, map_heads, tokens, tokens)
        value = v.flatten(2).unflatten(2, (weights.shape[1], -1))  # (batch, tokens, map_heads, -1)
        return torch.einsum("bhij,bjhd->bihd", weights, value).reshape(v.shape)

    def cost(self, grid: Grid, values: Values) -> int:
        """Count the multiply-accumulates of one picture, without the convolution.

        Args:
            grid: how the tokens lie: text, height and width.
            values: the options that hold at this noise level.
        """
        raise NotImplementedError

    def uncounted(self, grid: Grid, values: Values) -> int | Literal["pairs"] | None:
        """Count the products of `core` that `cost` leaves out, such as averages made by a product.

        `check_operator` adds them to `cost` and compares with what PyTorch's counter sees. "pairs"
        says that `core` multiplies whole tiles of a sparse map, and `cost` is compared with the
        entries of the map. None says that neither can judge it, and the operator's own tests do.
        """
        return 0

    def pairs(self, grid: Grid, values: Values) -> int | None:
        """Count the softmax weights of one head for one picture; None where that is not known.

        Without a count of its own an operator has one only where `cost` is compared with the
        entries of its map.
        """
        if self.uncounted(grid, values) == "pairs":
            return self.cost(grid, values) // (2 * self.shape.channels)
        return None

    def side(self, values: Values) -> int:
        """Return the side of the convolution's kernel."""
        return values.conv

    # Small things

    def _fits(self, grid: Grid, *tensors: Tensor) -> None:
        heads, head_dim = self.shape.heads, self.shape.head_dim
        expected = (grid.tokens, heads, head_dim)
        for tensor in tensors:
            if tensor.ndim != 4 or tuple(tensor.shape[1:]) != expected:
                raise ValueError(
                    f"{self.name}: a tensor of shape {tuple(tensor.shape)} does not fit {grid} "
                    f"with {heads} heads of {head_dim}: expected (batch, {grid.tokens}, {heads}, "
                    f"{head_dim})"
                )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


_SCHEDULE = {"schedule": Option(None, lambda value: value, scheduled=False)}


def common(*tensors: Tensor, least: torch.dtype | None = None) -> torch.dtype:
    """Return the dtype that holds them all, and `least`.

    Args:
        tensors: tensors, at least one where `least` is None.
        least: the narrowest dtype that may be returned.
    """
    dtype = least or tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Return scale * q k^T of every head, (batch, heads, queries, keys).

    Args:
        q: queries, (batch, queries, heads, head_dim).
        k: keys, (batch, keys, heads, head_dim).
        scale: what the products are multiplied by, usually head_dim ** -0.5.
    """
    return torch.einsum("bihd,bjhd->bhij", q, k) * scale


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Compute PyTorch's softmax attention of (batch, tokens, heads, head_dim).

    Args:
        q: queries, (batch, queries, heads, head_dim).
        k: keys, (batch, keys, heads, head_dim).
        v: values, (batch, keys, heads, head_dim).
        scale: what the scores are multiplied by, usually head_dim ** -0.5.
        mask: what is added to the scores, (batch or 1, heads or 1, queries, keys), or None.
    """
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))  # (batch, heads, tokens, head_dim)
    return nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale).transpose(1, 2)


def after_text(q: Tensor, k: Tensor, v: Tensor, grid: Grid, picture: Tensor) -> Tensor:
    """Put what text tokens read, everything by softmax, before what the picture's tokens read.

    Args:
        q: queries, (batch, tokens, heads, head_dim), text first.
        k: keys of the same shape.
        v: values of the same shape.
        grid: how the tokens lie: text, height and width.
        picture: the result of the picture's tokens, (batch, tokens, heads, head_dim).
    """
    if not grid.text:
        return picture
    return torch.cat([attend(q[:, : grid.text], k, v, q.shape[3] ** -0.5), picture], 1)
