"""A Picture is a PNG that knows its own alt text; a Look is how a student is drawn, the same in
every figure.

- An operator has a colour; its second and third student have the same hue, paler, with another
  marker and dash. So a student looks the same in every figure and on every page. The hues are Okabe
  and Ito's, which colour-blind readers can tell apart; marker and dash tell them apart in grey
  print.
- Figures are readable on a phone: 5.2 inches wide with 10.5 pt text is 9 px type when squeezed to
  360 px.
- In a notebook a Picture shows itself as <img alt="...">, which nbconvert keeps.
"""

import base64
import html
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

INK, SOFT, FAINT, PAPER = "#22262b", "#5d656f", "#dfe3e8", "#ffffff"
WIDTH, DPI = 5.2, 200  # inches, dots an inch
HUES = {
    "softmax": "#4a4f57",
    "clear": "#0072b2",
    "linfusion": "#d55e00",
    "mediator": "#009e73",
    "lit": "#b0508c",
}
SPARE_HUES = ("#8c6d00", "#3b4cc0", "#7f3b08", "#006d77")  # for operators without a hue above
MARKERS = ("o", "s", "D", "^", "v")
DASHES = ("-", (0, (4, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.4, 1.2, 1.4)), (0, (2, 2)))
LOOK = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "path.simplify": True,
}


@dataclass(frozen=True)
class Picture:
    """Hold a PNG and an alt text that says what it shows."""

    png: bytes
    alt: str

    def __post_init__(self):
        if not self.alt.strip():
            raise ValueError(
                "a picture needs an alt text: one or two sentences that say what it shows"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height in pixels, from the PNG header."""
        return struct.unpack(">II", self.png[16:24])

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()

    def html(self, width: int | None = None) -> str:
        """Return an <img> at most `width` CSS pixels wide (default: half its own, for fine
        screens).
        """
        pixels_wide, pixels_high = self.size
        width = width or pixels_wide // 2
        alt = html.escape(self.alt, quote=True)
        height = round(pixels_high * width / pixels_wide)
        style = "max-width:100%;height:auto"
        return (
            f'<img src="{self.uri}" alt="{alt}" width="{width}" height="{height}" style="{style}">'
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        # text/html and not image/png, because nbconvert's lab template writes an image without an
        # alt text
        return {"text/html": self.html(), "text/plain": self.alt}


@dataclass(frozen=True)
class Look:
    colour: str
    marker: str
    dash: Any
    hollow: bool


def looks(operators: Mapping[str, str]) -> dict[str, Look]:
    """Map each student to its look; `operators` maps student to operator, in the order of
    params.yaml.
    """
    result, seen, spare = {}, {}, list(SPARE_HUES)
    hues = dict(HUES)
    for student, operator in operators.items():
        if operator not in hues:
            hues[operator] = spare.pop(0) if spare else SOFT
        nth = seen[operator] = seen.get(operator, -1) + 1
        colour = _paler(hues[operator], min(0.22 * nth, 0.44))
        result[student] = Look(
            colour, MARKERS[nth % len(MARKERS)], DASHES[nth % len(DASHES)], nth % 2 == 1
        )
    return result


def _paler(colour: str, share: float) -> str:
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(c + (255 - c) * share):02x}" for c in channels)
