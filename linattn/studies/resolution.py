"""Sizes nobody trained at: pictures enlarged step by step, and what one forward costs up to 2048 px.

- The teacher draws at the side it was trained at. From there each model, teacher or student, draws again what was
  enlarged (`linattn.upscale`), twice. Enlarging alone is the row that all must beat.
- Shapes and colours are marked by the judge, who averages large pictures down: enlarging keeps them. What enlarging
  cannot do is `edges`: how steep they are, over those of true pictures at that size (1 is a true picture's).
- PSNR is to the teacher's own pictures of that size from the same noise, as in CLEAR's table.
- Times are of a machine and go to the run file, which names it; bytes do not depend on it, and neither does the largest
  size: a forward may take so many multiply-accumulates.
"""

import dataclasses
import functools
import html
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from torch import Tensor, nn
from torch.nn import functional as F

from linattn import intervals, params, project, redraw, sampling, world
from linattn.evaluation import costs
from linattn.evaluation.bench import Bench, eight_bits, say
from linattn.evaluation.distance import PSNR_MOST, distances
from linattn.evaluation.evaluation import distilled
from linattn.evaluation.growth import exponent, predict
from linattn.evaluation.rows import shown_of, truth
from linattn.report import figures, numbers, studyparts

PARAMS = "studies/resolution/params.yaml"
RESULT = "resolution.json"
ENLARGED, TEACHER = "enlarged only", "teacher"
SHOWN = 3  # pictures that the report shows


@dataclass(frozen=True, kw_only=True)
class Settings:
    teachers: dict  # role -> students
    pictures: int
    steps: int
    seed: int
    factor: int
    strengths: tuple[float, ...]
    ntk: int | float  # as it is written: the result names it
    sides: tuple[int, ...]
    limit: float


def load(path: str | Path = PARAMS) -> Settings:
    """Strictly, as params.yaml is read: an unknown key or a value of another kind is an error."""
    return params.read(Settings, YAML(typ="safe").load(project.ROOT / path), str(path))


def student(bench: Bench, name: str) -> nn.Module:
    """The published student: studies depend on what Git holds, not on what ran here."""
    return distilled(bench, project.published(f"students/{name}"))


# Pictures ------------------------------------------------------------------------------------------------------------


def chain(bench: Bench, told: Settings, small: Tensor, model: nn.Module | None, ntk: float = 1.0) -> list[Tensor]:
    """The picture at every size, each drawn again from the one before."""
    asked, found = bench.asked(told.pictures), [small]
    for number, strength in enumerate(told.strengths):
        how = {"asked": asked, "steps": told.steps, "seed": told.seed + 1 + number, "model": model, "ntk": ntk}
        found.append(redraw.upscale(bench.teacher, found[-1], told.factor, strength, **how, batch=4))
    return found[1:]


def enlarging(told: Settings, small: Tensor) -> list[Tensor]:
    sizes = [tuple(side * told.factor ** (1 + n) for side in small.shape[-2:]) for n in range(len(told.strengths))]
    return [redraw.enlarged(small, size) for size in sizes]


