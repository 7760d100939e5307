"""Linearise a diffusers model in place, and take it back bit for bit.

- Nothing is changed before everything is checked; a step that fails half way is undone.
- A layer is always converted from its original weights, however often it is converted.
- What `linearize` has done is an attribute of the model, so a deepcopy is a student of its own; the CPU copies of the
  original weights are shared by the copies, which never write them.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from linattn import attention, families
from linattn.attention.options import nearest
from linattn.families import KEY, Layer
from linattn.surgery import identity
from linattn.surgery.select import Selection, select
from linattn_kernels.launch import PATHS

ATTRIBUTE = "_linattn"


@dataclass
class Conversion:
    """What was done to a model, kept on it."""

    base: dict[str, Any]
    digests: dict[str, identity.Digests]  # of every tensor of the base
    originals: dict[str, Tensor] = field(default_factory=dict)  # CPU copies of what was overwritten
    processors: dict[str, Any] = field(default_factory=dict)  # by layer
    initialise: dict[str, str] = field(default_factory=dict)  # by layer
    forgotten: set[str] = field(default_factory=set)  # layers whose original was not kept

    @classmethod
    def of(cls, model: nn.Module) -> "Conversion":
        digests = identity.all_digests(identity.tensors(model))
        return cls(identity.base(model, digests), digests)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Conversion":
        parts = {name: copy.copy(value) for name, value in vars(self).items()}
        parts["processors"] = copy.deepcopy(self.processors, memo)
        return Conversion(**parts)


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
    """Replace the attention of the chosen self-attention layers, in place; returns what it was given.

    Called again on other layers it mixes operators; on the same layers it starts from their original weights.
    `keep_original=False` saves the memory of a CPU copy and gives up `restore`. `backend` is triton, torch or
    reference; None leaves it to the device, and `describe` says which one that is.
    """
    model = _here(families.model_of(model_or_pipeline))
    if initialise not in attention.POLICIES:
        raise nearest("initialise policy", initialise, attention.POLICIES)
    _check_backend(backend)
    chosen = select(families.layers(model), layers)
    before = _conversion(model)
    if lost := [layer.name for layer in chosen if before and layer.name in before.forgotten]:
        raise ValueError(
            f"the original weights of {_few(lost)} were not kept (keep_original=False), and a layer is always "
            "converted from its original: load the base again"
        )
    operators = [_built(layer, name, options, backend) for layer in chosen]
    _check_text(model, name, options, operators)
    if backend is not None and operators[0].max_head_dim is None:
        raise ValueError(f"{name} has no kernels to choose among: PyTorch's own operations serve it; leave out backend")

    def start(layer: Layer, operator: nn.Module) -> None:
        operator.initialise(layer.attn, initialise)

    conversion = copy.deepcopy(before) if before else Conversion.of(model)
    _install(model, conversion, chosen, operators, [initialise] * len(chosen), start, keep_original)
    return model_or_pipeline


def restore(model_or_pipeline: Any, *, strict: bool = True) -> Any:
    """The original model again, bit for bit, in place.

    Weights that were trained elsewhere in the model are not known here: then it raises and names them, and nothing is
    changed. `strict=False` restores the replaced layers all the same and leaves the others as they are.
    """
    model = _here(families.model_of(model_or_pipeline))
    conversion = _converted(model)
    if conversion.forgotten:
        raise ValueError(
            f"the original weights of {_few(sorted(conversion.forgotten))} were not kept (keep_original=False): "
            f"load {conversion.base['name']!r} again"
        )
    if strict and (trained := _trained_elsewhere(model, conversion)):
        raise ValueError(
            f"{len(trained)} tensors outside the replaced layers have changed since linearize, so the original cannot "
            f"be restored: {_few(trained)}; load the base again, or take back the replaced layers alone by "
            "restore(model, strict=False)"
        )
    _write(identity.tensors(model), conversion.originals)
    for layer in families.layers(model):
        if layer.name in conversion.processors:
            layer.attn.set_processor(conversion.processors[layer.name])
            delattr(layer.attn, KEY)
    _release(model)
    return model_or_pipeline


def _install(
    model: nn.Module,
    conversion: Conversion,
    chosen: Sequence[Layer],
    operators: Sequence[nn.Module],
    initialise: Sequence[str],
    start: Callable[[Layer, nn.Module], None],
    keep_original: bool,
) -> None:
    """Put every operator in its place; `start` gives the layer its first weights. All of it, or none."""
    live, undo = identity.tensors(model), []
    try:
        for layer, operator, policy in zip(chosen, operators, initialise, strict=True):
            own = {name: tensor for name, tensor in live.items() if name.startswith(f"{layer.name}.")}
            now = _copies(own)
            undo.append((layer, own, now, layer.operator, layer.attn.processor))
            if layer.name in conversion.processors:
                _write(own, conversion.originals)
            else:
                conversion.processors[layer.name] = layer.attn.processor
                conversion.originals.update(now if keep_original else {})
                conversion.forgotten.update(set() if keep_original else {layer.name})
            conversion.initialise[layer.name] = policy
            setattr(layer.attn, KEY, operator)
            layer.attn.set_processor(layer.processor())
            start(layer, operator)
    except BaseException:
        for layer, own, values, operator, processor in undo:
            _write(own, values)
            layer.attn.set_processor(processor)
            if layer.operator is not None:
                delattr(layer.attn, KEY)
            if operator is not None:
                setattr(layer.attn, KEY, operator)
        raise
    _mark(model, conversion)


def _mark(model: nn.Module, conversion: Conversion) -> None:
    setattr(model, ATTRIBUTE, conversion)
    model.save_pretrained = _refuse_to_save
    families.watch(model)


def _built(layer: Layer, name: str, options: dict[str, Any], backend: str | None = None) -> nn.Module:
    like = identity.tensors(layer.attn)["to_q.weight"]
    # Drawn on the CPU, so that a seed means the same everywhere; of FLUX without weights that would be 8 GB.
    with torch.device("meta" if like.is_meta else "cpu"):
        operator = attention.create(name, layer.shape, **options)
    operator.backend = None if operator.max_head_dim is None else backend
    dtype = like.dtype if like.is_floating_point() else None
    return operator.to(like.device, dtype).train(layer.attn.training)


def _check_text(model: nn.Module, name: str, options: dict[str, Any], operators: Sequence[nn.Module]) -> None:
    joint = [option for option in options if option in operators[0].table and operators[0].table[option].joint]
    if joint and not any(operator.shape.has_text for operator in operators):
        raise ValueError(
            f"{name}: {joint[0]} says how text takes part, but in the chosen layers of this {type(model).__name__} "
            "only the picture's tokens attend; leave it out"
        )
    rope = operators[0].ever("rope") if "rope" in operators[0].table else []
    if "numerator" in rope and not families.family(model).rotates:
        raise ValueError(
            f"{name}: rope='numerator' divides by queries and keys before their rotation, and those of this "
            f"{type(model).__name__} are not rotated; leave it out"
        )


def _check_backend(backend: str | None) -> None:
    if backend is not None and backend not in PATHS:
        raise nearest("backend", backend, PATHS)


def _release(model: nn.Module) -> None:
    families.unwatch(model)
    delattr(model, ATTRIBUTE)
    del model.save_pretrained  # the instance's; the class has its own


def _refuse_to_save(*args: Any, **kwargs: Any) -> None:
    raise ValueError(
        "save_pretrained would write a folder that loads as the softmax model again, with weights that do not fit it: "
        "write the student with linattn.save(model, folder) and read it with linattn.load(base, folder), "
        "or linattn.restore(model) first"
    )


def _here(model: nn.Module) -> nn.Module:
    """The model, if its weights are where they are looked for.

    Offloaded ones lie on meta between calls, and what is built or copied from there is noise without a word; fused
    ones are a copy that `restore` would not reach.
    """
    parts = dict(model.named_modules())
    hooked = [name for name, part in parts.items() if hasattr(part, "_hf_hook")]
    if hooked and any(tensor.is_meta for tensor in identity.tensors(model).values()):
        raise ValueError(
            f"the weights of this {type(model).__name__} are offloaded (accelerate holds those of {_few(hooked)}): "
            "call pipe.remove_all_hooks() before, and enable_sequential_cpu_offload() again after"
        )
    if fused := [name for name, part in parts.items() if _fused(part)]:
        raise ValueError(f"the projections of {_few(fused)} are fused: call unfuse_qkv_projections() before")
    return model


def _fused(part: nn.Module) -> bool:
    """diffusers' older attention keeps its flag when it is unfused, and only its processor tells."""
    if not getattr(part, "fused_projections", False):
        return False
    return hasattr(part, "unfuse_projections") or type(part.processor).__name__.startswith("Fused")


def _conversion(model: nn.Module) -> Conversion | None:
    return getattr(model, ATTRIBUTE, None)


def _converted(model: nn.Module) -> Conversion:
    conversion = _conversion(model)
    if conversion is None:
        raise ValueError(f"this {type(model).__name__} is not linearised: call linattn.linearize(model, name) first")
    return conversion


def _copies(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().clone() if tensor.is_meta else tensor.detach().to("cpu", copy=True)
        for name, tensor in named.items()
    }


@torch.no_grad()
def _write(live: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        if name in live:
            live[name].copy_(value)


def _trained_elsewhere(model: nn.Module, conversion: Conversion) -> list[str]:
    """Tensors of the base that changed and that no copy was taken of."""
    own = tuple(f"{name}." for name in conversion.processors)
    others = {
        name: tensor
        for name, tensor in identity.tensors(model).items()
        if not name.startswith(own) and name not in conversion.originals and name in conversion.digests
    }
    return identity.changed(others, conversion.digests)


def _few(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
