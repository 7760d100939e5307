"""Damage to a file, as disks, power cuts, editors and transfers leave it."""

from collections.abc import Callable
from pathlib import Path


def flipped(path: Path) -> None:
    """One bit in the last third, where tensors and values lie."""
    content = bytearray(path.read_bytes())
    content[len(content) * 5 // 6] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Half of it, as an interrupted copy leaves it."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    """The length is right and the last half is zeros, as a power cut leaves it."""
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(len(content) - half))


def page(path: Path) -> None:
    """A page of HTML in its place, as a login page that was fetched."""
    path.write_text("<!doctype html><title>Sign in</title>")


def pointer(path: Path) -> None:
    """The pointer that Git LFS leaves where the file was not fetched."""
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")


def gone(path: Path) -> None:
    path.unlink()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a flipped bit": flipped,
    "half of it": cut,
    "nothing in it": emptied,
    "zeros at its end": zeroed,
    "a page of HTML": page,
    "a pointer of Git LFS": pointer,
    "gone": gone,
}
