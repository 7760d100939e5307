"""What stands behind the numbers: how many pictures, steps and seeds, on which machine, by which path."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from linattn.report.columns import measure
from linattn.report.data import Data, Report
from linattn.report.words import listed, number


def sizes(data: Data) -> str:
    """N and steps behind each column, in a sentence."""
    halves = " Half of the pictures show one thing, by which shape and colour are judged, half two."
    return _sizes(data) + halves * bool(data.captions and _sizes(data))


def all_sizes(whole: Report) -> list[str]:
    """The same of all teachers: what is true of every one is said once."""
    if not whole.several:
        return [said for part in whole.parts.values() if (said := sizes(part))]
    same: dict[str, list[str]] = {}
    for part in whole.parts.values():
        if said := _sizes(part):
            same.setdefault(said, []).append(part.name)
    told = list(same) if len(same) == 1 else [f"{listed(names)}: {said}" for said, names in same.items()]
    halved = [part.name for part in whole.parts.values() if part.captions]
    halves = f"Half of the pictures of {listed(halved)} show one thing, by which shape and colour are judged, half two."
    return [*told, halves] if halved else told


def _sizes(data: Data) -> str:
    size = data.teacher.get("pictures")
    if not size:
        return ""
    quick = size["quick_steps"]
    return (
        f"{size['pictures']} pictures a row, of {size['steps']} steps; the error over {size['errors']} of the "
        f"teacher's latents; at {size['cross']} times the side {size['cross_pictures']} pictures of {quick} steps. "
        f"Rows that were not distilled have {size['quick_pictures']} pictures of {quick} steps and are compared with "
        f"the teacher's of {quick}."
    )


def machine(data: Data | Report, name: str | None = None) -> list[tuple[str, str]]:
    """What ran on what, as lines of a list; differing machines are all named."""
    runs = [(each, run) for each, run in data.runs.items() if run.get("facts") and name in (None, each)]
    if not runs and data.facts:
        runs = [("", {"facts": data.facts})]
    lines: dict[str, dict[str, list[str]]] = {}
    for who, run in runs:
        for key, value in (*_facts(run["facts"]), *_paths(run.get("backend") or {})):
            lines.setdefault(key, {}).setdefault(value, []).append(who)
    told = []
    for key, values in lines.items():
        if len(values) == 1:
            told.append((key, next(iter(values))))
        else:
            told.append((key, "; ".join(f"{value} ({', '.join(who)})" for value, who in values.items())))
    return told


def _paths(backend: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """Which path the layers' attention takes, and why."""
    counts = Counter(backend.values())
    if counts:
        yield "Attention", ", ".join(f"{number(many, 'layer')} {path}" for path, many in counts.items())


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
        yield "Versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def counts(data: Data | Report) -> list[tuple[str, str]]:
    """N, seeds, steps: what stands behind the numbers."""
    results = data.results.values()
    found = (
        ("Pictures a row", _pictures(results, "quality")),
        ("Pictures an undistilled row", _pictures(results, "undistilled")),
        ("Distillation, each", _training(results)),
        ("Training seeds", ", ".join(map(str, sorted({seed for r in results for seed in r.get("seeds") or []})))),
        ("Seconds of distillation", _seconds(data)),
    )
    return [(key, value) for key, value in found if value]


def _pictures(results: Iterable[Mapping[str, Any]], part: str) -> str:
    sizes = sorted({found["n"] for r in results if (found := measure(r, "shape", part)) and found.get("n")})
    return " or ".join(f"{size:,}" for size in sizes)


def _training(results: Iterable[Mapping[str, Any]]) -> str:
    trained = {(t.get("steps"), t.get("batch")) for r in results if (t := r.get("training"))}
    return " or ".join(
        f"{steps:,} steps" + (f" of {batch} pictures" if batch else "")
        for steps, batch in sorted(trained, key=str)
        if steps
    )


def _seconds(data: Data | Report) -> str:
    times = {name: (data.runs.get(name, {}).get("seconds") or {}).get("distill") for name in data.done}
    return ", ".join(f"{name} {value:.0f}" for name, value in times.items() if value)
