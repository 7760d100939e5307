"""Sentences that follow from the numbers, whatever these are: none is written for a hoped-for
result.

A function yields the sentences on one subject, and none where its numbers are missing. Lists of
names stand where a sentence reads the same with one name and with several.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from linattn.report import fewer
from linattn.report.columns import Measure, measure
from linattn.report.data import Data, Report
from linattn.report.ranking import (
    apart,
    closest,
    differ,
    ideas,
    order,
    ranking,
    reaches,
    touch,
)
from linattn.report.timing import baseline, timed
from linattn.report.words import listed, percent, with_interval


def findings(report: Report) -> list[str]:
    """Return all sentences; with several teachers each one's begin with its name.

    Args:
        report: the report of all teachers.
    """
    if not report.several:
        return of_teacher(report.only)
    sentences = of_all(report)
    for data in report.parts.values():
        sentences += [f"{data.name}: {sentence}" for sentence in of_teacher(data)]
    return sentences


def of_teacher(data: Data) -> list[str]:
    """Return all sentences of one teacher."""
    further = (_eye, _distillation, _against_control, _convolution, _cost, _fewer_steps, _time)
    return in_short(data) + ([] if data.rehearsed else _sentences(data, further))


def in_short(data: Data) -> list[str]:
    """Return the sentences of one of several teachers on the first page."""
    compared = () if data.rehearsed else (_closest, _shapes, _two_things)
    return _sentences(data, (_failures, *compared))


def headline(report: Report) -> str:
    """Return the finding in one sentence: who comes closest to each teacher.

    Students that are not apart from the closest one share its place. A rehearsal finds nothing.
    """
    if any(data.rehearsed for data in report.parts.values()):
        return "A rehearsal: the weights are random, so no row says anything of an operator."
    firsts = {data.name: _firsts(data) for data in report.parts.values() if closest(data)}
    if not firsts:
        return ""
    if len(firsts) == 1:
        ((teacher, (names, error)),) = firsts.items()
        return f"Closest to {teacher}: {' or '.join(names)} ({error})."
    clauses = []
    for teacher, (names, error) in firsts.items():
        clauses.append(f"{' or '.join(names)} to {teacher} ({error})")
    operators = {data.name: _operators(data, firsts) for data in report.parts.values()}
    shared = set.intersection(*(operators[teacher] for teacher in firsts))
    if not set.intersection(*(set(ideas(data)) for data in report.parts.values() if closest(data))):
        return f"No idea was tried with every teacher; closest are {listed(clauses)}."
    same = f"{listed(sorted(shared))} can be closest to every teacher" if shared else ""
    return f"{same or 'No one idea comes closest to every teacher'}: {listed(clauses)}."


def _firsts(data: Data) -> tuple[list[str], str]:
    """Name the closest student and those that cannot be told from it, and write its error."""
    ranked = ranking(data, "error", "lower")
    first, error = ranked[0]
    near = [name for name, _ in ranked[1:] if not differ(data, "error", first, name)]
    return [first, *near], percent(error["value"])


def _operators(data: Data, firsts: Mapping[str, tuple[list[str], str]]) -> set[str]:
    """Return the operators of the students that come closest to a teacher."""
    names, _ = firsts.get(data.name, ([], ""))
    return {data.students[name]["operator"] for name in names}


def _sentences(data: Data, subjects: Iterable[Callable[[Data], Iterable[str]]]) -> list[str]:
    sentences: list[str] = []
    for subject in subjects:
        sentences += subject(data)
    return sentences


# All teachers


def of_all(report: Report) -> list[str]:
    """Name the student closest to each teacher, among the ideas that the teachers share."""
    by_teacher = {data.name: ideas(data) for data in report.parts.values() if closest(data)}
    if len(by_teacher) < 2:
        return []
    shared = set.intersection(*map(set, by_teacher.values()))
    if len(shared) < 2:
        return []
    firsts = []
    for teacher, students in by_teacher.items():
        student = next(name for idea, name in students.items() if idea in shared)
        firsts.append(f"{student} to {teacher}")
    among = f"Of the ideas that {listed(list(by_teacher))} share ({listed(sorted(shared))})"
    return [f"{among}, closest are {listed(firsts)}."]


# One teacher


def _failures(data: Data) -> Iterable[str]:
    yield from (f"Left out: {problem}." for problem in data.problems)
    if data.waiting:
        yield f"Nothing of {data.name} is here yet: make repro makes its own row and its students'."
        return
    if data.teacher_failure:
        reason = data.teacher_failure
        yield f"The teacher's own row is missing, so nothing is compared with it ({reason})."
    if data.failures:
        yield f"Failed and not compared: {listed(list(data.failures))}."
    if not data.methods:
        yield "No method has a result yet."


def _closest(data: Data) -> Iterable[str]:
    ranked = ranking(data, "error", "lower")
    if not ranked:
        return
    name, first = ranked[0]
    error = f"its squared error is {with_interval(first)} of the teacher's square"
    sentence = f"Closest to the teacher's prediction is {name}: {error}"
    if len(ranked) > 1:
        second, value = ranked[1]
        sentence += f", before {second} with {with_interval(value)}; {order(data, name, second)}"
    yield f"{sentence}."


def _shapes(data: Data) -> Iterable[str]:
    """Compare the shapes that students draw with those that the teacher draws."""
    ranked = ranking(data, "shape", "higher")
    teacher = measure(data.teacher, "shape")
    if not ranked or not teacher:
        return
    name, first = ranked[0]
    drawn = "the pictures of one thing" if data.captions else "the pictures"
    yield (
        f"Of {drawn} that {name} draws, the judge finds the asked shape in {with_interval(first)}; "
        f"of the teacher's in {with_interval(teacher)}."
    )
    if len(ranked) > 1:
        last, least = ranked[-1]
        yield f"The least right by shape is {last} with {with_interval(least)}."
    near = [method for method, value in ranked if reaches(value, teacher["value"])]
    if near:
        yield f"With this many pictures {listed(near)} cannot be told from the teacher by shape."


def _two_things(data: Data) -> Iterable[str]:
    """Say how colours and relations follow captions of two things, which labels do not have."""
    for key, subject in (("two_colours", "Both colours"), ("relation", "The relation")):
        best = dict(ranking(data, key, "higher")[:1])
        rows = {"the teacher": measure(data.teacher, key), "guessing": measure(data.chance, key)}
        shares = [f"{name} {with_interval(row)}" for name, row in {**best, **rows}.items() if row]
        if best:
            yield f"{subject} of two things, right most often: {', '.join(shares)}."


def _eye(data: Data) -> Iterable[str]:
    """Name the student whose pictures look most like the teacher's to the eye."""
    ranked = ranking(data, "eye_distance", "lower")
    if not ranked:
        return
    name, first = ranked[0]
    sentence = (
        f"To the eye, a network that was trained on photographs, {name} draws most like the "
        f"teacher: {_eye_distance(first)} from its pictures of the same noise"
    )
    if len(ranked) > 1:
        second, value = ranked[1]
        sentence += f", before {second} with {_eye_distance(value)}; {touch(first, value)}"
    yield f"{sentence}."
    if chance := measure(data.chance, "eye_distance"):
        yield f"Two of the teacher's own pictures are {_eye_distance(chance)} apart on average."


