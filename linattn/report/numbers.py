"""Write numbers and seconds as a person does."""

import math


def short(value: float | None, digits: int = 3) -> str:
    """Write a number as 0.0123 or 12.3 M, and as 1.4e-07 only where nothing else is readable."""
    if value is None or not math.isfinite(value):
        return "none"
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= limit:
            return f"{value / (limit if unit != ' k' else 1e3):.{digits}g}{unit}"
    if value == 0 or abs(value) >= 1e-4:
        text = f"{value:.{digits}g}"
        return f"{float(text):,.0f}" if "e" in text else text
    return f"{value:.1e}"


def seconds(value: float) -> str:
    """Write a time in the unit that suits it."""
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if value < limit:
            return f"{value * factor:.3g} {unit}"
    return f"{value:.3g} s" if value < 120 else f"{value / 60:.3g} min"
