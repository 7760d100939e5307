"""Run one layer alone, and record what passes through all of them."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from linattn.attention.grid import Grid
from linattn.families.base import KEY, Context, Layer
from linattn.families.passing import is_watched, unwatch, watch
from linattn.families.processors import QKV, Attention, normalised, projections
from linattn.families.registry import layers, model_of
from linattn.families.rotary import position

# what a layer may be given besides hidden states, by diffusers' names
MORE = ("encoder_hidden_states", "image_rotary_emb")


def apply(layer: Layer, x: Tensor, grid: Grid, noise: Tensor | None = None, **more: Any) -> Tensor:
    """Return the output of one layer, linearised or not, text first.

    Args:
        layer: one of `layers`.
        x: hidden states, (batch, tokens, width); of the picture alone where text has projections of
            its own.
        grid: how the layer's tokens lie.
        noise: noise levels, (batch,); an operator with a schedule needs them.
        more: what `capture` records as "more": encoder_hidden_states and image_rotary_emb.
    """
    context = {} if layer.operator is None else {KEY: Context.of(grid, noise, x)}
    return joined(layer.attn(x, **more, **context))


def joined(output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Return an attention's output as (batch, text + picture, width).

    Joint attention gives (picture, text).

    Args:
        output: a tensor, which is returned as it is, or a pair of picture and text.
    """
    return torch.cat(output[1::-1], 1) if isinstance(output, tuple) else output


@contextmanager
def capture(
    model_or_pipeline: Any, detach: bool = False, outputs_only: bool = False
) -> Generator[list[dict[str, Any]], None, None]:
    """Return a list that each forward fills anew with an entry for each self-attention, in order.

    An entry is {"input": x, "more": text and RoPE where the layer takes them, "output": what the
    attention gave after to_out, text first, "grid": Grid, "noise": (batch,) or None}; `apply(layer,
    input, grid, noise, **more)` gives the output. Tensors keep their graph, so a loss on them
    reaches the weights.

    Args:
        model_or_pipeline: a diffusers model, a pipeline or a Teacher, linearised or not.
        detach: whether to cut the graph.
        outputs_only: whether to hold no more of each layer than "output".
    """
    model = model_of(model_or_pipeline)
    recorder = Recorder(layers(model), detach, outputs_only)
    with _watching(model):
        handles = recorder.hooks(model)
        try:
            yield recorder.entries
        finally:
            for handle in handles:
                handle.remove()