def _eye_distance(value: Measure) -> str:
    text = f"{value['value']:.3f}"
    return (
        text if value.get("low") is None else f"{text} ({value['low']:.3f} to {value['high']:.3f})"
    )


def _distillation(data: Data) -> Iterable[str]:
    """Say how many errors distillation reduced, the most and by how much, and which it did not."""
    errors = {}
    for name in data.methods:
        before = measure(data.results[name], "error", "undistilled")
        after = measure(data.results[name], "error")
        if before and after:
            errors[name] = (before["value"], after["value"])
    gains = {name: pair for name, pair in errors.items() if pair[1] < pair[0]}
    if gains:
        name, (before, after) = max(gains.items(), key=lambda gain: _times_less(*gain[1]))
        yield (
            f"Distillation reduced the error of {len(gains)} of {len(errors)} methods; most of all "
            f"{name}'s, from {percent(before)} to {percent(after)}, "
            f"{_times_less(before, after):.1f} times less."
        )
    worse = [name for name in errors if name not in gains]
    if worse:
        yield f"It did not help {listed(worse)}: the error after is not below the error before."


def _times_less(before: float, after: float) -> float:
    return before / max(after, 1e-12)


def _against_control(data: Data) -> Iterable[str]:
    """Compare the methods with the first control: softmax that trained as they did."""
    for name in data.controls:
        if error := measure(data.results[name], "error"):
            yield (
                f"The control {name} keeps softmax and trains as the others do; it moves "
                f"{with_interval(error, 2)} away from the teacher it began as. So much of any "
                "error here is the training's, not the attention's."
            )
            yield from _near_control(data, name, error["value"])
            return


def _near_control(data: Data, control: str, error: float) -> Iterable[str]:
    """Name the methods that error and shapes tell apart from a control, and the others."""
    ranked = ranking(data, "error", "lower")
    near = [name for name, _ in ranked if not differ(data, "error", name, control)]
    lower = [name for name, value in ranked if value["value"] < error]
    nearer = [name for name in lower if name not in near]
    if near:
        yield f"By error {listed(near)} cannot be told from that control."
    if nearer:
        yield f"Nearer to the teacher than that control: {listed(nearer)}."
    shape = measure(data.results[control], "shape")
    if shape and shape.get("low") is not None:
        ranked = ranking(data, "shape", "higher")
        less = [name for name, value in ranked if value["value"] < shape["value"]]
        below = [name for name in less if differ(data, "shape", name, control)]
        yield f"Clearly below that control by shape: {listed(below)}."


