"""Hold files to SHA256SUMS, the list beside them that `sha256sum -c` reads too.

The small teachers and the judge have theirs in data/SHA256SUMS. A user's folder of models may have
one as well: `sha256sum */*/* > SHA256SUMS`. Where a folder is in no list nothing is compared.
"""

import functools
from pathlib import Path

from linattn import digests, files
from linattn.files import Damaged
from linattn.names import short

NAME = "SHA256SUMS"
ABOVE = 3  # folders above one in which a list is looked for


def check(folder: Path) -> None:
    """Raise Damaged for a file of a folder that is missing or differs from its list."""
    listed = find(folder)
    if listed is None:
        return
    for name, expected in read(listed).items():
        path = listed.parent / name
        if folder.resolve() not in path.resolve().parents:
            continue
        if not path.is_file():
            raise Damaged(f"{path} is missing, and {listed} names it: {_remedy(path)}")
        status = path.stat()
        actual = _digest(path, status.st_size, status.st_mtime_ns)
        if actual != expected:
            raise Damaged(
                f"{path} is damaged: its sha256 is {actual[:12]}, and {listed} names "
                f"{expected[:12]}: {_remedy(path)}"
            )


def find(folder: Path) -> Path | None:
    """Return the list that a folder is held to: its own, or the nearest above it."""
    parents = folder.absolute().parents
    for parent in (folder, *parents[:ABOVE]):
        if (parent / NAME).is_file():
            return parent / NAME
    return None


def read(path: Path) -> dict[str, str]:
    """Return the digests of a list by the files' names."""
    sums = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        digest, separator, name = line.partition("  ")
        if len(digest) != 64 or not separator or not name:
            raise Damaged(
                f"{path} is damaged: {short(line)} is no line of sha256sum's; {_remedy(path)}"
            )
        sums[name] = digest
    if not sums:
        raise Damaged(f"{path} is damaged: it is empty; {_remedy(path)}")
    return sums


def write(folder: Path, root: Path) -> Path:
    """Put a folder's files into the list in `root`, in the place of those it had there.

    Args:
        folder: below the root.
        root: the folder of the list.
    """
    path, prefix = root / NAME, f"{folder.relative_to(root).as_posix()}/"
    sums = read(path) if path.is_file() else {}
    sums = {name: digest for name, digest in sums.items() if not name.startswith(prefix)}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            sums[file.relative_to(root).as_posix()] = digests.of_file(file)
    files.write_text(path, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))
    return path


def _remedy(path: Path) -> str:
    """Say how a file comes back, and no other file with it: those may hold edits."""
    return f"fetch it again (from Git: git checkout HEAD -- {path}), or list it anew"


@functools.lru_cache(maxsize=512)
def _digest(path: Path, size: int, time: int) -> str:
    """Return a file's sha256; one that has not changed since is read once."""
    return digests.of_file(path)
