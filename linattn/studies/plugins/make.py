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
    """Train the plug-in, store it, and return its curve: step, loss and stage by logged step."""
    settings, plugin = settings or load(), PLUGINS[known(name, PLUGINS, "plug-in")]
    recipe = settings.recipes[name]
    teacher = teachers.load(project.ROOT / settings.teacher, device=project.device())
    about = {"teacher": _digest(project.ROOT / settings.teacher), "code": project.code()}
    scratch = project.scratch(f"plugin-{name}", **dataclasses.asdict(recipe), **about)
    draft, out = scratch / "draft", folder(name, write=True)
    shutil.rmtree(draft, ignore_errors=True)
    curve = plugin.make(teacher, recipe, scratch, draft)
    for path in draft.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files with mode 0600
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(draft, out)
    shutil.rmtree(scratch)
    return [_without_seconds(row) for row in curve]


def _without_seconds(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seconds"}


def _digest(teacher: Path) -> str:
    """Return the digest of the teacher's weights; a training on other weights starts again."""
    return digests.of_file(next((teacher / "unet").glob("*.safetensors")))


def files(name: str) -> dict[str, int]:
    """Return the stored files with their sizes in bytes."""
    home = folder(name)
    stored = [path for path in sorted(home.rglob("*")) if path.is_file()]
    return {str(path.relative_to(home)): path.stat().st_size for path in stored}


def curve(history: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return a curve as `figures.training` takes it, with one stage after the other."""
    begins: dict[str, int] = {}
    last: dict[str, int] = {}
    for row in history:
        begins.setdefault(row["stage"], sum(last.values()))
        last[row["stage"]] = row["step"]
    return {
        "step": [begins[row["stage"]] + row["step"] for row in history],
        "loss": [row["loss"] for row in history],
        "stage": [row["stage"] for row in history],
    }
