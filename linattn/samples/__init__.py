"""Write and read self-generated data: latents that a teacher drew, with their labels or captions.

- Picture i and its label or caption depend on (seed, i) alone, so a later call for more pictures
  only adds shards.
- Captions are those of the world's scenes, which show one thing and two things in turn, or the
  caller's, which repeat from the first on. Any model that reads text can draw either.
- Every shard names the recipe it was drawn by. A shard is written under a draft name and renamed,
  so a kill leaves no half shard. An undamaged shard of the same recipe is kept. The manifest is
  written last, so its presence means that all shards are there.
- The manifest holds a checksum for every shard. A damaged shard is named, and writing again draws
  only that shard.
- Latents are float16. The autoencoder's latents have deviation 1, and its own error is 100 times
  the rounding error.
"""

from linattn.samples.prompts import balanced_labels, prompts_of, scenes
from linattn.samples.reader import Samples
from linattn.samples.recipe import describe
from linattn.samples.writer import write

__all__ = ["Samples", "balanced_labels", "describe", "prompts_of", "scenes", "write"]
