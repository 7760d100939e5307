"""Linearise a diffusers model in place, and restore it bit for bit.

- Everything is checked before anything is changed, and a conversion or restoration that fails or is
  interrupted half way is undone.
- A layer is always converted from its original weights, however often it is converted.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from linattn import attention, families
from linattn.attention.policies import PROJECTIONS
from linattn.families import Layer
from linattn.names import nearest, short, shortened
from linattn.surgery import identity, quantised
from linattn.surgery.install import Replacement, build_operator, check_backend, check_flags, install
from linattn.surgery.offload import at_hand, is_sequential
from linattn.surgery.reach import require_reachable
from linattn.surgery.record import Conversion, conversion_of, detach, require_conversion
from linattn.surgery.select import Selection, select
from linattn.surgery.undo import Before, copy_into, replace, wholly


def linearize(
    model_or_pipeline: Any,
    name: str,
    *,
    layers: Selection = "all",
    initialise: str = "all",
    keep_original: bool = True,
    backend: str | None = None,
    data: Callable[[nn.Module], Any] | None = None,
    **options: Any,
) -> Any:
    """Replace the attention of chosen self-attention layers in place, and return the argument.

    A second call on other layers mixes operators. A second call on the same layers starts from
    their original weights.

    Args:
        model_or_pipeline: a diffusers model, a pipeline or a Teacher.
        name: the operator's name, one of `OPERATORS`.
        layers: "all", "every:2" (0, 2, ...), "first:4", "last:4", "except:" before one of these, a
            layer's number or name, a list of these, or a predicate of the layer.
        initialise: the policy by which projections keep the teacher's weights, one of `POLICIES`.
        keep_original: whether to keep a copy of the replaced weights on the CPU. Without it
            `restore` is impossible.
        backend: triton, torch or reference; None leaves the choice to the device, and `describe`
            names the one that runs.
        data: runs the model once on data, for a policy that starts from activations. It is called
            with the teacher's model.
        options: options of the operator, such as `radius` for clear.
    """
    model = require_reachable(families.model_of(model_or_pipeline))
    if not isinstance(initialise, str) or initialise not in attention.POLICIES:
        raise nearest("initialise policy", initialise, attention.POLICIES)
    check_backend(backend)
    check_flags(keep_original=keep_original)
    if data is not None and not callable(data):
        raise ValueError(f"data is {short(data)}; it must be a function of the model")
    chosen = select(families.layers(model), layers)
    _require_originals(conversion_of(model), chosen)
    _refuse_drawing(chosen, initialise)
    if data is not None and is_sequential(model):
        raise ValueError(
            "data runs the model, and its weights are offloaded one by one: linearize before "
            "enable_sequential_cpu_offload()"
        )
    with at_hand(model):
        _convert(model, chosen, name, initialise, keep_original, backend, data, options)
    return model_or_pipeline


def _convert(
    model: nn.Module,
    chosen: Sequence[Layer],
    name: str,
    initialise: str,
    keep_original: bool,
    backend: str | None,
    data: Callable[[nn.Module], Any] | None,
    options: dict[str, Any],
) -> None:
    """Give the chosen layers their operators."""
    previous = conversion_of(model)
    if previous:
        previous.refuse_quantised(model)
    replacements = [
        Replacement(layer, build_operator(layer, name, options, backend), initialise)
        for layer in chosen
    ]
    _refuse_idle_options(model, replacements, options)
    _refuse_idle_layers(replacements)
    if backend is not None and not any(each.operator.has_kernels for each in replacements):
        raise ValueError(
            f"{name} has no kernels to choose among: PyTorch's own operations serve it; leave out "
            "backend"
        )
    activations = _captured(model, data) if attention.POLICIES[initialise].fit and data else {}

    def set_weights(replacement: Replacement) -> None:
        layer, operator = replacement.layer, replacement.operator
        # an operator of somebody else's may take no activations
        more = (activations[layer.index],) if activations else ()
        operator.initialise(layer.attn, initialise, *more)

    conversion = copy.deepcopy(previous) if previous else Conversion.of(model)

    def change(before: Before) -> None:
        install(model, before, conversion, replacements, set_weights, keep_original)

    wholly(model, change)


@torch.no_grad()
def _captured(
    model: nn.Module, data: Callable[[nn.Module], Any]
) -> dict[int, attention.Activations]:
    """Run the teacher once, and return what each of its layers saw and gave, by its index."""
    teacher = restore(copy.deepcopy(model), strict=False) if conversion_of(model) else model
    with families.capture(teacher, detach=True) as calls:
        data(teacher)
    if not calls:
        raise ValueError("data(model) ran no forward of the model; call model(...) in it")
    layers = families.layers(model)
    return {layer.index: _activations(layer, calls[layer.index]) for layer in layers}


def _activations(layer: Layer, call: dict[str, Any]) -> attention.Activations:
    """Return what a layer of the teacher saw, with the projections of the layer as it stands."""
    x, grid, more = call["input"], call["grid"], call["more"]
    project = functools.partial(families.qkv, layer, x, grid, **more)
    position = families.position(more.get("image_rotary_emb"))
    return attention.Activations(x, call["output"], grid, call["noise"], more, project, position)


def _require_originals(previous: Conversion | None, chosen: Sequence[Layer]) -> None:
    unrestorable = previous.unrestorable if previous else set()
    if lost := [layer.name for layer in chosen if layer.name in unrestorable]:
        raise ValueError(
            f"the original weights of {shortened(lost)} were not kept (keep_original=False), and "
            "a layer is always converted from its original: load the base again"
        )


def _refuse_drawing(chosen: Sequence[Layer], initialise: str) -> None:
    """Raise if a policy would draw quantised projections afresh."""
    keeps = attention.POLICIES[initialise].keeps
    drawn = tuple(f"{name}." for name in PROJECTIONS if name not in keeps)
    for layer in chosen:
        names = quantised.names(identity.tensors(layer.attn))
        if lost := [name for name in names if name.startswith(drawn)]:
            raise ValueError(
                f"initialise={initialise!r} draws {shortened(lost)} of {layer.name} afresh, but "
                "they are quantised: choose initialise='all', or quantise after linearize"
            )


def _refuse_idle_options(
    model: nn.Module, replacements: Sequence[Replacement], options: dict[str, Any]
) -> None:
    """Refuse options that would change nothing in this model."""
    operators = [replacement.operator for replacement in replacements]
    first, model_name = operators[0], type(model).__name__
    about_text = [
        option for option in options if option in first.table and first.table[option].needs
    ]
    if about_text and not any(operator.shape.has_text for operator in operators):
        raise ValueError(
            f"{first.name}: {about_text[0]} says how text takes part, but in the chosen layers of "
            f"this {model_name} only the picture's tokens attend; leave it out"
        )
    rope = getattr(first.values, "rope", "map")
    if rope != "map" and not families.family(model).rotates:
        raise ValueError(
            f"{first.name}: rope={rope!r} divides by queries and keys before their rotation, "
            f"and those of this {model_name} are not rotated; leave it out"
        )


def _refuse_idle_layers(replacements: Sequence[Replacement]) -> None:
    """Refuse parts of `mixed` that name a layer which is not converted."""
    numbers = [replacement.layer.index for replacement in replacements]
    operator = replacements[0].operator
    if lost := sorted(vars(operator).get("named", set()).difference(numbers)):
        raise ValueError(
            f"{operator.name}: a part names layer {lost[0]}, and the chosen layers are "
            f"{shortened(list(map(str, numbers)))}; leave it out, or choose that layer"
        )


def restore(model_or_pipeline: Any, *, strict: bool = True) -> Any:
    """Restore the original model in place, bit for bit.

    No copy is kept of weights outside the replaced layers. If such weights were trained, `restore`
    raises an error that names them, and changes nothing.

    Args:
        model_or_pipeline: a linearised model, or a pipeline or Teacher that holds one.
        strict: whether to raise that error. Without it the replaced layers are restored and the
            others stay trained.
    """
    model = require_reachable(families.model_of(model_or_pipeline))
    conversion = require_conversion(model)
    with at_hand(model):
        require_base(model, conversion, strict)
        wholly(model, lambda before: take_back(model, before, conversion))
    return model_or_pipeline


def take_back(model: nn.Module, before: Before, conversion: Conversion) -> None:
    """Make a student the base again, whose replaced weights the record holds."""
    live = identity.tensors(model)
    before.keep({name: live[name] for name in conversion.originals if name in live})
    copy_into(live, conversion.originals)
    for layer in families.layers(model):
        if layer.name in conversion.processors:
            replace(layer, None, conversion.processors[layer.name])
    detach(model)


def require_base(model: nn.Module, conversion: Conversion, strict: bool = True) -> None:
    """Raise if a student cannot be made the base again, bit for bit where `strict`."""
    if conversion.unrestorable:
        raise ValueError(
            f"the original weights of {shortened(sorted(conversion.unrestorable))} were not kept "
            f"(keep_original=False): load {conversion.base['name']!r} again"
        )
    conversion.refuse_quantised(model)
    if strict:
        _require_untrained(model, conversion)


def _require_untrained(model: nn.Module, conversion: Conversion) -> None:
    """Raise if tensors were trained of which no copy is kept."""
    changed = conversion.changed_outside(model)
    if trained := [name for name in changed if name not in conversion.originals]:
        raise ValueError(
            f"{len(trained)} tensors outside the replaced layers have changed since linearize, so "
            f"the original cannot be restored: {shortened(trained)}; load the base again, or take "
            "back the replaced layers alone by restore(model, strict=False)"
        )
