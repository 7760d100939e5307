"""How each student is drawn: the same colour, marker and dash in every figure and on every page.

- An operator has a hue of its own (`Operator.hue`) or a spare one. Its second and third student
  have the same hue, paler, with another marker and dash.
- The hues are Okabe and Ito's, which colour-blind readers can tell apart. Marker and dash tell them
  apart in grey print.
"""

from collections.abc import Mapping

from linattn.attention import OPERATORS
from linattn.report.picture import SOFT, Look

SPARE_HUES = ("#8c6d00", "#3b4cc0", "#7f3b08", "#006d77")
MARKERS = ("o", "s", "D", "^", "v")
DASHES = ("-", (0, (4, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.4, 1.2, 1.4)), (0, (2, 2)))


def looks(operators: Mapping[str, str]) -> dict[str, Look]:
    """Map each student to its look; `operators` maps student to operator, as in params.yaml."""
    hues = _hues(operators)
    by_student, students = {}, dict.fromkeys(hues, 0)
    for student, operator in operators.items():
        nth = students[operator]
        students[operator] += 1
        by_student[student] = Look(
            colour=_paler(hues[operator], min(0.22 * nth, 0.44)),
            marker=MARKERS[nth % len(MARKERS)],
            dash=DASHES[nth % len(DASHES)],
            hollow=nth % 2 == 1,
        )
    return by_student


def _hues(operators: Mapping[str, str]) -> dict[str, str]:
    """Return the hue of each operator, a spare one where it has none of its own."""
    hues, spare = {}, iter(SPARE_HUES)
    for operator in operators.values():
        if operator not in hues:
            registered = OPERATORS.find(operator)
            hue = registered.hue if registered else ""
            hues[operator] = hue or next(spare, SOFT)
    return hues


def _paler(colour: str, share: float) -> str:
    """Mix a colour with white."""
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(c + (255 - c) * share):02x}" for c in channels)
