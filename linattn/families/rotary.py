"""Rotary positions in the two forms that families hand down.

- FLUX hands down (cos, sin) of text and picture as one sequence, (tokens, head_dim). Qwen-Image
  hands down (picture, text), each of complex factors, (tokens, head_dim / 2). Both turn
  neighbouring channels.
- Queries and keys are rotated by their family's own function: the two functions round differently,
  and a student should get its teacher's bits.
"""

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from torch import Tensor

Rope = tuple[Tensor, Tensor]


def rotated(x: Tensor, rope: Rope) -> Tensor:
    """Rotate x (batch, tokens, heads, head_dim), text first.

    Args:
        x: queries or keys, (batch, tokens, heads, head_dim), text first.
        rope: rotary positions as the family's model makes them: (cos, sin), or Qwen-Image's complex
            factors of picture and text.
    """
    if _is_complex(rope):
        return apply_rotary_emb_qwen(x, _text_first(rope), use_real=False)
    return apply_rotary_emb(x, rope, sequence_dim=1)


def position(rope: Rope | None) -> Rope | None:
    """Return the positions that operators take: (cos, sin), (tokens, head_dim), text first.

    Args:
        rope: rotary positions as the family's model makes them: (cos, sin), or Qwen-Image's complex
            factors of picture and text.
    """
    if rope is None or not _is_complex(rope):
        return rope
    factors = _text_first(rope).repeat_interleave(2, 1)
    return factors.real, factors.imag


def _is_complex(rope: Rope) -> bool:
    return rope[0].is_complex()


def _text_first(rope: Rope) -> Tensor:
    picture, text = rope
    return torch.cat([text, picture])
