"""Read a saved pipeline's settings without diffusers: whose class a part is, and that no number in
them is one that no model can be built or drawn with.

diffusers builds what a config says before it looks at the weights: 10^9 layers take all memory, -1
is an IndexError somewhere, and a VAE whose scale is null fails at the first picture.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MOST_LAYERS, MOST = 2_000, 1_000_000  # published models have 60 layers, 1,000 classes or times
LAYERS = ("layers", "layers_per_block")
COUNTS = ("channels", *LAYERS)
# What folders say that were saved before DiT and PixArt had classes of their own, by their norm.
OLD_NAMES = {
    "Transformer2DModel": {
        "ada_norm_zero": "DiTTransformer2DModel",
        "ada_norm_single": "PixArtTransformer2DModel",
    }
}


def check(path: Path, content: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the file, the key and the value.

    Args:
        path: the file of settings, in the folder of its part.
        content: what it holds.
    """
    for key, value in content.items():
        for number in _numbers(value):
            _check_number(path, key, number)
    scale = content.get("scaling_factor", 1.0)
    if path.parent.name == "vae" and (
        not isinstance(scale, (int, float)) or not 0 < scale < math.inf
    ):
        raise ValueError(
            f"{path} has scaling_factor: {scale!r}, by which latents are multiplied; write the "
            "VAE's own, a number above 0"
        )


def _numbers(value: Any) -> Iterator[int | float]:
    """Yield the numbers of an entry, which may be a list of them for each block."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner)


def _check_number(path: Path, key: str, number: Any) -> None:
    if math.isnan(number) or (key.startswith("beta") and math.isinf(number)):
        raise ValueError(f"{path} has {key}: {number}; save the pipeline again with a finite one")
    if not (key.startswith("num_") or key.endswith(COUNTS)):
        return
    most = MOST_LAYERS if key.endswith(LAYERS) else MOST
    if not 0 <= number <= most:
        raise ValueError(
            f"{path} has {key}: {number}, and a count is from 0 to {most:,}; fetch the file again"
        )


def class_name(config: Mapping[str, Any]) -> str:
    """Return the class of the model that a config is of, or nothing where it names none.

    Args:
        config: what the model's config.json holds.
    """
    name = str(config.get("_class_name") or "")
    return OLD_NAMES.get(name, {}).get(str(config.get("norm_type")), name)
