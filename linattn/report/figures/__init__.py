"""Every figure of the project: each is a small function from plain data to a `Picture`.

- All figures have one look (picture.py).
- They use no pyplot and no global state, so they draw the same in a notebook, a test, a thread.
- The PNG names no date and no software: the same data gives the same bytes.
"""

from linattn.report.figures.curves import bars, by_noise, quality_cost, speed, training
from linattn.report.figures.overview import blocks
from linattn.report.figures.pictures import (
    as_bytes,
    attention_over,
    change,
    difference,
    grid,
    strip,
)
from linattn.report.figures.tables import confusion, heatmap

__all__ = [
    "as_bytes",
    "strip",
    "change",
    "grid",
    "blocks",
    "difference",
    "attention_over",
    "quality_cost",
    "speed",
    "training",
    "by_noise",
    "bars",
    "heatmap",
    "confusion",
]
