"""Mixed: every layer has an operator of its own, which may change with the noise.

- `parts` is a list of {operator, options, layers, until}. A layer takes the parts that name it, in
  their order, from noise to picture: each holds down to its `until` (0 where it is left out). Below
  the last one, and in a layer that no part names, softmax stays.
- What a layer's parts share are the teacher's projections; what an operator adds, each part has of
  its own.
- An operator that shifts what the projections see (LinFusion with `hidden`) has its layer at every
  noise level, since projections come before the noise is looked at.
"""

import importlib
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from linattn.attention import schedule as schedules
from linattn.attention.base import LayerShape, Operator
from linattn.attention.grid import Grid
from linattn.attention.options import Option, Values, resolve
from linattn.names import known, nearest, short
from linattn_kernels.launch import Backend

KEYS = ("operator", "options", "layers", "until")
DENSE: dict[str, Any] = {"operator": "softmax", "options": {}, "layers": "all", "until": 0.0}
SLOWEST_FIRST = ("none", "reference", "torch", "triton")
Part = dict[str, Any]


def _attention() -> Any:
    # By name, at run time: the registry of the operators imports this file.
    return importlib.import_module("linattn.attention")


def listed(value: Any) -> list[Part]:
    """Return the parts, or raise ValueError where they are no list of mappings."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, Mapping) for part in value):
        raise ValueError("a list like [{operator: clear, options: {radius: 4}, layers: [0, 2]}]")
    return [_plain(part) for part in value]


def read(path: str, part: Part) -> Part:
    """Return a part with all of its keys, or raise ValueError for what is wrong in it."""
    for key in part:
        known(key, KEYS, f"key of {path}")
    operators = _attention().OPERATORS
    valid = [name for name in operators if name != Mixed.name]
    name = known(cast(str, part.get("operator")), valid, f"operator of {path}")
    whole = {**DENSE, **part}
    if not isinstance(whole["options"], dict):
        raise ValueError(f"{path}: options are {short(whole['options'])}; write a mapping of names")
    resolve(f"{path}: {name}", operators[name].table, whole["options"])
    _check_layers(path, whole["layers"])
    return whole


def _check_layers(path: str, layers: Any) -> None:
    is_list = isinstance(layers, list) and layers
    if layers != "all" and not (is_list and all(map(_is_number, layers))):
        raise ValueError(
            f"{path}: layers are {short(layers)}; write 'all' or a list of numbers from 0 on"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _plain(value: Any) -> Any:
    """Return a value as JSON brings it back: pairs as lists, mappings as dictionaries."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


