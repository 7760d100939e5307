"""Write the report's sections on plug-ins from the study's result.

`sections()` returns their titles and HTML. The sentences follow from the numbers, so they also say
where a plug-in does nothing on a student.
"""

import html
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from linattn import project
from linattn.report import figures
from linattn.report.picture import Picture
from linattn.report.studyparts import Cell, cell, measured_on, read_sheet, run_name, table
from linattn.report.words import percent, with_interval
from linattn.studies.plugins import settings

Row = Mapping[str, Any]
TITLES = {
    "control": "A ControlNet that is shown edges",
    "lora-attn1": "A LoRA in the layers that were replaced",
    "lora-attn2": "A LoRA in cross-attention",
    "adapter": "An IP-Adapter: a picture instead of a caption",
    "recolour": "Distilled layers in a fine-tune of the teacher",
}
INTROS = {
    "control": "The edges come from a true picture of the world. The judge says whether what was "
    "drawn has its shape; it lies in place if it shares half of the area that it and the true "
    "thing cover together.",
    "lora-attn1": "It was trained to put dots behind everything. Captions ask for another "
    "background.",
    "lora-attn2": "The same style, learned by the layers that nobody replaces.",
    "adapter": "A true picture is shown and the caption is empty. Asked is its shape, colour and "
    "kind of background.",
    "recolour": "The teacher was trained on, in a world where every colour's word means the colour "
    "two hues on. Its students' layers were put into that fine-tune as they are; “not distilled” "
    "is the fine-tune's own attention in the student's form. Without: the same layers in the "
    "teacher.",
}
BITS = {
    "differs": "pictures differ with it",
    "silenced": "at scale 0, none does",
    "removed": "taken away, none does",
    "either order": "before or after the student, the same",
    "restored": "restore gives the original",
}


def sections(file: Callable[[str], Path] | None = None) -> list[tuple[str, str]]:
    """Return (title, HTML) of every section, and nothing where the study has not run.

    `file` gives the path of a study's file; by default of the run here, else the published one.
    """
    file = file or project.study
    path = file(settings.RESULT)
    if not path.exists():
        return []
    result = json.loads(path.read_text())
    shots = _shots(result, file(settings.SHEET))
    titled = [("Plug-ins beside replaced attention", _summary(result, file(run_name("plugins"))))]
    for name in result["order"]:
        section = _section(name, result["plugins"][name], shots.get(name, {}))
        titled.append((TITLES.get(name, name), section))
    return titled


def findings(plugin: Mapping[str, Any]) -> list[str]:
    """Say for every question how far the condition is obeyed, and where it is not.

    `plugin` is the plug-in's entry in the result.
    """
    sentences, obeys = [], plugin["obeys"]
    for question in dict.fromkeys(row["question"] for row in plugin["rows"]):
        of_bodies = [row for row in plugin["rows"] if row["question"] == question]
        sentences.append(_obeyed(of_bodies, obeys))
        sentences += [*_idle(of_bodies, obeys), *_weaker(of_bodies, obeys)]
    return sentences


def _obeyed(of_bodies: Sequence[Row], obeys: Sequence[str]) -> str:
    """Write the shares that obey the condition on every body, with and without the plug-in."""
    clauses = []
    for row in of_bodies:
        marks = []
        for mark in obeys:
            without = percent(row["without"][mark]["value"])
            marks.append(f"{mark} {with_interval(row['with'][mark])}, without it {without}")
        clauses.append(f"on {row['body']} {', '.join(marks)}")
    return f"{of_bodies[0]['question'].capitalize()}: {'; '.join(clauses)}."


def _idle(of_bodies: Sequence[Row], obeys: Sequence[str]) -> Iterable[str]:
    """Name each mark of the condition whose interval with the plug-in is not above that without."""
    for row in of_bodies:
        for mark in obeys:
            if row["with"][mark]["low"] <= row["without"][mark]["high"]:
                where = f"{row['question'].capitalize()}: on {row['body']}"
                yield (
                    f"{where} {mark} is not right more often with it than without, as far as this "
                    "tells."
                )


