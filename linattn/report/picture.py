"""A Picture is a PNG that knows its own alt text; a Look says how a student is drawn.

- Figures are readable on a phone: 5.2 inches wide with 10.5 pt text is 9 px type when squeezed to
  360 px.
- In a notebook a Picture shows itself as <img alt="...">, which nbconvert keeps.
"""

import base64
import html
import struct
from dataclasses import dataclass
from typing import Any

INK, SOFT, FAINT, PAPER = "#22262b", "#5d656f", "#dfe3e8", "#ffffff"
WIDTH, DPI = 5.2, 200  # inches, dots an inch
LETTER = 0.083  # inches of a letter of 9 pt, bold, as names are written above pictures
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
        """Return an <img> at most `width` CSS pixels wide; the default suits fine screens."""
        pixels_wide, pixels_high = self.size
        width = width or pixels_wide // 2
        alt = html.escape(self.alt, quote=True)
        height = round(pixels_high * width / pixels_wide)
        style = "max-width:100%;height:auto"
        return (
            f'<img src="{self.uri}" alt="{alt}" width="{width}" height="{height}" style="{style}">'
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        # nbconvert's lab template writes an image/png without its alt text, and text/html as it is
        return {"text/html": self.html(), "text/plain": self.alt}


@dataclass(frozen=True)
class Look:
    colour: str
    marker: str
    dash: Any
    hollow: bool
