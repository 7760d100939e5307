"""Study sizes that nobody trained at: enlarged pictures, and one forward up to 2048 px.

- The teacher draws at the side it was trained at. From there each model, teacher or student, draws
  the enlarged pictures again (`linattn.upscale`), twice. Enlarging alone is the row that all models
  must beat.
- The judge marks shapes and colours. It averages large pictures down, so enlarging keeps these
  marks. Enlarging cannot keep `edges`: their steepness divided by that of true pictures of the same
  size (1 is a true picture's).
- PSNR compares with the teacher's own pictures of that size from the same noise, as in CLEAR's
  table.
- Times depend on the machine and go to the run file, which names it. Bytes do not depend on it, and
  neither does the largest size, which a limit of multiply-accumulates sets.
"""

import dataclasses
import functools
import html
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn import intervals, params, project, reader, redraw, sampling, world
from linattn.evaluation import costs
from linattn.evaluation.bench import Bench, say
from linattn.evaluation.distance import PSNR_MOST, distances
from linattn.evaluation.evaluation import distilled
from linattn.evaluation.growth import exponent, predict
from linattn.evaluation.rows import shown_of, truth
from linattn.reader import between
from linattn.report import figures, numbers, studyparts

PARAMS = "studies/resolution/params.yaml"
RESULT = "resolution.json"
ENLARGED, TEACHER = "enlarged only", "teacher"
SHOWN = 3  # pictures in each row of the report's grid


@dataclass(frozen=True, kw_only=True)
class Settings:
    teachers: dict[str, tuple[str, ...]]  # students by role
    pictures: int = between(1)
    steps: int = between(1)
    seed: int = between(0)
    factor: int = between(1)
    strengths: tuple[float, ...] = between(0, 1)
    ntk: int | float = between(1)  # keeps the written type, because the result repeats it
    sides: tuple[int, ...] = between(1)
    limit: float = between(0)


def load(path: str | Path = PARAMS) -> Settings:
    """Read the settings as strictly as params.yaml."""
    return reader.read(Settings, reader.read_yaml(project.ROOT / path), str(path))


def student(bench: Bench, name: str) -> nn.Module:
    """Load the published student: studies depend on what Git holds, not on what ran here."""
    return distilled(bench, project.published(f"students/{name}"))


# Pictures
# ---------------------------------------------------------------------------------------------


def chain(
    bench: Bench, settings: Settings, small: Tensor, model: nn.Module | None, ntk: float = 1.0
) -> list[Tensor]:
    """Draw the pictures at every size, each from the pictures of the size before."""
    prompts, pictures = bench.prompts(settings.pictures), [small]
    for level, strength in enumerate(settings.strengths):
        larger = redraw.upscale(
            bench.teacher,
            pictures[-1],
            settings.factor,
            strength,
            prompts=prompts,
            steps=settings.steps,
            seed=settings.seed + 1 + level,
            model=model,
            ntk=ntk,
            batch=4,
        )
        pictures.append(larger)
    return pictures[1:]


def enlarging(settings: Settings, small: Tensor) -> list[Tensor]:
    """Enlarge the pictures to every size without drawing them again."""
    pictures, (height, width) = [], small.shape[-2:]
    for level in range(len(settings.strengths)):
        scale = settings.factor ** (1 + level)
        pictures.append(redraw.enlarged(small, (height * scale, width * scale)))
    return pictures


