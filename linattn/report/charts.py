"""The figures of the pages: pass results to the functions of figures.py."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from linattn.report import fewer, figures, plans
from linattn.report.columns import measure
from linattn.report.data import Data
from linattn.report.looks import looks
from linattn.report.numbers import short
from linattn.report.picture import Picture
from linattn.report.timing import baseline, timed
from linattn.report.words import number

ERROR = "squared error, %"


def plots(data: Data) -> dict[str, Any]:
    """Draw every figure of a teacher's page; a figure without data is None or an empty list."""
    return {
        "distilled": _distilled(data),
        "cost_shape": _against_cost(data, "shape", "shape right, %"),
        "cost_error": _against_cost(data, "error", ERROR),
        "cost_eye": _against_fewer_steps(data),
        "by_noise": _by_noise(data),
        "speed": _speed(data),
        "training": _training(data, data.done),
        "anatomy": _anatomy(data),
        "maps": _maps(data),
        "plan": plans.pictures(data.plan) if data.plan else [],
    }


def student_plots(data: Data, name: str) -> dict[str, Picture | None]:
    """Draw the figures of one student's page."""
    counts = data.results.get(name, {}).get("confusion")
    return {
        "by_noise": _one_by_noise(data, name),
        "training": _training(data, [name]),
        "confusion": figures.confusion(counts, data.shapes) if counts else None,
    }


def _distilled(data: Data) -> Picture | None:
    errors = {}
    for name in data.done:
        before = measure(data.results[name], "error", "undistilled")
        after = measure(data.results[name], "error")
        if after:
            start = 100 * before["value"] if before else None
            errors[name] = {"before": start, "after": 100 * after["value"]}
    if not errors:
        return None
    return figures.bars(errors, data.looks, "squared error, % of the teacher's square")


def _against_cost(data: Data, key: str, y: str) -> Picture | None:
    points = _points(data, key)
    if len(points) < 2:
        return None
    return figures.quality_cost(points, x="multiply-accumulates of attention", y=y)


def _points(data: Data, key: str) -> list[dict[str, Any]]:
    points = []
    results = {name: data.results[name] for name in data.done}
    if data.teacher and key != "error":  # the teacher's own error is zero by definition
        results = {"teacher": data.teacher, **results}
    for name, result in results.items():
        value, cost = measure(result, key), (result.get("cost") or {}).get("core_macs")
        if value and cost:
            ends = [end for end in ("low", "high") if value.get(end) is not None]
            points.append(
                {
                    "name": name,
                    "x": cost,
                    "y": 100 * value["value"],
                    "look": data.looks.get(name),
                    **{end: 100 * value[end] for end in ends},
                }
            )
    return points


def _against_fewer_steps(data: Data) -> Picture | None:
    """Draw the eye's distance against a draw's cost, beside the teacher in fewer steps."""
    points = []
    for name in data.done:
        if point := _draw(name, data.results[name]):
            points.append({**point, "look": data.looks.get(name)})
    full, line = (data.teacher.get("cost") or {}).get("draw_macs"), []
    for steps, result in fewer.of_teacher(data.teacher).items():
        if point := _draw(number(steps, "step"), result):
            line.append(point)
    if full and line:
        steps = data.teacher["pictures"]["steps"]
        line.insert(0, {"name": number(steps, "step"), "x": full, "y": 0.0})  # from itself
    if len(points) < 2:
        return None
    axes = {"x": "multiply-accumulates of a whole draw", "y": "distance to the teacher, by the eye"}
    return figures.quality_cost(points, **axes, line=line, line_name="the teacher in fewer steps")


def _draw(name: str, result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a row's point, or None where its distance or its cost is missing."""
    value, cost = measure(result, "eye_distance"), measure(result, "draw_macs", "cost")
    if not value or not cost:
        return None
    ends = {end: value[end] for end in ("low", "high") if value.get(end) is not None}
    return {"name": name, "x": cost["value"], "y": value["value"], **ends}


def _by_noise(data: Data) -> Picture | None:
    noise: list[float] = []
    lines = {}
    for name in data.done:
        levels = data.results[name].get("by_noise") or {}
        noise = noise or levels.get("noise") or []
        if levels and levels["noise"] == noise:
            lines[name] = _percent(levels["error"])
    return figures.by_noise(noise, lines, data.looks, ERROR) if lines else None


def _one_by_noise(data: Data, name: str) -> Picture | None:
    """Draw the errors of a student before and after distillation, and of the first control."""
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
    return [100 * level["value"] for level in measures]


def _speed(data: Data) -> Picture | None:
    if not timed(data):
        return None
    names = dict.fromkeys(row["operator"] for row in timed(data))
    # A benchmark names a row by its operator and, after a dash, by the operator's options.
    known = {baseline(data): "softmax", **(data.benchmark.get("operators") or {})}
    operators = {name: known.get(name, name.split("-")[0]) for name in names}
    return figures.speed(timed(data), looks(operators), baseline(data))


def _training(data: Data, names: Sequence[str]) -> Picture | None:
    curves = {}
    for name in names:
        curve = (data.results.get(name, {}).get("training") or {}).get("curve")
        if curve and curve.get("step"):
            curves[name] = curve
    return figures.training(curves, data.looks) if curves else None


def _anatomy(data: Data) -> list[Picture]:
    """Draw a heat map for each measure of the teacher's means over heads.

    The layers run down, the noise levels across.
    """
    units = data.anatomy.get("units") or {}
    levels = [short(level, 2) for level in data.anatomy.get("noise") or ()]
    numbers = [str(layer) for layer in data.anatomy.get("layers") or ()]
    layers = data.anatomy.get("layer_names") or numbers
    maps = []
    for name, values in (data.anatomy.get("teacher") or {}).items():
        # A teacher with one head has no similarity of heads.
        if any(value is not None for value in itertools.chain.from_iterable(values)):
            options = {"rows": layers, "columns": levels, "title": units.get(name, name)}
            maps.append(figures.heatmap(values, **options, x="noise level", y="layer"))
    return maps


def _maps(data: Data) -> Picture | None:
    """Draw the attention of one token, in the teacher and every operator."""
    entry = data.pictures.get("anatomy") or {}
    maps = {}
    for key, value in sorted(entry.items()):
        if key.startswith("map."):
            maps[key.removeprefix("map.")] = value
    if not maps or "picture" not in entry:
        return None
    order = [*(data.anatomy.get("order") or ("teacher", *data.students)), *maps]
    ordered = {name: maps[name] for name in dict.fromkeys(order) if name in maps}
    return figures.attention_over(entry["picture"], ordered, int(data.anatomy.get("query", 0)))
