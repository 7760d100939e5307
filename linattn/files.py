"""Write files whole: a reader finds the former file or the new one, never half of one.

- A file is drafted beside its target, reaches the disk, and is renamed. A kill leaves a draft that
  nothing reads: DVC and Git ignore the name, and the next writer removes it.
- Files are readable as the umask says. safetensors makes its own for the owner alone.
"""

import contextlib
import glob
import json
import os
import reprlib
import shutil
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import psutil

DRAFT = ".draft"  # the end of a draft's name, as .dvcignore and .gitignore have it
FORMER = ".former"  # and of a folder that is being replaced


class Damaged(ValueError):
    """Report a file that is not what was written; the message names it and the remedy."""


@contextlib.contextmanager
def whole(path: Path) -> Generator[Path]:
    """Yield the path of a draft, which takes the place of the file when the block has ended well.

    Args:
        path: the file; its folder is made where it lacks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, glob.escape(path.name))
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


@contextlib.contextmanager
def whole_folder(folder: Path) -> Generator[Path]:
    """Yield an empty folder, which takes the place of the former when the block has ended well.

    Args:
        folder: the place; what lies there is left as it is until then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent, glob.escape(folder.name))
    draft = folder.with_name(f".{folder.name}.{os.getpid()}{DRAFT}")
    former = folder.with_name(f".{folder.name}{FORMER}")
    _put_back(former, folder)
    draft.mkdir()
    try:
        yield draft
        if folder.exists():
            os.rename(folder, former)
        os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        _put_back(former, folder)


def _put_back(former: Path, folder: Path) -> None:
    """Return a former folder to its place, or remove it where a newer one has taken it.

    Between its two renames a writer may be killed: then the former is all there is.
    """
    if folder.exists():
        shutil.rmtree(former, ignore_errors=True)
    elif former.exists():
        os.rename(former, folder)


def path_of(value: Any, noun: str) -> Path:
    """Return the path that a caller passed, or raise ValueError where it can be none.

    Args:
        value: what was passed; an empty text would be the working directory, in silence.
        noun: what it is, for the error.
    """
    if not isinstance(value, (str, os.PathLike)) or str(value) == "" or "\0" in str(value):
        raise ValueError(f"{noun} is {reprlib.repr(value)}; it must be a path")
    return Path(value)


def require_room(folder: Path, size: int = 0, names: Sequence[str] = ()) -> None:
    """Raise OSError unless a folder, made or not yet made, takes so many bytes.

    Args:
        folder: where files are to be written; it is left as it is.
        size: of the files in bytes.
        names: of the files, whose places may be taken by folders.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if _is_there(path))
    if not there.is_dir():
        noun = "a link to nothing" if there.is_symlink() else "a file"
        raise NotADirectoryError(f"{there} is {noun}")
    if folders := [folder / name for name in names if (folder / name).is_dir()]:
        raise IsADirectoryError(f"{folders[0]} is a folder")
    with tempfile.TemporaryFile(dir=there):  # permissions alone do not tell of a read-only disk
        pass
    free = shutil.disk_usage(there).free
    if free < size:
        raise OSError(f"{size / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free")


def _is_there(path: Path) -> bool:
    """Say whether a path names anything, be it a link that leads nowhere."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def sweep(folder: Path, name: str = "*") -> None:
    """Remove drafts whose writers are gone.

    Args:
        folder: where they lie.
        name: of the file that they were to become; by default of any.
    """
    for beside in folder.glob(f".{name}.*{DRAFT}"):
        writer = beside.name.removesuffix(DRAFT).rpartition(".")[2]
        if not _is_alive(writer):
            _remove(beside)


def _is_alive(writer: str) -> bool:
    """Say whether another process of this number runs; no process has a number that is none."""
    try:
        return int(writer) != os.getpid() and psutil.pid_exists(int(writer))
    except (ValueError, OverflowError):
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
