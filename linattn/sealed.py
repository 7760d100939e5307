"""Keep tensors in safetensors files that carry their own digest.

- Neither safetensors nor DVC's cache notices a flipped bit, and a power cut leaves a file whose
  header is whole and whose tensors are zeros. Such a file is named here, and nothing is computed
  from it.
- The digest is the sha256 of the file with 64 zeros in the digest's place, so that metadata and
  names are held as well, and a large file is read in pieces.
- Nothing here imports torch before tensors are written or read as torch's.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from linattn import files
from linattn.files import Damaged

KEY = "linattn"  # the one key, because safetensors stores several in an order of each run
BLANK = "0" * 64
SEAL = re.compile(rb"sha256:([0-9a-f]{64}) ")
PIECE = 1 << 22  # bytes that are read at once


def save(tensors: Mapping[str, Any], path: Path, metadata: Any = None) -> None:
    """Write torch's tensors with a digest.

    Args:
        tensors: by name, on any device.
        path: the file, which appears whole.
        metadata: plain values that belong to them.
    """
    from safetensors.torch import save_file

    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    note = f"sha256:{BLANK} {json.dumps(metadata, sort_keys=True)}"
    with files.whole(path) as draft:
        save_file(held, draft, metadata={KEY: note})
        start, _ = _seal(draft)
        with draft.open("r+b") as file:
            file.seek(start)
            file.write(_digest(draft, start).encode())


def load(path: Path, remedy: str = "make it again", framework: str = "pt") -> dict[str, Any]:
    """Read the tensors of a file that `save` wrote, or raise Damaged.

    Args:
        path: the file.
        remedy: what helps where it is damaged, for the error.
        framework: whose tensors they are, "pt" or "np".
    """
    check(path, remedy)
    with safe_open(path, framework=framework) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def check(path: Path, remedy: str = "make it again") -> Any:
    """Compare a file with its digest and return its metadata, or raise Damaged.

    Args:
        path: the file.
        remedy: what helps where it is damaged, for the error.
    """
    try:
        start, written = _seal(path)
        with safe_open(path, framework="np") as file:
            note = (file.metadata() or {})[KEY]
        if (now := _digest(path, start)) != written:
            raise ValueError(f"it is {now[:12]} and was written as {written[:12]}")
        return json.loads(note[len(f"sha256:{BLANK} ") :])
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing; {remedy}") from error
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise Damaged(f"{path} is damaged ({error}); {remedy}") from error


class Rows:
    """Read single rows of one tensor of a file, in the file's own dtype.

    Args:
        path: a file that was checked.
        name: of the tensor.
        remedy: what helps where the file is cut, for the error.
    """

    DTYPES = MappingProxyType({"F16": np.float16, "F32": np.float32})

    def __init__(self, path: Path, name: str, remedy: str):
        self.path, self.remedy = path, remedy
        self.file = path.open("rb")
        length = int.from_bytes(self.file.read(8), "little")
        entry = json.loads(self.file.read(length))[name]
        self.dtype = np.dtype(self.DTYPES[entry["dtype"]])
        self.shape: tuple[int, ...] = tuple(entry["shape"])
        self.start = 8 + length + entry["data_offsets"][0]

    def __getitem__(self, position: int) -> Any:
        """Return a row as NumPy's array, or raise Damaged where the file ends before it."""
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        content = os.pread(self.file.fileno(), size, self.start + position * size)
        if len(content) < size:
            raise Damaged(f"{self.path} was cut while it was read; {self.remedy}")
        return np.frombuffer(content, self.dtype).reshape(self.shape[1:])


def _seal(path: Path) -> tuple[int, str]:
    """Return where the digest stands in a file, and the digest."""
    if path.exists() and not path.is_file():  # a pipe would be waited for, for ever
        raise ValueError("it is no file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("it ends within its header")
        match = SEAL.search(file.read(length))
    if match is None:
        raise ValueError("it has no digest")
    return 8 + match.start(1), match.group(1).decode()


def _digest(path: Path, start: int) -> str:
    """Return the sha256 of a file with zeros where its own digest stands."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        total.update(file.read(start))
        file.seek(len(BLANK), 1)
        total.update(BLANK.encode())
        while piece := file.read(PIECE):
            total.update(piece)
    return total.hexdigest()