class Recorder:
    """Record the layers of a forward by hooks on the model and on each layer."""

    def __init__(self, layers: list[Layer], detach: bool, outputs_only: bool = False):
        self.layers, self.detach, self.outputs_only = layers, detach, outputs_only
        self.entries: list[dict[str, Any]] = []
        # the context of each layer that is running; None outside the model's forward, since
        # gradient checkpointing computes a layer again in the backward
        self.contexts: dict[int, Context] | None = None

    def hooks(self, model: nn.Module) -> list[Any]:
        """Register the hooks and return their handles."""
        handles: list[Any] = [
            model.register_forward_pre_hook(self.begin, prepend=True),
            model.register_forward_hook(self.end, always_call=True),
        ]
        for layer in self.layers:
            attn = layer.attn
            handles += [
                attn.register_forward_pre_hook(self.begin_layer, with_kwargs=True, prepend=True),
                attn.register_forward_hook(self._end_of(layer), with_kwargs=True),
            ]
        return handles

    def begin(self, model: nn.Module, args: tuple) -> None:
        self.contexts = {}
        self.entries.clear()

    def end(self, model: nn.Module, args: tuple, output: Any) -> None:
        self.contexts = None
        if output is not None and len(self.entries) != len(self.layers):
            raise RuntimeError(
                f"capture saw {len(self.entries)} of {len(self.layers)} self-attentions: "
                "torch.compile ignores hooks that come after it has compiled; capture a model that "
                "is not"
            )

    def begin_layer(self, attn: Attention, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.contexts is not None:
            # the next hook takes it away from a layer that has no operator
            self.contexts[id(attn)] = kwargs[KEY]

    def _end_of(self, layer: Layer) -> Any:
        return lambda attn, args, kwargs, output: self.end_layer(layer, args, kwargs, output)

    def end_layer(self, layer: Layer, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if self.contexts is None:
            return
        context = self.contexts.pop(id(layer.attn))
        if self.outputs_only:
            entry = {"output": joined(output)}
            self.entries.append(_detached(entry) if self.detach else entry)
            return
        entry = {
            "input": args[0] if args else kwargs["hidden_states"],
            "more": {name: kwargs[name] for name in MORE if kwargs.get(name) is not None},
            "output": joined(output),
        }
        entry = _detached(entry) if self.detach else entry
        grid = layer.processor.grid(context.grid)
        self.entries.append({**entry, "grid": grid, "noise": context.noise})


def grids(model_or_pipeline: Any, **inputs: Any) -> list[Grid]:
    """Return every self-attention's own grid in one forward.

    Args:
        model_or_pipeline: a diffusers model, a pipeline or a Teacher.
        inputs: keyword arguments of the model's forward.
    """
    model = model_of(model_or_pipeline)
    grids: dict[int, Grid] = {}

    def recording(layer: Layer) -> Any:
        def record(attn: Attention, args: tuple, kwargs: dict[str, Any]) -> None:
            grids[layer.index] = layer.processor.grid(kwargs[KEY].grid)

        return record

    with _watching(model):
        handles = [
            layer.attn.register_forward_pre_hook(recording(layer), with_kwargs=True, prepend=True)
            for layer in layers(model)
        ]
        try:
            model(**inputs)
        finally:
            for handle in handles:
                handle.remove()
    return [grids[layer.index] for layer in layers(model)]


@contextmanager
def _watching(model: nn.Module) -> Generator[None, None, None]:
    """Hand grid and noise to the layers meanwhile, also of a model that is not converted."""
    watched = is_watched(model)
    if not watched:
        watch(model)
    try:
        yield
    finally:
        if not watched:
            unwatch(model)


def _detached(value: Any) -> Any:
    """Cut the graph of every tensor in dictionaries and tuples."""
    if isinstance(value, dict):
        return {name: _detached(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(tensor.detach() for tensor in value)
    return value.detach()


def qkv(layer: Layer, x: Tensor, grid: Grid, **more: Any) -> QKV:
    """Return queries, keys and values of a layer, (batch, tokens, heads, head_dim), text first.

    Args:
        layer: one of `layers`.
        x: hidden states, (batch, tokens, width).
        grid: how the layer's tokens lie.
        more: what `capture` records as "more": encoder_hidden_states and image_rotary_emb.
    """
    text, rope = (more.get(name) for name in MORE)
    return projections(layer.attn, normalised(layer.attn, x), grid, text, rope)


def attention_map(
    layer: Layer, x: Tensor, grid: Grid, noise: Tensor | None = None, **more: Any
) -> Tensor:
    """Return how much each token reads of each in this layer, float32 or wider.

    The map is (batch, heads, tokens, tokens).

    Args:
        layer: one of `layers`.
        x: hidden states, (batch, tokens, width).
        grid: how the layer's tokens lie.
        noise: noise levels, (batch,); an operator with a schedule needs them.
        more: what `capture` records as "more": encoder_hidden_states and image_rotary_emb.
    """
    require_map(layer)
    q, k, _ = qkv(layer, x, grid, **more)
    if layer.operator is not None:
        rope = position(more.get("image_rotary_emb"))
        return layer.operator.attention_map(q, k, grid, normalised(layer.attn, x), noise, rope)
    dtype = torch.promote_types(q.dtype, torch.float32)
    # (batch, heads, tokens, head_dim)
    q, k = q.to(dtype).transpose(1, 2), k.to(dtype).transpose(1, 2)
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def require_map(layer: Layer) -> None:
    """Raise a ValueError for a layer whose operator has no attention map.

    Args:
        layer: one of `layers`.
    """
    if layer.operator is not None:
        layer.operator.require_map()
