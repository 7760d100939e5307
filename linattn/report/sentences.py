"""Sentences that follow from the numbers, whatever these are: no sentence is written for a
hoped-for result.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from linattn.report.columns import measure
from linattn.report.data import Data, Report
from linattn.report.timing import baseline, timed
from linattn.report.words import NO_RESULT, are, listed, methods, number, percent, said


def findings(report: Report) -> list[str]:
    """Return the sentences of the only teacher, or those over several teachers and then each one's
    with its name.
    """
    if not report.several:
        return of_teacher(report.only)
    sentences = of_all(report)
    for data in report.parts.values():
        sentences += [f"{data.name}: {sentence}" for sentence in of_teacher(data)]
    return sentences


def of_teacher(data: Data) -> list[str]:
    """Return all sentences of one teacher."""
    makers = (
        _failed, _closest, _truth, _two_things, _bought, _against_control, _convolution, _cost, _time,
    )  # fmt: skip
    return [sentence for maker in makers for sentence in maker(data)]


def in_short(data: Data) -> list[str]:
    """Return the sentences of one of several teachers on the first page."""
    return [
        sentence for maker in (_failed, _closest, _truth, _two_things) for sentence in maker(data)
    ]


def of_all(report: Report) -> list[str]:
    """Say whether the teachers agree about the closest idea, among the ideas of which all have a
    student.
    """
    parts = [data for data in report.parts.values() if closest(data)]
    if len(parts) < 2:
        return []
    shared = set.intersection(*(_ideas(data) for data in parts))
    if len(shared) < 2:
        return []
    firsts = [
        (data, next(name for name in closest(data) if _idea(data, name) in shared))
        for data in parts
    ]
    ideas = {_idea(data, name) for data, name in firsts}
    pairs = listed([f"{name} to {data.name}" for data, name in firsts])
    among = f"Of the ideas that {listed([data.name for data in parts])} share ({listed(sorted(shared))})"
    if len(ideas) == 1:
        return [f"{among}, one is closest to each, {ideas.pop()}: {pairs}."]
    return [f"{among}, which is closest depends on the teacher: {pairs}."]


def _ideas(data: Data) -> set[str]:
    return {_idea(data, name) for name in closest(data)}


def _idea(data: Data, student: str) -> str:
    return data.students[student]["operator"]


def _failed(data: Data) -> Iterable[str]:
    if data.waiting:
        yield f"Nothing of {data.name} is here yet, neither its own row nor its students': make repro makes them."
        return
    if data.teacher_failure == NO_RESULT:
        yield f"The teacher's own row is not there yet ({NO_RESULT}), so nothing is compared with it."
    elif data.teacher_failure:
        yield f"The teacher's own row failed, so nothing is compared with it ({data.teacher_failure})."
    if data.failures:
        count = f"{number(len(data.failures), 'student')} of {len(data.students)}"
        yield f"{count} failed and cannot be compared ({_reasons(data.failures)})."
    if not data.methods:
        yield "No method has a result yet."


def _reasons(failures: Mapping[str, str]) -> str:
    """Write each reason once, with the names of all students that failed for it."""
    names: dict[str, list[str]] = {}  # by reason
    for name, reason in failures.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{listed(failed)}: {reason}" for reason, failed in names.items())


def closest(data: Data) -> list[str]:
    """Return the methods by error, the least first."""
    return [name for name, _ in _ranked(data, data.methods, "error", "lower")]


def _closest(data: Data) -> Iterable[str]:
    ranked = _ranked(data, data.methods, "error", "lower")
    if not ranked:
        return
    name, first = ranked[0]
    sentence = (
        f"Closest to the teacher's prediction is {name}: its squared error is {said(first)} of the "
        "teacher's square"
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
    word = (
        f"{abs(gap):.1f} points {'behind' if gap > 0 else 'ahead of'}"
        if abs(gap) >= 0.05
        else "level with"
    )
    finding = f"the judge finds the asked shape in {said(first)}"
    drawn = (
        f"Of the pictures of one thing that {name} draws"
        if data.captions
        else f"Of what {name} draws"
    )
    yield f"{drawn}, {finding}, {word} the teacher's {said(teacher)}."
    if len(ranked) > 1:
        yield f"The least right by shape is {ranked[-1][0]} with {said(ranked[-1][1])}."
    near = [
        method
        for method, value in ranked
        if value.get("high") is not None and value["low"] <= teacher["value"] <= value["high"]
    ]
    if near:
        yield f"With this many pictures {listed(near)} cannot be told from the teacher by shape."


def _two_things(data: Data) -> Iterable[str]:
    """Say how colours are bound and how things are placed, which captions of two things ask for and
    labels cannot.
    """
    templates = {
        "two_colours": "Where two things were asked for, {} gets both colours right most often",
        "relation": "How the two lie to each other is right most often with {}",
    }
    for key, words in templates.items():
        ranked = _ranked(data, data.methods, key, "higher")
        if not ranked:
            continue
        name, first = ranked[0]
        bounds = {"the teacher": measure(data.teacher, key), "guessing": measure(data.chance, key)}
        beside = ", ".join(f"{who} in {said(value)}" for who, value in bounds.items() if value)
        yield f"{words.format(name)}, in {said(first)}" + (f"; {beside}." if beside else ".")


def _bought(data: Data) -> Iterable[str]:
    gains, worse = [], []
    for name in data.methods:
        before, after = (
            measure(data.results[name], "error", "undistilled"),
            measure(data.results[name], "error"),
        )
        if before and after:
            (gains if after["value"] < before["value"] else worse).append(
                (name, before["value"], after["value"])
            )
    if gains:
        name, before, after = max(gains, key=lambda gain: gain[1] / max(gain[2], 1e-12))
        yield (
            f"Distillation reduced the error of {methods(len(gains), len(gains) + len(worse))}; "
            "most of all "
            f"{name}'s, from {percent(before)} to {percent(after)}, "
            f"{before / max(after, 1e-12):.1f} times less."
        )
    if worse:
        yield f"It did not help {listed([name for name, *_ in worse])}: the error after is not below the error before."


def _against_control(data: Data) -> Iterable[str]:
    controls = [name for name in data.controls if measure(data.results[name], "error")]
    if not controls:
        return
    control, moved = controls[0], measure(data.results[controls[0]], "error")
    yield (
        f"The control {control} keeps softmax and trains as the others do; it moves "
        f"{said(moved, 2)} away from the "
        "teacher it began as. So much of any error here is the training's, not the attention's."
    )
    ranked = _ranked(data, data.methods, "error", "lower")
    near = [name for name, value in ranked if not _apart(value, moved)]
    nearer = [
        name for name, value in ranked if _apart(value, moved) and value["value"] < moved["value"]
    ]
    if near:
        yield f"By error {listed(near)} cannot be told from that control."
    if nearer:
        yield f"By error {listed(nearer)} {are(nearer)} nearer to the teacher than that control."
    truth = measure(data.results[control], "shape")
    if truth and truth.get("low") is not None:
        by_shape = _ranked(data, data.methods, "shape", "higher")
        below = [name for name, value in by_shape if value.get("high", 1) < truth["low"]]
        if below:
            yield f"By shape, {listed(below)} {are(below)} clearly below that control."
        else:
            yield "By shape, no method's interval lies clearly below that control's."


def _apart(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Say whether two intervals do not touch or, without intervals, whether the values differ."""
    low, high = sorted((first, second), key=lambda interval: interval["value"])
    if low.get("high") is None or high.get("low") is None:
        return low["value"] < high["value"]
    return low["high"] < high["low"]


