"""Measure the plug-ins on the teacher, and on students that have never seen one.

- A row of the result is a plug-in, a body (the teacher, or a student's layers in it) and a question, drawn with and
  without the plug-in from the same noise.
- Checks are of bits: silenced or removed, nothing of a plug-in may be left; mounted before or after the student, all
  must be the same.
- The result holds no time and no machine; those are in the run file beside it.
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
from linattn.studies.plugins import settings
from linattn.studies.plugins.bench import Bench, mounted
from linattn.studies.plugins.body import SOFTMAX, Body
from linattn.studies.plugins.marks import shares
from linattn.studies.plugins.plugin import Plugin, Question
from linattn.studies.plugins.settings import PLUGINS, RESULT, SHEET, Settings, folder

QUICK = 4  # steps of the pictures that are compared bit for bit


def row(
    bench: Bench, plugin: Plugin, body: Body, name: str, question: Question, pipe: DiffusionPipeline
) -> tuple[dict[str, Any], Tensor]:
    """One row, and what was drawn."""
    ours, plain = bench.draw(pipe, question, plugin), bench.without(body, question)
    found = {
        "with": shares(plugin.marks(bench.eye, ours, question)),
        "without": shares(plugin.marks(bench.eye, plain, question)),
        "difference": intervals.summary((ours - plain).abs().flatten(1).mean(1)),
    }
    return {"body": body.name, "question": name, **found}, ours


def checks(bench: Bench, plugin: Plugin, body: Body) -> dict[str, bool]:
    """What must hold bit for bit, and that something differs at all."""
    question = next(iter(bench.questions(plugin).values()))[: bench.told.measure.checked]

    def drawn(pipe: DiffusionPipeline, shown: Plugin | None = None, **more: Any) -> Tensor:
        return bench.draw(pipe, question, shown, QUICK, **more)

    return (_checked_base if plugin.is_base else _checked_part)(bench, plugin, body, drawn)


def _checked_part(bench: Bench, plugin: Plugin, body: Body, drawn: Any) -> dict[str, bool]:
    pipe = bench.pipe()
    body.onto(pipe)
    alone = drawn(pipe)
    ours = drawn(plugin.mount(pipe, folder(plugin.name)), plugin)  # the student first
    plugin.remove(pipe)
    found = {"differs": not torch.equal(ours, alone), "removed": torch.equal(drawn(pipe), alone)}
    other = mounted(bench, plugin, body)  # the plug-in first
    if body.folder is not None:
        found["restored"] = torch.equal(drawn(linattn.restore(pipe)), drawn(bench.pipe()))
        found["either order"] = torch.equal(drawn(other, plugin), ours)
    return {**found, "silenced": torch.equal(drawn(other, plugin, **plugin.silence(other)), alone)}


def _checked_base(bench: Bench, plugin: Plugin, body: Body, drawn: Any) -> dict[str, bool]:
    """Of a fine-tune: the student comes and goes."""
    pipe = plugin.mount(bench.pipe(), folder(plugin.name))
    alone = drawn(pipe)
    found = {"differs": not torch.equal(alone, drawn(bench.pipe()))}
    if body.folder is not None:
        body.onto(pipe, fine_tuned=True)
        found["differs"] = not torch.equal(drawn(pipe), alone)
        found["restored"] = torch.equal(drawn(linattn.restore(pipe)), alone)
    return found


def measured(bench: Bench, plugin: Plugin) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A plug-in's part of the result, and its rows of the sheet."""
    questions, rows = bench.questions(plugin), []
    first, count = next(iter(questions)), bench.told.measure.shown
    asked = questions[first]
    shots = {} if asked.shown is None else {"shown": asked.shown[:count]}
    shots["without"] = bench.without(Body(SOFTMAX), asked)[:count]
    raw = [body.raw for body in bench.bodies if body.folder is not None and plugin.is_base]
    for body in (*bench.bodies, *raw):
        pipe = mounted(bench, plugin, body)
        for name, question in questions.items():
            found, pictures = row(bench, plugin, body, name, question, pipe)
            rows.append(found)
            if name == first:
                shots[body.name] = pictures[:count]
        print(f"{plugin.name} on {body.name}: {_said(rows[-len(questions)])}", flush=True)
    bits = {body.name: checks(bench, plugin, body) for body in bench.bodies}
    recipe = dataclasses.asdict(bench.told.recipes[plugin.name])
    told = {"what": plugin.what, "obeys": plugin.obeys, "recipe": recipe, "captions": list(asked.captions[:count])}
    return {**told, "rows": rows, "checks": bits}, shots


def _said(found: Mapping[str, Any]) -> str:
    pairs = ((name, found["with"][name], found["without"][name]) for name in found["with"])
    return ", ".join(f"{name} {ours['value']:.1%} (without {plain['value']:.1%})" for name, ours, plain in pairs)


def measure(told: Settings | None = None, plugins: Sequence[str] = tuple(PLUGINS)) -> dict[str, Any]:
    """Every plug-in on every body; the result, its sheet of pictures and its run file are written."""
    began, bench, found, sheet = time.monotonic(), Bench(told or settings.load()), {}, {}
    for name in plugins:
        found[name], shots = measured(bench, PLUGINS[name])
        sheet |= {(name, row): pictures for row, pictures in shots.items()}
    part = bench.told.measure
    result = {
        "teacher": Path(bench.told.teacher).name,
        "guidance": bench.teacher.card["guidance"],
        "bodies": [body.name for body in bench.bodies],
        **{name: getattr(part, name) for name in ("pictures", "steps", "seed", "checked", "shown")},
        "order": list(found),
        "plugins": found,
        "sheet": list(sheet),
    }
    studyparts.write_sheet(sheet, project.study(SHEET, write=True), quality=90, subsampling=0)
    run = {"facts": project.facts(), "seconds": {"measure": round(time.monotonic() - began, 1)}}
    project.write_json(studyparts.run_file("plugins", write=True), run)
    project.write_json(project.study(RESULT, write=True), result)
    return result
