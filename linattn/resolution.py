"""Sizes nobody trained at: pictures enlarged step by step, and what one forward costs up to 2048 px.

- The teacher draws at the side it was trained at. From there each model, teacher or student, draws again what was
  enlarged (`linattn.upscale`), twice. Enlarging alone is the row that all must beat.
- Shapes and colours are marked by the judge, who averages large pictures down: enlarging keeps them. What enlarging
  cannot do is `edges`: how steep they are, over those of true pictures at that size (1 is a true picture's).
- PSNR is to the teacher's own pictures of that size from the same noise, as in CLEAR's table.
- Times are of this machine and go to the run file; bytes do not depend on it, and neither does the largest size: a
  forward may take so many multiply-accumulates.
"""

import dataclasses
import functools
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from ruamel.yaml import YAML
from torch import Tensor, nn
from torch.nn import functional as F

from linattn import costs, evaluation, figures, metrics, notebooks, params, project, redraw, sampling, world
from linattn.evaluation import Bench

PARAMS = "studies/resolution/params.yaml"
NOTEBOOK = "studies/resolution/resolution.ipynb"
RESULT, RUN = "reports/studies/resolution.json", "reports/runs/resolution.run.json"
ENLARGED, TEACHER = "enlarged only", "teacher"
SHOWN = 3  # pictures that the report shows


@dataclass(frozen=True, kw_only=True)
class Settings:
    teachers: dict[str, list[str]]  # role -> students
    pictures: int
    steps: int
    seed: int
    factor: int
    strengths: tuple[float, ...]
    ntk: float
    sides: tuple[int, ...]
    limit: float


def load(path: str = PARAMS) -> Settings:
    told = YAML(typ="safe").load(project.ROOT / path)
    for key in told:
        params.known(key, [field.name for field in dataclasses.fields(Settings)], f"key of {path}:")
    return Settings(**{key: tuple(value) if isinstance(value, list) else value for key, value in told.items()})


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
        **evaluation.truth(bench, evaluation.eight_bits(pictures)),
        "edges": metrics.summary(edges(pictures) / true, bench.part.seed),
        "psnr": metrics.summary(metrics.distances(pictures, theirs)["psnr"], bench.part.seed),
    }


