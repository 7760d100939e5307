"""The README's first screen: the finding in a few sentences, and a row for each idea."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from linattn.families import FAMILIES
from linattn.passages import calls
from linattn.report import gpu, markdown, sentences
from linattn.report.columns import Measure, measure
from linattn.report.data import Data, Report
from linattn.report.ranking import ranking
from linattn.report.words import listed, percent

HEADS = "dit"  # the model at whose heads all timed kernels were run
NONE = "No run is committed yet: `make repro` makes one, `make publish` commits it."


def backbone(data: Data) -> str:
    """Return what the teacher's family calls its backbone, or the teacher's own name."""
    family = FAMILIES.get(data.model)
    return family.backbone if family else data.name


def least(data: Data) -> dict[str, tuple[str, Measure]]:
    """Map each operator to its student with the least error and that error, the least first."""
    errors = [(name, measure(data.results[name], "error")) for name in data.done]
    present = [(name, error) for name, error in errors if error]
    best: dict[str, tuple[str, Measure]] = {}
    for name, error in sorted(present, key=lambda pair: pair[1]["value"]):
        best.setdefault(data.students[name]["operator"], (name, error))
    return best


def finding(report: Report) -> str:
    """Say who is closest to each teacher, who is farthest from any, and what a call costs."""
    headline = sentences.headline(report)
    if not headline:
        return NONE
    errors = []
    for data in report.parts.values():
        errors += [(error["value"], name) for name, error in ranking(data, "error", "lower")]
    value, farthest = max(errors)
    text = f"{headline} Farthest from its teacher is {farthest} ({percent(value)}).{_speed()}"
    return text.replace("\u00a0", " ")


def _speed() -> str:
    """Say how much less a call takes at 64K tokens, where a GPU has timed any."""
    timed = calls.at_64k(gpu.read(), HEADS)
    ratios = sorted(call.times_less for call in timed.values() if call.times_less)
    if not ratios:
        return ""
    low, high = f"{ratios[0]:.0f}", f"{ratios[-1]:.0f}"
    return (
        f" One attention call of 64K tokens takes {low} to {high} times less than cuDNN's softmax."
    )


def table(report: Report) -> str:
    """Return a row for each operator: the error of its best student of every teacher, and cost."""
    if not report.results:
        return NONE
    teachers = [data for data in report.parts.values() if data.results]
    errors = [f"error on {backbone(data)}" for data in teachers]
    heads = ["operator", *errors, "ms at 64K", "MB at 64K"]
    timings = gpu.read()
    timed = calls.at_64k(timings, HEADS)
    operators = dict.fromkeys(entry["operator"] for entry in report.students.values())
    best = [least(data) for data in teachers]
    students = [_of_several(data) for data in teachers]
    lines = [heads, markdown.rule(len(heads) - 1)]
    for operator in operators:
        cells = [_error(operator, of_teacher) for of_teacher in best]
        if any(cells):
            shown = [cell or "–" for cell in cells]
            lines.append([f"`{operator}`", *shown, *_call(timed.get(operator))])
    return f"{markdown.table(lines)}\n\n{_note(timings, timed, students)}"


def _error(operator: str, best: Mapping[str, tuple[str, Measure]]) -> str:
    """Write the least error of an operator, bold where no method of that teacher has a smaller."""
    if operator not in best:
        return ""
    _, error = best[operator]
    text = f"{100 * error['value']:.1f}"
    methods = [value for name, (_, value) in best.items() if name != calls.DENSE]
    if operator != calls.DENSE and text == f"{100 * methods[0]['value']:.1f}":
        text = f"**{text}**"
    if error.get("low") is None:
        return text
    return f"{text} ({100 * error['low']:.1f}–{100 * error['high']:.1f})"


def _call(call: calls.Call | None) -> tuple[str, str]:
    if call is None:
        return "–", "–"
    ratio = f" ({call.times_less:.3g}x)" if call.times_less else ""
    return f"{call.ms:.3g}{ratio}", f"{call.memory_mb:.0f}"


def _of_several(data: Data) -> dict[str, str]:
    """Map each method with several students of this teacher to the best, if its name differs."""
    counts = Counter(data.students[name]["operator"] for name in data.methods)
    best = {operator: name for operator, (name, _) in least(data).items() if counts[operator] > 1}
    return {operator: name for operator, name in best.items() if name != operator}


def _note(
    timings: list[dict[str, Any]],
    timed: Mapping[str, calls.Call],
    students: list[dict[str, str]],
) -> str:
    """Say what the numbers are: the error, which students, and the calls that were timed."""
    names: dict[str, list[str]] = {}
    for of_teacher in students:
        for operator, name in of_teacher.items():
            names.setdefault(operator, []).append(name)
    bests = ", ".join(f"`{operator}`: {listed(best)}" for operator, best in names.items())
    sentence = (
        "Error: squared distance to the teacher's prediction, in % of its square, with the 95 % "
        f"interval, of each operator's best student{f' ({bests})' if bests else ''}. `softmax` is "
        "kept and trained alike."
    )
    if not timed:
        return sentence
    forms = ", ".join(calls.FORMS[operator] for operator in timed if operator in calls.FORMS)
    return (
        f"{sentence} 64K: one forward of 65,536 tokens at DiT-XL's heads, bf16, "
        f"{timings[0]['hardware']}, in brackets how many times less than cuDNN timed beside it; "
        f"{forms}."
    )
