"""Find the operator of a row: in a file that lies anywhere, or registered under a name."""

import inspect
import os
import re
import sys
import types
from dataclasses import dataclass
from pathlib import Path

from linattn import digests
from linattn.attention import OPERATORS, Operator, register
from linattn.names import hint


@dataclass(frozen=True)
class Source:
    """Hold an operator and the file that defines it, as the file was when it was read."""

    path: Path
    text: str
    operator: type[Operator]

    @property
    def digest(self) -> str:
        return digests.of_text(self.text)


def find(typed: str) -> Source:
    """Return the operator of a file, or a registered one by its name, and register it."""
    if not typed:
        raise ValueError("no operator is named: make row OPERATOR=path.py TEACHER=class")
    path = Path(typed).expanduser()
    if os.path.isfile(path):  # unlike Path.is_file it takes a name that no file can have
        return _of_file(path)
    if path.suffix == ".py" or len(path.parts) > 1 or os.path.exists(path):
        raise ValueError(f"OPERATOR={typed} {_no_file(path)}: name the file of one operator")
    if typed in OPERATORS:
        path = Path(inspect.getfile(OPERATORS[typed]))
        return Source(path, path.read_text(), OPERATORS[typed])
    question = f"{hint(typed, OPERATORS)} " if hint(typed, OPERATORS) else ""
    raise ValueError(
        f"OPERATOR={typed} is no file, and no operator is registered under that name: {question}"
        f"registered are {', '.join(OPERATORS)}"
    )


def _no_file(path: Path) -> str:
    if os.path.isdir(path):
        return "is a folder"
    return "is no file" if os.path.exists(path) else "is not there"


def _of_file(path: Path) -> Source:
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors write a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    operator = _only_operator(_module(path, text), path)
    return Source(path, text, register(operator))


def _module(path: Path, text: str) -> types.ModuleType:
    """Run a file as a module of its own, without leaving compiled files beside it."""
    stem = re.sub(r"\W", "_", path.stem)
    module = types.ModuleType(f"linattn_row_{stem}")  # hides no package, whatever the file's name
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and Triton look their module up
    try:
        exec(compile(text, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        message = " ".join(str(error).split())
        alone = isinstance(error, ImportError) and "; one file holds the operator and its helpers"
        raise ValueError(
            f"{path} cannot be imported: {type(error).__name__}: {message}{alone or ''}"
        ) from None
    return module


def _only_operator(module: types.ModuleType, path: Path) -> type[Operator]:
    """Return the one class that is an operator and the base of no other."""
    classes = [entry for entry in vars(module).values() if _is_operator(entry, module)]
    bases = {base for entry in classes for base in entry.__mro__[1:]}
    candidates = list(dict.fromkeys(entry for entry in classes if entry not in bases))
    if not candidates:
        raise ValueError(
            f"{path} has no operator: it needs a class derived from linattn.attention.Operator"
        )
    if len(candidates) > 1:
        names = ", ".join(entry.__qualname__ for entry in candidates)
        raise ValueError(
            f"{path} has {len(candidates)} operators, {names}: a row is of one, so give each a "
            "file of its own"
        )
    return candidates[0]


def _is_operator(entry: object, module: types.ModuleType) -> bool:
    """Say whether an entry of a module is an operator that was defined there."""
    is_class = isinstance(entry, type) and issubclass(entry, Operator)
    return is_class and entry.__module__ == module.__name__
