"""The report's sections on plug-ins, written from the study's result: `sections()` gives their
titles and HTML.

Sentences follow from the numbers: of a plug-in that does nothing on a student they say so.
"""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from linattn import project
from linattn.report import figures
from linattn.report.picture import Picture
from linattn.report.studyparts import Cell, cell, measured_on, read_sheet, run_file, table
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
ASKED = {
    "control": "The edges come from a true picture of the world. The judge says whether what was drawn has its shape; "
    "it lies in place if it shares half of the area that it and the true thing cover together.",
    "lora-attn1": "It was trained to put dots behind everything. Captions ask for another background.",
    "lora-attn2": "The same style, learned by the layers that nobody replaces.",
    "adapter": "A true picture is shown and the caption is empty. Asked is its shape, colour and kind of background.",
    "recolour": "The teacher was trained on, in a world where every colour's word means the colour two hues on. Its "
    "students' layers were put into that fine-tune as they are; “not distilled” is the fine-tune's "
    "own attention in "
    "the student's form. Without: the same layers in the teacher.",
}
BITS = {
    "differs": "pictures differ with it",
    "silenced": "at scale 0, none does",
    "removed": "taken away, none does",
    "either order": "before or after the student, the same",
    "restored": "restore gives the original",
}


def sections() -> list[tuple[str, str]]:
    """Return (title, HTML) of every section, and nothing where the study has not run."""
    path = project.study(settings.RESULT)
    if not path.exists():
        return []
    result = json.loads(path.read_text())
    shots = _shots(result)
    plugins = [
        (TITLES.get(name, name), _section(name, result["plugins"][name], shots.get(name, {})))
        for name in result["order"]
    ]
    return [("Plug-ins beside replaced attention", _summary(result)), *plugins]


def findings(plugin: Mapping[str, Any]) -> list[str]:
    """Say for every question how far the condition is obeyed, where it has no effect, and what the
    teacher does better.

    `plugin` is the plug-in's entry in the result.
    """
    sentences, obeys = [], plugin["obeys"]
    for question in dict.fromkeys(row["question"] for row in plugin["rows"]):
        rows = [row for row in plugin["rows"] if row["question"] == question]
        sentences += [_obeyed(rows, obeys), *_idle(rows, obeys), *_weaker(rows, obeys)]
    return sentences


def _obeyed(rows: Sequence[Row], obeys: Sequence[str]) -> str:
    """Give the shares that obey the condition on every body, with and without the plug-in."""
    clauses = []
    for row in rows:
        marks = [
            f"{mark} {with_interval(row['with'][mark])}, without it {percent(row['without'][mark]['value'])}"
            for mark in obeys
        ]
        clauses.append(f"on {row['body']} {', '.join(marks)}")
    return f"{rows[0]['question'].capitalize()}: {'; '.join(clauses)}."


def _idle(rows: Sequence[Row], obeys: Sequence[str]) -> Iterable[str]:
    """Name each mark of the condition whose interval with the plug-in is not above the interval
    without it.
    """
    for row in rows:
        for mark in obeys:
            if row["with"][mark]["low"] <= row["without"][mark]["high"]:
                where = f"{row['question'].capitalize()}: on {row['body']}"
                yield f"{where} {mark} is not right more often with it than without, as far as this tells."


def _weaker(rows: Sequence[Row], obeys: Sequence[str]) -> Iterable[str]:
    """Name each mark whose interval on a student lies below that on the first body, the teacher."""
    first, *others = rows
    for row in others:
        for mark in _marks(row, obeys):
            ours, theirs = row["with"][mark], first["with"][mark]
            if ours["high"] < theirs["low"]:
                where = f"{row['question'].capitalize()}: on {row['body']}"
                pair = f"{percent(ours['value'])} against {percent(theirs['value'])}"
                yield f"{where} {mark} is right less often than on {first['body']}, {pair}."


