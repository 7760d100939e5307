"""Name the operators that a plan may give to a layer; softmax is always among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from linattn.attention import OPERATORS, unknown
from linattn.attention.mixed import Mixed
from linattn.attention.options import resolve
from linattn.names import short

SOFTMAX = "softmax"


@dataclass(frozen=True)
class Candidate:
    """Describe a conversion of all layers to one operator, as `linearize` takes it."""

    label: str
    operator: str  # one of OPERATORS
    options: dict[str, Any] = field(default_factory=dict)  # of the operator
    layers: str = "all"
    initialise: str = "all"


def read(candidates: Mapping[str, Any]) -> dict[str, Candidate]:
    """Return softmax and the candidates by their labels, or raise ValueError for a wrong one."""
    if not isinstance(candidates, Mapping) or not candidates:
        raise ValueError(
            f"candidates are {short(candidates)}; pass a mapping like "
            "{'disc': ('clear', {'radius': 4})}"
        )
    named = {SOFTMAX: Candidate(SOFTMAX, SOFTMAX)}
    for label, entry in candidates.items():
        if label == SOFTMAX:
            raise ValueError(f"{SOFTMAX!r} is always a candidate; leave it out")
        named[label] = _read_entry(label, entry)
    return named


def _read_entry(label: str, entry: Any) -> Candidate:
    if not isinstance(label, str):
        raise ValueError(f"a candidate's label is {short(label)}; it must be a text")
    is_pair = isinstance(entry, Sequence) and len(entry) == 2 and not isinstance(entry, str)
    if not is_pair or not isinstance(entry[1], Mapping):
        raise ValueError(f"candidate {label!r} is {short(entry)}; pass (operator's name, options)")
    name, options = entry
    if name == Mixed.name:
        raise ValueError(f"candidate {label!r} is {name!r}, which is what a plan is: name others")
    if not isinstance(name, str) or name not in OPERATORS:
        raise unknown(name, f"operator of candidate {label!r}")
    resolve(f"candidate {label!r}: {name}", OPERATORS[name].table, options)
    return Candidate(label, name, dict(options))
