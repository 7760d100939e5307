"""A fault: what is done, what is expected, and how it is injected."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# What may be seen. The first half of a sentence of `seen` is one of these words.
NAMED = "named"  # an error that names the file and says what helps
MADE_AGAIN = "made again"  # the same bytes as before, since what was damaged is made anew
SAME = "the same bytes"  # as in an undisturbed run
KEPT = "kept"  # the former file is whole
UNTRIED = "not tried"  # this machine does not let it be injected


@dataclass(frozen=True)
class Fault:
    """Name a fault and what is expected of it."""

    name: str
    expected: str
    inject: Callable[[Path], str]  # takes an empty folder and returns what was seen
    quick: bool = True

    def seen(self, folder: Path) -> str:
        """Inject the fault and return what was seen, in a line."""
        try:
            return self.inject(folder)
        except BaseException as error:  # a traceback is what is seen then
            return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"

    def holds(self, seen: str) -> bool:
        """Say whether that is what was expected."""
        return seen.startswith(self.expected)


def named(call: Callable[[], object], file: str) -> str:
    """Return "named" and the error, where a call raises one sentence that names the file."""
    try:
        call()
    except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
        text = str(error)
        if "\n" in text or file not in text or type(error).__module__.startswith("torch"):
            return f"a poor message: {type(error).__name__}: {text[:160]!r}"
        remedied = re.search(
            r"again|delete|remove|fetch|checkout|write|name|wait|run|restore|missing|trains", text
        )
        return f"{NAMED}: {text}" if remedied else f"no remedy: {text}"
    return "nothing: it was taken without a word"
