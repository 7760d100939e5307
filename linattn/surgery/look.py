"""Look at a converted model: what every layer is, which path its attention takes, what is new, whom a token reads."""

from typing import Any

import torch
from torch import Tensor, nn

from linattn import families
from linattn.families import KEY
from linattn.surgery import identity
from linattn.surgery.select import select
from linattn_kernels.launch import Backend


def describe(model_or_pipeline: Any) -> list[dict[str, Any]]:
    """A row for every self-attention layer, linearised or not."""
    rows = []
    for layer in families.layers(model_or_pipeline):
        operator = layer.operator
        weight = identity.tensors(layer.attn)["to_q.weight"]
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        runs = Backend("torch", "not linearised") if operator is None else operator.runs(weight.device, dtype)
        rows.append(
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
    return rows


def backends(model_or_pipeline: Any) -> dict[str, str]:
    """Which path every layer takes where the model lies, and why: what a run writes down."""
    return {row["name"]: f"{row['backend']}: {row['because']}" for row in describe(model_or_pipeline)}


def attention_parameters(model_or_pipeline: Any) -> list[tuple[str, nn.Parameter]]:
    """Everything inside the replaced layers."""
    return [
        (f"{layer.name}.{name}", parameter)
        for layer in families.layers(model_or_pipeline)
        if layer.operator is not None
        for name, parameter in layer.attn.named_parameters()
    ]


def new_parameters(model_or_pipeline: Any) -> list[tuple[str, nn.Parameter]]:
    """What the teacher does not have."""
    return [
        (f"{layer.name}.{KEY}.{name}", layer.operator.get_parameter(name))
        for layer in families.layers(model_or_pipeline)
        if layer.operator is not None
        for name in layer.operator.new_parameters()
    ]


@torch.no_grad()
def attention_map(model_or_pipeline: Any, layer: int | str, *args: Any, **inputs: Any) -> Tensor:
    """Whom each token reads in one layer, (batch, heads, tokens, tokens), for these arguments of the model's forward.

    Of the teacher and of a student alike; in float32, or float64 where the model is. A convolution is no part of it.
    """
    model = families.model_of(model_or_pipeline)
    if len(found := select(families.layers(model), layer)) != 1:
        raise ValueError(f"layer={layer!r} names {len(found)} layers, and a map is of one: give its number or its name")
    (chosen,) = found
    with families.capture(model) as seen:
        model(*args, **inputs)
    here = seen[chosen.index]
    return families.attention_map(chosen, here["input"], here["grid"], here["noise"], **here["more"])