def _marks(row: Row, obeys: Sequence[str]) -> list[str]:
    """Return the row's marks, those of the condition first."""
    return [*obeys, *(mark for mark in row["with"] if mark not in obeys)]


def _summary(result: Mapping[str, Any]) -> str:
    intro = (
        f"Trained on the softmax teacher {result['teacher']} alone, stored in the published "
        "formats, loaded by "
        "diffusers' own loaders, drawn by its own pipelines: on the teacher, and on students that "
        "never met them. "
        f"{result['pictures']} pictures a row, {result['steps']} steps, guidance "
        f"{result['guidance']:g}, seed "
        f"{result['seed']}; intervals are Wilson's, of 95 %. Change is the mean difference of a "
        "pixel, of a range "
        f"of 1, between the pictures with and without it.{_where()}"
    )
    return f"<p>{html.escape(intro)}</p>\n{_bits(result)}"


def _where() -> str:
    path = run_file("plugins")
    return f" Measured on {measured_on(project.read_json(path)['facts'])}." if path.exists() else ""


def _bits(result: Mapping[str, Any]) -> str:
    """Write a row for each plug-in: for every check "yes", or the bodies on which it fails."""
    rows = []
    for name in result["order"]:
        cells = [_bit(check, result["plugins"][name]["checks"]) for check in BITS]
        rows.append((name, cells))
    return table("Bit for bit", ["Bit for bit", *BITS.values()], rows)


def _bit(check: str, bodies: Mapping[str, Mapping[str, bool]]) -> str:
    outcomes = {body: results[check] for body, results in bodies.items() if check in results}
    failed = [body for body, passed in outcomes.items() if not passed]
    if failed:
        return f"not on {', '.join(failed)}"
    return "yes" if outcomes else "–"


def _section(name: str, plugin: Mapping[str, Any], shots: Mapping[str, Any]) -> str:
    items = "\n".join(f"<li>{html.escape(sentence)}</li>" for sentence in findings(plugin))
    marks = _marks(plugin["rows"][0], plugin["obeys"])
    rows = [(f"{row['body']} · {row['question']}", _cells(row, marks)) for row in plugin["rows"]]
    titles = [mark.capitalize() for mark in marks]
    heads = ["", *titles, *(f"{title} without" for title in titles), "Change"]
    blocks = [
        f"<p>{html.escape(ASKED.get(name, plugin['what']))} {_trained(plugin['recipe'])}</p>",
        f'<ul class="findings">\n{items}\n</ul>',
        table("Marks", heads, rows),
        f"<figure>{grid(name, plugin, shots).html()}</figure>" if shots else "",
    ]
    return "\n".join(filter(None, blocks))


def _trained(recipe: Mapping[str, Any]) -> str:
    small = f", {recipe['small']:,} of them at half the side" if recipe["small"] else ""
    return f"Training: {recipe['steps']:,} steps of {recipe['batch']} pictures{small}."


def _cells(row: Row, marks: Sequence[str]) -> list[Cell]:
    shares = [cell(row[side][mark]) for side in ("with", "without") for mark in marks]
    return [*shares, f"{row['difference']['value']:.3f}"]


def _shots(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Cut the sheet into pictures by plug-in and row."""
    path, shots = project.study(settings.SHEET), {}
    if path.exists():
        for (name, row), pictures in read_sheet(map(tuple, result["sheet"]), path).items():
            shots.setdefault(name, {})[row] = pictures
    return shots


def grid(name: str, plugin: Mapping[str, Any], shots: Mapping[str, Any]) -> Picture:
    """Show the plug-in's inputs, and the pictures drawn without the plug-in, then with it on every
    body.
    """
    captions = ", ".join(caption or "(empty)" for caption in dict.fromkeys(plugin["captions"]))
    rows = ", ".join(shots)
    return figures.grid(
        shots, alt=f"Pictures with {plugin['what']}, one row each for {rows}. Captions: {captions}."
    )
