"""Read dataclasses strictly from plain values, such as those of a YAML file.

- A field's annotation says which type its value has, and its metadata which values are allowed:
  `between`, `choice`, `typed` and `accepted_by` declare such fields.
- A wrong key or value is one ValueError. It names the path (`profiles.nano.distill.steps`), the
  value, what is allowed there and the nearest valid name.
- A field may be a dataclass, a tuple or a dictionary of one type, which are read likewise.
- `check` holds an instance to the same rules, however it was made, and `checked` the arguments of a
  function.
- YAML 1.2, as DVC reads it: 1e-4 is a number (papermill's own reader would return the text '1e-4').
"""

import dataclasses
import functools
import inspect
import math
import operator
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from linattn.names import hint, known, short

Plain = dict[str, Any]
Rules = Mapping[str, Any]  # the metadata of a field
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
LARGEST = 2**63 - 1  # of a whole number: what a tensor's sizes and a generator's seed can be

WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "a mapping of names to values",
    Mapping: "a mapping of names to values",
    Callable: "a function",
}


# Fields
# ---------------------------------------------------------------------------------------------


def between(
    least: float,
    most: float = math.inf,
    *,
    different: bool = False,
    empty: bool = False,
    **options: Any,
) -> Any:
    """Declare a number, or a tuple of such numbers.

    Args:
        least: the smallest number that is allowed.
        most: the largest number that is allowed.
        different: whether the numbers of a tuple must all be different.
        empty: whether a tuple may hold none.
        options: further arguments of `dataclasses.field`, such as default.
    """
    rules = {"least": least, "most": most, "different": different, "empty": empty}
    return dataclasses.field(metadata=rules, **options)


def choice(names: Collection[str], *, empty: bool = False, **options: Any) -> Any:
    """Declare a text that is one of `names`, or a tuple of such texts.

    A registry names its keys, those included that are registered later.

    Args:
        names: the texts that are allowed.
        empty: whether a tuple may hold none.
        options: further arguments of `dataclasses.field`, such as default.
    """
    return dataclasses.field(metadata={"choices": names, "empty": empty}, **options)


def typed(*, empty: bool = False, **options: Any) -> Any:
    """Declare a value of which the type alone is held; a number is finite, as all are.

    Args:
        empty: whether a list may hold none.
        options: further arguments of `dataclasses.field`, such as default.
    """
    return dataclasses.field(metadata={"empty": empty}, **options)


def accepted_by(function: Callable[[Any], Any], **options: Any) -> Any:
    """Declare a value that `function` accepts; `function` raises ValueError for any other."""
    return dataclasses.field(metadata={"function": function}, **options)


def like(settings: type, name: str, **options: Any) -> Any:
    """Declare a field under the rules of a field of another dataclass."""
    (rules,) = (f.metadata for f in dataclasses.fields(settings) if f.name == name)
    return dataclasses.field(metadata=rules, **options)


def not_read(**options: Any) -> Any:
    """Declare a field that the program fills in: it is no key of the file."""
    return dataclasses.field(metadata={"read": False}, **options)


def keys_of(settings: type) -> list[str]:
    """List the keys under which `read` reads the fields of a dataclass."""
    return [f.name for f in dataclasses.fields(settings) if f.metadata.get("read", True)]