def _convolution(data: Data) -> Iterable[str]:
    plain = [name for name in data.controls if not data.students[name].get("conv")]
    with_conv = [name for name in data.controls if data.students[name].get("conv")]
    if not plain or not with_conv:
        return
    first, second = (measure(data.results[names[0]], "error") for names in (plain, with_conv))
    if first and second:
        verb = "moves it no clearly different way"
        if _apart(first, second):
            verb = "moves it further" if second["value"] > first["value"] else "moves it less far"
        yield (
            f"A convolution added to softmax {verb}: {percent(first['value'], 2)} without, "
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
    most, least = _seconds_at(rows, sizes[-1]), _seconds_at(rows, sizes[0])
    others = {name: value for name, value in most.items() if name not in (dense, "softmax")}
    faster = sorted((name for name in others if others[name] < most[dense]), key=others.get)
    if faster:
        ratios = ", ".join(f"{name} {most[dense] / others[name]:.1f} times" for name in faster)
        yield f"At {sizes[-1]:,} tokens one attention call is faster than {dense}: {ratios}."
    behind = {name: value for name, value in others.items() if name not in faster}
    if behind:
        yield f"At {sizes[-1]:,} tokens {_slower(list(behind))} than {dense}."
    slow = [name for name in faster if name in least and least[name] > least[dense]]
    if slow and len(sizes) > 1:
        yield f"At {sizes[0]:,} tokens {_slower(slow)}."


def _seconds_at(rows: Iterable[Mapping[str, Any]], tokens: int) -> dict[str, float]:
    """Return the seconds of every operator at one size."""
    return {row["operator"]: row["seconds"] for row in rows if row["tokens"] == tokens}


def _slower(names: list[str]) -> str:
    return f"{listed(names)} {are(names)} slower"


def _ranked(
    data: Data, names: Iterable[str], key: str, better: str
) -> list[tuple[str, dict[str, Any]]]:
    """Return names and measures, the best first; names without the measure are left out."""
    values = [(name, value) for name in names if (value := measure(data.results[name], key))]
    return sorted(values, key=lambda pair: pair[1]["value"], reverse=better == "higher")
