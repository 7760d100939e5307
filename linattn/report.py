"""The report: plain result files in, a calm page that opens offline out.

- `read` gathers files by the names in params.yaml, never by what lies in a folder: a removed student leaves the
  report, a missing or broken result is a failed row.
- Sentences are drawn from the numbers (`findings`): which student is closest, which a control beats, what distillation
  bought. None is written for a result that was hoped for.
- Self-contained: every picture is a data URI with an alt text, style is inline, no script, no address.
- The same data gives the same bytes.

Result files (reports/results/). A *measure* is {"value", "low", "high", "n"}; low and high bound the 95 % interval, or
are absent. Keys that do not apply are absent or null.

`teacher.json` and `<student>.json`, in Git:
    student, operator, options, control (bool), seeds [..], profile
    quality       {shape, colour, error, psnr, ssim, mse, cosine, kid_teacher, kid_world, fid_teacher,
                   cross_shape, cross_colour}: measures. shape, colour are shares in [0, 1]; error is the relative
                   squared error of the prediction, mean over the noise levels; cross_* at twice the side
    undistilled   the same names, for the student converted and not trained (absent for the teacher)
    by_noise      {noise [..], error [measure ..], undistilled [measure ..]}
    confusion     shapes x shapes counts, asked by seen
    cost          {macs, macs_counted, core_macs, added, trained}: one forward of one picture
    training      {steps, layerwise_steps, batch, trained, curve {step [..], loss [..], stage [..]}}
`<name>.run.json`, in reports/runs and not in Git:
    facts         project.facts()
    seconds       {distill, evaluate, draw}; memory (bytes)
    backend       {layer: the path its attention takes: why}
    error         what went wrong, in a line, when the stage failed
`chance.json`     quality {shape, colour}: what guessing gives
`benchmark.run.json`: facts, baseline; rows of costs.time_operators; operators {row's name: operator}; steps, rows of
    amdahl.time_steps
`anatomy.json`    noise, layers, teacher {measure: [layer][noise]}, units {measure: words}; order and query of the maps
Pictures (project.pictures): safetensors with `pictures` (N, 3, side, side) uint8 or in [0, 1], `labels`, and for a
student also `undistilled`; the same row is the same noise and class in every file. In pictures("anatomy"): `picture`
(3, side, side) and `map.<name>` (height, width) for the teacher and every operator.
"""

import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from linattn import figures, project
from linattn.figures import Picture, short

IDEAS = {
    "softmax": "Softmax attention as the teacher has it, every token looking at every token: a control that spends the "
    "same training without saving anything.",
    "clear": "CLEAR keeps softmax and the teacher's weights, but lets a token look only at those inside a disc around "
    "it; pooled keys, where there are any, give back a coarse view of the rest.",
    "linfusion": "LinFusion replaces softmax by a normalised product of positive features, with queries and keys "
    "passed through small networks, so that one sum over all tokens serves every query.",
    "mediator": "Attention Mediators put a few pooled queries between queries and keys: they read all tokens, and the "
    "tokens read them. A depth-wise convolution gives detail back.",
    "lit": "LiT uses plain linear attention with ReLU features and few, wide heads, plus a depth-wise convolution on "
    "the values for what is near.",
}
KINDS = {
    "reference": "References",
    "control": "Controls: softmax kept, same training",
    "student": "Students",
    "undistilled": "Converted, not distilled",
}
LIMITS = (
    "The pictures are drawn by formula, 64 pixels wide, one coloured shape on a background. A method that is good here "
    "is not shown to be good on photographs.",
    "The teacher is small and sees 256 tokens. At that size no sub-quadratic operator has much to save; what it costs "
    "at real sizes is the section on time, measured on one attention call and not on a whole model.",
    "The training is short, and one recipe for all whose page names no other. The papers train each method longer and "
    "with a recipe of its own, so a rank here is a rank for this budget, not the method's best.",
    "KID and FID are taken in the feature space of this repository's own judge. They compare rows of this page and "
    "nothing else: never with a published FID, which uses Inception.",
    "The judge is a network too. Its marks are right for nearly all pictures of the world, and unknown for pictures "
    "that are unlike any of them, as an untrained student draws.",
    "An interval covers the choice of pictures, not the choice of training seed, unless several seeds are listed.",
    "Seconds belong to the machine named below. Nothing here says how a method fares with a kernel written for it.",
)


