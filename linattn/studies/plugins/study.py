"""Measure the plug-ins on the teacher, and on students that have never seen one.

- A row of the result is a plug-in, a body (the teacher, or a student's layers in it) and a
  question, drawn with and without the plug-in from the same noise.
- Checks compare bits: a plug-in that is silenced or removed may leave no trace, and the order in
  which plug-in and student are mounted may change nothing.
- The result holds no time and no machine; the run file beside it holds both.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

import linattn
from linattn import intervals, project
from linattn.report import studyparts
from linattn.studies.plugins.bench import Bench, mounted
from linattn.studies.plugins.body import SOFTMAX, Body
from linattn.studies.plugins.marks import shares
from linattn.studies.plugins.plugin import Plugin, Question
from linattn.studies.plugins.settings import PLUGINS, RESULT, SHEET, Settings, folder, load

QUICK = 4  # steps of the pictures that are compared bit for bit


def row(
    bench: Bench, plugin: Plugin, body: Body, name: str, question: Question, pipe: DiffusionPipeline
) -> tuple[dict[str, Any], Tensor]:
    """Measure one row; return it with its pictures."""
    ours, plain = bench.draw(pipe, question, plugin), bench.without(body, question)
    measures = {
        "with": shares(plugin.marks(bench.judge, ours, question)),
        "without": shares(plugin.marks(bench.judge, plain, question)),
        "difference": intervals.summary((ours - plain).abs().flatten(1).mean(1)),
    }
    return {"body": body.name, "question": name, **measures}, ours


def checks(bench: Bench, plugin: Plugin, body: Body) -> dict[str, bool]:
    """Say what holds bit for bit, and whether the plug-in changes anything at all."""
    question = next(iter(bench.questions(plugin).values()))[: bench.settings.measure.checked]

    def drawn(pipe: DiffusionPipeline, active: Plugin | None = None, **kwargs: Any) -> Tensor:
        return bench.draw(pipe, question, active, QUICK, **kwargs)

    return (_checked_base if plugin.is_base else _checked_part)(bench, plugin, body, drawn)


def _checked_part(bench: Bench, plugin: Plugin, body: Body, drawn: Any) -> dict[str, bool]:
    """Check a plug-in that is a part beside the student."""
    pipe = bench.pipe()
    body.onto(pipe)
    alone = drawn(pipe)
    student_first = drawn(plugin.mount(pipe, folder(plugin.name)), plugin)
    plugin.remove(pipe)
    results = {
        "differs": not torch.equal(student_first, alone),
        "removed": torch.equal(drawn(pipe), alone),
    }
    plugin_first = mounted(bench, plugin, body)
    if body.folder is not None:
        results["restored"] = torch.equal(drawn(linattn.restore(pipe)), drawn(bench.pipe()))
        results["either order"] = torch.equal(drawn(plugin_first, plugin), student_first)
    silenced = drawn(plugin_first, plugin, **plugin.silence(plugin_first))
    return {**results, "silenced": torch.equal(silenced, alone)}


def _checked_base(bench: Bench, plugin: Plugin, body: Body, drawn: Any) -> dict[str, bool]:
    """Check a fine-tune, on which a student is loaded and restored."""
    pipe = plugin.mount(bench.pipe(), folder(plugin.name))
    alone = drawn(pipe)
    results = {"differs": not torch.equal(alone, drawn(bench.pipe()))}
    if body.folder is not None:
        body.onto(pipe, fine_tuned=True)
        results["differs"] = not torch.equal(drawn(pipe), alone)
        results["restored"] = torch.equal(drawn(linattn.restore(pipe)), alone)
    return results


def measured(bench: Bench, plugin: Plugin) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Measure a plug-in; return its entry of the result and its rows of the sheet."""
    questions = bench.questions(plugin)
    measured_rows: list[dict[str, Any]] = []
    first, count = next(iter(questions)), bench.settings.measure.shown
    first_question = questions[first]
    shots: dict[str, Tensor] = {}
    if first_question.shown is not None:
        shots["shown"] = first_question.shown[:count]
    shots["without"] = bench.without(Body(SOFTMAX), first_question)[:count]
    raw = [body.raw for body in bench.bodies if body.folder is not None and plugin.is_base]
    for body in (*bench.bodies, *raw):
        pipe = mounted(bench, plugin, body)
        for name, question in questions.items():
            measures, pictures = row(bench, plugin, body, name, question, pipe)
            measured_rows.append(measures)
            if name == first:
                shots[body.name] = pictures[:count]
        print(
            f"{plugin.name} on {body.name}: {_shares_text(measured_rows[-len(questions)])}",
            flush=True,
        )
    bits = {body.name: checks(bench, plugin, body) for body in bench.bodies}
    recipe = dataclasses.asdict(bench.settings.recipes[plugin.name])
    captions = list(first_question.captions[:count])
    entry = {"what": plugin.what, "obeys": plugin.obeys, "recipe": recipe, "captions": captions}
    return {**entry, "rows": measured_rows, "checks": bits}, shots


def _shares_text(row: Mapping[str, Any]) -> str:
    """Write a row's marks for the log."""
    texts = []
    for name, ours in row["with"].items():
        plain = row["without"][name]
        texts.append(f"{name} {ours['value']:.1%} (without {plain['value']:.1%})")
    return ", ".join(texts)


def measure(
    settings: Settings | None = None, plugins: Sequence[str] = tuple(PLUGINS)
) -> dict[str, Any]:
    """Measure every plug-in on every body; write the result, its sheet and its run file."""
    began, bench, entries, sheet = time.monotonic(), Bench(settings or load()), {}, {}
    for name in plugins:
        entries[name], shots = measured(bench, PLUGINS[name])
        sheet |= {(name, row): pictures for row, pictures in shots.items()}
    measure_settings = bench.settings.measure
    result = {
        "teacher": Path(bench.settings.teacher).name,
        "guidance": bench.teacher.card["guidance"],
        "bodies": [body.name for body in bench.bodies],
        "pictures": measure_settings.pictures,
        "steps": measure_settings.steps,
        "seed": measure_settings.seed,
        "checked": measure_settings.checked,
        "shown": measure_settings.shown,
        "order": list(entries),
        "plugins": entries,
        "sheet": list(sheet),
    }
    studyparts.write_sheet(sheet, project.study(SHEET, write=True), quality=90, subsampling=0)
    run = {"facts": project.facts(), "seconds": {"measure": round(time.monotonic() - began, 1)}}
    project.write_json(studyparts.run_file("plugins", write=True), run)
    project.write_json(project.study(RESULT, write=True), result)
    return result
