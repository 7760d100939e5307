"""Inspect a converted model: each layer's operator and backend, its new parameters, its attention
map.
"""

from typing import Any

import torch
from torch import Tensor, nn

from linattn import families
from linattn.families import KEY
from linattn.surgery import identity
from linattn.surgery.select import select
from linattn_kernels.launch import Backend


def describe(model_or_pipeline: Any) -> list[dict[str, Any]]:
    """Describe every self-attention layer, linearised or not, in one dictionary a layer."""
    descriptions = []
    for layer in families.layers(model_or_pipeline):
        operator = layer.operator
        weight = identity.tensors(layer.attn)["to_q.weight"]
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        runs = (
            Backend("torch", "not linearised")
            if operator is None
            else operator.runs(weight.device, dtype)
        )
        descriptions.append(
            {
                "index": layer.index,
                "name": layer.name,
                "operator": "softmax (dense)" if operator is None else operator.name,
                "options": {} if operator is None else operator.options,
                "parameters": sum(parameter.numel() for parameter in layer.attn.parameters()),
                "backend": runs.path,
                "because": runs.reason,
            }
        )
    return descriptions


def backends(model_or_pipeline: Any) -> dict[str, str]:
    """Return the backend of every layer on the model's device, and the reason for it, as a run file
    records them.
    """
    descriptions = describe(model_or_pipeline)
    return {layer["name"]: f"{layer['backend']}: {layer['because']}" for layer in descriptions}


def attention_parameters(model_or_pipeline: Any) -> list[tuple[str, nn.Parameter]]:
    """List all parameters inside the replaced layers."""
    parameters = []
    for layer in families.layers(model_or_pipeline):
        if layer.operator is not None:
            for name, parameter in layer.attn.named_parameters():
                parameters.append((f"{layer.name}.{name}", parameter))
    return parameters


def new_parameters(model_or_pipeline: Any) -> list[tuple[str, nn.Parameter]]:
    """List the parameters of the operators that the teacher does not have."""
    parameters = []
    for layer in families.layers(model_or_pipeline):
        if layer.operator is not None:
            for name in layer.operator.new_parameters():
                parameters.append(
                    (f"{layer.name}.{KEY}.{name}", layer.operator.get_parameter(name))
                )
    return parameters


@torch.no_grad()
def attention_map(model_or_pipeline: Any, layer: int | str, *args: Any, **inputs: Any) -> Tensor:
    """Return the attention weights of one layer, (batch, heads, tokens, tokens), for these
    arguments of the forward.

    The model may be a teacher or a student. The map is in float32, or float64 where the model is.
    It leaves out a convolution.
    """
    model = families.model_of(model_or_pipeline)
    if len(chosen := select(families.layers(model), layer)) != 1:
        raise ValueError(
            f"layer={layer!r} names {len(chosen)} layers, and a map is of one: give its number or "
            "its name"
        )
    with families.capture(model) as records:
        model(*args, **inputs)
    record = records[chosen[0].index]
    return families.attention_map(
        chosen[0], record["input"], record["grid"], record["noise"], **record["more"]
    )
