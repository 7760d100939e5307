"""The options of an operator: each has a default, a check and one canonical, JSON-able form.

- An operator lists its options as a table, `table = {"radius": number(8.0, above=0)}`; `resolve`
  fills and checks it.
- A wrong name or value is a ValueError that says what is valid and what comes nearest.
- `scheduled=False` marks options that shape what the schedule cannot change within one forward.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from linattn.names import hint, nearest, short

__all__ = ["Option", "Values", "also", "choice", "flag", "kernel", "number", "share", "whole"]

MOST = 2**31 - 1  # of a whole number
WIDEST = 1023  # side of a convolution


class Values:
    """Hold options by attribute, at one noise level.

    torch.compile can build this class inside a graph, which it cannot do with SimpleNamespace.

    Args:
        by_name: the value of every option.
    """

    def __init__(self, by_name: dict[str, Any]):
        self.by_name = by_name
        for name, value in by_name.items():
            setattr(self, name, value)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def replace(self, changes: dict[str, Any]) -> "Values":
        return Values({**self.by_name, **changes})


@dataclass(frozen=True)
class Option:
    """Declare an option: its default, its check, and where it means something."""

    default: Any  # the value where none is passed
    check: Callable[[Any], Any]  # the canonical value, or ValueError("what it must be")
    scheduled: bool = True  # whether the option may follow the noise
    # "text": it means something only where a layer's tokens begin with text; "rotation": only where
    # the family also rotates queries and keys.
    needs: str = ""
    also: tuple[str, ...] = ()  # what the code of papers calls it: the error for these names it


def resolve(owner: str, table: Mapping[str, Option], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option of the table, checked where it is passed and its default elsewhere."""
    check_names(owner, table, options)
    resolved = {}
    for name, option in table.items():
        resolved[name] = check(owner, table, name, options.get(name, option.default))
    return resolved


def check_names(owner: str, table: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise a ValueError if the table has no option of one of these names."""
    for name in names:
        if name not in table:
            raise _unknown(owner, table, name)


def _unknown(owner: str, table: Mapping[str, Any], name: str) -> ValueError:
    """Return the error for an unknown option, which knows the names of the papers' code."""
    called = [valid for valid, option in table.items() if name in option.also]
    question = f"here it is called {called[0]!r};" if called else ""
    return nearest(f"option of {owner}", name, table, question=question)


def check(owner: str, table: Mapping[str, Option], name: str, value: Any) -> Any:
    """Return the canonical form of a value, or raise a ValueError that says what it must be."""
    try:
        return table[name].check(value)
    except ValueError as error:
        raise ValueError(
            f"{owner}: {name} is {error}, not {short(value)} (default {table[name].default!r})"
        ) from None


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def number(
    default: float,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    scheduled: bool = True,
) -> Option:
    """Take a finite number.

    Args:
        default: the value where none is passed.
        least: the smallest number that is allowed.
        above: a number that the value must exceed.
        most: the largest number that is allowed.
        scheduled: whether the option may follow the noise.
    """
    bound = ""
    if above > -math.inf:
        bound = f" above {above:g}"
    elif least > -math.inf:
        bound = f" from {least:g} on" if most == math.inf else f" from {least:g} to {most:g}"

    def checked(value: Any) -> float:
        real = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (real and math.isfinite(value) and least <= value <= most and value > above):
            raise ValueError(f"a number{bound}")
        return value

    return Option(default, checked, scheduled)


def whole(default: int | None, *, least: int, scheduled: bool = True) -> Option:
    """Take a whole number; None is allowed where it is the default.

    Args:
        default: the value where none is passed.
        least: the smallest number that is allowed.
        scheduled: whether the option may follow the noise.
    """
    none = " or None" if default is None else ""

    def checked(value: Any) -> int | None:
        if value is None and default is None:
            return None
        if not _is_integer(value) or value < least:
            raise ValueError(f"a whole number from {least} on{none}")
        if value > MOST:
            raise ValueError(f"a whole number up to {MOST:,}")
        return value

    return Option(default, checked, scheduled)


def share(default: float | None) -> Option:
    """Take a number above 0, up to 1; None is allowed where it is the default.

    Args:
        default: the value where none is passed.
    """
    none = " or None" if default is None else ""

    def checked(value: Any) -> float | None:
        if value is None and default is None:
            return None
        real = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (real and 0 < value <= 1):
            raise ValueError(f"a number above 0, up to 1{none}")
        return value

    return Option(default, checked)


def also(option: Option, *names: str) -> Option:
    """Let the error for other names of an option say what it is called here.

    Args:
        option: what is called otherwise in the code of papers.
        names: those other names; they are still refused.
    """
    return replace(option, also=names)


def kernel(default: int) -> Option:
    """Take the side of a depth-wise convolution; 0 is none.

    Args:
        default: the side where none is passed, an odd number or 0.
    """

    def checked(value: Any) -> int:
        if not _is_integer(value) or value < 0 or (value and value % 2 == 0):
            raise ValueError("0 (none) or an odd number")
        if value > WIDEST:
            raise ValueError(f"0 (none) or an odd number up to {WIDEST:,}")
        return value

    return Option(default, checked)


def flag(default: bool, *, scheduled: bool = False) -> Option:
    """Take true or false.

    Args:
        default: the value where none is passed.
        scheduled: whether the option may follow the noise.
    """

    def checked(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value

    return Option(default, checked, scheduled)


def choice(default: str, names: Iterable[str], needs: str = "") -> Option:
    """Take one of the names; the error names the nearest.

    Args:
        default: the name where none is passed.
        names: all names that are allowed.
        needs: "text" or "rotation" where the option means something only in layers with text, or
            with text and rotary positions.
    """
    names = tuple(names)

    def checked(value: Any) -> str:
        if value not in names:
            question = hint(value, names)
            raise ValueError(f"one of {', '.join(names)}" + (f" ({question})" if question else ""))
        return value

    return Option(default, checked, scheduled=False, needs=needs)
