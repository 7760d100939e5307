"""The circumstances of the numbers: pictures, steps, seeds, machine and attention backend."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from linattn.report.columns import measure
from linattn.report.data import Data, Report
from linattn.report.words import listed, number

SCORES = {"clip": "CLIPScore", "inception": "Inception's FID"}
HALVES = "by which shape and colour are judged, half two."


def sizes(data: Data) -> str:
    """Say how many pictures and steps each column has.

    Args:
        data: the data of one teacher.
    """
    sentence = _sizes(data)
    if not sentence or not data.captions or not data.judged:
        return sentence
    return f"{sentence} Half of the pictures show one thing, {HALVES}"


def all_sizes(report: Report) -> list[str]:
    """Say the same of all teachers, with a sentence that holds for every teacher only once.

    Args:
        report: the report of all teachers.
    """
    if not report.several:
        return [sentence for sentence in map(sizes, report.parts.values()) if sentence]
    teachers: dict[str, list[str]] = {}  # by the sentence that holds for them
    for data in report.parts.values():
        if sentence := _sizes(data):
            teachers.setdefault(sentence, []).append(data.name)
    sentences = list(teachers)
    if len(teachers) != 1:
        sentences = [f"{listed(names)}: {sentence}" for sentence, names in teachers.items()]
    halved = [data.name for data in report.parts.values() if data.captions and data.judged]
    halves = f"Half of the pictures of {listed(halved)} show one thing, {HALVES}"
    return [*sentences, halves] if halved else sentences


def _sizes(data: Data) -> str:
    size = data.teacher.get("pictures")
    if not size:
        return ""
    quick = number(size["quick_steps"], "step")
    return (
        f"{size['pictures']} pictures a row, of {number(size['steps'], 'step')}; "
        f"the error over {size['errors']} of the teacher's latents; "
        f"at {size['cross']} times the side {size['cross_pictures']} pictures of {quick}. "
        f"Rows that were not distilled have {size['quick_pictures']} pictures of {quick} "
        f"and are compared with the teacher's of {quick}."
    )


def left_out(data: Data) -> list[str]:
    """Say which scores were asked for and are not shown, and why.

    Args:
        data: the data of one teacher.
    """
    reasons: dict[tuple[str, str], None] = {}
    for result in data.results.values():
        reasons |= dict.fromkeys((result.get("left_out") or {}).items())
    return [f"{SCORES.get(name, name)} was left out: {reason}." for name, reason in reasons]


def machine(data: Data | Report, name: str | None = None) -> list[tuple[str, str]]:
    """Return the machine and versions as (title, text) lines.

    Where runs differ, the text names the rows of each.

    Args:
        data: one teacher's data, or the whole report.
        name: limits the lines to this row's run.
    """
    runs = {}
    for row, run in data.runs.items():
        if run.get("facts") and name in (None, row):
            runs[row] = run
    if not runs and data.facts:
        runs = {"": {"facts": data.facts}}
    names: dict[str, dict[str, list[str]]] = {}  # of rows, by title and text
    for row, run in runs.items():
        for title, text in (*_facts(run["facts"]), *_backends(run.get("backend") or {})):
            names.setdefault(title, {}).setdefault(text, []).append(row)
    return [(title, _told_apart(by_text)) for title, by_text in names.items()]


def _told_apart(by_text: Mapping[str, Sequence[str]]) -> str:
    """Return the only text, or each text with the names of its rows."""
    if len(by_text) == 1:
        return next(iter(by_text))
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in by_text.items())


def _backends(backend: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """Say which backend the layers' attention uses, and why."""
    counts = Counter(backend.values())
    if counts:
        layers = [f"{number(count, 'layer')} {path}" for path, count in counts.items()]
        yield "Attention", ", ".join(layers)


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
    installed = [f"{name} {version}" for name, version in versions.items() if version]
    if installed:
        yield "Versions", ", ".join(installed)


def counts(data: Data | Report) -> list[tuple[str, str]]:
    """Return numbers of pictures, steps and seeds as (title, text) lines.

    Args:
        data: one teacher's data, or the whole report.
    """
    results = data.results.values()
    seeds = sorted(set().union(*(result.get("seeds") or [] for result in results)))
    lines = (
        ("Pictures a row", _pictures(results, "quality")),
        ("Pictures an undistilled row", _pictures(results, "undistilled")),
        ("Distillation, each", _training(results)),
        ("Training seeds", ", ".join(map(str, seeds))),
        ("Seconds of distillation", _seconds(data)),
    )
    return [(title, text) for title, text in lines if text]


def _pictures(results: Iterable[Mapping[str, Any]], section: str) -> str:
    measures = [
        measure(result, "shape", section) or measure(result, "psnr", section) for result in results
    ]
    sizes = sorted({marked["n"] for marked in measures if marked and marked.get("n")})
    return " or ".join(f"{size:,}" for size in sizes)


def _training(results: Iterable[Mapping[str, Any]]) -> str:
    trainings = [result.get("training") or {} for result in results]
    sizes = {(training.get("steps"), training.get("batch")) for training in trainings}
    texts = []
    for steps, batch in sorted(sizes, key=str):
        if steps:
            texts.append(f"{steps:,} steps" + (f" of {batch} pictures" if batch else ""))
    return " or ".join(texts)


def _seconds(data: Data | Report) -> str:
    texts = []
    for name in data.done:
        seconds = (data.runs.get(name, {}).get("seconds") or {}).get("distill")
        if seconds:
            texts.append(f"{name} {seconds:.0f}")
    return ", ".join(texts)
