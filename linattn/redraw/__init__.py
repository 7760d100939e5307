"""Draw pictures at sizes that no model was trained at, for every family.

- Pictures are enlarged, noised and drawn again (SDEdit). LinFusion is trained at one size and shown
  at others, and CLEAR's recipe draws a small picture first: draw small, `upscale`, and `upscale`
  again.
- `strength` is the share of the steps that are drawn again: 0.3 keeps the composition, 1 starts at
  pure noise.
- `ntk` multiplies FLUX's RoPE base (CLEAR: 10), for sides longer than the trained one. Other
  families have no rotary positions: DiT and PixArt squeeze their positions into the trained range
  by themselves, and a UNet has none.
- `proportional` scales CLEAR's scores with the number of tokens, as its high-resolution pipeline
  does. The trained number of tokens comes from the option `trained`, or the model, or the card's
  side and the length of its text.
- Decoders that can tile do so above `tile` px, so that their memory does not grow with the picture.
  A decoder normalises every tile separately, and small tiles shift colours; `tile` is therefore not
  the VAE's own default.
"""

from linattn.redraw.adjust import positions, proportions, tiles, trained_tokens
from linattn.redraw.images import enlarged, pictures
from linattn.redraw.sdedit import first_step, redrawn, upscale

__all__ = [
    "enlarged",
    "first_step",
    "pictures",
    "positions",
    "proportions",
    "redrawn",
    "tiles",
    "trained_tokens",
    "upscale",
]
