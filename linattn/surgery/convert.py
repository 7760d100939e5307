"""Linearise a diffusers model in place, and restore it bit for bit.

- Everything is checked before anything is changed, and a conversion that fails half way is undone.
- A layer is always converted from its original weights, however often it is converted.
- `linearize` keeps its record as an attribute of the model, so a deepcopy is an independent
  student. The copies share the CPU copies of the original weights, because nothing ever writes
  them.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from linattn import attention, families
from linattn.families import KEY, Layer
from linattn.names import nearest
from linattn.surgery import identity
from linattn.surgery.select import Selection, select
from linattn_kernels.launch import PATHS

ATTRIBUTE = "_linattn"


@dataclass
class Conversion:
    """Record how a model was converted; the record is an attribute of that model."""

    base: dict[str, Any]
    digests: dict[str, identity.Digests]  # of every tensor of the base
    originals: dict[str, Tensor] = field(default_factory=dict)  # CPU copies of what was overwritten
    processors: dict[str, Any] = field(default_factory=dict)  # by layer
    initialise: dict[str, str] = field(default_factory=dict)  # by layer
    unrestorable: set[str] = field(default_factory=set)  # layers whose original was not kept

    @classmethod
    def of(cls, model: nn.Module) -> "Conversion":
        digests = identity.all_digests(identity.tensors(model))
        return cls(identity.base(model, digests), digests)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Conversion":
        values = {name: copy.copy(value) for name, value in vars(self).items()}
        values["processors"] = copy.deepcopy(self.processors, memo)
        return Conversion(**values)


def linearize(
    model_or_pipeline: Any,
    name: str,
    *,
    layers: Selection = "all",
    initialise: str = "all",
    keep_original: bool = True,
    backend: str | None = None,
    **options: Any,
) -> Any:
    """Replace the attention of the chosen self-attention layers in place, and return
    `model_or_pipeline`.

    A second call on other layers mixes operators. A second call on the same layers starts from
    their original weights. `keep_original=False` saves the memory of a CPU copy and gives up
    `restore`. `backend` is triton, torch or reference; None leaves the choice to the device, and
    `describe` names the one that runs.
    """
    model = _require_reachable(families.model_of(model_or_pipeline))
    if initialise not in attention.POLICIES:
        raise nearest("initialise policy", initialise, attention.POLICIES)
    _check_backend(backend)
    chosen = select(families.layers(model), layers)
    previous = _conversion(model)
    if lost := [layer.name for layer in chosen if previous and layer.name in previous.unrestorable]:
        raise ValueError(
            f"the original weights of {_shortened(lost)} were not kept (keep_original=False), and "
            "a layer is always "
            "converted from its original: load the base again"
        )
    operators = [_build_operator(layer, name, options, backend) for layer in chosen]
    _check_text(model, name, options, operators)
    if backend is not None and operators[0].max_head_dim is None:
        raise ValueError(
            f"{name} has no kernels to choose among: PyTorch's own operations serve it; leave out "
            "backend"
        )

    def set_weights(layer: Layer, operator: nn.Module) -> None:
        operator.initialise(layer.attn, initialise)

    conversion = copy.deepcopy(previous) if previous else Conversion.of(model)
    policies = [initialise] * len(chosen)
    _install(model, conversion, chosen, operators, policies, set_weights, keep_original)
    return model_or_pipeline


def restore(model_or_pipeline: Any, *, strict: bool = True) -> Any:
    """Restore the original model in place, bit for bit.

    No copy is kept of weights outside the replaced layers. If such weights were trained, `restore`
    raises an error that names them, and changes nothing. `strict=False` restores the replaced
    layers and leaves the others trained.
    """
    model = _require_reachable(families.model_of(model_or_pipeline))
    conversion = _require_conversion(model)
    if conversion.unrestorable:
        raise ValueError(
            f"the original weights of {_shortened(sorted(conversion.unrestorable))} were not kept "
            f"(keep_original=False): load {conversion.base['name']!r} again"
        )
    if strict and (trained := _trained_elsewhere(model, conversion)):
        raise ValueError(
            f"{len(trained)} tensors outside the replaced layers have changed since linearize, so "
            "the original cannot "
            f"be restored: {_shortened(trained)}; load the base again, or take back the replaced "
            "layers alone by "
            "restore(model, strict=False)"
        )
    _copy_into(identity.tensors(model), conversion.originals)
    for layer in families.layers(model):
        if layer.name in conversion.processors:
            layer.attn.set_processor(conversion.processors[layer.name])
            delattr(layer.attn, KEY)
    _detach_conversion(model)
    return model_or_pipeline


def _install(
    model: nn.Module,
    conversion: Conversion,
    chosen: Sequence[Layer],
    operators: Sequence[nn.Module],
    policies: Sequence[str],
    set_weights: Callable[[Layer, nn.Module], None],
    keep_original: bool,
) -> None:
    """Install one operator in every chosen layer, or none at all if one of them fails.

    `set_weights` gives a layer and its operator their first weights.
    """
    live, undo = identity.tensors(model), []
    try:
        for layer, operator, policy in zip(chosen, operators, policies, strict=True):
            inside = {
                name: tensor for name, tensor in live.items() if name.startswith(f"{layer.name}.")
            }
            values = _cpu_copies(inside)
            undo.append((layer, inside, values, layer.operator, layer.attn.processor))
            if layer.name in conversion.processors:
                _copy_into(inside, conversion.originals)
            else:
                conversion.processors[layer.name] = layer.attn.processor
                if keep_original:
                    conversion.originals.update(values)
                else:
                    conversion.unrestorable.add(layer.name)
            conversion.initialise[layer.name] = policy
            setattr(layer.attn, KEY, operator)
            layer.attn.set_processor(layer.processor())
            set_weights(layer, operator)
    except BaseException:
        for layer, inside, values, operator, processor in undo:
            _copy_into(inside, values)
            layer.attn.set_processor(processor)
            if layer.operator is not None:
                delattr(layer.attn, KEY)
            if operator is not None:
                setattr(layer.attn, KEY, operator)
        raise
    _attach_conversion(model, conversion)


def _attach_conversion(model: nn.Module, conversion: Conversion) -> None:
    setattr(model, ATTRIBUTE, conversion)
    model.save_pretrained = _refuse_to_save
    families.watch(model)


def _build_operator(
    layer: Layer, name: str, options: dict[str, Any], backend: str | None = None
) -> nn.Module:
    """Create the operator of one layer with the device, dtype and mode of that layer."""
    weight = identity.tensors(layer.attn)["to_q.weight"]
    # Weights are drawn on the CPU, so that a seed means the same on every device. A model on meta
    # keeps its operators on meta, because those of FLUX would take 8 GB.
    with torch.device("meta" if weight.is_meta else "cpu"):
        operator = attention.create(name, layer.shape, **options)
    operator.backend = None if operator.max_head_dim is None else backend
    dtype = weight.dtype if weight.is_floating_point() else None
    return operator.to(weight.device, dtype).train(layer.attn.training)


def _check_text(
    model: nn.Module, name: str, options: dict[str, Any], operators: Sequence[nn.Module]
) -> None:
    """Refuse options about text or rotary positions where the chosen layers have none."""
    joint = [
        option
        for option in options
        if option in operators[0].table and operators[0].table[option].needs
    ]
    if joint and not any(operator.shape.has_text for operator in operators):
        raise ValueError(
            f"{name}: {joint[0]} says how text takes part, but in the chosen layers of this "
            f"{type(model).__name__} "
            "only the picture's tokens attend; leave it out"
        )
    rope = operators[0].possible("rope") if "rope" in operators[0].table else []
    if "numerator" in rope and not families.family(model).rotates:
        raise ValueError(
            f"{name}: rope='numerator' divides by queries and keys before their rotation, and "
            "those of this "
            f"{type(model).__name__} are not rotated; leave it out"
        )


def _check_backend(backend: str | None) -> None:
    if backend is not None and backend not in PATHS:
        raise nearest("backend", backend, PATHS)


def _detach_conversion(model: nn.Module) -> None:
    families.unwatch(model)
    delattr(model, ATTRIBUTE)
    del model.save_pretrained  # removes the instance attribute that hides the class's method


def _refuse_to_save(*args: Any, **kwargs: Any) -> None:
    raise ValueError(
        "save_pretrained would write a folder that loads as the softmax model again, with weights "
        "that do not fit it: "
        "write the student with linattn.save(model, folder) and read it with linattn.load(base, "
        "folder), "
        "or linattn.restore(model) first"
    )


def _require_reachable(model: nn.Module) -> nn.Module:
    """Return the model, or raise if its weights are offloaded or its projections fused.

    Offloaded weights lie on meta between calls, and an operator built or copied from meta would
    silently hold noise. Fused projections are a copy of the weights that `restore` would not reach.
    """
    modules = dict(model.named_modules())
    hooked = [name for name, module in modules.items() if hasattr(module, "_hf_hook")]
    if hooked and any(tensor.is_meta for tensor in identity.tensors(model).values()):
        raise ValueError(
            f"the weights of this {type(model).__name__} are offloaded "
            f"(accelerate holds those of {_shortened(hooked)}): "
            "call pipe.remove_all_hooks() before, and enable_sequential_cpu_offload() again after"
        )
    if fused := [name for name, module in modules.items() if _is_fused(module)]:
        raise ValueError(
            f"the projections of {_shortened(fused)} are fused: call unfuse_qkv_projections() "
            "before"
        )
    return model


def _is_fused(module: nn.Module) -> bool:
    """Say whether the projections of an attention are fused.

    diffusers' older attention keeps its flag when it is unfused, so for that class the processor
    decides.
    """
    if not getattr(module, "fused_projections", False):
        return False
    return hasattr(module, "unfuse_projections") or type(module.processor).__name__.startswith(
        "Fused"
    )


def _conversion(model: nn.Module) -> Conversion | None:
    return getattr(model, ATTRIBUTE, None)


def _require_conversion(model: nn.Module) -> Conversion:
    conversion = _conversion(model)
    if conversion is None:
        raise ValueError(
            f"this {type(model).__name__} is not linearised: call linattn.linearize(model, name) "
            "first"
        )
    return conversion


def _cpu_copies(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the CPU; those on meta stay on meta."""
    return {
        name: tensor.detach().clone() if tensor.is_meta else tensor.detach().to("cpu", copy=True)
        for name, tensor in named.items()
    }


@torch.no_grad()
def _copy_into(live: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Copy the values into the live tensors of the same name."""
    for name, value in values.items():
        if name in live:
            live[name].copy_(value)


def _trained_elsewhere(model: nn.Module, conversion: Conversion) -> list[str]:
    """Name the tensors of the base that changed and that have no CPU copy."""
    inside = tuple(f"{name}." for name in conversion.processors)
    outside = {
        name: tensor
        for name, tensor in identity.tensors(model).items()
        if not name.startswith(inside)
        and name not in conversion.originals
        and name in conversion.digests
    }
    return identity.changed(outside, conversion.digests)


def _shortened(names: Sequence[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