@dataclass(frozen=True)
class Column:
    key: str
    title: str
    note: str
    better: str  # "higher" or "lower"
    scale: float = 1.0
    digits: int = 1
    part: str = "quality"

    def read(self, result: Mapping[str, Any]) -> dict[str, Any] | None:
        value = (result.get(self.part) or {}).get(self.key)
        if value is None:
            return None
        value = value if isinstance(value, Mapping) else {"value": value}
        return value if value.get("value") is not None else None

    def text(self, value: float) -> str:
        return f"{value * self.scale:,.{self.digits}f}"


COLUMNS = (
    Column("error", "Error", "squared error of the prediction against the teacher's, in % of its square", "lower", 100),
    Column("shape", "Shape", "% of pictures whose asked shape the judge finds", "higher", 100),
    Column("colour", "Colour", "% of pictures whose asked colour the judge finds", "higher", 100),
    Column("psnr", "PSNR", "dB, final picture against the teacher's from the same noise", "higher"),
    Column("ssim", "SSIM", "final picture against the teacher's from the same noise", "higher", 1, 3),
    Column("kid_teacher", "KID teacher", "× 1000, to the teacher's pictures, in the judge's space", "lower", 1000, 1),
    Column("kid_world", "KID world", "× 1000, to true pictures, in the judge's space", "lower", 1000, 1),
    Column("fid_teacher", "FID teacher", "to the teacher's pictures, in the judge's space", "lower"),
    Column("cross_shape", "Shape at 2×", "% with the asked shape at twice the side", "higher", 100),
    Column("core_macs", "Attention", "million multiply-accumulates of all attention cores, one picture", "lower", 1e-6,
           part="cost"),
    Column("added", "Added", "thousand parameters that the teacher does not have", "lower", 1e-3, part="cost"),
)  # fmt: skip


@dataclass
class Data:
    """Everything the pages show, as read; `students` maps name to its entry in params.yaml, in that order."""

    profile: str
    students: dict[str, dict[str, Any]]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    teacher_failure: str = ""
    chance: dict[str, Any] = field(default_factory=dict)
    benchmark: dict[str, Any] = field(default_factory=dict)
    anatomy: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    show: int = 8  # pictures a row

    @property
    def looks(self) -> dict[str, figures.Look]:
        return figures.looks({name: entry["operator"] for name, entry in self.students.items()})

    def is_control(self, name: str) -> bool:
        return self.students[name]["operator"] == "softmax"

    @property
    def done(self) -> list[str]:
        return [name for name in self.students if name in self.results and name not in self.failures]

    @property
    def methods(self) -> list[str]:
        return [name for name in self.done if not self.is_control(name)]

    @property
    def controls(self) -> list[str]:
        return [name for name in self.done if self.is_control(name)]


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read(students: Mapping[str, Any], profile: str, show: int = 8) -> Data:
    """Results of these students and no others; an entry is params.py's Student or params.yaml's dictionary."""
    from linattn import world

    data = Data(profile, {name: _entry(entry) for name, entry in students.items()}, show=show)
    data.labels, data.shapes = world.LABELS, tuple(world.SHAPES)
    for name in data.students:
        data.runs[name] = _json(project.run_result(name)) or {}
        result, problem = _result(project.result(name))
        problem = problem or _other_settings(data, name, result)
        problem = data.runs[name].get("error") or problem
        if problem:
            data.failures[name] = problem
        elif result:
            data.results[name] = result
    data.runs["teacher"] = _json(project.run_result("teacher")) or {}
    result, problem = _result(project.result("teacher"))
    data.teacher_failure = data.runs["teacher"].get("error") or problem or ""
    data.teacher = {} if data.teacher_failure else result
    data.chance = _json(project.result("chance")) or {}
    data.benchmark = _json(project.run_result("benchmark")) or _json(project.result("benchmark")) or {}
    data.anatomy = _json(project.result("anatomy")) or {}
    for name in ("teacher", *data.students, "anatomy"):
        path = project.pictures(name)
        if path.exists():
            data.pictures[name] = _arrays(path)
    data.facts = next((run["facts"] for run in data.runs.values() if run.get("facts")), {})
    return data


