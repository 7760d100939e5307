"""The figures of the pages: from results to the functions of figures.py."""

from collections.abc import Sequence
from typing import Any

from linattn.report import figures
from linattn.report.columns import measure
from linattn.report.data import Data
from linattn.report.numbers import short
from linattn.report.picture import Picture, looks
from linattn.report.timing import baseline, timed

ERROR = "squared error, %"


def plots(data: Data) -> dict[str, Any]:
    """Every figure of a teacher's page that there is data for."""
    return {
        "distilled": _distilled(data),
        "cost_shape": _against_cost(data, "shape", "shape right, %"),
        "cost_error": _against_cost(data, "error", ERROR),
        "by_noise": _by_noise(data),
        "speed": _speed(data),
        "training": _training(data, data.done),
        "anatomy": _anatomy(data),
        "maps": _maps(data),
    }


def student_plots(data: Data, name: str) -> dict[str, Picture | None]:
    """Those of one student's page."""
    counts = data.results.get(name, {}).get("confusion")
    return {
        "by_noise": _one_by_noise(data, name),
        "training": _training(data, [name]),
        "confusion": figures.confusion(counts, data.shapes) if counts else None,
    }


def _distilled(data: Data) -> Picture | None:
    bars = {}
    for name in data.done:
        before, after = measure(data.results[name], "error", "undistilled"), measure(data.results[name], "error")
        if after:
            bars[name] = {"before": 100 * before["value"] if before else None, "after": 100 * after["value"]}
    return figures.bars(bars, data.looks, "squared error, % of the teacher's square") if bars else None


def _against_cost(data: Data, key: str, y: str) -> Picture | None:
    points = _points(data, key)
    return figures.quality_cost(points, x="multiply-accumulates of attention", y=y) if len(points) > 1 else None


def _points(data: Data, key: str) -> list[dict[str, Any]]:
    points = []
    rows = {name: data.results[name] for name in data.done}
    if data.teacher and key != "error":  # the teacher's own error is zero by definition
        rows = {"teacher": data.teacher, **rows}
    for name, result in rows.items():
        value, cost = measure(result, key), (result.get("cost") or {}).get("core_macs")
        if value and cost:
            bounds = {side: 100 * value[side] for side in ("low", "high") if value.get(side) is not None}
            points.append({"name": name, "x": cost, "y": 100 * value["value"], "look": data.looks.get(name), **bounds})
    return points


def _by_noise(data: Data) -> Picture | None:
    found = {name: levels for name in data.done if (levels := data.results[name].get("by_noise"))}
    noise = next((levels["noise"] for levels in found.values()), None)
    lines = {name: _percent(levels["error"]) for name, levels in found.items() if levels["noise"] == noise}
    return figures.by_noise(noise, lines, data.looks, ERROR) if lines else None


def _one_by_noise(data: Data, name: str) -> Picture | None:
    """A student, itself before distillation, and the first control."""
    levels = data.results.get(name, {}).get("by_noise")
    if not levels:
        return None
    lines = {name: _percent(levels["error"])}
    if levels.get("undistilled"):
        lines["not distilled"] = _percent(levels["undistilled"])
    for control in data.controls[:1]:
        other = data.results[control].get("by_noise")
        if control != name and other and other["noise"] == levels["noise"]:
            lines[control] = _percent(other["error"])
    return figures.by_noise(levels["noise"], lines, data.looks, ERROR)


def _percent(measures: Sequence[dict[str, Any]]) -> list[float]:
    return [100 * each["value"] for each in measures]


def _speed(data: Data) -> Picture | None:
    if not timed(data):
        return None
    names = dict.fromkeys(row["operator"] for row in timed(data))
    # A benchmark's operator is named by the operator and, after a dash, what is special about it.
    known = {baseline(data): "softmax", **(data.benchmark.get("operators") or {})}
    operators = {name: known.get(name, name.split("-")[0]) for name in names}
    return figures.speed(timed(data), looks(operators), baseline(data))


def _training(data: Data, names: Sequence[str]) -> Picture | None:
    found = {name: (data.results.get(name, {}).get("training") or {}).get("curve") for name in names}
    curves = {name: curve for name, curve in found.items() if curve and curve.get("step")}
    return figures.training(curves, data.looks) if curves else None


def _anatomy(data: Data) -> list[Picture]:
    """A heat map a measure, layers down and noise levels across, of the teacher's means over heads."""
    units = data.anatomy.get("units") or {}
    levels = [short(level, 2) for level in data.anatomy.get("noise") or ()]
    layers = [str(layer) for layer in data.anatomy.get("layers") or ()]
    return [
        figures.heatmap(values, rows=layers, columns=levels, title=units.get(name, name), x="noise level", y="layer")
        for name, values in (data.anatomy.get("teacher") or {}).items()
        if any(value is not None for row in values for value in row)  # a single head is similar to none
    ]


def _maps(data: Data) -> Picture | None:
    """Whom one token attends to, in the teacher and every operator."""
    entry = data.pictures.get("anatomy") or {}
    maps = {key.removeprefix("map."): value for key, value in sorted(entry.items()) if key.startswith("map.")}
    if not maps or "picture" not in entry:
        return None
    order = [name for name in data.anatomy.get("order") or ("teacher", *data.students) if name in maps]
    ordered = {name: maps[name] for name in [*order, *(name for name in maps if name not in order)]}
    return figures.attention_over(entry["picture"], ordered, int(data.anatomy.get("query", 0)))
