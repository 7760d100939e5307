"""The contract of every operator: what a layer asks of its attention.

- An operator belongs to one layer and sees (batch, tokens, heads, head_dim), text tokens first,
  after the family's own projections, qk-norm and RoPE. It keeps parameters only: grid and noise
  come with every call.
- `mix` is the fast path; `attention_map` and `local` are the definition, written apart from it and
  judging it.
- A subclass writes `core`, `dense` and, if it has a convolution, `convolution`; `values` are its
  options at the noise of that call, so that any of them can follow the noise without the subclass
  knowing, and `values.position`, the (cos, sin) by which the family has rotated q and k, or None.
- Autocast is off in the core, which gets float32 at least: half precision overflows in N-long sums
  (methods: LiT reports NaN), and float64 stays float64. One that sums in float32 by itself (`wide =
  False`) gets what was given.
- `backend` asks for one of the kernels' paths; `runs` says which one is taken on a device, and why.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from linattn.attention.convolution import DepthwiseConvolution
from linattn.attention.grid import Grid
from linattn.attention.options import Option, Values, check, check_names, nearest, settle
from linattn_kernels.launch import Backend, choose

POLICIES = ("mlp_only", "out", "v", "all")
KEPT = {
    "mlp_only": (),
    "out": ("to_out",),
    "v": ("to_v", "to_out"),
    "all": ("to_q", "to_k", "to_v", "to_out"),
}


Position = tuple[Tensor, Tensor]  # cos and sin of rotary positions, (tokens, head_dim)


@dataclass(frozen=True)
class LayerShape:
    width: int  # channels of what the attention is given
    heads: int
    head_dim: int
    has_text: bool = False
    index: int = 0
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
    name: ClassVar[str]
    table: ClassVar[dict[str, Option]] = {}
    # the largest that its kernel takes; None: no kernel, PyTorch everywhere
    max_head_dim: ClassVar[int | None] = None
    core_in_float32: ClassVar[bool] = True  # whether half precision is widened before the core

    def __init__(self, shape: LayerShape, **options: Any):
        super().__init__()
        self.shape = shape
        self.convolution: DepthwiseConvolution | None = None
        self.backend: str | None = None  # None: the kernels' own choice, by device
        given = dict(options)
        entries = given.pop("schedule", None)
        settled = settle(self.name, {**self.table, **_SCHEDULE}, given)
        settled.pop("schedule")
        self.values = Values(settled)
        self.schedule = self._read_schedule(entries or [])
        self._pinned: dict[str, Any] | None = None

    # Options and their schedule over the noise

    @property
    def options(self) -> dict[str, Any]:
        """Plain JSON values that build this operator again."""
        schedule = [{"until": until, **changes} for until, changes in self.schedule]
        told = {
            n: value
            for n, value in self.values.given.items()
            if self.shape.has_text or not self.table[n].joint
        }
        return {**_plain(told), **({"schedule": _plain(schedule)} if schedule else {})}

    @property
    def choices(self) -> list[dict[str, Any]]:
        """What the schedule chooses from: training draws one a step and pins it."""
        return [changes for _, changes in self.schedule]

    @property
    def pinned(self) -> dict[str, Any] | None:
        """Values that hold whatever the noise; None: the schedule decides."""
        return self._pinned

    @pinned.setter
    def pinned(self, values: dict[str, Any] | None) -> None:
        self._pinned = None if values is None else self._checked(values)

    @contextmanager
    def pin(self, **values: Any) -> Iterator[None]:
        before = self.pinned
        self.pinned = values
        try:
            yield
        finally:
            self._pinned = before

    def ever(self, option: str) -> list[Any]:
        """Every value the option can take: its own, then the schedule's."""
        return [getattr(self.values, option), *(c[option] for c in self.choices if option in c)]

    def _checked(self, values: dict[str, Any]) -> dict[str, Any]:
        free = [name for name, option in self.table.items() if option.scheduled]
        check_names(self.name, {**self.table, **_SCHEDULE}, values)
        for name in values:
            if name not in free:
                can = ", ".join(free) or "nothing"
                raise ValueError(f"{self.name}: {name} cannot follow the noise; what can: {can}")
        return {name: check(self.name, self.table, name, value) for name, value in values.items()}

    def _read_schedule(
        self, entries: Sequence[dict[str, Any]]
    ) -> list[tuple[float, dict[str, Any]]]:
        if isinstance(entries, (str, dict)) or not all(
            isinstance(entry, dict) for entry in entries
        ):
            shown = "[{until: 0.8, ...}, {until: 0.0, ...}]"
            raise ValueError(f"{self.name}: schedule is a list like {shown}, not {entries!r}")
        schedule = []
        for entry in entries:
            changes = dict(entry)
            until = changes.pop("until", None)
            if (
                isinstance(until, bool)
                or not isinstance(until, (int, float))
                or not 0 <= until <= 1
            ):
                raise ValueError(
                    f"{self.name}: until is a noise level in [0, 1], not {until!r} in {entry!r}"
                )
            if schedule and until >= schedule[-1][0]:
                raise ValueError(
                    f"{self.name}: schedules go from noise to picture; until {until} follows "
                    f"{schedule[-1][0]}"
                )
            schedule.append((float(until), self._checked(changes)))
        return schedule

    def at(self, noise: float | None = None) -> Values:
        """The options that hold at one noise level; without a level, and below the last `until`,
        the operator's own.
        """
        if self._pinned is not None:
            return self.values.but(self._pinned)
        if noise is None or not self.schedule:
            return self.values
        return self._entry(self._positions(torch.tensor([noise], dtype=torch.float64))[0])

    def _positions(self, noise: Tensor) -> list[int]:
        # In the noise's own precision: 0.7 in float32 is below the double 0.7, yet it is the level
        # that was meant.
        untils = noise.new_tensor([until for until, _ in self.schedule])
        return (noise.flatten()[:, None] < untils).sum(1).tolist()

    def _entry(self, position: int) -> Values:
        changes = self.schedule[position][1] if position < len(self.schedule) else {}
        return self.values.but(changes)

    def _grouped(
        self, function: Callable[..., Tensor], noise: Tensor | None, *tensors: Tensor | None
    ) -> Tensor:
        """function(values, *tensors) for each part of the batch that shares its values, back in the
        batch's order.
        """
        if self._pinned is not None or noise is None or not self.schedule:
            return function(self.at(), *tensors)
        batch = tensors[0].shape[0]
        if noise.numel() not in (1, batch):
            raise ValueError(
                f"{self.name}: noise has {noise.numel()} levels for a batch of {batch}; give 1 or "
                f"{batch}"
            )
        positions = self._positions(noise)
        if len(set(positions)) == 1:
            return function(self._entry(positions[0]), *tensors)
        groups = [
            [i for i, p in enumerate(positions) if p == position]
            for position in sorted(set(positions))
        ]
        rows = [torch.tensor(group, device=tensors[0].device) for group in groups]
        parts = [
            function(
                self._entry(positions[group[0]]), *(t if t is None else t[row] for t in tensors)
            )
            for group, row in zip(groups, rows, strict=True)
        ]
        return torch.cat(parts)[torch.cat(rows).argsort()]

    # What the layer calls

    def inputs(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """What the projections of query, key and value see."""
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
        """The attention itself, (batch, tokens, heads, head_dim) like v; noise is (batch,), 1 is
        pure noise.
        """
        self._fits(grid, q, k, v)
        dtype = common(q, k, v, least=torch.float32 if self.core_in_float32 else None)

        def mixed(values: Values, q: Tensor, k: Tensor, v: Tensor, x: Tensor | None) -> Tensor:
            out = self.core(q, k, v, grid, x, values.but({"position": position}))
            return (
                out
                if self.convolution is None
                else out + self.convolution(v, grid, self.side(values))
            )

        with torch.autocast(v.device.type, enabled=False):
            return self._grouped(mixed, noise, q.to(dtype), k.to(dtype), v.to(dtype), x).to(v.dtype)

    def runs(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Backend:
        """Say which path `mix` takes on a device, and why. The path is named "none" where it would
        raise.
        """
        if self.max_head_dim is None:
            return Backend("torch", "PyTorch's own operations")
        try:
            return choose(device, dtype, self.head_dim, self.backend, self.max_head_dim)
        except RuntimeError as error:
            return Backend("none", str(error))

    @property
    def head_dim(self) -> int:
        """Of the heads the core works with."""
        return self.shape.head_dim

    def initialise(self, attn: nn.Module, policy: str = "all") -> None:
        """Keep of the teacher's projections what the policy names and draw the others afresh
        (Xavier, as LiT does).
        """
        if policy not in KEPT:
            raise nearest("initialise policy", policy, KEPT)
        for name in KEPT["all"]:
            projection = getattr(attn, name, None)
            if projection is None or name in KEPT[policy]:
                continue
            linear = (
                projection if hasattr(projection, "weight") else projection[0]
            )  # to_out is [Linear, Dropout]
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    # What it stands for

    def attention_map(
        self,
        q: Tensor,
        k: Tensor,
        grid: Grid,
        noise: Tensor | None = None,
        position: Position | None = None,
    ) -> Tensor:
        """The N x N matrix of every head, (batch, heads, tokens, tokens): row i says whom token i
        reads.
        """
        self._fits(grid, q, k)
        wide = common(q, k, least=torch.float32)

        def dense(values: Values, q: Tensor, k: Tensor) -> Tensor:
            return self.dense(q, k, grid, values.but({"position": position}))

        with torch.autocast(q.device.type, enabled=False):
            return self._grouped(dense, noise, q.to(wide), k.to(wide))

    def local(self, v: Tensor, grid: Grid, noise: Tensor | None = None) -> Tensor:
        """What a convolution adds to map @ v; zeros without one."""
        self._fits(grid, v)
        if self.convolution is None:
            return torch.zeros_like(v)
        return self._grouped(
            lambda values, v: self.convolution.definition(v, grid, self.side(values)),
            noise,
            v.to(common(v, least=torch.float32)),
        )

    def definition(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grid: Grid,
        noise: Tensor | None = None,
        position: Position | None = None,
    ) -> Tensor:
        """What `mix` must equal: map @ v + local, v regrouped to the map's heads."""
        # (batch, map_heads, tokens, tokens)
        weights = self.attention_map(q, k, grid, noise, position)
        # (batch, tokens, map_heads, -1)
        value = v.to(weights.dtype).flatten(2).unflatten(2, (weights.shape[1], -1))
        read = torch.einsum("bhij,bjhd->bihd", weights, value)
        return read.reshape(v.shape) + self.local(v, grid, noise)

    # What it costs

    def macs(self, grid: Grid, noise: float | None = None) -> int:
        """Multiply-accumulates of this layer's core and added modules for one picture; the
        teacher's projections, softmax, averages and divisions are not counted, as in the papers.
        CLEAR's pooling is: it learns its weights.
        """
        values = self.at(noise)
        side = 0 if self.convolution is None else self.side(values)
        return self.cost(grid, values) + side * side * grid.picture * self.shape.channels

    def new_parameters(self) -> list[str]:
        """Names of the parameters that the teacher does not have."""
        return [name for name, _ in self.named_parameters()]

    # What a subclass writes; q, k, v have one dtype, in `dense` float32 at least

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        """Like v, sub-quadratic, without the convolution."""
        raise NotImplementedError

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        """The N x N matrix, by the letter of the paper."""
        raise NotImplementedError

    def cost(self, grid: Grid, values: Values) -> int:
        """Multiply-accumulates without the convolution."""
        raise NotImplementedError

    def side(self, values: Values) -> int:
        """The side of the convolution's kernel."""
        return values.conv

    # Small things

    def _fits(self, grid: Grid, *tensors: Tensor) -> None:
        for tensor in tensors:
            want = (grid.tokens, self.shape.heads, self.shape.head_dim)
            if tensor.ndim != 4 or tuple(tensor.shape[1:]) != want:
                raise ValueError(
                    f"{self.name}: a tensor of shape {tuple(tensor.shape)} does not fit {grid} "
                    f"with {self.shape.heads} "
                    f"heads of {self.shape.head_dim}: expected (batch, {', '.join(map(str, want))})"
                )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


_SCHEDULE = {"schedule": Option(None, lambda value: value, scheduled=False)}


def common(*tensors: Tensor, least: torch.dtype | None = None) -> torch.dtype:
    """The dtype that holds them all, and `least`."""
    found = least or tensors[0].dtype
    for tensor in tensors:
        found = torch.promote_types(found, tensor.dtype)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """scale * q k^T of every head, (batch, heads, queries, keys)."""
    return torch.einsum("bihd,bjhd->bhij", q, k) * scale


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """PyTorch's softmax attention of tensors laid out as (batch, tokens, heads, head_dim)."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))  # (batch, heads, tokens, head_dim)
    return nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
