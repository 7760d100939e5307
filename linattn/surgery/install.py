"""Build operators and install them in their layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linattn import attention
from linattn.attention import Operator
from linattn.families import KEY, Layer
from linattn.names import nearest, short
from linattn.surgery import identity
from linattn.surgery.record import Conversion, attach
from linattn.surgery.refusals import refuse_adapter
from linattn.surgery.undo import Before, attention_of, copy_into, replace
from linattn_kernels.launch import PATHS


@dataclass(frozen=True)
class Replacement:
    """Pair a layer with the operator that replaces its attention."""

    layer: Layer
    operator: Operator
    initialise: str  # the policy, as a saved student names it


ARGUMENTS = ("self", "name", "shape")  # of calls that pass options on by their names


def check_backend(backend: str | None) -> None:
    if backend is not None and backend not in PATHS:
        raise nearest("backend", backend, PATHS)


def check_flags(**flags: Any) -> None:
    """Raise ValueError for a value that is no truth value: "no" would count as true."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {short(value)}; it must be true or false")


def build_operator(
    layer: Layer, name: str, options: dict[str, Any], backend: str | None = None
) -> Operator:
    """Create the operator of one layer with the device, dtype and mode of that layer."""
    refuse_adapter(layer)
    if wrong := [
        option for option in options if option in ARGUMENTS or not isinstance(option, str)
    ]:
        raise nearest(f"option of {name}", wrong[0], attention.OPERATORS[name].table)
    weight = identity.tensors(layer.attn)["to_q.weight"]
    # Weights are drawn on the CPU, so that a seed means the same on every device. A model on meta
    # keeps its operators on meta, because those of FLUX would take 8 GB.
    with torch.device("meta" if weight.is_meta else "cpu"):
        operator = attention.create(name, layer.shape, **options)
    operator.take_path(backend)
    return operator.to(weight.device, _dtype(layer.attn, weight)).train(layer.attn.training)


def _dtype(attn: nn.Module, weight: Tensor) -> torch.dtype | None:
    """Return the dtype of an operator: its layer's first float, where a quantised weight has none.

    None leaves the operator in its own.
    """
    floats = [tensor for tensor in (weight, *attn.parameters()) if tensor.is_floating_point()]
    return floats[0].dtype if floats else None


def install(
    model: nn.Module,
    before: Before,
    conversion: Conversion,
    replacements: Sequence[Replacement],
    set_weights: Callable[[Replacement], None],
    keep_original: bool,
) -> None:
    """Install every operator and make the model the student that `conversion` records.

    `before` keeps what is overwritten; `set_weights` gives a layer and its operator their first
    weights.
    """
    live = identity.tensors(model)
    for replacement in replacements:
        layer = replacement.layer
        tensors = inside(layer, live)
        values = before.keep(tensors)
        if layer.name in conversion.processors:
            copy_into(tensors, conversion.originals)
        else:
            _keep(conversion, layer, values, keep_original)
        conversion.initialise[layer.name] = replacement.initialise
        replace(layer, replacement.operator, layer.processor())
        set_weights(replacement)
    attach(model, conversion)


def _keep(
    conversion: Conversion, layer: Layer, values: dict[str, Tensor], keep_original: bool
) -> None:
    """Keep what `restore` needs of a layer that is replaced for the first time."""
    conversion.processors[layer.name] = attention_of(layer).processor
    if keep_original:
        conversion.originals.update(values)
    else:
        conversion.unrestorable.add(layer.name)


def operator_tensors(name: str, operator: Operator) -> dict[str, Tensor]:
    """Return the live tensors of a layer's operator by their names in a student's folder."""
    state = identity.without_plugins(operator)
    return {f"{name}.{KEY}.{key}": tensor for key, tensor in state.items()}


def inside(layer: Layer, live: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors of one layer."""
    return {name: tensor for name, tensor in live.items() if name.startswith(f"{layer.name}.")}
