"""What an operator can be asked for: every option has a default, a check and one canonical,
JSON-able form.

- An operator lists its options as a table, `table = {"radius": number(8.0, above=0)}`; `settle`
  fills and checks it.
- A wrong name or value is a ValueError that says what is valid and what comes nearest.
- `scheduled=False` marks options that shape what the schedule cannot change within one forward.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


class Values:
    """Options by attribute, at one noise level. (torch.compile knows how to make this one, no
    SimpleNamespace.)
    """

    def __init__(self, given: dict[str, Any]):
        self.given = given
        for name, value in given.items():
            setattr(self, name, value)

    def but(self, changes: dict[str, Any]) -> "Values":
        return Values({**self.given, **changes})


@dataclass(frozen=True)
class Option:
    default: Any
    check: Callable[[Any], Any]  # the canonical value, or ValueError("what it must be")
    scheduled: bool = True
    # says something where a layer's tokens begin with text, and nothing elsewhere
    joint: bool = False


def nearest(kind: str, name: object, valid: Iterable[str]) -> ValueError:
    """The error for a name that does not exist."""
    valid = list(valid)
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.3)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return ValueError(f"unknown {kind} {name!r}: {hint}valid are {', '.join(valid) or 'none'}")


def settle(owner: str, table: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of the table: checked where given, its default elsewhere."""
    check_names(owner, table, given)
    return {
        name: check(owner, table, name, given.get(name, option.default))
        for name, option in table.items()
    }


def check_names(owner: str, table: Mapping[str, Option], given: Iterable[str]) -> None:
    for name in given:
        if name not in table:
            raise nearest(f"option of {owner}", name, table)


def check(owner: str, table: Mapping[str, Option], name: str, value: Any) -> Any:
    try:
        return table[name].check(value)
    except ValueError as error:
        raise ValueError(
            f"{owner}: {name} is {error}, not {value!r} (default {table[name].default!r})"
        ) from None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def number(
    default: float, *, least: float = -math.inf, above: float = -math.inf, scheduled: bool = True
) -> Option:
    def checked(value: Any) -> float:
        real = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (real and math.isfinite(value) and value >= least and value > above):
            bound = (
                f" above {above:g}"
                if above > -math.inf
                else f" from {least:g} on"
                if least > -math.inf
                else ""
            )
            raise ValueError(f"a number{bound}")
        return value

    return Option(default, checked, scheduled)


def whole(default: int | None, *, least: int, scheduled: bool = True) -> Option:
    """A whole number; None is allowed where it is the default."""

    def checked(value: Any) -> int | None:
        if value is None and default is None:
            return None
        if not _is_whole(value) or value < least:
            raise ValueError(
                f"a whole number from {least} on" + (" or None" if default is None else "")
            )
        return value

    return Option(default, checked, scheduled)


def kernel(default: int) -> Option:
    """The side of a depth-wise convolution; 0 is none."""

    def checked(value: Any) -> int:
        if not _is_whole(value) or value < 0 or (value and value % 2 == 0):
            raise ValueError("0 (none) or an odd number")
        return value

    return Option(default, checked)


def flag(default: bool, *, scheduled: bool = False) -> Option:
    def checked(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value

    return Option(default, checked, scheduled)


def choice(default: str, names: Iterable[str], joint: bool = False) -> Option:
    names = tuple(names)

    def checked(value: Any) -> str:
        if value not in names:
            close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.3)
            raise ValueError(
                f"one of {', '.join(names)}" + (f" (did you mean {close[0]!r}?)" if close else "")
            )
        return value

    return Option(default, checked, scheduled=False, joint=joint)
