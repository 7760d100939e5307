"""The tables of docs/protocol.md: teachers, profiles and stages, from params.yaml and dvc.yaml."""

from collections.abc import Callable
from pathlib import Path

from linattn import params, project, reader
from linattn.params import Params
from linattn.report import markdown, release
from linattn.report.words import with_interval

LINES: dict[str, Callable[[Params], str]] = {
    "pictures that the teacher draws": lambda p: f"{p.sample.pictures:,} of {p.sample.steps} steps",
    "layer by layer": lambda p: f"{p.distill.layerwise_steps:,} steps",
    "then end to end": lambda p: f"{p.distill.steps:,} steps",
    "batch": lambda p: f"{p.distill.batch}",
    "optimiser, rate": lambda p: f"{p.distill.optimizer}, {p.distill.learning_rate:g}",
    "training seeds": lambda p: f"{len(p.distill.seeds)}",
    "pictures of a row": lambda p: f"{p.evaluate.pictures:,} of {p.evaluate.steps} steps",
    "latents of the error": lambda p: f"{p.evaluate.errors:,}",
}


def profiles() -> str:
    """Return what each profile of params.yaml spends, a column a profile."""
    names = list(reader.read_yaml(project.ROOT / "params.yaml")["profiles"])
    settings = [params.load(name) for name in names]
    lines = [["", *(f"`{name}`" for name in names)], markdown.rule(len(names))]
    for title, text in LINES.items():
        lines.append([title, *(text(of_profile) for of_profile in settings)])
    return markdown.table(lines)


def teachers() -> str:
    """Return a row for each small teacher, from its card."""
    settings = params.load(release.profile())
    heads = ["role", "teacher", "side", "steps, guidance", "shapes right at its gate", "students"]
    lines = [heads, [*["---"] * 2, *["---:"] * 4]]
    for role, teacher in settings.teachers.items():
        card = project.read_json(project.ROOT / teacher.source / "card.json")
        shape = card["gate"].get("both") or card["gate"]["shape"]
        drawn = f"{card['steps']}, {card['guidance']:g}"
        right = with_interval(shape).replace("\u00a0", " ")
        students = f"{len(settings.of_teacher(role))}, {teacher.minutes} minutes"
        name = teacher.source.rpartition("/")[2]
        lines.append([f"`{role}`", name, f"{card['side']} px", drawn, right, students])
    return markdown.table(lines)


def stages() -> str:
    """Return the stages of dvc.yaml, each with its notebook and what it does."""
    lines = [["stage", "notebook", "what it does"], ["---"] * 3]
    for name, stage in reader.read_yaml(project.ROOT / "dvc.yaml")["stages"].items():
        body = stage.get("do", stage)
        named = [dep for dep in body.get("deps", ()) if dep.startswith("notebooks/")]
        links = [f"[{Path(notebook).stem}](../{notebook})" for notebook in named]
        link = links[0] if links else ""
        lines.append([f"`{name}`", link, body["desc"]])
    return markdown.table(lines)