def edges(pictures: Tensor) -> Tensor:
    """Average the steepest hundredth of each picture's pixels, (pictures,).

    A pixel's steepness is its larger difference to the next pixel, rightwards or downwards.
    """
    right = F.pad(pictures.diff(dim=3), (0, 1)).abs().amax(1)
    down = F.pad(pictures.diff(dim=2), (0, 0, 0, 1)).abs().amax(1)
    steepness = torch.maximum(right, down).flatten(1)  # (pictures, pixels)
    return steepness.topk(max(1, steepness.shape[1] // 100), dim=1).values.mean(1)


def marks(bench: Bench, pictures: Tensor, reference: Tensor) -> dict[str, Any]:
    """Measure pictures of one size; `reference` are the teacher's."""
    count, side = len(pictures), pictures.shape[-1]
    true = edges(world.render(bench.scenes(count), side)).mean()
    return {
        "side": side,
        **truth(bench, sampling.eight_bits(pictures)),
        "edges": intervals.summary(edges(pictures) / true, bench.evaluation.seed),
        "psnr": intervals.summary(distances(pictures, reference)["psnr"], bench.evaluation.seed),
    }


def enlarged_by(
    bench: Bench, settings: Settings, names: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Draw with every model; return each model's marks at every size, and its largest pictures."""
    prompts = bench.prompts(settings.pictures)
    small = sampling.draw(
        bench.teacher, prompts, size=bench.side, steps=settings.steps, seed=settings.seed
    )
    reference = chain(bench, settings, small, None)
    drawn = {ENLARGED: enlarging(settings, small), TEACHER: reference}
    for name in names:
        drawn[name] = chain(bench, settings, small, student(bench, name))
    if hasattr(getattr(bench.teacher.model, "pos_embed", None), "theta"):
        model = student(bench, names[0])
        drawn[f"{names[0]}, ntk {settings.ntk:g}"] = chain(
            bench, settings, small, model, settings.ntk
        )
    marked = []
    for name, pictures in drawn.items():
        by_size = [marks(bench, *pair) for pair in zip(pictures, reference, strict=True)]
        marked.append({"model": name, "marks": by_size})
        say(f"{bench.role}, {name}: {_marks_text(by_size[-1])}")
    return marked, {name: pictures[-1][:SHOWN] for name, pictures in drawn.items()}


def _marks_text(mark: Mapping[str, Any]) -> str:
    """Write the marks of one size for the log."""
    values = ", ".join(f"{name} {mark[name]['value']:.3g}" for name in ("shape", "edges", "psnr"))
    return f"{mark['side']} px, {values}"


# One forward
# ---------------------------------------------------------------------------------------------


def growing(bench: Bench, settings: Settings, model: nn.Module) -> list[dict[str, Any]]:
    """Measure one forward of one picture at every side: seconds, bytes and multiply-accumulates.

    The rows end before the first side that is predicted to exceed the limit of
    multiply-accumulates.
    """
    forwards: list[dict[str, Any]] = []
    source = sampling.Source.of(bench.teacher)
    for side in settings.sides:
        sides = sampling.latent_sides(source, side)
        inputs = bench.teacher.conditions.example(*sides, bench.prompts(1))
        tokens = sides[0] * sides[1] // source.conditions.divisor**2
        if predict(_as_seconds(forwards, "macs"), tokens) > settings.limit:
            break
        macs = costs.macs(model, inputs=inputs)["total"]  # this forward also warms up the timed one
        with torch.no_grad(), sampling.evaluating(model):
            call = functools.partial(model, **inputs)
            device = next(model.parameters()).device
            seconds = costs.seconds_of(call, device)
            memory = costs.peak_memory(call, device, warm=True)
        forward = {"side": side, "tokens": tokens, "macs": macs}
        forwards.append({**forward, "seconds": seconds, "bytes": memory})
        mebibytes = memory / 2**20
        say(f"  {side} px: {macs:.3g} multiply-accumulates, {seconds:.3g} s, {mebibytes:.0f} MiB")
    return forwards


def _as_seconds(forwards: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Put each `key` under "seconds", the key whose growth growth.py fits."""
    return [{"tokens": forward["tokens"], "seconds": forward[key]} for forward in forwards]


def without_seconds(forwards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is the same on every machine, with the exponents of bytes and arithmetic.

    An exponent is p in bytes ~ tokens^p, fitted over the larger half of the sizes.
    """
    kept = []
    for forward in forwards:
        kept.append({key: value for key, value in forward.items() if key != "seconds"})
    exponents = {key: exponent(_as_seconds(forwards, key)) for key in ("bytes", "macs")}
    return {"rows": kept, "exponents": exponents}


def seconds_alone(forwards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the seconds by side, with their exponent."""
    kept = [{"side": forward["side"], "seconds": forward["seconds"]} for forward in forwards]
    return {"rows": kept, "exponent": exponent(_as_seconds(forwards, "seconds"))}


# The study
# ---------------------------------------------------------------------------------------------


def measure(settings: Settings | None = None) -> dict[str, Any]:
    """Measure every model of every teacher; write and return the result, and write the run file."""
    settings = settings or load()
    teachers, times = {}, {}
    for role, names in settings.teachers.items():
        teachers[role], times[role] = measure_teacher(role, names, settings)
    result = dataclasses.asdict(settings)
    result["teachers"] = teachers
    run = {"facts": project.facts(), "times": times}
    project.write_json(studyparts.run_file("resolution", write=True), run)
    project.write_json(project.study(RESULT, write=True), result)
    return result


def measure_teacher(
    role: str, names: Sequence[str], settings: Settings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure a teacher and its students; return its entries of result and run file.

    The sheet of pictures is written.
    """
    bench = Bench(params.load(), role)
    marked, pictures = enlarged_by(bench, settings, names)
    models = {TEACHER: bench.teacher.model} | {name: student(bench, name) for name in names}
    grown = {}
    for name, model in models.items():
        say(f"{role}, {name}: one forward")
        grown[name] = growing(bench, settings, model)
    entry = {
        "folder": shown_of(bench)["folder"],
        "asked": bench.teacher.conditions.words(bench.prompts(SHOWN)),
        "rows": marked,
        "forwards": {name: without_seconds(forwards) for name, forwards in grown.items()},
    }
    studyparts.write_sheet(pictures, project.study(sheet(role), write=True), quality=85)
    return entry, {name: seconds_alone(forwards) for name, forwards in grown.items()}


def sheet(role: str) -> str:
    """Name the sheet of the last size, which has a row of pictures for each model."""
    return f"resolution-{role}.jpg"


# The report
# ---------------------------------------------------------------------------------------------


def sections(file: Callable[[str], Path] | None = None) -> list[tuple[str, str]]:
    """Return (title, HTML) of each teacher, and nothing where the study was not run.

    `file` gives the path of a study's file; by default of the run here, else the published one.
    """
    file = file or project.study
    if not file(RESULT).exists():
        return []
    result = project.read_json(file(RESULT))
    path = file(studyparts.run_name("resolution"))
    run = project.read_json(path) if path.exists() else {}
    times = run.get("times", {})
    titled = [("Other resolutions", _intro(result, run.get("facts")))]
    for role, teacher in result["teachers"].items():
        body = table(teacher["rows"]) + growth(teacher["forwards"], times.get(role, {}))
        if file(sheet(role)).exists():
            body += _pictures(teacher, file(sheet(role)))
        titled.append((f"{teacher['folder']} from {_first_side(teacher)} px on", body))
    return titled


def _pictures(teacher: Mapping[str, Any], path: Path) -> str:
    models = [row["model"] for row in teacher["rows"]]
    prompts = "; ".join(teacher["asked"])
    alt = f"Enlarged pictures, one row each for {', '.join(models)}. Asked: {prompts}."
    return f"<figure>{figures.grid(studyparts.read_sheet(models, path), alt=alt).html()}</figure>"


def _first_side(teacher: Mapping[str, Any]) -> int:
    return teacher["rows"][0]["marks"][0]["side"]


def _intro(result: Mapping[str, Any], facts: Mapping[str, Any] | None) -> str:
    strengths = " and ".join(f"{strength:g}" for strength in result["strengths"])
    where = ""
    if facts:
        where = f" Seconds were measured on {html.escape(studyparts.measured_on(facts))}."
    return (
        f"<p>{result['pictures']} pictures of each teacher, enlarged {result['factor']} times and "
        f"drawn again from noise of strength {strengths} ({result['steps']} steps, seed "
        f"{result['seed']}). Edges are over those of true pictures of that size, 1 is as steep; "
        "enlarging alone keeps shapes and loses edges. PSNR is to what the teacher makes of the "
        f"same noise. Shapes are over those that show one thing.{where}</p>"
    )


COLUMNS = {"shape": ("Shape, %", 100, 1), "edges": ("Edges", 1, 2), "psnr": ("PSNR, dB", 1, 1)}


def table(marked: Sequence[Mapping[str, Any]]) -> str:
    """Write the marks of every model by size."""
    heads = [""]
    for mark in marked[0]["marks"]:
        heads += [f"{title}, {mark['side']} px" for title, *_ in COLUMNS.values()]
    lines = []
    for row in marked:
        cells: list[studyparts.Cell] = []
        for mark in row["marks"]:
            cells += [_cell(mark, key) for key in COLUMNS]
        lines.append((row["model"], cells))
    return studyparts.table("Pictures at other sizes", heads, lines)


def _cell(mark: Mapping[str, Any], key: str) -> studyparts.Cell:
    """Write one mark; equal pictures get a dash, since PSNR_MOST only stands for infinity."""
    same = key == "psnr" and (mark[key]["value"] or 0) >= PSNR_MOST
    return "–" if same else studyparts.cell(mark[key], *COLUMNS[key][1:])


def growth(forwards: Mapping[str, Any], times: Mapping[str, Any]) -> str:
    """Write one forward's seconds and memory by side, with their exponents and the arithmetic's."""
    all_sides: set[int] = set()
    for forward in forwards.values():
        all_sides.update(row["side"] for row in forward["rows"])
    sides = sorted(all_sides)
    powers = [f"{what} ~ tokens to the" for what in ("Time", "Memory", "Arithmetic")]
    lines = []
    for name, forward in forwards.items():
        timed = times.get(name, {"rows": [], "exponent": None})
        seconds = {row["side"]: row["seconds"] for row in timed["rows"]}
        memory = {row["side"]: row["bytes"] for row in forward["rows"]}
        exponents = (timed["exponent"], forward["exponents"]["bytes"], forward["exponents"]["macs"])
        cells = [_forward_cell(seconds.get(side), memory.get(side)) for side in sides]
        cells += ["–" if power is None else f"{power:.2f}" for power in exponents]
        lines.append((name, cells))
    heads = ["One forward", *(f"{side} px" for side in sides), *powers]
    return studyparts.table("One forward by size", heads, lines)


def _forward_cell(seconds: float | None, memory: int | None) -> studyparts.Cell:
    if memory is None:
        return "–"
    text = f"{memory / 2**30:.1f} GiB" if memory >= 2**30 else f"{memory / 2**20:.0f} MiB"
    return text if seconds is None else (numbers.seconds(seconds), text)


def main() -> int:
    return studyparts.run("resolution", "resolution", "resolution")


if __name__ == "__main__":
    sys.exit(main())
