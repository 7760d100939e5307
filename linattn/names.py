"""Look up names that users type, and answer a wrong one with the nearest valid name."""

import difflib
import reprlib
from collections.abc import Iterable, Sequence

WRITER = reprlib.Repr()
WRITER.maxstring = WRITER.maxother = 80
WRITER.maxlevel = 2
LONGEST = 120  # characters of a value in an error


def short(value: object) -> str:
    """Write a value for an error; a YAML file's anchors can make one of 10^10 leaves."""
    text = WRITER.repr(value).replace("\n", " ")  # torch writes a tensor in several lines
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def known(name: str, valid: Iterable[str], noun: str) -> str:
    """Return `name` if it is valid; else raise the error that `nearest` makes.

    Args:
        name: the name that was passed.
        valid: all names that are valid.
        noun: what the names are of, for the error.
    """
    valid = list(valid)
    if name not in valid:
        raise nearest(noun, name, valid)
    return name


def nearest(
    noun: str, name: object, valid: Iterable[str], listed: str = "", question: str = ""
) -> ValueError:
    """Return the error for an unknown name; `noun` says what the name should be one of.

    `listed` says what is valid where a list of all valid names would not, and `question` what was
    meant where that is known better than by likeness.
    """
    valid = list(valid)
    listed = f"valid are {listed or ', '.join(valid) or 'none'}"
    question = question or hint(name, valid)
    return ValueError(
        f"unknown {noun} {short(name)}: {f'{question} {listed}' if question else listed}"
    )


def hint(name: object, valid: Iterable[str]) -> str:
    """Ask whether the most similar valid name was meant, or return "" where none is similar."""
    close = similar(name, valid)
    return f"did you mean {close!r}?" if close else ""


def similar(name: object, valid: Iterable[str], least: float = 0.3) -> str | None:
    """Return the valid name that is most similar, or None if all are less similar than `least`.

    Upper and lower case are alike.
    """
    if not isinstance(name, (str, int, float)) or len(str(name)) > LONGEST:
        return None
    lower = {word.lower(): word for word in valid}
    matches = difflib.get_close_matches(str(name).lower(), list(lower), n=1, cutoff=least)
    return lower[matches[0]] if matches else None


def shortened(names: Sequence[str], most: int = 4) -> str:
    """List the first names, and count the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
