"""Read pictures as one tensor, check them, and enlarge them."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from linattn.names import short


def pictures(image: Tensor | Image.Image | Sequence[Image.Image]) -> Tensor:
    """Return pictures as a tensor (N, 3, height, width) in [0, 1]; PIL images are read as RGB.

    Args:
        image: a tensor, which is returned as it is, or PIL images of one size.
    """
    if isinstance(image, Tensor):
        return image
    images = [image] if isinstance(image, Image.Image) else image
    if not isinstance(images, (list, tuple)) or not all(isinstance(i, Image.Image) for i in images):
        raise ValueError(
            f"pictures are {short(image)}; pass a tensor (N, 3, height, width) or PIL's"
        )
    if not images:
        raise ValueError("no pictures; pass one or more")
    sizes = dict.fromkeys("{} x {} px".format(*picture.size) for picture in images)
    if len(sizes) > 1:
        raise ValueError(
            f"pictures of {' and '.join(list(sizes)[:2])} in one call; pass those of one size "
            "together, the others by themselves"
        )
    arrays = [np.asarray(picture.convert("RGB"), dtype=np.float32) / 255 for picture in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def check(image: Tensor) -> None:
    """Raise unless these are pictures in [0, 1]."""
    if image.ndim != 4 or image.shape[1] != 3 or len(image) == 0:
        raise ValueError(
            f"pictures are {tuple(image.shape)}; pass a tensor (N, 3, height, width) in [0, 1]"
        )
    if not image.is_floating_point() or not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(
            f"pictures are {image.dtype} from {image.min():g} to {image.max():g}; pass "
            "floating-point numbers in [0, 1], bytes divided by 255"
        )


def enlarged(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge pictures bicubically, clamped to [0, 1].

    Args:
        image: pictures (N, 3, height, width).
        size: the new height and width in px.
    """
    return F.interpolate(image.float(), size=size, mode="bicubic", align_corners=False).clamp(0, 1)
