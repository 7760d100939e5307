"""Train one plug-in of the study and store it as it is published."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from linattn import digests, project, teachers
from linattn.names import known
from linattn.studies.plugins.settings import PLUGINS, Settings, folder, load


def train(name: str, settings: Settings | None = None) -> list[dict[str, Any]]:
    """Train the plug-in, store it, and return the rows of its curve: step, loss, stage."""
    settings, plugin = settings or load(), PLUGINS[known(name, PLUGINS, "plug-in")]
    recipe = settings.recipes[name]
    teacher = teachers.load(project.ROOT / settings.teacher, device=project.device())
    about = {"teacher": _digest(project.ROOT / settings.teacher), "code": project.code()}
    scratch = project.scratch(f"plugin-{name}", **dataclasses.asdict(recipe), **about)
    draft, out = scratch / "draft", folder(name, write=True)
    shutil.rmtree(draft, ignore_errors=True)
    rows = plugin.make(teacher, recipe, scratch, draft)
    for path in draft.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files with mode 0600
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(draft, out)
    shutil.rmtree(scratch)
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def _digest(teacher: Path) -> str:
    """Return the digest of the teacher's weights: a training that began on other weights starts
    again.
    """
    return digests.of_file(next((teacher / "unet").glob("*.safetensors")))


def files(name: str) -> dict[str, int]:
    """Return the stored files with their sizes in bytes."""
    home = folder(name)
    return {
        str(path.relative_to(home)): path.stat().st_size
        for path in sorted(home.rglob("*"))
        if path.is_file()
    }


def curve(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the curve as `figures.training` takes it, with one stage after the other."""
    begins, last = {}, {}
    for row in rows:
        begins.setdefault(row["stage"], sum(last.values()))
        last[row["stage"]] = row["step"]
    steps = [begins[row["stage"]] + row["step"] for row in rows]
    return {"step": steps, **{key: [row[key] for row in rows] for key in ("loss", "stage")}}
