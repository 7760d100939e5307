"""Digest contents, so that two of them can be compared by a short text.

Students (linattn.json), samples (manifest.json), checkpoints and the names of scratch folders hold
these digests. A changed value would make all of them useless, so tests/test_digests.py holds every
function to literal values.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # project.py needs digests, and must not wait for torch
    from torch import Tensor, nn

SHORT = 16  # hexadecimal digits of most digests
SCRATCH = 12  # of those in the names of scratch folders


def of_file(path: Path) -> str:
    """Return the sha256 of a file, in full."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_code(paths: Iterable[Path]) -> str:
    """Digest the contents of source files in the order of their paths."""
    content = b"".join(path.read_bytes() for path in sorted(paths))
    return hashlib.sha256(content).hexdigest()[:SCRATCH]


def of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:SHORT]


def of_settings(settings: Any, length: int = SHORT) -> str:
    """Digest plain data whatever the order of its keys; other values count by their text."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def of_tensor(tensor: "Tensor") -> str:
    """Digest the shape and the bits of a tensor, in full; of one on meta, the shape alone."""
    content = hashlib.sha256(repr(tuple(tensor.shape)).encode())
    if not tensor.is_meta:
        content.update(_bytes(tensor))
    return content.hexdigest()


def of_weights(model: "nn.Module") -> str:
    """Digest the names, types and bytes of all weights.

    Two models with one digest draw the same pictures.
    """
    content = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        content.update(_bytes(tensor))
    return content.hexdigest()[:SHORT]


def of_values(tensors: Iterable["Tensor"]) -> str:
    """Digest the shapes of tensors and some 64 values of each.

    It is quick for large tensors, and the same on every device.
    """
    content = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().flatten()
        values = flat[:: max(1, len(flat) // 64)].cpu().double()
        content.update(repr((tuple(tensor.shape), values.tolist())).encode())
    return content.hexdigest()[:SHORT]


def _bytes(tensor: "Tensor") -> memoryview:
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