def _convolution(data: Data) -> Iterable[str]:
    """Compare the control that has a convolution beside softmax with the one that has none."""
    by_conv: dict[bool, str] = {}
    for name in data.controls:
        if measure(data.results[name], "error"):
            by_conv.setdefault(bool(data.students[name].get("conv")), name)
    if len(by_conv) < 2:
        return
    without, with_it = by_conv[False], by_conv[True]
    moves = [
        percent(data.results[name]["quality"]["error"]["value"], 2) for name in (with_it, without)
    ]
    verdict = order(data, with_it, without)
    yield f"With a convolution added softmax moves {moves[0]} away, {moves[1]} without; {verdict}."


def _cost(data: Data) -> Iterable[str]:
    """Compare the multiply-accumulates of the methods' attention with softmax's."""
    softmax = measure(data.teacher, "core_macs", "cost")
    if not softmax:
        return
    costs = {name: measure(data.results[name], "core_macs", "cost") for name in data.methods}
    values = {name: cost["value"] for name, cost in costs.items() if cost}
    least = min(values, key=lambda name: values[name], default="")
    more = [name for name, value in values.items() if value >= softmax["value"]]
    if least and least not in more:
        ratio = f"{softmax['value'] / values[least]:.1f} times less than softmax"
        yield f"At this size {least} spends least on attention, {ratio}."
    if more:
        saved = "what is saved appears with more tokens"
        yield f"No less than softmax is spent at this size by {listed(more)}; {saved}."


def _fewer_steps(data: Data) -> Iterable[str]:
    """Compare each method with the teacher in as many steps as its draw's cost buys."""
    verdicts: dict[str, list[str]] = {"nearer": [], "farther": [], "open": []}
    for name, value in ranking(data, "eye_distance", "lower"):
        cost = measure(data.results[name], "draw_macs", "cost")
        if cost and (teacher := _bought(data, cost["value"])):
            verdicts[_verdict(value, teacher)].append(name)
    if verdicts["nearer"]:
        names = listed(verdicts["nearer"])
        yield f"Nearer to the teacher's full draw than fewer steps for the same cost: {names}."
    if verdicts["farther"]:
        names = listed(verdicts["farther"])
        yield f"For the same cost or less, the teacher in fewer steps is nearer than {names}."
    if verdicts["open"]:
        names = listed(verdicts["open"])
        yield f"Their intervals do not tell {names} from the teacher in fewer steps of that cost."


def _bought(data: Data, macs: float) -> Measure | None:
    """Return the least distance of the teacher in fewer steps that costs no more than `macs`."""
    distances = []
    for result in fewer.of_teacher(data.teacher).values():
        cost, value = measure(result, "draw_macs", "cost"), measure(result, "eye_distance")
        if cost and value and cost["value"] <= macs:
            distances.append(value)
    return min(distances, key=lambda value: value["value"], default=None)


def _verdict(ours: Measure, teacher: Measure) -> str:
    if not apart(ours, teacher):
        return "open"
    return "nearer" if ours["value"] < teacher["value"] else "farther"


def _time(data: Data) -> Iterable[str]:
    """Compare the operators' times with dense attention's, at the largest and smallest size."""
    timings, dense = timed(data), baseline(data)
    sizes = sorted({row["tokens"] for row in timings if row["operator"] == dense})
    if not sizes:
        return
    least, most = _seconds_at(timings, sizes[0]), _seconds_at(timings, sizes[-1])
    times = {name: value for name, value in most.items() if name not in (dense, "softmax")}
    ranked = sorted(times, key=lambda name: times[name])
    faster = [name for name in ranked if times[name] < most[dense]]
    slower = [name for name in times if name not in faster]
    if faster:
        ratios = ", ".join(f"{name} {most[dense] / times[name]:.1f} times" for name in faster)
        yield f"At {sizes[-1]:,} tokens one attention call is faster than {dense}: {ratios}."
    if slower:
        yield f"Slower than {dense} at {sizes[-1]:,} tokens: {listed(slower)}."
    slower_when_small = [name for name in faster if least.get(name, 0) > least[dense]]
    if slower_when_small and len(sizes) > 1:
        names = listed(slower_when_small)
        yield f"Faster at {sizes[-1]:,} tokens and slower at {sizes[0]:,}: {names}."


def _seconds_at(timings: Iterable[Mapping[str, Any]], tokens: int) -> dict[str, float]:
    """Return the seconds of every operator at one size."""
    return {row["operator"]: row["seconds"] for row in timings if row["tokens"] == tokens}