def enlarged_by(bench: Bench, told: Settings, names: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """A row a model, with its marks at every size, and the pictures of the last."""
    how = {"size": bench.side, "steps": told.steps, "seed": told.seed}
    small = sampling.draw(bench.teacher, bench.asked(told.pictures), **how)
    theirs = chain(bench, told, small, None)
    drawn = {ENLARGED: enlarging(told, small), TEACHER: theirs}
    for name in names:
        drawn[name] = chain(bench, told, small, evaluation.distilled(bench, name, None))
    if hasattr(getattr(bench.teacher.model, "pos_embed", None), "theta"):
        model = evaluation.distilled(bench, names[0], None)
        drawn[f"{names[0]}, ntk {told.ntk:g}"] = chain(bench, told, small, model, told.ntk)
    rows = []
    for name, pictures in drawn.items():
        rows.append({"model": name, "marks": [marks(bench, *pair) for pair in zip(pictures, theirs, strict=True)]})
        evaluation.say(f"{bench.role}, {name}: {_said(rows[-1]['marks'][-1])}")
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
        if costs.predict(_by(rows, "macs"), tokens) > told.limit:
            break
        macs = costs.macs(model, inputs=inputs)["total"]  # its forward is the warm-up of the next
        with torch.no_grad(), sampling.evaluating(model):
            call = functools.partial(model, **inputs)
            device = next(model.parameters()).device
            seconds, size = costs.seconds_of(call, device), costs.peak_memory(call, device, warm=True)
        rows.append({"side": side, "tokens": tokens, "macs": macs, "seconds": seconds, "bytes": size})
        evaluation.say(f"  {side} px: {macs:.3g} multiply-accumulates, {seconds:.3g} s, {size / 2**20:.0f} MiB")
    return rows


def _by(rows: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Rows whose `key` stands where costs.py looks for seconds."""
    return [{"tokens": row["tokens"], "seconds": row[key]} for row in rows]


def without_seconds(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is the same on every machine, with p of bytes and multiply-accumulates ~ tokens^p over the larger half."""
    kept = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return {"rows": kept, "exponents": {key: costs.exponent(_by(rows, key)) for key in ("bytes", "macs")}}


def seconds_alone(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kept = [{key: row[key] for key in ("side", "seconds")} for row in rows]
    return {"rows": kept, "exponent": costs.exponent(_by(rows, "seconds"))}


# The study -----------------------------------------------------------------------------------------------------------


def measure(told: Settings | None = None) -> dict[str, Any]:
    told, found, times = told or load(), {}, {}
    for role, names in told.teachers.items():
        bench = Bench(params.load(), role)
        rows, pictures = enlarged_by(bench, told, names)
        models = {TEACHER: bench.teacher.model} | {n: evaluation.distilled(bench, n, None) for n in names}
        grown = {}
        for name, model in models.items():
            evaluation.say(f"{role}, {name}: one forward")
            grown[name] = growing(bench, told, model)
        asked = bench.teacher.conditions.words(bench.asked(SHOWN))
        forwards = {name: without_seconds(each) for name, each in grown.items()}
        shown = {"folder": evaluation.shown_of(bench)["folder"], "asked": asked}
        found[role] = {**shown, "rows": rows, "forwards": forwards}
        times[role] = {name: seconds_alone(each) for name, each in grown.items()}
        write_sheet(pictures, project.place(sheet(role), write=True))
    result = {key: value for key, value in dataclasses.asdict(told).items() if key != "teachers"}
    result |= {"teachers": found}
    project.write_json(project.place(RUN, write=True), {"facts": project.facts(), "times": times})
    project.write_json(project.place(RESULT, write=True), result)
    return result


def sheet(role: str) -> str:
    """The last size, a row a model: JPEG, or half a megabyte of each teacher would be in Git."""
    return f"reports/studies/resolution-{role}.jpg"


def write_sheet(pictures: Mapping[str, Tensor], path: Path) -> None:
    rows = [torch.cat(list(evaluation.eight_bits(each)), dim=2) for each in pictures.values()]  # (3, side, shown sides)
    Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()).save(path, quality=85, optimize=True)


def read_sheet(names: Sequence[str], path: Path) -> dict[str, np.ndarray]:
    """Model -> (pictures, 3, side, side) bytes."""
    pixels = np.asarray(Image.open(path))
    side = pixels.shape[0] // len(names)
    rows = pixels.reshape(len(names), side, -1, side, 3).transpose(0, 2, 4, 1, 3)
    return dict(zip(names, rows, strict=True))


# The report ----------------------------------------------------------------------------------------------------------


def sections() -> list[tuple[str, str]]:
    """(title, HTML) of each teacher; nothing where the study was not run."""
    if not project.place(RESULT).exists():
        return []
    result = project.read_json(project.place(RESULT))
    run = project.read_json(project.place(RUN)) if project.place(RUN).exists() else {"times": {}}
    found = [("Other resolutions", _intro(result))]
    for role, part in result["teachers"].items():
        body = table(part["rows"]) + growth(part["forwards"], run["times"].get(role, {}))
        if project.place(sheet(role)).exists():
            pictures = read_sheet([row["model"] for row in part["rows"]], project.place(sheet(role)))
            alt = f"Enlarged pictures, one row each for {', '.join(pictures)}. Asked: {'; '.join(part['asked'])}."
            body += f"<figure>{figures.grid(pictures, alt=alt).html()}</figure>"
        found.append((f"{part['folder']} from {_first(part)} px on", body))
    return found


def _first(part: Mapping[str, Any]) -> int:
    return part["rows"][0]["marks"][0]["side"]


def _intro(result: Mapping[str, Any]) -> str:
    strengths = " and ".join(f"{each:g}" for each in result["strengths"])
    return (
        f"<p>{result['pictures']} pictures of each teacher, enlarged {result['factor']} times and drawn again from "
        f"noise of strength {strengths} ({result['steps']} steps, seed {result['seed']}). Edges are over those of true "
        "pictures of that size, 1 is as steep; enlarging alone keeps shapes and loses edges. PSNR is to what the "
        "teacher makes of the same noise.</p>"
    )


COLUMNS = {"shape": ("Shape, %", 100, 1), "edges": ("Edges", 1, 2), "psnr": ("PSNR, dB", 1, 1)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    sides = [mark["side"] for mark in rows[0]["marks"]]
    heads = "".join(f'<th scope="col">{title}, {side} px</th>' for side in sides for title, *_ in COLUMNS.values())
    body = "".join(
        f'<tr><th scope="row">{html.escape(row["model"])}</th>'
        + "".join(f"<td>{_number(mark[key], *how[1:])}</td>" for mark in row["marks"] for key, how in COLUMNS.items())
        + "</tr>"
        for row in rows
    )
    return _scroll("Pictures at other sizes", f'<tr><th scope="col"></th>{heads}</tr>', body)


def _number(measure: Mapping[str, Any], scale: float, digits: int) -> str:
    value, low, high = (measure[key] for key in ("value", "low", "high"))
    if value is None or (scale == 1 and digits == 1 and value >= metrics.PSNR_MOST):
        return "–"
    span = (
        "" if low is None else f' <span class="interval">{low * scale:.{digits}f} to {high * scale:.{digits}f}</span>'
    )
    return f"{value * scale:.{digits}f}{span}"


def growth(forwards: Mapping[str, Any], times: Mapping[str, Any]) -> str:
    """One forward: seconds and memory by side, with the exponents of both and of the arithmetic."""
    sides = sorted({row["side"] for each in forwards.values() for row in each["rows"]})
    heads = "".join(f'<th scope="col">{side} px</th>' for side in sides)
    rows = ""
    for name, each in forwards.items():
        timed = times.get(name, {"rows": [], "exponent": None})
        seconds = {row["side"]: row["seconds"] for row in timed["rows"]}
        size = {row["side"]: row["bytes"] for row in each["rows"]}
        cells = "".join(f"<td>{_forward(seconds.get(side), size.get(side))}</td>" for side in sides)
        powers = (timed["exponent"], each["exponents"]["bytes"], each["exponents"]["macs"])
        cells += "".join(f"<td>{'–' if power is None else f'{power:.2f}'}</td>" for power in powers)
        rows += f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>'
    heads += "".join(f'<th scope="col">{what} ~ tokens to the</th>' for what in ("Time", "Memory", "Arithmetic"))
    return _scroll("One forward by size", f'<tr><th scope="col">One forward</th>{heads}</tr>', rows)


def _forward(seconds: float | None, size: int | None) -> str:
    if size is None:
        return "–"
    shown = f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
    return shown if seconds is None else f'{figures.seconds(seconds)} <span class="interval">{shown}</span>'


def _scroll(label: str, head: str, body: str) -> str:
    whole = f"<table>\n<thead>{head}</thead>\n<tbody>{body}</tbody>\n</table>"
    return f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">\n{whole}\n</div>'


if __name__ == "__main__":
    notebooks.run(project.ROOT / NOTEBOOK, project.ROOT / "reports" / "notebooks" / NOTEBOOK)