def _weaker(of_bodies: Sequence[Row], obeys: Sequence[str]) -> Iterable[str]:
    """Name each mark whose interval on a student lies below that on the first body, the teacher."""
    first, *others = of_bodies
    for row in others:
        for mark in _marks(row, obeys):
            ours, theirs = row["with"][mark], first["with"][mark]
            if ours["high"] < theirs["low"]:
                where = f"{row['question'].capitalize()}: on {row['body']}"
                pair = f"{percent(ours['value'])} against {percent(theirs['value'])}"
                yield f"{where} {mark} is right less often than on {first['body']}, {pair}."


def _marks(row: Row, obeys: Sequence[str]) -> list[str]:
    """List the row's marks, those of the condition first."""
    return [*obeys, *(mark for mark in row["with"] if mark not in obeys)]


def _summary(result: Mapping[str, Any], run: Path) -> str:
    intro = (
        f"Trained on the softmax teacher {result['teacher']} alone, stored in the published "
        "formats, loaded by diffusers' own loaders, drawn by its own pipelines: on the teacher, "
        f"and on students that never met them. {result['pictures']} pictures a row, "
        f"{result['steps']} steps, guidance {result['guidance']:g}, seed {result['seed']}; "
        "intervals are Wilson's, of 95 %. Change is the mean difference of a pixel, of a range "
        f"of 1, between the pictures with and without it.{_where(run)}"
    )
    return f"<p>{html.escape(intro)}</p>\n{_bits(result)}"


def _where(run: Path) -> str:
    return f" Measured on {measured_on(project.read_json(run)['facts'])}." if run.exists() else ""


def _bits(result: Mapping[str, Any]) -> str:
    """Write a row for each plug-in: for every check "yes", or the bodies on which it fails."""
    lines = []
    for name in result["order"]:
        cells = [_bit(check, result["plugins"][name]["checks"]) for check in BITS]
        lines.append((name, cells))
    return table("Bit for bit", ["Bit for bit", *BITS.values()], lines)


def _bit(check: str, bodies: Mapping[str, Mapping[str, bool]]) -> str:
    outcomes = {body: results[check] for body, results in bodies.items() if check in results}
    failed = [body for body, passed in outcomes.items() if not passed]
    if failed:
        return f"not on {', '.join(failed)}"
    return "yes" if outcomes else "–"


def _section(name: str, plugin: Mapping[str, Any], shots: Mapping[str, Any]) -> str:
    items = "\n".join(f"<li>{html.escape(sentence)}</li>" for sentence in findings(plugin))
    marks = _marks(plugin["rows"][0], plugin["obeys"])
    lines = []
    for row in plugin["rows"]:
        lines.append((f"{row['body']} · {row['question']}", _cells(row, marks)))
    titles = [mark.capitalize() for mark in marks]
    heads = ["", *titles, *(f"{title} without" for title in titles), "Change"]
    blocks = [
        f"<p>{html.escape(INTROS.get(name, plugin['what']))} {_trained(plugin['recipe'])}</p>",
        f'<ul class="findings">\n{items}\n</ul>',
        table("Marks", heads, lines),
        f"<figure>{grid(name, plugin, shots).html()}</figure>" if shots else "",
    ]
    return "\n".join(filter(None, blocks))


def _trained(recipe: Mapping[str, Any]) -> str:
    small = f", {recipe['small']:,} of them at half the side" if recipe["small"] else ""
    return f"Training: {recipe['steps']:,} steps of {recipe['batch']} pictures{small}."


def _cells(row: Row, marks: Sequence[str]) -> list[Cell]:
    with_plugin = [cell(row["with"][mark]) for mark in marks]
    without = [cell(row["without"][mark]) for mark in marks]
    return [*with_plugin, *without, f"{row['difference']['value']:.3f}"]


def _shots(result: Mapping[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """Cut the sheet into pictures by plug-in and row."""
    shots: dict[str, dict[str, Any]] = {}
    if path.exists():
        for (name, row), pictures in read_sheet(map(tuple, result["sheet"]), path).items():
            shots.setdefault(name, {})[row] = pictures
    return shots


def grid(name: str, plugin: Mapping[str, Any], shots: Mapping[str, Any]) -> Picture:
    """Show the plug-in's inputs, and pictures without the plug-in, then with it on every body."""
    captions = ", ".join(caption or "(empty)" for caption in dict.fromkeys(plugin["captions"]))
    names = ", ".join(shots)
    alt = f"Pictures with {plugin['what']}, one row each for {names}. Captions: {captions}."
    return figures.grid(shots, alt=alt)