class Mixed(Operator):
    name = "mixed"
    aliases = ("plan", "hybrid")
    gist = "an operator for each layer and range of noise"
    about = (
        "A mixed student has the operator that suits each layer, softmax in some of them, and may "
        "change it with the noise; linattn.plan chooses them under a budget."
    )
    paper = "here"
    text = "as each layer's operator has it"
    hue = "#8c6d1f"
    core_in_float32 = False  # each part widens as it needs
    table = {"parts": Option([], listed, scheduled=False)}
    forms = {
        "noise": {
            "parts": [
                {"operator": "lit", "options": {"heads": 2, "eps": 0.1}, "until": 0.5},
                {"operator": "clear", "options": {"radius": 2, "pool": 2}},
            ]
        },
        "layers": {
            "parts": [
                {"operator": "linfusion", "options": {"hidden": 8, "eps": 0.1}, "layers": [0]},
                {"operator": "mediator", "options": {"count": 4}, "layers": [1]},
            ]
        },
    }

    def __init__(self, shape: LayerShape, **options: Any):
        if options.get("schedule"):
            raise ValueError(
                f"{self.name}: schedule is {short(options['schedule'])}; what follows the noise "
                "here are parts: give them until"
            )
        super().__init__(shape, **options)
        parts = [read(f"mixed.parts[{n}]", part) for n, part in enumerate(self.values.parts)]
        self.named = {number for part in parts for number in _numbers(part)}
        mine = [part for part in parts if shape.index in (_numbers(part) or [shape.index])]
        self.values = Values({"parts": mine})
        held = mine if mine and mine[-1]["until"] == 0 else [*mine, DENSE]
        self.parts = nn.ModuleList(_build(shape, part) for part in held)
        entries = [{"until": part["until"], "part": number} for number, part in enumerate(mine)]
        self.schedule = schedules.read(self.name, entries, dict)[: len(held) - 1]
        self._check_parts()

    @property
    def operators(self) -> list[Operator]:
        """Return the operators of this layer, from noise to picture."""
        return [cast(Operator, part) for part in self.parts]

    def _check_parts(self) -> None:
        """Refuse operators that cannot share a layer over the noise."""
        if len(self.parts) == 1:
            return
        names = ", ".join(part.name for part in self.operators)
        layer = f"{self.name}: layer {self.shape.index} has the parts {names}, and"
        for part in self.operators:
            if shifts(part):
                raise ValueError(
                    f"{layer} {part.name} changes what the projections see, at every noise level: "
                    "give it the layer alone (until 0), or hidden=0"
                )
            if part.head_dim % self.shape.head_dim:
                raise ValueError(
                    f"{layer} heads of {part.name} are {part.head_dim} wide, no multiple of the "
                    f"teacher's {self.shape.head_dim}: choose heads that divide its "
                    f"{self.shape.heads}"
                )

    def _checked(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return which part is pinned: nothing else follows the noise."""
        if unknown := [name for name in values if name != "part"]:
            raise nearest(f"option of {self.name} that can be pinned", unknown[0], ["part"])
        return values

    @property
    def options(self) -> dict[str, Any]:
        return {"parts": _plain(self.values.parts)}

    def chosen(self, values: Values) -> Operator:
        """Return the operator that holds; the last one where no noise level says another."""
        return self.operators[values.by_name.get("part", -1)]

    def inputs(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        return self.operators[0].inputs(x, grid)

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        return self.chosen(values)(q, k, v, grid, x, position=values.position)

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        part = self.chosen(values)
        weights = part.attention_map(q, k, grid, values.x, position=values.position)
        # Maps of one batch have the teacher's heads, of which one of LiT's stands for several.
        heads = part.head_dim // self.shape.head_dim if len(self.parts) > 1 else 1
        return weights.repeat_interleave(heads, 1)  # (batch, heads, tokens, tokens)

    def defined(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        part = self.chosen(values)
        call = {"position": values.position, "x": values.x}
        return part.defined(q, k, v, grid, x, part.values.replace(call))

    def require_map(self) -> None:
        for part in self.operators:
            part.require_map()

    def local(self, v: Tensor, grid: Grid, noise: Tensor | None = None) -> Tensor:
        def of_part(values: Values, v: Tensor) -> Tensor:
            return self.chosen(values).local(v, grid)

        return self._by_noise(of_part, noise, v)

    def cost(self, grid: Grid, values: Values) -> int:
        return self.chosen(values).macs(grid)

    def uncounted(self, grid: Grid, values: Values) -> Any:
        part = self.chosen(values)
        return part.uncounted(grid, part.values)

    def pairs(self, grid: Grid, values: Values) -> int | None:
        part = self.chosen(values)
        return part.pairs(grid, part.values)

    def runs(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Backend:
        paths = [part.runs(device, dtype) for part in self.operators]
        return min(paths, key=lambda backend: SLOWEST_FIRST.index(backend.path))

    @property
    def has_kernels(self) -> bool:
        return any(part.has_kernels for part in self.operators)

    def take_path(self, backend: str | None) -> None:
        for part in self.operators:
            part.take_path(backend)

    @property
    def reads_grid(self) -> bool:
        return any(part.reads_grid for part in self.operators)


def _build(shape: LayerShape, part: Part) -> Operator:
    return _attention().create(part["operator"], shape, **part["options"])


@torch.no_grad()
def shifts(operator: Operator) -> bool:
    """Say whether an operator's queries and keys come of other inputs than the layer's."""
    weight = next(operator.parameters(), torch.empty(0))
    x = weight.new_zeros(1, 1, operator.shape.width)
    return any(tensor is not x for tensor in operator.inputs(x, Grid(1, 1)))


def _numbers(part: Part) -> list[int]:
    """Return the numbers of the layers that a part names; none where it names all."""
    return [] if part["layers"] == "all" else part["layers"]
