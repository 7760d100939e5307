"""The border to diffusers: where each family keeps its self-attention, and how a layer learns grid and noise.

- A `Family` says which layers there are, in the order the forward meets them, and reads grid and noise from the
  arguments of the model's forward. DiT now; a sibling is one more class and one more line in `FAMILIES`.
- Grid and noise travel with the call, as one entry of the keyword dictionary that diffusers hands down to every
  attention. Nothing is stored between calls, so two forwards before one backward, gradient checkpointing (whose
  recomputation gets the arguments of its own forward), threads and deepcopy have nothing to mix up.
- The grid travels as the shape of an empty tensor: torch.compile then treats its sides as dynamic sizes, where
  plain integers would cost two graphs a size (measured; the fifth size hit the recompile limit).
- Processors are stateless and take no argument, since diffusers rebuilds them as `processor.__class__()`; the operator
  is a child of the attention, `attn.linattn`. Projections are called as modules, so that a LoRA on them counts.
"""

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linattn.attention.base import LayerShape, Operator
from linattn.grid import Grid

KEY = "linattn"  # the operator's name in its attention, and the context's among the attention's arguments


@dataclass(frozen=True)
class Context:
    """What the layers of one forward share."""

    sides: Tensor  # empty; its shape is (height, width, 1 + text)
    noise: Tensor | None  # (batch,) in [0, 1], 1 is pure noise

    @classmethod
    def of(cls, grid: Grid, noise: Tensor | None, like: Tensor) -> "Context":
        return cls(like.new_empty(1, 1, 1).expand(grid.height, grid.width, 1 + grid.text), noise)

    @property
    def grid(self) -> Grid:
        height, width, text = self.sides.shape
        return Grid(height, width, text - 1)


@dataclass(frozen=True)
class Layer:
    """One self-attention of a model."""

    name: str  # as in named_modules
    attn: nn.Module
    shape: LayerShape

    @property
    def index(self) -> int:
        return self.shape.index

    @property
    def operator(self) -> Operator | None:
        return getattr(self.attn, KEY, None)


# Processors ----------------------------------------------------------------------------------------------------------


class SelfAttention:
    """AttnProcessor2_0 with the layer's operator in place of softmax, for layers of diffusers' class `Attention`."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        linattn: Context | None = None,
    ) -> Tensor:
        context = _required(linattn)
        if encoder_hidden_states is not None or attention_mask is not None:
            raise ValueError("a linearised self-attention takes neither a mask nor another sequence to read from")
        x = _normalised(attn, hidden_states, temb)  # (batch, tokens, width)
        q, k, v = projections(attn, x, context.grid)  # (batch, tokens, heads, head_dim)
        out = attn.linattn.mix(q, k, v, context.grid, x=x, noise=context.noise)
        out = attn.to_out[1](attn.to_out[0](out.flatten(2).to(q.dtype)))  # (batch, tokens, width)
        if hidden_states.ndim == 4:
            out = out.transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection:
            out = out + hidden_states
        return out / attn.rescale_output_factor


def projections(attn: nn.Module, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as the layer's attention takes them, linearised or not, (batch, tokens, heads, head_dim)."""
    operator = getattr(attn, KEY, None)
    inputs = (x, x, x) if operator is None else operator.inputs(x, grid)
    q, k, v = (
        project(each).unflatten(-1, (attn.heads, -1))
        for project, each in zip((attn.to_q, attn.to_k, attn.to_v), inputs, strict=True)
    )
    q = q if attn.norm_q is None else attn.norm_q(q)
    k = k if attn.norm_k is None else attn.norm_k(k)
    return q, k, v


def _normalised(attn: nn.Module, x: Tensor, temb: Tensor | None = None) -> Tensor:
    if attn.spatial_norm is not None:
        x = attn.spatial_norm(x, temb)
    if x.ndim == 4:
        x = x.flatten(2).transpose(1, 2)
    if attn.group_norm is not None:
        x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
    return x


def _required(context: Context | None) -> Context:
    if context is None:
        raise ValueError(
            "a linearised layer was called without its grid: call the model it belongs to, "
            "or one layer alone by linattn.families.apply(layer, x, grid, noise)"
        )
    return context


# Families ------------------------------------------------------------------------------------------------------------