# Reading
# ---------------------------------------------------------------------------------------------


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file, or raise one sentence that names the file."""
    try:
        path.read_text(encoding="utf-8")  # as DVC does; ruamel would guess other encodings
        return YAML(typ="safe").load(path)
    except FileNotFoundError:
        raise ValueError(f"no {path.name} in {path.parent}: fetch it again") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder; it must be a YAML file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 ({error.reason}); save it as UTF-8") from None
    except RecursionError:
        raise ValueError(f"{path.name} nests its values too deeply to be read") from None
    except YAMLError as error:
        message = " ".join(str(error).split())
        raise ValueError(
            f"{path.name} is not valid YAML: {message}; mend that line, or fetch the file again"
        ) from None


def read(settings: type[T], content: Any, path: str) -> T:
    """Build a dataclass from a mapping; a field without a default is a required key.

    Args:
        settings: the dataclass; its fields say what is allowed.
        content: the mapping that the file holds.
        path: where the mapping stands in the file, for errors.
    """
    entry = mapping(content, path)
    names = keys_of(settings)
    fields = {f.name: f for f in dataclasses.fields(cast(Any, settings)) if f.name in names}
    required = [name for name, f in fields.items() if _is_required(f)]
    check_keys(entry, required, names, path)
    annotations = typing.get_type_hints(settings)
    values = {}
    for name, value in entry.items():
        rules = fields[name].metadata
        values[name] = _checked(annotations[name], value, f"{path}.{name}", rules)
    return settings(**values)


def check(settings: Any) -> None:
    """Raise ValueError unless every field has its type and an allowed value."""
    annotations = typing.get_type_hints(type(settings))
    for f in dataclasses.fields(settings):
        _checked(annotations[f.name], getattr(settings, f.name), f.name, f.metadata)


def checked(**rules: Any) -> Callable[[F], F]:
    """Hold arguments of a function to its annotations and to rules, before it computes anything.

    Args:
        rules: by argument, a field as `between` and the others above declare it.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def held(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            annotations = _annotations(function)
            for name, rule in rules.items():
                if name in bound.arguments:
                    value = bound.arguments[name]
                    bound.arguments[name] = _checked(annotations[name], value, name, rule.metadata)
            return function(*bound.args, **bound.kwargs)

        return cast(F, held)

    return decorate


@functools.cache
def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """Return a function's annotations; they are read late, since one may name what comes later."""
    return typing.get_type_hints(function)


def mapping(content: Any, path: str) -> Mapping[str, Any]:
    """Return `content`, or raise ValueError if it is no mapping."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} is {short(content)}; it must be {WORDS[Mapping]}")
    return content


def check_keys(
    entry: Mapping[str, Any], required: Iterable[str], names: Iterable[str], path: str
) -> None:
    """Raise ValueError for a key that is not in `names`, and for a missing one of `required`."""
    for key in entry:
        known(key, names, f"key of {path}:")
    missing = [key for key in required if key not in entry]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")


def _is_required(f: "dataclasses.Field[Any]") -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


# One value
# ---------------------------------------------------------------------------------------------


def _checked(annotation: Any, value: Any, path: str, rules: Rules) -> Any:
    """Return the value in its field's type, or raise ValueError."""
    value = _typed(annotation, value, path, rules)
    if "function" in rules:
        try:
            rules["function"](value)
        except ValueError as error:
            raise ValueError(f"{path} is {short(value)}: {error}") from None
    return value


def _typed(annotation: Any, value: Any, path: str, rules: Rules) -> Any:
    origin = typing.get_origin(annotation)
    if annotation is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _of_union(annotation, value, path, rules)
    if origin is tuple:
        return _of_tuple(annotation, value, path, rules)
    if origin is Sequence:
        return _of_sequence(annotation, value, path, rules)
    if origin is dict:
        return _of_dict(annotation, value, path, rules)
    if dataclasses.is_dataclass(annotation) and isinstance(value, Mapping):
        return read(cast(type, annotation), value, path)
    if "choices" in rules:
        return _of_choices(value, path, rules["choices"])
    return _of_type(origin or annotation, value, path, rules)


def _of_union(annotation: Any, value: Any, path: str, rules: Rules) -> Any:
    """Return the value in the first of the types that it has."""
    alternatives = typing.get_args(annotation)
    if value is None and types.NoneType in alternatives:
        return None
    errors = []
    for alternative in alternatives:
        if alternative is types.NoneType:
            continue
        try:
            return _typed(alternative, value, path, rules)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _of_tuple(annotation: Any, value: Any, path: str, rules: Rules) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)) or not (value or rules.get("empty")):
        raise ValueError(f"{path} is {short(value)}; it must be a list of one or more values")
    inner, _ = typing.get_args(annotation)
    items = tuple(
        _typed(inner, item, f"{path}[{index}]", rules) for index, item in enumerate(value)
    )
    if rules.get("different") and len(set(items)) < len(items):
        raise ValueError(f"{path} is {list(items)}; its values must all be different")
    return items


def _of_sequence(annotation: Any, value: Any, path: str, rules: Rules) -> Sequence[Any]:
    """Return a list of the items, or a range as it is: its numbers are whole."""
    if isinstance(value, range) and (value or rules.get("empty")):
        for end in (*value[:1], *value[-1:]):
            _check_bounds(end, path, rules)
        return value
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    if not is_list or not (value or rules.get("empty")):
        least = "a list" if rules.get("empty") else "a list of one or more values"
        raise ValueError(f"{path} is {short(value)}; it must be {least}")
    (inner,) = typing.get_args(annotation) or (Any,)
    return [_typed(inner, item, f"{path}[{index}]", rules) for index, item in enumerate(value)]


def _of_dict(annotation: Any, value: Any, path: str, rules: Rules) -> dict[str, Any]:
    _, inner = typing.get_args(annotation)
    items = mapping(value, path).items()
    return {name: _typed(inner, item, f"{path}.{name}", rules) for name, item in items}


def _of_choices(value: Any, path: str, names: Collection[str]) -> str:
    if isinstance(value, bool):
        raise ValueError(
            f"{path} is {short(value)}, a truth value; write one of {', '.join(names)}, in quotes"
        )
    if value not in list(names):
        question = hint(value, names)
        ending = f"; {question}" if question else ""
        raise ValueError(f"{path} is {short(value)}; it is one of {', '.join(names)}{ending}")
    return value


def _of_type(expected: type, value: Any, path: str, rules: Rules) -> Any:
    is_flag = isinstance(value, bool)
    value = _plain_number(value) if expected in (int, float) and not is_flag else value
    is_number = isinstance(value, (int, float)) and not is_flag
    fits = isinstance(value, expected) or (expected is float and is_number)
    if not fits or (is_flag and expected is not bool):
        word = WORDS.get(expected, expected.__name__)
        raise ValueError(f"{path} is {short(value)} ({type(value).__name__}); it must be {word}")
    if is_number:
        _check_bounds(value, path, rules)
    if expected is Mapping and (wrong := [name for name in value if not isinstance(name, str)]):
        raise ValueError(f"a key of {path} is {short(wrong[0])}; it must be {WORDS[str]}")
    return float(value) if expected is float else value


def _plain_number(value: Any) -> Any:
    """Return NumPy's and torch's whole numbers as Python's, and all else as it is."""
    if isinstance(value, (float, str)) or getattr(value, "ndim", 0):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def _check_bounds(value: float, path: str, rules: Rules) -> None:
    # an integer of more digits than a float or a text can have comes first
    if isinstance(value, int) and abs(value) > LARGEST:
        digits = math.floor(math.log10(abs(value))) + 1
        raise ValueError(f"{path} has {digits} digits; it must be below 2^63")
    if not math.isfinite(value):
        raise ValueError(f"{path} is {short(value)}; it must be a finite number")
    least, most = rules.get("least", -math.inf), rules.get("most", math.inf)
    if not least <= value <= most:
        top = f" and at most {most}" if most != math.inf else ""
        raise ValueError(f"{path} is {short(value)}; it must be at least {least}{top}")
