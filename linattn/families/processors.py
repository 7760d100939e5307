"""The halves of a layer that stay when an operator takes the place of softmax.

- Processors are stateless and take no argument, since diffusers rebuilds them as
  `processor.__class__()`; the operator is a child of the attention, `attn.linattn`. Projections are
  called as modules, so that a LoRA on them counts.
- An operator sees text tokens first. Where text has projections of its own, `inputs` and `x` are
  the picture's.
- `has_text` says that the layer's tokens begin with the text.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from linattn.attention.grid import Grid
from linattn.families.rotary import Rope, position, rotated

QKV = tuple[Tensor, Tensor, Tensor]
Attention = Any  # diffusers' attention; each model family has an unrelated class for it


class Processor:
    """Run a layer's projections, norms and positions around an operator."""

    has_text: ClassVar[bool] = False

    @classmethod
    def grid(cls, grid: Grid) -> Grid:
        """Return the grid of this layer's tokens, which may lack the model's text."""
        return grid if cls.has_text else Grid(grid.height, grid.width)


class SelfAttention(Processor):
    """Stand for AttnProcessor2_0 on picture tokens in layers of diffusers' class `Attention`."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        linattn: Any = None,
    ) -> Tensor:
        if encoder_hidden_states is not None or attention_mask is not None:
            raise ValueError(
                "a linearised self-attention takes neither a mask nor another sequence to read from"
            )
        grid = self.grid(_required(linattn).grid)
        x = normalised(attn, hidden_states, temb)  # (batch, tokens, width)
        q, k, v = projections(attn, x, grid)
        # (batch, tokens, heads, head_dim)
        out = attn.linattn(q, k, v, grid, x=x, noise=linattn.noise)
        out = _projected_out(attn, out.flatten(2).to(q.dtype))  # (batch, tokens, width)
        if hidden_states.ndim == 4:
            out = out.transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection:
            out = out + hidden_states
        return out / attn.rescale_output_factor


class JointAttention(Processor):
    """Stand for JointAttnProcessor2_0, FluxAttnProcessor and QwenDoubleStreamAttnProcessor2_0.

    The output is (picture, text) where text has projections of its own. In FLUX's single blocks
    both are one sequence already, and the block projects the result.
    """

    has_text = True

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rope | None = None,
        encoder_hidden_states_mask: Tensor | None = None,
        linattn: Any = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if attention_mask is not None:
            raise ValueError("a linearised joint attention takes no mask")
        refuse_padding(encoder_hidden_states_mask)
        text, grid = encoder_hidden_states, self.grid(_required(linattn).grid)
        q, k, v = projections(attn, hidden_states, grid, text, image_rotary_emb)
        kwargs = {
            "x": hidden_states,
            "noise": linattn.noise,
            "position": position(image_rotary_emb),
        }
        out = attn.linattn(q, k, v, grid, **kwargs).flatten(2).to(q.dtype)
        if text is None:
            return out
        text, picture = out.split_with_sizes([grid.text, grid.picture], 1)
        drops_text = getattr(attn, "context_pre_only", None)  # SD3's last block drops its text
        return _projected_out(attn, picture), text if drops_text else attn.to_add_out(text)


def projections(
    attn: Attention, x: Tensor, grid: Grid, text: Tensor | None = None, rope: Rope | None = None
) -> QKV:
    """Return q, k, v as the layer's attention takes them, linearised or not.

    They are (batch, tokens, heads, head_dim), text first.

    Args:
        attn: a self-attention of diffusers, linearised or not.
        x: hidden states after the layer's norm, (batch, tokens, width).
        grid: how the layer's tokens lie.
        text: hidden states of the text, where it has projections of its own.
        rope: rotary positions as the family's model makes them.
    """
    operator = getattr(attn, "linattn", None)
    inputs = (x, x, x) if operator is None else operator.inputs(x, grid)
    q, k, v = _heads(attn, inputs, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k))
    if text is not None:
        added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text_q, text_k, text_v = _heads(
            attn, (text, text, text), added, (attn.norm_added_q, attn.norm_added_k)
        )
        q, k, v = torch.cat([text_q, q], 1), torch.cat([text_k, k], 1), torch.cat([text_v, v], 1)
    if rope is not None:
        q, k = rotated(q, rope), rotated(k, rope)
    return q, k, v


def _heads(attn: Attention, inputs: QKV, projects: tuple, norms: tuple) -> QKV:
    """Project the inputs of q, k and v, cut them into heads, and normalise q and k."""
    q, k, v = (
        project(tensor).unflatten(-1, (attn.heads, -1))
        for project, tensor in zip(projects, inputs, strict=True)
    )
    norm_q, norm_k = norms
    q = q if norm_q is None else norm_q(q)
    k = k if norm_k is None else norm_k(k)
    return q, k, v


def _projected_out(attn: Attention, out: Tensor) -> Tensor:
    return attn.to_out[1](attn.to_out[0](out))


def normalised(attn: Attention, x: Tensor, temb: Tensor | None = None) -> Tensor:
    """Return x (batch, tokens, width) after the norms that some layers of `Attention` hold."""
    if getattr(attn, "spatial_norm", None) is not None:
        x = attn.spatial_norm(x, temb)
    if x.ndim == 4:
        x = x.flatten(2).transpose(1, 2)
    if getattr(attn, "group_norm", None) is not None:
        x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
    return x


def refuse_padding(mask: Tensor | None) -> None:
    """Raise a ValueError for a mask (batch, text) that hides any token."""
    if mask is None or mask.bool().all():
        return
    lengths = mask.bool().sum(1).tolist()
    raise ValueError(
        f"encoder_hidden_states_mask hides padding: the texts of this batch have {lengths} tokens "
        f"of {mask.shape[1]}, and an operator reads every token; draw one prompt a call, or "
        "prompts of one length, and cut the padding off"
    )


def _required(context: Any) -> Any:
    if context is None:
        raise ValueError(
            "a linearised layer was called without its grid: call the model it belongs to, "
            "or one layer alone by linattn.families.apply(layer, x, grid, noise)"
        )
    return context