def _entry(student: Any) -> dict[str, Any]:
    if isinstance(student, Mapping):
        return dict(student)
    usual = {"teacher": "class", "layers": "all", "initialise": "all", "recipe": "protocol"}
    own = {key: getattr(student, key) for key, value in usual.items() if getattr(student, key) != value}
    return {"operator": student.operator, **student.options, **own}


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _result(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    if not path.exists():
        return None, "no result: the stage did not finish"
    try:
        return json.loads(path.read_text()), None
    except ValueError as error:
        return None, f"the result file is damaged: {error}"


def _other_settings(data: Data, name: str, result: Mapping[str, Any]) -> str | None:
    """Why a result that is there is not this student's: params.yaml was edited and the stage has not run since."""
    made = {"profile": result.get("profile"), "operator": result.get("operator"), **(result.get("options") or {})}
    asked = {"profile": data.profile, "operator": data.students[name]["operator"], **_options(data.students[name])}
    for key in ("layers", "initialise"):
        asked.pop(key, None)
    asked = json.loads(json.dumps(asked))
    if made == asked:
        return None
    told = ", ".join(f"{key} {made.get(key)!r}" for key in {**made, **asked} if made.get(key) != asked.get(key))
    return f"its result is of other settings ({told}): make repro"


def _arrays(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


# ---------------------------------------------------------------------------------------------------------------------
# The table


@dataclass(frozen=True)
class Cell:
    text: str
    interval: str = ""
    best: bool = False
    close: bool = False  # not the best, but its interval reaches the best value


@dataclass(frozen=True)
class Row:
    name: str
    kind: str
    cells: tuple[Cell, ...] = ()
    failure: str = ""
    page: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    groups: tuple[tuple[str, tuple[Row, ...]], ...]

    @property
    def rows(self) -> list[Row]:
        return [row for _, rows in self.groups for row in rows]


def table(data: Data) -> Table:
    """One table of everything. Best is judged among the methods: a control keeps softmax and would win unfairly."""
    everything = [data.teacher, data.chance, *data.results.values()]
    columns = tuple(column for column in COLUMNS if any(column.read(each) for each in everything))
    best = {column.key: _best(column, [data.results[name] for name in data.methods]) for column in columns}

    def cells(result: Mapping[str, Any], judged: bool = False) -> tuple[Cell, ...]:
        return tuple(_cell(column, column.read(result), best[column.key] if judged else None) for column in columns)

    steps = (data.teacher.get("pictures") or {}).get("steps")
    note = f"{steps} steps" if steps else ""
    references = [Row("teacher", "reference", cells(data.teacher), failure=data.teacher_failure, note=note)]
    if quick := data.teacher.get("quick"):
        few = f"teacher, {data.teacher['pictures']['quick_steps']} steps"
        references.append(Row(few, "reference", cells({"quality": quick})))
    references += [Row("chance", "reference", cells(data.chance), note="guessing")] if data.chance else []
    groups: dict[str, list[Row]] = {"reference": references, "control": [], "student": [], "undistilled": []}
    for name in data.students:
        kind = "control" if data.is_control(name) else "student"
        if name in data.failures:
            groups[kind].append(Row(name, kind, failure=data.failures[name], page=page_of(name)))
            continue
        result = data.results[name]
        groups[kind].append(Row(name, kind, cells(result, judged=kind == "student"), page=page_of(name)))
        if result.get("undistilled"):
            before = {"quality": result["undistilled"]}
            groups["undistilled"].append(Row(name, "undistilled", cells(before)))
    return Table(columns, tuple((KINDS[kind], tuple(rows)) for kind, rows in groups.items() if rows))


def _best(column: Column, results: Sequence[Mapping[str, Any]]) -> float | None:
    values = [measure["value"] for measure in map(column.read, results) if measure]
    if column.key.startswith("kid"):  # below zero is as good as zero: an estimate of no distance has both signs
        values = [max(0.0, value) for value in values]
    return (max if column.better == "higher" else min)(values) if values else None


def _cell(column: Column, measure: Mapping[str, Any] | None, best: float | None) -> Cell:
    if measure is None:
        return Cell("–")
    value, low, high = (measure.get(key) for key in ("value", "low", "high"))
    interval = f"{column.text(low)} to {column.text(high)}" if low is not None and high is not None else ""
    # Equal as printed is equal: two students on 93.8 % are both best.
    level = max(0.0, value) if column.key.startswith("kid") else value
    is_best = best is not None and column.text(level) == column.text(best)
    reaches = best is not None and low is not None and low <= best <= high
    return Cell(column.text(value), interval, is_best, reaches and not is_best)


def sizes(data: Data) -> str:
    """N and steps behind each column, in a sentence."""
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


def page_of(name: str) -> str:
    return f"pages/{name}.html"


# ---------------------------------------------------------------------------------------------------------------------
# Sentences


def measure(result: Mapping[str, Any], key: str, part: str = "quality") -> dict[str, Any] | None:
    value = (result.get(part) or {}).get(key)
    return value if value and value.get("value") is not None else None


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}\u00a0%"  # a space that no line breaks at


def said(value: Mapping[str, Any], digits: int = 1) -> str:
    """93.8 % (88.3 to 96.8)"""
    if value.get("low") is None:
        return percent(value["value"], digits)
    low, high = (f"{100 * value[side]:.{digits}f}" for side in ("low", "high"))
    return f"{percent(value['value'], digits)} ({low} to {high})"


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def findings(data: Data) -> list[str]:
    """What the numbers say, whatever it is."""
    makers = (_failed, _closest, _truth, _bought, _against_control, _convolution, _cost, _time)
    return [sentence for maker in makers for sentence in maker(data)]


def _failed(data: Data) -> Iterable[str]:
    if data.teacher_failure:
        yield f"The teacher's own row failed, so nothing is compared with it ({data.teacher_failure})."
    if data.failures:
        reasons = "; ".join(f"{name}: {why}" for name, why in data.failures.items())
        count = f"{_count(len(data.failures), 'student')} of {len(data.students)}"
        yield f"{count} failed and cannot be compared ({reasons})."
    if not data.methods:
        yield "No method has a result yet."


def _closest(data: Data) -> Iterable[str]:
    ranked = _ranked(data, data.methods, "error", "lower")
    if not ranked:
        return
    name, first = ranked[0]
    sentence = (
        f"Closest to the teacher's prediction is {name}: its squared error is {said(first)} of the teacher's square"
    )
    if len(ranked) > 1:
        second, value = ranked[1]
        sentence += f", before {second} with {said(value)}"
        touch = "do not touch" if _apart(first, value) else "overlap, so the order is open"
        sentence += f"; their intervals {touch}"
    yield sentence + "."


def _truth(data: Data) -> Iterable[str]:
    ranked = _ranked(data, data.methods, "shape", "higher")
    teacher = measure(data.teacher, "shape")
    if not ranked or not teacher:
        return
    name, first = ranked[0]
    gap = 100 * (teacher["value"] - first["value"])
    word = f"{abs(gap):.1f} points {'behind' if gap > 0 else 'ahead of'}" if abs(gap) >= 0.05 else "level with"
    found = f"the judge finds the asked shape in {said(first)}"
    yield f"Of what {name} draws, {found}, {word} the teacher's {said(teacher)}."
    if len(ranked) > 1:
        yield f"The least right by shape is {ranked[-1][0]} with {said(ranked[-1][1])}."
    near = [
        each
        for each, value in ranked
        if value.get("high") is not None and value["low"] <= teacher["value"] <= value["high"]
    ]
    if near:
        yield f"With this many pictures {listed(near)} cannot be told from the teacher by shape."


def _bought(data: Data) -> Iterable[str]:
    gains, worse = [], []
    for name in data.methods:
        before, after = measure(data.results[name], "error", "undistilled"), measure(data.results[name], "error")
        if before and after:
            (gains if after["value"] < before["value"] else worse).append((name, before["value"], after["value"]))
    if gains:
        name, before, after = max(gains, key=lambda each: each[1] / max(each[2], 1e-12))
        yield (
            f"Distillation reduced the error of {_of_all(len(gains), len(gains) + len(worse))}; most of all "
            f"{name}'s, from {percent(before)} to {percent(after)}, {before / max(after, 1e-12):.1f} times less."
        )
    if worse:
        yield f"It did not help {listed([name for name, *_ in worse])}: the error after is not below the error before."


def _against_control(data: Data) -> Iterable[str]:
    controls = [name for name in data.controls if measure(data.results[name], "error")]
    if not controls:
        return
    control, own = controls[0], measure(data.results[controls[0]], "error")
    yield (
        f"The control {control} keeps softmax and trains as the others do; it moves {said(own, 2)} away from the "
        "teacher it began as. So much of any error here is the training's, not the attention's."
    )
    ranked = _ranked(data, data.methods, "error", "lower")
    near = [name for name, value in ranked if not _apart(value, own)]
    nearer = [name for name, value in ranked if _apart(value, own) and value["value"] < own["value"]]
    if near:
        yield f"By error {listed(near)} cannot be told from that control."
    if nearer:
        yield f"By error {listed(nearer)} {_are(nearer)} nearer to the teacher than that control."
    truth = measure(data.results[control], "shape")
    if truth and truth.get("low") is not None:
        below = [n for n, each in _ranked(data, data.methods, "shape", "higher") if each.get("high", 1) < truth["low"]]
        if below:
            yield f"By shape, {listed(below)} {_are(below)} clearly below that control."
        else:
            yield "By shape, no method's interval lies clearly below that control's."


def _apart(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two intervals do not touch; without intervals, whether the values differ."""
    low, high = sorted((first, second), key=lambda each: each["value"])
    if low.get("high") is None or high.get("low") is None:
        return low["value"] < high["value"]
    return low["high"] < high["low"]


def _convolution(data: Data) -> Iterable[str]:
    plain = [n for n in data.controls if not data.students[n].get("conv")]
    with_conv = [n for n in data.controls if data.students[n].get("conv")]
    if not plain or not with_conv:
        return
    first, second = (measure(data.results[names[0]], "error") for names in (plain, with_conv))
    if first and second:
        says = "moves it no clearly different way"
        if _apart(first, second):
            says = "moves it further" if second["value"] > first["value"] else "moves it less far"
        yield (
            f"A convolution added to softmax {says}: {percent(first['value'], 2)} without, "
            f"{percent(second['value'], 2)} with it."
        )


def _cost(data: Data) -> Iterable[str]:
    teacher = (data.teacher.get("cost") or {}).get("core_macs")
    if not teacher:
        return
    costs = {name: (data.results[name].get("cost") or {}).get("core_macs") for name in data.methods}
    more = [name for name, value in costs.items() if value and value >= teacher]
    less = {name: value for name, value in costs.items() if value and value < teacher}
    if less:
        name = min(less, key=less.get)
        yield f"At this size {name} spends least on attention, {teacher / less[name]:.1f} times less than softmax."
    if more:
        verb = "spends" if len(more) == 1 else "spend"
        yield f"{listed(more)} {verb} no less than softmax at this size; what is saved appears with more tokens."


def _time(data: Data) -> Iterable[str]:
    rows, dense = timed(data), baseline(data)
    if not rows or not any(row["operator"] == dense for row in rows):
        return
    sizes = sorted({row["tokens"] for row in rows if row["operator"] == dense})
    most, least = ({r["operator"]: r["seconds"] for r in rows if r["tokens"] == size} for size in (sizes[-1], sizes[0]))
    others = {name: value for name, value in most.items() if name not in (dense, "softmax")}
    faster = sorted((name for name in others if others[name] < most[dense]), key=others.get)
    if faster:
        told = ", ".join(f"{name} {most[dense] / others[name]:.1f} times" for name in faster)
        yield f"At {sizes[-1]:,} tokens one attention call is faster than {dense}: {told}."
    behind = {name: value for name, value in others.items() if name not in faster}
    if behind:
        yield f"At {sizes[-1]:,} tokens {_slower(list(behind))} than {dense}."
    slow = [name for name in faster if name in least and least[name] > least[dense]]
    if slow and len(sizes) > 1:
        yield f"At {sizes[0]:,} tokens {_slower(slow)}."


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _slower(names: list[str]) -> str:
    return f"{listed(names)} {_are(names)} slower"


def timed(data: Data) -> list[dict[str, Any]]:
    return [row for row in data.benchmark.get("rows") or [] if row.get("seconds")]


def steps(data: Data) -> dict[str, Any]:
    """Whole steps as a table: a column for each size; lines for the dense step, its bound and the others."""
    rows = [row for row in data.benchmark.get("steps") or [] if row.get("seconds")]
    sizes = sorted({row["tokens"] for row in rows})
    lines: dict[str, dict[int, str]] = {}
    for row in rows:
        time, tokens = _clock(row["seconds"]), row["tokens"]
        if row["operator"] == "dense":
            lines.setdefault("dense", {})[tokens] = time
            lines.setdefault("attention's share of it", {})[tokens] = f"{100 * row['share']:.0f} %"
            bound = "no bound" if row["most"] is None else f"{row['most']:.2f}×"
            lines.setdefault("so at most", {})[tokens] = bound
        else:
            lines.setdefault(row["operator"], {})[tokens] = f"{row['ratio']:.2f}× ({time})"
    return {"sizes": sizes, "lines": [(name, [cells.get(size, "") for size in sizes]) for name, cells in lines.items()]}


def _clock(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def baseline(data: Data) -> str:
    """The dense attention everything is timed against, by its name."""
    named = (row.get("baseline") for row in data.benchmark.get("rows") or [])
    return data.benchmark.get("baseline") or next((name for name in named if name), "softmax")


def _ranked(data: Data, names: Iterable[str], key: str, better: str) -> list[tuple[str, dict[str, Any]]]:
    values = [(name, value) for name in names if (value := measure(data.results[name], key))]
    return sorted(values, key=lambda each: each[1]["value"], reverse=better == "higher")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _of_all(some: int, total: int) -> str:
    return (
        f"all {total} methods"
        if some == total and total > 1
        else "the one method"
        if total == 1
        else f"{some} of {total} methods"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Figures of the pages


def strips(data: Data, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """A strip of pictures a name, all from the same noise and classes."""
    shown = []
    for name in names or ("teacher", *data.students):
        entry = data.pictures.get(name)
        if entry is None:
            if name in data.failures:
                shown.append({"name": name, "picture": None, "note": "failed"})
            continue
        shown.append({"name": name, "picture": _strip(data, name, entry["pictures"], "drawn by"), "note": ""})
    return shown


def _strip(data: Data, name: str, pictures: np.ndarray, words: str) -> Picture:
    frames = pictures[: data.show]
    classes = ", ".join(column_names(data)[: len(frames)])
    return figures.strip(frames, f"{len(frames)} pictures {words} {name}; asked for, from left to right: {classes}.")


def column_names(data: Data) -> list[str]:
    for entry in data.pictures.values():
        if "labels" in entry:
            return [data.labels[int(label)] for label in entry["labels"][: data.show]]
    return []


def plots(data: Data) -> dict[str, Any]:
    """Every figure of the first page that there is data for."""
    made = dict.fromkeys(("distilled", "cost_shape", "cost_error", "by_noise", "speed", "training", "anatomy", "maps"))
    looks, results = data.looks, data.results
    before_after = {
        name: {
            "before": 100 * before["value"] if (before := measure(results[name], "error", "undistilled")) else None,
            "after": 100 * value["value"],
        }
        for name in data.done
        if (value := measure(results[name], "error"))
    }
    if before_after:
        made["distilled"] = figures.bars(before_after, looks, "squared error, % of the teacher's square")
    for key, y in (("shape", "shape right, %"), ("error", "squared error, %")):
        points = _points(data, key)
        if len(points) > 1:
            made[f"cost_{key}"] = figures.quality_cost(points, x="multiply-accumulates of attention", y=y)
    noise = next((r["by_noise"]["noise"] for r in results.values() if r.get("by_noise")), None)
    lines = {
        name: [100 * each["value"] for each in results[name]["by_noise"]["error"]]
        for name in data.done
        if results[name].get("by_noise") and results[name]["by_noise"]["noise"] == noise
    }
    if lines:
        made["by_noise"] = figures.by_noise(noise, lines, looks, "squared error, %")
    if timed(data):
        names = dict.fromkeys(row["operator"] for row in timed(data))
        # A benchmark's operator is named by the operator and, after a dash, what is special about it.
        known = {baseline(data): "softmax", **(data.benchmark.get("operators") or {})}
        operators = {name: known.get(name, name.split("-")[0]) for name in names}
        made["speed"] = figures.speed(timed(data), figures.looks(operators), baseline(data))
    curves = {n: c for n in data.done if (c := (results[n].get("training") or {}).get("curve")) and c.get("step")}
    if curves:
        made["training"] = figures.training(curves, looks)
    made["anatomy"], made["maps"] = _anatomy(data), _maps(data)
    return made


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


# ---------------------------------------------------------------------------------------------------------------------
# Pages


def write(data: Data, folder: Path, notebooks: Mapping[str, Path] | None = None) -> Path:
    """`folder`/index.html and `folder`/pages/*.html; `notebooks` maps a title to an executed notebook."""
    folder = Path(folder)
    (folder / "pages").mkdir(parents=True, exist_ok=True)
    links = []
    for title, path in (notebooks or {}).items():
        name = f"notebook-{_slug(title)}.html"
        (folder / "pages" / name).write_text(notebook_html(path, title), encoding="utf-8")
        links.append({"title": title, "href": f"pages/{name}"})
    for name in data.students:
        (folder / page_of(name)).write_text(student_html(data, name, links), encoding="utf-8")
    index = folder / "index.html"
    index.write_text(index_html(data, links), encoding="utf-8")
    return index


def index_html(data: Data, notebooks: Sequence[Mapping[str, str]] = ()) -> str:
    return _render(
        "index.html.j2",
        title=f"Linear attention for a diffusion transformer: {len(data.students)} students of one teacher",
        data=data, table=table(data), findings=findings(data), plots=plots(data), strips=strips(data),
        columns=column_names(data), ideas=_ideas(data), limits=LIMITS, machine=machine(data), notebooks=notebooks,
        counts=_counts(data), sizes=sizes(data), baseline=baseline(data), steps=steps(data), root="",
    )  # fmt: skip


def student_html(data: Data, name: str, notebooks: Sequence[Mapping[str, str]] = ()) -> str:
    entry = data.students[name]
    own = [each for each in notebooks if each["title"].startswith(f"{name}:")]
    return _render(
        "student.html.j2", title=f"{name}: one student in detail", data=data, name=name, entry=entry,
        options=_options(entry), idea=IDEAS.get(entry["operator"], ""), failure=data.failures.get(name),
        numbers=_numbers(data, name), rows=_detail(data, name), columns=column_names(data), notebooks=own,
        plots=_student_plots(data, name), seconds=data.runs.get(name, {}).get("seconds") or {},
        machine=machine(data, name), sizes=sizes(data), root="../", names=list(data.students),
    )  # fmt: skip


def _options(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry of params.yaml says to the operator itself."""
    return {key: value for key, value in entry.items() if key not in ("operator", "teacher", "recipe")}


def _ideas(data: Data) -> list[tuple[str, str]]:
    operators = dict.fromkeys(entry["operator"] for entry in data.students.values())
    return [(operator, IDEAS[operator]) for operator in operators if operator in IDEAS]


def _numbers(data: Data, name: str) -> list[dict[str, str]]:
    """A line a measure: teacher, before, after."""
    result, lines = data.results.get(name, {}), []
    for column in COLUMNS:
        after = column.read(result)
        if after is None:
            continue
        before = column.read({"quality": result.get("undistilled") or {}}) if column.part == "quality" else None
        cells = [_cell(column, each, None) for each in (column.read(data.teacher), before, after)]
        lines.append({"title": column.title, "note": column.note, "better": column.better, "cells": cells})
    return lines


def _detail(data: Data, name: str) -> list[dict[str, Any]]:
    """The teacher's pictures, the student's, where they differ, and the student's before distillation."""
    teacher, student = data.pictures.get("teacher"), data.pictures.get(name)
    if student is None:
        return []
    rows = []
    if teacher is not None:
        rows.append({"name": "teacher", "picture": _strip(data, "the teacher", teacher["pictures"], "drawn by")})
    rows.append({"name": name, "picture": _strip(data, name, student["pictures"], "drawn by")})
    if teacher is not None:
        gap = figures.change(teacher["pictures"][: data.show], student["pictures"][: data.show])
        rows.append({"name": "difference", "picture": _strip(data, name, gap, "of where the teacher differs from")})
    if "undistilled" in student:
        before = _strip(data, f"{name} before distillation", student["undistilled"], "drawn by")
        rows.append({"name": "not distilled", "picture": before})
    return rows


def _student_plots(data: Data, name: str) -> dict[str, Picture | None]:
    result, made = data.results.get(name, {}), dict.fromkeys(("by_noise", "training", "confusion"))
    looks = data.looks
    if levels := result.get("by_noise"):
        lines = {name: [100 * each["value"] for each in levels["error"]]}
        if levels.get("undistilled"):
            lines["not distilled"] = [100 * each["value"] for each in levels["undistilled"]]
        for control in data.controls[:1]:
            other = data.results[control].get("by_noise")
            if control != name and other and other["noise"] == levels["noise"]:
                lines[control] = [100 * each["value"] for each in other["error"]]
        made["by_noise"] = figures.by_noise(levels["noise"], lines, looks, "squared error, %")
    if (curve := (result.get("training") or {}).get("curve")) and curve.get("step"):
        made["training"] = figures.training({name: curve}, looks)
    if result.get("confusion"):
        made["confusion"] = figures.confusion(result["confusion"], data.shapes)
    return made


def machine(data: Data, name: str | None = None) -> list[tuple[str, str]]:
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
        yield "Attention", ", ".join(f"{_count(many, 'layer')} {path}" for path, many in counts.items())


def _facts(facts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    hardware, versions = facts.get("hardware") or {}, facts.get("versions") or {}
    if facts.get("commit"):
        yield "Commit", facts["commit"]
    if hardware.get("cpu"):
        memory = f", {hardware['memory_gb']} GB" if hardware.get("memory_gb") else ""
        yield "Processor", f"{hardware['cpu']}, {_count(hardware.get('cores', 0), 'core')}{memory}"
    yield "Accelerator", hardware.get("gpu") or "none"
    if facts.get("system"):
        yield "System", f"{facts['system']}, Python {facts.get('python', 'unknown')}"
    if versions:
        yield "Versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _counts(data: Data) -> list[tuple[str, str]]:
    """N, seeds, steps: what stands behind the numbers."""
    told = []
    sizes = sorted({m["n"] for r in data.results.values() if (m := measure(r, "shape")) and m.get("n")})
    if sizes:
        told.append(("Pictures a row", " or ".join(f"{size:,}" for size in sizes)))
    before = sorted({m["n"] for r in data.results.values() if (m := measure(r, "shape", "undistilled")) and m.get("n")})
    if before:
        told.append(("Pictures an undistilled row", " or ".join(f"{size:,}" for size in before)))
    trained = {(t.get("steps"), t.get("batch")) for r in data.results.values() if (t := r.get("training"))}
    if trained:
        words = [
            f"{steps:,} steps" + (f" of {batch} pictures" if batch else "")
            for steps, batch in sorted(trained, key=str)
            if steps
        ]
        told += [("Distillation, each", " or ".join(words))] if words else []
    seeds = sorted({seed for r in data.results.values() for seed in r.get("seeds") or []})
    if seeds:
        told.append(("Training seeds", ", ".join(map(str, seeds))))
    times = {n: (data.runs[n].get("seconds") or {}).get("distill") for n in data.done if data.runs.get(n)}
    times = {name: value for name, value in times.items() if value}
    if times:
        told.append(("Seconds of distillation", ", ".join(f"{name} {value:.0f}" for name, value in times.items())))
    return told


# ---------------------------------------------------------------------------------------------------------------------
# Rendering


def _render(template: str, **values: Any) -> str:
    import jinja2

    folder = project.ROOT / "reports" / "template"
    if not folder.is_dir():  # the package in a clone, the working tree elsewhere
        folder = Path(__file__).resolve().parents[1] / "reports" / "template"
    world = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    world.filters.update(short=short, literal=repr)
    return world.get_template(template).render(**values)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def notebook_html(path: Path, title: str) -> str:
    """An executed notebook in the report's own dress: no script, nothing fetched, alt texts kept."""
    import nbformat
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    notebook = nbformat.read(path, as_version=4)
    exporter = HTMLExporter(template_name="basic", mathjax_url="", require_js_url="", mermaid_js_url="")
    body, _ = exporter.from_notebook_node(notebook)
    body = without_addresses(_described(body))
    body = _demoted(body)
    chapters = [
        (anchor, html.unescape(re.sub(r"<[^>]+>", "", words)).replace("¶", "").strip())
        for anchor, words in re.findall(r'<h2 id="([^"]+)"[^>]*>(.*?)</h2>', body, re.S)
    ]
    code_style = HtmlFormatter(style="default").get_style_defs(".highlight")
    return _render("notebook.html.j2", title=title, body=body, chapters=chapters, code_style=code_style, root="../")


def _described(body: str) -> str:
    """An output picture without words gets honest ones; the figures of this project bring their own."""
    body = re.sub(
        r"<img(?![^>]*\balt=)", '<img alt="A figure of this notebook, described in the text beside it."', body
    )
    return body.replace(
        "No description has been provided for this image", "A figure of this notebook, described in the text beside it."
    )


def _demoted(body: str) -> str:
    """The page has its own h1: the notebook's first-level headings become its chapters."""
    if len(re.findall(r"<h1\b", body)) > 1:
        return re.sub(r"(</?)h1\b", r"\1h2", body)
    return re.sub(r"<h1\b.*?</h1>", "", body, flags=re.S)


def without_addresses(body: str) -> str:
    """Links to the outside become their words, scripts and style sheets go, and bare addresses lose their scheme."""
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.S | re.I)
    body = re.sub(r"<link\b[^>]*>", "", body, flags=re.I)
    body = re.sub(r'<a\b[^>]*href="(?:https?:)?//[^"]*"[^>]*>(.*?)</a>', r"\1", body, flags=re.S | re.I)
    body = re.sub(
        r'<img\b[^>]*src="(?:https?:)?//[^"]*"[^>]*>', "(a picture that is not on this machine)", body, flags=re.I
    )
    return re.sub(r"\bhttps?://", "", body)
