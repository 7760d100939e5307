"""The public names: those in `__all__` of every module that has a page in docs/api."""

import ast
import dataclasses
import functools
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

API = Path(__file__).parents[1] / "api"
ARGUMENT = re.compile(r"^    \*{0,2}(\w+): ")
COMMENT = re.compile(r"\s*# (.*)")


@functools.cache
def modules() -> list[str]:
    """Name the modules that have a page."""
    return sorted(path.stem for path in API.glob("*.md"))


def objects(module: str) -> dict[str, Any]:
    """Return the public objects of a module by name."""
    loaded = importlib.import_module(module)
    return {name: getattr(loaded, name) for name in loaded.__all__}


def constants(module: str) -> list[str]:
    """Name the public objects of a module that are neither functions nor classes."""
    return [name for name, value in objects(module).items() if not _is_defined(value)]


def _is_defined(value: Any) -> bool:
    return inspect.isfunction(value) or inspect.isclass(value)


@functools.cache
def pages() -> dict[str, str]:
    """Map a function or class, by the name under which it is defined, to its name on a page."""
    homes: dict[str, str] = {}
    for module in modules():
        for name, value in objects(module).items():
            if _is_defined(value):
                homes.setdefault(f"{value.__module__}.{value.__qualname__}", f"{module}.{name}")
    return homes


def arguments(value: Any) -> list[str]:
    """List the arguments of a function or of a class's constructor."""
    if inspect.isclass(value) and issubclass(value, Exception):
        return []
    return [name for name in inspect.signature(value).parameters if name != "self"]


def documented(value: Any) -> set[str]:
    """Return the arguments that the docstring or the comments of the fields describe."""
    names = {match[1] for match in map(ARGUMENT.match, _section(value)) if match}
    return names | {name for name, comment in comments(value).items() if comment}


def _section(value: Any) -> list[str]:
    """Return the lines below "Args:", up to the next heading."""
    _, _, section = (inspect.getdoc(value) or "").partition("\nArgs:\n")
    return re.split(r"^\S", section, maxsplit=1, flags=re.M)[0].splitlines()


@functools.cache
def comments(value: Any) -> dict[str, str]:
    """Return the comment of every field of a dataclass, inherited fields included."""
    if not (inspect.isclass(value) and dataclasses.is_dataclass(value)):
        return {}
    comments = {}
    for field in dataclasses.fields(value):
        owner = next(c for c in value.__mro__ if field.name in inspect.get_annotations(c))
        comments[field.name] = _comment(inspect.getsource(owner), field.name) + _choices(field)
    return comments


def _choices(field: dataclasses.Field) -> str:
    """Name the values that a field takes, where linattn.reader.choice declares them."""
    names = field.metadata.get("choices")
    return f" ({', '.join(names)})" if names else ""


def comment_of(module: ModuleType, name: str) -> str:
    """Return the comment of a constant, where it is defined."""
    source = inspect.getsource(module)
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return comment_of(importlib.import_module(node.module), alias.name)
    return _comment(source, name)


def _comment(source: str, name: str) -> str:
    """Return the comment above or behind the line that assigns a name."""
    source = inspect.cleandoc(source)
    lines, tree = source.splitlines(), ast.parse(source)
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else tree.body
    for node in body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and name in _names(node):
            _, _, behind = lines[node.end_lineno - 1].partition("  # ")
            return behind or _above(lines, node.lineno - 1)
    return ""


def _names(node: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _above(lines: list[str], number: int) -> str:
    comment: list[str] = []
    while number and (match := COMMENT.fullmatch(lines[number - 1])):
        comment.insert(0, match[1])
        number -= 1
    return " ".join(comment)
