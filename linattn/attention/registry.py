"""Name -> operator: those of this package, those that were registered, and those of other packages.

- `register(Operator)` adds one by hand, also as a decorator.
- A package adds its own by the entry point group "linattn.operators". They are loaded when a name
  is unknown or the names are listed; one that cannot be loaded is named in a warning and left out.
- A file of this package that cannot be imported costs its own operator: the name stays, and says
  what is wrong when it is used.
"""

import importlib
import importlib.metadata
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from linattn.attention.base import Operator
from linattn.attention.options import Option, check_names

GROUP = "linattn.operators"
# What an operator writes: with a map, and without one.
REQUIRED = {True: ("core", "dense", "cost"), False: ("core", "defined", "cost")}
# Names that an option cannot have: what `Values` and every operator have already, the arguments of
# `linearize`, and a student's own keys in params.yaml.
RESERVED = {
    *("schedule", "position", "x", "by_name", "replace"),
    *("model_or_pipeline", "name", "layers", "initialise", "keep_original", "backend", "data"),
    *("operator", "teacher", "recipe"),
}


class Registry(Mapping[str, type[Operator]]):
    """Map names to operators, in the order of registration; built-in ones are "module:Class".

    A built-in operator has the name of its module.
    """

    def __init__(self, *built_in: str):
        self._operators: dict[str, type[Operator]] = {}
        self.broken: dict[str, str] = {}  # sentences on files that cannot be imported, by name
        self._names: dict[str, None] = {}  # of all operators, in their order
        self._loaded = False
        for entry in built_in:
            module, _, operator = entry.partition(":")
            self._import(module, operator)

    def _import(self, module: str, operator: str) -> None:
        """Add an operator of this package, or keep the sentence on why it cannot be imported."""
        try:
            self.add(getattr(importlib.import_module(f"linattn.attention.{module}"), operator))
        except Exception as error:  # a file under work may raise anything
            self._names[module] = None
            self.broken[module] = (
                f"the operator {module!r} cannot be imported ({_in_words(error)}); mend "
                f"linattn/attention/{module}.py, or take it from Git again"
            )

    def add(self, operator: type[Operator]) -> type[Operator]:
        """Add an operator, or raise a ValueError that says what it lacks."""
        check_class(operator)
        known = self._operators.get(operator.name)
        if known is not None and _origin(known) != _origin(operator):
            raise ValueError(
                f"{_origin(operator)} is named {operator.name!r}, which is the name of "
                f"{_origin(known)}: choose another"
            )
        self._operators[operator.name] = operator
        self._names[operator.name] = None
        self.broken.pop(operator.name, None)
        return operator

    def find(self, name: str) -> type[Operator] | None:
        """Return an operator, or None for one that is unknown or cannot be imported."""
        return self[name] if name in self and name not in self.broken else None

    def remove(self, name: str) -> None:
        """Forget an operator that was registered."""
        del self._operators[name], self._names[name]

    def __getitem__(self, name: str) -> type[Operator]:
        if name in self.broken:
            raise ValueError(self.broken[name])
        if name not in self._operators:
            self._load()
        return self._operators[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names or name in list(self)

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._names)

    def __len__(self) -> int:
        self._load()
        return len(self._names)

    def _load(self) -> None:
        """Load the entry points of other packages, once."""
        if self._loaded:
            return
        self._loaded = True
        for entry in importlib.metadata.entry_points(group=GROUP):
            try:
                self.add(entry.load())
            except Exception as error:
                warnings.warn(
                    f"the operator {entry.name!r} ({entry.value}) is left out: {error}",
                    stacklevel=3,
                )


def _in_words(error: Exception) -> str:
    """Write an error of an import, with the line of a file of this package."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, SyntaxError) and error.filename:
        name = Path(error.filename).name
        return f"{name}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    return text


def check_class(operator: type) -> None:
    """Refuse what is no operator, before anything is converted with it."""
    shown = getattr(operator, "__qualname__", repr(operator))
    if not isinstance(operator, type) or not issubclass(operator, Operator):
        raise ValueError(f"{shown} is no operator: derive it from linattn.attention.Operator")
    name = getattr(operator, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"{shown}.name is {name!r}; it must be lower-case letters, digits and _, as in 'clear'"
        )
    if not isinstance(operator.has_map, bool):
        raise ValueError(f"{shown}.has_map is {operator.has_map!r}; it must be True or False")
    required = REQUIRED[operator.has_map]
    missing = [
        method for method in required if getattr(operator, method) is getattr(Operator, method)
    ]
    if missing:
        raise ValueError(
            f"{shown} lacks {', '.join(missing)}: an operator with has_map={operator.has_map} "
            f"writes {', '.join(required)}"
        )
    for attribute in ("table", "forms"):
        value = getattr(operator, attribute)
        if not isinstance(value, dict):
            raise ValueError(f"{shown}.{attribute} is {value!r}; it must be a dictionary")
    for key, option in operator.table.items():
        _check_option(f"{shown}.table[{key!r}]", key, option)
    for label, options in operator.forms.items():
        form = f"{shown}.forms[{label!r}]"
        if not isinstance(options, dict):
            raise ValueError(f"{form} is {options!r}; it must be a dictionary of options")
        check_names(f"{operator.name} in {form}", operator.table, options)


def _check_option(shown: str, key: str, option: object) -> None:
    if not isinstance(option, Option):
        raise ValueError(
            f"{shown} is {option!r}; it must be an Option, as linattn.attention.options makes them"
        )
    if key in RESERVED:
        raise ValueError(f"{shown}: {key!r} means something else already; choose another name")


def _origin(operator: type) -> str:
    return f"{operator.__module__}.{operator.__qualname__}"
