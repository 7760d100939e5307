"""Build operators and install them in their layers, in all of them or in none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linattn import attention, families
from linattn.attention import Operator
from linattn.families import KEY, Layer
from linattn.names import nearest
from linattn.surgery import identity
from linattn.surgery.record import Conversion, attach, conversion_of
from linattn_kernels.launch import PATHS


@dataclass(frozen=True)
class Replacement:
    """Pair a layer with the operator that replaces its attention."""

    layer: Layer
    operator: Operator
    initialise: str  # the policy, as a saved student names it


class Snapshot:
    """Remember the weights, operator and processor of one layer."""

    def __init__(self, layer: Layer, live: dict[str, Tensor]):
        self.layer, self.inside = layer, inside(layer, live)
        self.values = cpu_copies(self.inside)
        self.operator, self.processor = layer.operator, _attention(layer).processor

    def reinstate(self) -> None:
        """Bring the layer back to what it was."""
        copy_into(self.inside, self.values)
        _replace(self.layer, self.operator, self.processor)


def check_backend(backend: str | None) -> None:
    if backend is not None and backend not in PATHS:
        raise nearest("backend", backend, PATHS)


def build_operator(
    layer: Layer, name: str, options: dict[str, Any], backend: str | None = None
) -> Operator:
    """Create the operator of one layer with the device, dtype and mode of that layer."""
    weight = identity.tensors(layer.attn)["to_q.weight"]
    # Weights are drawn on the CPU, so that a seed means the same on every device. A model on meta
    # keeps its operators on meta, because those of FLUX would take 8 GB.
    with torch.device("meta" if weight.is_meta else "cpu"):
        operator = attention.create(name, layer.shape, **options)
    operator.backend = None if operator.max_head_dim is None else backend
    return operator.to(weight.device, _dtype(layer.attn, weight)).train(layer.attn.training)


def _dtype(attn: nn.Module, weight: Tensor) -> torch.dtype | None:
    """Return the dtype of an operator: its layer's first float, where a quantised weight has none.

    None leaves the operator in its own.
    """
    floats = [tensor for tensor in (weight, *attn.parameters()) if tensor.is_floating_point()]
    return floats[0].dtype if floats else None


def install(
    model: nn.Module,
    conversion: Conversion,
    replacements: Sequence[Replacement],
    set_weights: Callable[[Replacement], None],
    keep_original: bool,
) -> None:
    """Install every operator, or none at all if one of them fails.

    `set_weights` gives a layer and its operator their first weights.
    """
    live = identity.tensors(model)
    undo: list[Snapshot] = []
    try:
        for replacement in replacements:
            layer = replacement.layer
            snapshot = Snapshot(layer, live)
            undo.append(snapshot)
            if layer.name in conversion.processors:
                copy_into(snapshot.inside, conversion.originals)
            else:
                _keep(conversion, snapshot, keep_original)
            conversion.initialise[layer.name] = replacement.initialise
            _replace(layer, replacement.operator, layer.processor())
            set_weights(replacement)
    except BaseException:
        for snapshot in undo:
            snapshot.reinstate()
        raise
    attach(model, conversion)


def _keep(conversion: Conversion, snapshot: Snapshot, keep_original: bool) -> None:
    """Keep what `restore` needs of a layer that is replaced for the first time."""
    conversion.processors[snapshot.layer.name] = snapshot.processor
    if keep_original:
        conversion.originals.update(snapshot.values)
    else:
        conversion.unrestorable.add(snapshot.layer.name)


def reinstatement(model: nn.Module) -> Callable[[], None]:
    """Return a function that makes the model its present student again after a `restore`.

    It does nothing where the model is no student.
    """
    conversion = conversion_of(model)
    if conversion is None:
        return lambda: None
    live = identity.tensors(model)
    layers = [layer for layer in families.layers(model) if layer.operator is not None]
    snapshots = [Snapshot(layer, live) for layer in layers]
    others = {
        name: tensor
        for name, tensor in live.items()
        if name in conversion.originals and not conversion.inside(name)
    }
    values = cpu_copies(others)

    def reinstate() -> None:
        for snapshot in snapshots:
            snapshot.reinstate()
        copy_into(others, values)
        attach(model, conversion)

    return reinstate


def remove(layer: Layer, processor: Any) -> None:
    """Give a layer its own processor back and take its operator out."""
    _replace(layer, None, processor)


def operator_tensors(name: str, operator: Operator) -> dict[str, Tensor]:
    """Return the live tensors of a layer's operator by their names in a student's folder."""
    state = identity.without_plugins(operator)
    return {f"{name}.{KEY}.{key}": tensor for key, tensor in state.items()}


def inside(layer: Layer, live: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors of one layer."""
    return {name: tensor for name, tensor in live.items() if name.startswith(f"{layer.name}.")}


def cpu_copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the CPU; those on meta stay on meta."""
    return {name: _cpu_copy(tensor.detach()) for name, tensor in tensors.items()}


def _cpu_copy(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_meta else tensor.to("cpu", copy=True)


@torch.no_grad()
def copy_into(live: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Copy the values into the live tensors of the same name."""
    for name, value in values.items():
        if name in live:
            live[name].copy_(value)


def _replace(layer: Layer, operator: Operator | None, processor: Any) -> None:
    attn = _attention(layer)
    attn.set_processor(processor)
    if operator is not None:
        setattr(attn, KEY, operator)
    elif layer.operator is not None:
        delattr(attn, KEY)


def _attention(layer: Layer) -> Any:
    """Return the layer's attention; diffusers has two classes of it, which share no base."""
    return layer.attn