def edges(pictures: Tensor) -> Tensor:
    """The steepest hundredth of a picture, (pictures,): differences of neighbours, the larger of both ways."""
    right = F.pad(pictures.diff(dim=3), (0, 1)).abs().amax(1)
    down = F.pad(pictures.diff(dim=2), (0, 0, 0, 1)).abs().amax(1)
    steepness = torch.maximum(right, down).flatten(1)  # (pictures, pixels)
    return steepness.topk(max(1, steepness.shape[1] // 100), dim=1).values.mean(1)


def marks(bench: Bench, pictures: Tensor, theirs: Tensor) -> dict[str, Any]:
    count, side = len(pictures), pictures.shape[-1]
    true = edges(world.render(bench.scenes(count), side)).mean()
    return {
        "side": side,
        **truth(bench, eight_bits(pictures)),
        "edges": intervals.summary(edges(pictures) / true, bench.part.seed),
        "psnr": intervals.summary(distances(pictures, theirs)["psnr"], bench.part.seed),
    }


def enlarged_by(bench: Bench, told: Settings, names: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """A row a model, with its marks at every size, and the pictures of the last."""
    how = {"size": bench.side, "steps": told.steps, "seed": told.seed}
    small = sampling.draw(bench.teacher, bench.asked(told.pictures), **how)
    theirs = chain(bench, told, small, None)
    drawn = {ENLARGED: enlarging(told, small), TEACHER: theirs}
    for name in names:
        drawn[name] = chain(bench, told, small, student(bench, name))
    if hasattr(getattr(bench.teacher.model, "pos_embed", None), "theta"):
        model = student(bench, names[0])
        drawn[f"{names[0]}, ntk {told.ntk:g}"] = chain(bench, told, small, model, told.ntk)
    rows = []
    for name, pictures in drawn.items():
        rows.append({"model": name, "marks": [marks(bench, *pair) for pair in zip(pictures, theirs, strict=True)]})
        say(f"{bench.role}, {name}: {_said(rows[-1]['marks'][-1])}")
    return rows, {name: pictures[-1][:SHOWN] for name, pictures in drawn.items()}


def _said(mark: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name} {mark[name]['value']:.3g}" for name in ("shape", "edges", "psnr"))
    return f"{mark['side']} px, {shown}"


# One forward ---------------------------------------------------------------------------------------------------------


def growing(bench: Bench, told: Settings, model: nn.Module) -> list[dict[str, Any]]:
    """Seconds, bytes and multiply-accumulates of one forward of one picture, a row a side, as far as the limit lets."""
    rows: list[dict[str, Any]] = []
    source = sampling.Source.of(bench.teacher)
    for side in told.sides:
        sides = sampling.latent_sides(source, side)
        inputs = bench.teacher.conditions.example(*sides, bench.asked(1))
        tokens = sides[0] * sides[1] // source.conditions.unit**2
        if predict(_by(rows, "macs"), tokens) > told.limit:
            break
        macs = costs.macs(model, inputs=inputs)["total"]  # its forward is the warm-up of the next
        with torch.no_grad(), sampling.evaluating(model):
            call = functools.partial(model, **inputs)
            device = next(model.parameters()).device
            seconds, size = costs.seconds_of(call, device), costs.peak_memory(call, device, warm=True)
        rows.append({"side": side, "tokens": tokens, "macs": macs, "seconds": seconds, "bytes": size})
        say(f"  {side} px: {macs:.3g} multiply-accumulates, {seconds:.3g} s, {size / 2**20:.0f} MiB")
    return rows


def _by(rows: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Rows whose `key` stands where growth.py looks for seconds."""
    return [{"tokens": row["tokens"], "seconds": row[key]} for row in rows]


def without_seconds(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is the same on every machine, with p of bytes and multiply-accumulates ~ tokens^p over the larger half."""
    kept = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return {"rows": kept, "exponents": {key: exponent(_by(rows, key)) for key in ("bytes", "macs")}}


def seconds_alone(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kept = [{key: row[key] for key in ("side", "seconds")} for row in rows]
    return {"rows": kept, "exponent": exponent(_by(rows, "seconds"))}


# The study -----------------------------------------------------------------------------------------------------------


def measure(told: Settings | None = None) -> dict[str, Any]:
    told, found, times = told or load(), {}, {}
    for role, names in told.teachers.items():
        bench = Bench(params.load(), role)
        rows, pictures = enlarged_by(bench, told, names)
        models = {TEACHER: bench.teacher.model} | {n: student(bench, n) for n in names}
        grown = {}
        for name, model in models.items():
            say(f"{role}, {name}: one forward")
            grown[name] = growing(bench, told, model)
        asked = bench.teacher.conditions.words(bench.asked(SHOWN))
        forwards = {name: without_seconds(each) for name, each in grown.items()}
        shown = {"folder": shown_of(bench)["folder"], "asked": asked}
        found[role] = {**shown, "rows": rows, "forwards": forwards}
        times[role] = {name: seconds_alone(each) for name, each in grown.items()}
        studyparts.write_sheet(pictures, project.study(sheet(role), write=True), quality=85)
    result = {key: value for key, value in dataclasses.asdict(told).items() if key != "teachers"}
    result |= {"teachers": found}
    run = {"facts": project.facts(), "times": times}
    project.write_json(studyparts.run_file("resolution", write=True), run)
    project.write_json(project.study(RESULT, write=True), result)
    return result


def sheet(role: str) -> str:
    """The last size, a row a model."""
    return f"resolution-{role}.jpg"


# The report ----------------------------------------------------------------------------------------------------------


def sections() -> list[tuple[str, str]]:
    """(title, HTML) of each teacher; nothing where the study was not run."""
    if not project.study(RESULT).exists():
        return []
    result = project.read_json(project.study(RESULT))
    path = studyparts.run_file("resolution")
    run = project.read_json(path) if path.exists() else {}
    times = run.get("times", {})
    found = [("Other resolutions", _intro(result, run.get("facts")))]
    for role, part in result["teachers"].items():
        body = table(part["rows"]) + growth(part["forwards"], times.get(role, {}))
        if project.study(sheet(role)).exists():
            pictures = studyparts.read_sheet([row["model"] for row in part["rows"]], project.study(sheet(role)))
            alt = f"Enlarged pictures, one row each for {', '.join(pictures)}. Asked: {'; '.join(part['asked'])}."
            body += f"<figure>{figures.grid(pictures, alt=alt).html()}</figure>"
        found.append((f"{part['folder']} from {_first(part)} px on", body))
    return found


def _first(part: Mapping[str, Any]) -> int:
    return part["rows"][0]["marks"][0]["side"]


def _intro(result: Mapping[str, Any], facts: Mapping[str, Any] | None) -> str:
    strengths = " and ".join(f"{each:g}" for each in result["strengths"])
    where = f" Seconds were measured on {html.escape(studyparts.measured_on(facts))}." if facts else ""
    return (
        f"<p>{result['pictures']} pictures of each teacher, enlarged {result['factor']} times and drawn again from "
        f"noise of strength {strengths} ({result['steps']} steps, seed {result['seed']}). Edges are over those of true "
        "pictures of that size, 1 is as steep; enlarging alone keeps shapes and loses edges. PSNR is to what the "
        f"teacher makes of the same noise. Shapes are over those that show one thing.{where}</p>"
    )


COLUMNS = {"shape": ("Shape, %", 100, 1), "edges": ("Edges", 1, 2), "psnr": ("PSNR, dB", 1, 1)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    sides = [mark["side"] for mark in rows[0]["marks"]]
    heads = ["", *(f"{title}, {side} px" for side in sides for title, *_ in COLUMNS.values())]
    found = [(row["model"], [_cell(mark, key) for mark in row["marks"] for key in COLUMNS]) for row in rows]
    return studyparts.table("Pictures at other sizes", heads, found)


def _cell(mark: Mapping[str, Any], key: str) -> studyparts.Cell:
    """The same picture has no distance worth a number."""
    same = key == "psnr" and (mark[key]["value"] or 0) >= PSNR_MOST
    return "–" if same else studyparts.cell(mark[key], *COLUMNS[key][1:])


def growth(forwards: Mapping[str, Any], times: Mapping[str, Any]) -> str:
    """One forward: seconds and memory by side, with the exponents of both and of the arithmetic."""
    sides = sorted({row["side"] for each in forwards.values() for row in each["rows"]})
    powers = [f"{what} ~ tokens to the" for what in ("Time", "Memory", "Arithmetic")]
    rows = []
    for name, each in forwards.items():
        timed = times.get(name, {"rows": [], "exponent": None})
        seconds = {row["side"]: row["seconds"] for row in timed["rows"]}
        size = {row["side"]: row["bytes"] for row in each["rows"]}
        found = (timed["exponent"], each["exponents"]["bytes"], each["exponents"]["macs"])
        cells = [_forward(seconds.get(side), size.get(side)) for side in sides]
        rows.append((name, [*cells, *("–" if power is None else f"{power:.2f}" for power in found)]))
    heads = ["One forward", *(f"{side} px" for side in sides), *powers]
    return studyparts.table("One forward by size", heads, rows)


def _forward(seconds: float | None, size: int | None) -> studyparts.Cell:
    if size is None:
        return "–"
    shown = f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
    return shown if seconds is None else (numbers.seconds(seconds), shown)


def main() -> int:
    return studyparts.run("resolution", "resolution", "resolution")


if __name__ == "__main__":
    sys.exit(main())
