"""Inspect a converted model: operator and backend of each layer, new parameters, attention map."""

from typing import Any

import torch
from torch import Tensor, nn

from linattn import families
from linattn.families import KEY, Layer
from linattn.surgery import identity
from linattn.surgery.select import select
from linattn_kernels.launch import Backend


def describe(model_or_pipeline: Any) -> list[dict[str, Any]]:
    """Describe every self-attention layer, linearised or not, in one dictionary a layer.

    Args:
        model_or_pipeline: a diffusers model, a pipeline or a Teacher, linearised or not.
    """
    return [_describe(layer) for layer in families.layers(model_or_pipeline)]


def _describe(layer: Layer) -> dict[str, Any]:
    operator, backend = layer.operator, _backend(layer)
    return {
        "index": layer.index,
        "name": layer.name,
        "operator": "softmax (dense)" if operator is None else operator.name,
        "options": {} if operator is None else operator.options,
        "parameters": sum(parameter.numel() for parameter in layer.attn.parameters()),
        "backend": backend.path,
        "because": backend.reason,
    }


def _backend(layer: Layer) -> Backend:
    if layer.operator is None:
        return Backend("torch", "not linearised")
    weight = identity.tensors(layer.attn)["to_q.weight"]
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    return layer.operator.runs(weight.device, dtype)


def backends(model_or_pipeline: Any) -> dict[str, str]:
    """Return the backend of every layer on the model's device with the reason, for a run file.

    Args:
        model_or_pipeline: a diffusers model, a pipeline or a Teacher, linearised or not.
    """
    descriptions = describe(model_or_pipeline)
    return {layer["name"]: f"{layer['backend']}: {layer['because']}" for layer in descriptions}


def attention_parameters(model_or_pipeline: Any) -> list[tuple[str, nn.Parameter]]:
    """List all parameters inside the replaced layers.

    Args:
        model_or_pipeline: a linearised model, or a pipeline or Teacher that holds one.
    """
    parameters = []
    for layer in families.layers(model_or_pipeline):
        if layer.operator is not None:
            for name, parameter in layer.attn.named_parameters():
                parameters.append((f"{layer.name}.{name}", parameter))
    return parameters


def new_parameters(model_or_pipeline: Any) -> list[tuple[str, nn.Parameter]]:
    """List the parameters of the operators that the teacher does not have.

    Args:
        model_or_pipeline: a linearised model, or a pipeline or Teacher that holds one.
    """
    parameters = []
    for layer in families.layers(model_or_pipeline):
        if layer.operator is not None:
            for name in layer.operator.new_parameters():
                parameter = layer.operator.get_parameter(name)
                parameters.append((f"{layer.name}.{KEY}.{name}", parameter))
    return parameters


@torch.no_grad()
def attention_map(model_or_pipeline: Any, layer: int | str, *args: Any, **inputs: Any) -> Tensor:
    """Return the attention weights of one layer for these arguments of the forward.

    The map is (batch, heads, tokens, tokens), in float32, or in float64 where the model is. The
    model may be a teacher or a student. What a convolution adds is no part of the map.

    Args:
        model_or_pipeline: a diffusers model, a pipeline or a Teacher, linearised or not.
        layer: the layer's number in forward order, or its name.
        args: positional arguments of the model's forward.
        inputs: keyword arguments of the model's forward.
    """
    model = families.model_of(model_or_pipeline)
    if len(chosen := select(families.layers(model), layer)) != 1:
        raise ValueError(
            f"layer={layer!r} names {len(chosen)} layers, and a map is of one: give its number or "
            "its name"
        )
    families.require_map(chosen[0])
    with families.capture(model) as records:
        model(*args, **inputs)
    record = records[chosen[0].index]
    return families.attention_map(
        chosen[0], record["input"], record["grid"], record["noise"], **record["more"]
    )
