"""Write files whole: a reader finds the former file or the new one, never half of one.

- A file is drafted beside its target, reaches the disk, and is renamed. A kill leaves a draft that
  nothing reads: DVC and Git ignore the name, and the next writer removes it.
- Files are readable as the umask says. safetensors makes its own for the owner alone.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil

DRAFT = ".draft"  # the end of a draft's name, as .dvcignore and .gitignore have it


class Damaged(ValueError):
    """Report a file that is not what was written; the message names it and the remedy."""


@contextlib.contextmanager
def whole(path: Path) -> Generator[Path]:
    """Yield the path of a draft, which takes the place of the file when the block has ended well.

    Args:
        path: the file; its folder is made where it lacks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, path.name)
    beside = path.with_name(f".{path.name}.{os.getpid()}{DRAFT}")
    beside.mkdir()
    try:
        draft = beside / path.name
        draft.touch()
        mode = draft.stat().st_mode
        yield draft
        draft.chmod(mode)
        _flush(draft)
        os.replace(draft, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def require_room(folder: Path, size: int) -> None:
    """Raise OSError unless a folder, made or not yet made, takes so many bytes.

    Args:
        folder: where files are to be written; it is left as it is.
        size: of the files in bytes.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file")
    with tempfile.TemporaryFile(dir=there):  # permissions alone do not tell of a read-only disk
        pass
    free = shutil.disk_usage(there).free
    if free < size:
        raise OSError(f"{size / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free")


def sweep(folder: Path, name: str = "*") -> None:
    """Remove drafts whose writers are gone.

    Args:
        folder: where they lie.
        name: of the file that they were to become; by default of any.
    """
    for beside in folder.glob(f".{name}.*{DRAFT}"):
        writer = beside.name.removesuffix(DRAFT).rpartition(".")[2]
        if not writer.isdigit() or int(writer) == os.getpid() or not psutil.pid_exists(int(writer)):
            shutil.rmtree(beside, ignore_errors=True)


def _flush(path: Path) -> None:
    """Bring a file onto the disk: a rename may reach it before the bytes do."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON: sorted keys, and no NaN or infinity."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")
