"""One layer alone, and what passes through all of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from linattn.attention.grid import Grid
from linattn.families.base import KEY, Context, Layer
from linattn.families.passing import is_watched, unwatch, watch
from linattn.families.processors import normalised, projections
from linattn.families.registry import layers, model_of
from linattn.families.rotary import position

# what else a layer may be given, by diffusers' names
MORE = ("encoder_hidden_states", "image_rotary_emb")


def apply(layer: Layer, x: Tensor, grid: Grid, noise: Tensor | None = None, **more: Any) -> Tensor:
    """One layer alone, linearised or not: what it makes of hidden states x (batch, tokens, width),
    text first.
    """
    context = {} if layer.operator is None else {KEY: Context.of(grid, noise, x)}
    return joined(layer.attn(x, **more, **context))


def joined(output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Joint attention gives (picture, text); (batch, text + picture, width)."""
    return torch.cat(output[1::-1], 1) if isinstance(output, tuple) else output


@contextmanager
def capture(model_or_pipeline: Any, detach: bool = False) -> Iterator[list[dict[str, Any]]]:
    """A list that each forward fills anew, an entry a self-attention in forward order, linearised
    or not:

    {"input": x, "more": text and RoPE where the layer is given them, "output": what the attention
    gave after to_out, text first, "grid": Grid, "noise": (batch,) or None}; `apply(layer, input,
    grid, noise, **more)` gives the output. Tensors keep their graph, so a loss on them reaches the
    weights; `detach` cuts it.
    """
    model = model_of(model_or_pipeline)
    every, seen, running = layers(model), [], {}

    def begin(module: nn.Module, args: tuple) -> None:
        running["forward"] = {}
        seen.clear()

    def end(module: nn.Module, args: tuple, output: Any) -> None:
        running.clear()
        if output is not None and len(seen) != len(every):
            raise RuntimeError(
                f"capture saw {len(seen)} of {len(every)} self-attentions: torch.compile ignores "
                "hooks that come after "
                "it has compiled; capture a model that is not"
            )

    def layer_begin(attn: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if running:  # gradient checkpointing computes the layer again, in the backward
            # which the next hook takes away where nobody asks for it
            running["forward"][id(attn)] = kwargs[KEY]

    def layer_end(layer: Layer, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if not running:
            return
        context = running["forward"].pop(id(layer.attn))
        found = {
            "input": args[0] if args else kwargs["hidden_states"],
            "more": {name: kwargs[name] for name in MORE if kwargs.get(name) is not None},
            "output": joined(output),
        }
        found = _detached(found) if detach else found
        seen.append({**found, "grid": layer.processor.grid(context.grid), "noise": context.noise})

    def ends(layer: Layer) -> Any:
        return lambda attn, args, kwargs, output: layer_end(layer, args, kwargs, output)

    with _watching(model):
        handles = [
            model.register_forward_pre_hook(begin, prepend=True),
            model.register_forward_hook(end, always_call=True),
            *(
                layer.attn.register_forward_pre_hook(layer_begin, with_kwargs=True, prepend=True)
                for layer in every
            ),
            *(layer.attn.register_forward_hook(ends(layer), with_kwargs=True) for layer in every),
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


def grids(model_or_pipeline: Any, **inputs: Any) -> list[Grid]:
    """Every self-attention's own grid in one forward."""
    model, found = model_of(model_or_pipeline), {}
    every = layers(model)

    def told(layer: Layer) -> Any:
        return lambda attn, args, kwargs: found.update(
            {layer.index: layer.processor.grid(kwargs[KEY].grid)}
        )

    with _watching(model):
        handles = [
            layer.attn.register_forward_pre_hook(told(layer), with_kwargs=True, prepend=True)
            for layer in every
        ]
        try:
            model(**inputs)
        finally:
            for handle in handles:
                handle.remove()
    return [found[layer.index] for layer in every]


@contextmanager
def _watching(model: nn.Module) -> Iterator[None]:
    """A model that is not converted is told grid and noise for as long as somebody asks."""
    watched = is_watched(model)
    if not watched:
        watch(model)
    try:
        yield
    finally:
        if not watched:
            unwatch(model)


def _detached(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: _detached(each) for name, each in found.items()}
    return tuple(each.detach() for each in found) if isinstance(found, tuple) else found.detach()


def attention_map(
    layer: Layer, x: Tensor, grid: Grid, noise: Tensor | None = None, **more: Any
) -> Tensor:
    """(batch, heads, tokens, tokens): whom each token reads in this layer, float32 or wider."""
    q, k, _ = projections(
        layer.attn, normalised(layer.attn, x), grid, *(more.get(name) for name in MORE)
    )
    if layer.operator is not None:
        return layer.operator.attention_map(
            q, k, grid, noise, position(more.get("image_rotary_emb"))
        )
    wide = torch.promote_types(q.dtype, torch.float32)
    # (batch, heads, tokens, head_dim)
    q, k = q.to(wide).transpose(1, 2), k.to(wide).transpose(1, 2)
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
