"""Write a row as a Markdown table, as the executed notebooks show it."""

from collections.abc import Mapping
from typing import Any

LINES = {
    "error": ("squared error of the prediction, % of the teacher's square", 100, 2),
    "shape": ("asked shape found, %", 100, 1),
    "colour": ("asked colour found, %", 100, 1),
    "two_shapes": ("both shapes found where two were asked for, %", 100, 1),
    "two_colours": ("both colours found, %", 100, 1),
    "relation": ("the relation as asked, %", 100, 1),
    "psnr": ("PSNR to the teacher's pictures, dB", 1, 1),
    "ssim": ("SSIM to the teacher's pictures", 1, 3),
    "kid_teacher": ("KID to the teacher's pictures, judge's features, x 1000", 1000, 2),
    "kid_world": ("KID to the world, judge's features, x 1000", 1000, 2),
    "cross_shape": ("asked shape found at twice the side, %", 100, 1),
    "cross_colour": ("asked colour found at twice the side, %", 100, 1),
}


def told(result: Mapping[str, Any]) -> str:
    """Return the row as a Markdown table, with the undistilled row beside it where there is one."""
    columns = [name for name in ("quality", "undistilled") if name in result]
    titles = {"quality": result["student"], "undistilled": "converted, not distilled"}
    lines = [
        "| | " + " | ".join(titles[name] for name in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for key, (description, scale, digits) in LINES.items():
        cells = [_cell(result[name].get(key), scale, digits) for name in columns]
        if any(cells):
            lines.append(f"| {description} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(measure: Mapping[str, Any] | None, scale: float, digits: int) -> str:
    """Write a value with its interval and number of pictures, where it has them; a missing value is
    empty.
    """
    if not measure or measure["value"] is None:
        return ""
    text = f"{measure['value'] * scale:.{digits}f}"
    if measure["low"] is not None:
        text += f" ({measure['low'] * scale:.{digits}f} to {measure['high'] * scale:.{digits}f})"
    return text + (f", n {measure['n']}" if measure["n"] else "")
