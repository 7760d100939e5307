"""The circumstances of the numbers: how many pictures, steps and seeds, which machine, which
attention backend.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from linattn.report.columns import measure
from linattn.report.data import Data, Report
from linattn.report.words import listed, number


def sizes(data: Data) -> str:
    """Say how many pictures and steps each column has."""
    halves = " Half of the pictures show one thing, by which shape and colour are judged, half two."
    return _sizes(data) + halves * bool(data.captions and _sizes(data))


def all_sizes(report: Report) -> list[str]:
    """Say the same of all teachers, with a sentence that holds for every teacher only once."""
    if not report.several:
        return [sentence for data in report.parts.values() if (sentence := sizes(data))]
    teachers: dict[str, list[str]] = {}  # by the sentence that holds for them
    for data in report.parts.values():
        if sentence := _sizes(data):
            teachers.setdefault(sentence, []).append(data.name)
    sentences = list(teachers)
    if len(teachers) != 1:
        sentences = [f"{listed(names)}: {sentence}" for sentence, names in teachers.items()]
    halved = [data.name for data in report.parts.values() if data.captions]
    halves = f"Half of the pictures of {listed(halved)} show one thing, by which shape and colour are judged, half two."
    return [*sentences, halves] if halved else sentences


def _sizes(data: Data) -> str:
    size = data.teacher.get("pictures")
    if not size:
        return ""
    quick = size["quick_steps"]
    return (
        f"{size['pictures']} pictures a row, of {size['steps']} steps; the error over "
        f"{size['errors']} of the "
        f"teacher's latents; at {size['cross']} times the side {size['cross_pictures']} pictures "
        f"of {quick} steps. "
        f"Rows that were not distilled have {size['quick_pictures']} pictures of {quick} steps and "
        "are compared with "
        f"the teacher's of {quick}."
    )


def machine(data: Data | Report, name: str | None = None) -> list[tuple[str, str]]:
    """Return the machine and versions as (title, text) lines; where runs differ, the text names the
    rows of each.

    `name` limits the lines to the run of one row.
    """
    runs = [
        (row, run) for row, run in data.runs.items() if run.get("facts") and name in (None, row)
    ]
    if not runs and data.facts:
        runs = [("", {"facts": data.facts})]
    rows_by_value: dict[str, dict[str, list[str]]] = {}
    for row, run in runs:
        for title, value in (*_facts(run["facts"]), *_backends(run.get("backend") or {})):
            rows_by_value.setdefault(title, {}).setdefault(value, []).append(row)
    lines = []
    for title, values in rows_by_value.items():
        if len(values) == 1:
            lines.append((title, next(iter(values))))
        else:
            lines.append(
                (title, "; ".join(f"{value} ({', '.join(rows)})" for value, rows in values.items()))
            )
    return lines


def _backends(backend: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """Say which backend the layers' attention uses, and why."""
    counts = Counter(backend.values())
    if counts:
        yield (
            "Attention",
            ", ".join(f"{number(count, 'layer')} {path}" for path, count in counts.items()),
        )


def _facts(facts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    hardware, versions = facts.get("hardware") or {}, facts.get("versions") or {}
    if facts.get("commit"):
        yield "Commit", facts["commit"]
    if hardware.get("cpu"):
        memory = f", {hardware['memory_gb']} GB" if hardware.get("memory_gb") else ""
        yield "Processor", f"{hardware['cpu']}, {number(hardware.get('cores', 0), 'core')}{memory}"
    yield "Accelerator", hardware.get("gpu") or "none"
    if facts.get("system"):
        yield "System", f"{facts['system']}, Python {facts.get('python', 'unknown')}"
    if versions:
        yield (
            "Versions",
            ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        )


def counts(data: Data | Report) -> list[tuple[str, str]]:
    """Return numbers of pictures, steps and seeds as (title, text) lines."""
    results = data.results.values()
    seeds = sorted({seed for result in results for seed in result.get("seeds") or []})
    lines = (
        ("Pictures a row", _pictures(results, "quality")),
        ("Pictures an undistilled row", _pictures(results, "undistilled")),
        ("Distillation, each", _training(results)),
        ("Training seeds", ", ".join(map(str, seeds))),
        ("Seconds of distillation", _seconds(data)),
    )
    return [(title, text) for title, text in lines if text]


def _pictures(results: Iterable[Mapping[str, Any]], part: str) -> str:
    measures = [measure(result, "shape", part) for result in results]
    sizes = sorted({shape["n"] for shape in measures if shape and shape.get("n")})
    return " or ".join(f"{size:,}" for size in sizes)


def _training(results: Iterable[Mapping[str, Any]]) -> str:
    trainings = [training for result in results if (training := result.get("training"))]
    sizes = {(training.get("steps"), training.get("batch")) for training in trainings}
    return " or ".join(
        f"{steps:,} steps" + (f" of {batch} pictures" if batch else "")
        for steps, batch in sorted(sizes, key=str)
        if steps
    )


def _seconds(data: Data | Report) -> str:
    times = {
        name: (data.runs.get(name, {}).get("seconds") or {}).get("distill") for name in data.done
    }
    return ", ".join(f"{name} {value:.0f}" for name, value in times.items() if value)