class Family:
    """What differs between the families; `model` is always of a class that `FAMILIES` names."""

    handed_down = "cross_attention_kwargs"  # the argument that diffusers passes on to every attention
    processor = SelfAttention

    def attentions(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Self-attentions by name, in the order the forward meets them."""
        raise NotImplementedError

    def read(self, model: nn.Module, arguments: Mapping[str, Any]) -> tuple[Grid, Tensor | None, Tensor]:
        """Grid, noise and a tensor on the right device, from the arguments of the model's forward."""
        raise NotImplementedError

    def trained(self, model: nn.Module) -> int | None:
        """Tokens at the size the model was trained at."""
        return None

    def shape(self, model: nn.Module, attn: nn.Module, index: int) -> LayerShape:
        head_dim = attn.inner_dim // attn.heads
        return LayerShape(attn.query_dim, attn.heads, head_dim, index=index, trained=self.trained(model))

    def context(self, model: nn.Module, arguments: Mapping[str, Any]) -> Context:
        grid, noise, like = self.read(model, arguments)
        return Context.of(grid, noise, like)


class DiT(Family):
    def attentions(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for index, block in enumerate(model.transformer_blocks):
            yield f"transformer_blocks.{index}.attn1", block.attn1

    def read(self, model: nn.Module, arguments: Mapping[str, Any]) -> tuple[Grid, Tensor | None, Tensor]:
        latents = arguments["hidden_states"]  # (batch, channels, height, width)
        height, width = latents.shape[-2] // model.patch_size, latents.shape[-1] // model.patch_size
        if height != width:
            raise ValueError(
                f"{type(model).__name__} draws squares only: latents of {latents.shape[-2]} x {latents.shape[-1]} are "
                f"{height} x {width} tokens, which its last step would lay out as a square, scrambled; crop or pad them"
            )
        return Grid(height, width), noise_level(arguments.get("timestep"), latents), latents

    def trained(self, model: nn.Module) -> int | None:
        return (model.config.sample_size // model.patch_size) ** 2


def noise_level(timestep: Any, sample: Tensor, steps: int = 1000) -> Tensor | None:
    """(batch,) noise levels in [0, 1] from timesteps in [0, steps]: one for all, or one a sample."""
    if timestep is None:
        return None
    timestep = torch.as_tensor(timestep, device=sample.device).flatten().float()
    return (timestep / steps).expand(sample.shape[0])


FAMILIES: dict[str, Family] = {"DiTTransformer2DModel": DiT()}


def family(model: nn.Module) -> Family:
    """By the class and its parents, never by the folder's config: old checkpoints name other classes there."""
    for kind in type(model).__mro__:
        if kind.__name__ in FAMILIES:
            return FAMILIES[kind.__name__]
    raise ValueError(
        f"{type(model).__name__} is not supported yet; supported are models of the classes {', '.join(FAMILIES)} "
        "and diffusers pipelines that hold one"
    )


def model_of(model_or_pipeline: Any) -> nn.Module:
    """The denoising model of a pipeline; a model as it is, without torch.compile's or DDP's wrapper."""
    wrapped = ("_orig_mod", "module") if isinstance(model_or_pipeline, nn.Module) else ("transformer", "unet")
    for name in wrapped:
        inner = getattr(model_or_pipeline, name, None)
        if isinstance(inner, nn.Module):
            return model_of(inner)
    if not isinstance(model_or_pipeline, nn.Module):
        raise ValueError(f"expected a diffusers model or pipeline, not {type(model_or_pipeline).__name__}")
    family(model_or_pipeline)  # raises where it is not supported
    return model_or_pipeline


def layers(model_or_pipeline: Any) -> list[Layer]:
    """Every self-attention, numbered in the order the forward meets them; cross-attention is no part of it."""
    model = model_of(model_or_pipeline)
    kind = family(model)
    return [
        Layer(name, attn, kind.shape(model, attn, index)) for index, (name, attn) in enumerate(kind.attentions(model))
    ]


# Grid and noise on their way to the layers ---------------------------------------------------------------------------


def watch(model: nn.Module) -> None:
    """From now on every forward of the model tells its layers grid and noise."""
    unwatch(model)
    model.register_forward_pre_hook(functools.partial(_send, names=_arguments(model)), with_kwargs=True)
    for module in _receivers(model):
        module.register_forward_pre_hook(_deliver, with_kwargs=True)


def unwatch(model: nn.Module) -> None:
    _remove(model, _send)
    for module in _receivers(model):
        _remove(module, _deliver)


def _arguments(model: nn.Module) -> tuple[str, ...]:
    # Of the class: accelerate replaces the instance's forward by one that hides its arguments.
    return tuple(inspect.signature(type(model).forward).parameters)[1:]


def _receivers(model: nn.Module) -> list[nn.Module]:
    """Every attention, cross-attention included: all of them are handed the same arguments."""
    return [module for module in model.modules() if hasattr(module, "set_processor") and hasattr(module, "heads")]


def _bound(names: tuple[str, ...], args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}


# Hooks are plain functions that reach everything through their arguments: a deepcopy keeps them, for the copy.


def _send(model: nn.Module, args: tuple, kwargs: dict[str, Any], names: tuple[str, ...]) -> tuple[tuple, dict]:
    kind = family(model)
    arguments = _bound(names, args, kwargs)
    extras = {**(arguments.get(kind.handed_down) or {}), KEY: kind.context(model, arguments)}
    position = names.index(kind.handed_down)
    if position < len(args):
        return (*args[:position], extras, *args[position + 1 :]), kwargs
    return args, {**kwargs, kind.handed_down: extras}


def _deliver(attn: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    """A layer without an operator is called as if linattn were not there; one with an operator must use it."""
    if not hasattr(attn, KEY):
        return args, {name: value for name, value in kwargs.items() if name != KEY}
    if not isinstance(attn.processor, SelfAttention):
        raise RuntimeError(
            f"a linearised layer lost its processor to {type(attn.processor).__name__} (attention slicing, fused "
            "projections and set_attn_processor do that) and would be softmax again: undo that, or call "
            "linattn.families.reattach(model)"
        )
    return args, kwargs


def _remove(module: nn.Module, function: Any) -> None:
    hooks = module._forward_pre_hooks
    for number in [n for n, hook in hooks.items() if getattr(hook, "func", hook) is function]:
        del hooks[number]
        module._forward_pre_hooks_with_kwargs.pop(number, None)


def reattach(model_or_pipeline: Any) -> None:
    """Put our processor back on every layer that has an operator."""
    model = model_of(model_or_pipeline)
    for layer in layers(model):
        if layer.operator is not None:
            layer.attn.set_processor(family(model).processor())


# One layer, and what passes through all of them ----------------------------------------------------------------------


def apply(layer: Layer, x: Tensor, grid: Grid, noise: Tensor | None = None) -> Tensor:
    """One layer alone, linearised or not: what it makes of hidden states x (batch, tokens, width)."""
    context = {} if layer.operator is None else {KEY: Context.of(grid, noise, x)}
    return layer.attn(x, **context)


@contextmanager
def capture(model_or_pipeline: Any, detach: bool = False) -> Iterator[list[dict[str, Any]]]:
    """A list that each forward fills anew, an entry a self-attention in forward order, linearised or not:

    {"input": x, "output": what the attention gave after to_out, "grid": Grid, "noise": (batch,) or None}.
    Tensors keep their graph, so a loss on them reaches the weights; `detach` cuts it.
    """
    model = model_of(model_or_pipeline)
    kind, names, every, seen, running = family(model), _arguments(model), layers(model), [], {}

    def begin(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        running["context"] = kind.context(module, _bound(names, args, kwargs))
        seen.clear()

    def end(module: nn.Module, args: tuple, output: Any) -> None:
        running.clear()
        if output is not None and len(seen) != len(every):
            raise RuntimeError(
                f"capture saw {len(seen)} of {len(every)} self-attentions: torch.compile ignores hooks that come after "
                "it has compiled; capture a model that is not"
            )

    def layer_end(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        if not running:  # gradient checkpointing computes the layer again, in the backward
            return
        pair = {"input": args[0] if args else kwargs["hidden_states"], "output": output}
        if detach:
            pair = {name: tensor.detach() for name, tensor in pair.items()}
        seen.append({**pair, "grid": running["context"].grid, "noise": running["context"].noise})

    handles = [
        model.register_forward_pre_hook(begin, with_kwargs=True, prepend=True),
        model.register_forward_hook(end, always_call=True),
        *(layer.attn.register_forward_hook(layer_end, with_kwargs=True) for layer in every),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def attention_map(layer: Layer, x: Tensor, grid: Grid, noise: Tensor | None = None) -> Tensor:
    """(batch, heads, tokens, tokens): whom each token reads in this layer, float32 or wider."""
    q, k, _ = projections(layer.attn, _normalised(layer.attn, x), grid)
    if layer.operator is not None:
        return layer.operator.attention_map(q, k, grid, noise)
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(wide).transpose(1, 2), k.to(wide).transpose(1, 2)  # (batch, heads, tokens, head_dim)
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
