"""The study's plug-ins, its settings, and the paths of its files."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from linattn import params, project
from linattn.names import known
from linattn.studies.plugins.adapter import Adapter
from linattn.studies.plugins.control import Control
from linattn.studies.plugins.lora import Lora
from linattn.studies.plugins.plugin import Plugin
from linattn.studies.plugins.recipe import Recipe
from linattn.studies.plugins.recolour import Recolour

PLUGINS: dict[str, Plugin] = {
    plugin.name: plugin
    for plugin in (Control(), Lora("attn1"), Lora("attn2"), Adapter(), Recolour())
}
PARAMS = "studies/plugins/params.yaml"
RESULT, SHEET = "plugins.json", "plugins.jpg"  # in one folder, here and published


@dataclass(frozen=True, kw_only=True)
class Measure:
    pictures: int  # in each row of the result
    steps: int
    batch: int
    seed: int
    checked: int  # pictures that are compared bit for bit
    shown: int  # pictures in each row of the sheet


@dataclass(frozen=True, kw_only=True)
class Settings:
    teacher: str
    students: tuple[str, ...]
    recipes: dict  # plug-in -> Recipe
    measure: Measure


def load(path: str | Path = PARAMS) -> Settings:
    """Read the settings as strictly as params.yaml: an unknown key or a value of another kind is an
    error.
    """
    raw = YAML(typ="safe").load(project.ROOT / path)
    readers = {"recipes": _recipes, "measure": functools.partial(params.read, Measure)}
    inner = {key: read(raw[key], f"{path}: {key}") for key, read in readers.items() if key in raw}
    return params.read(Settings, {**raw, **inner}, str(path))


def _recipes(entries: dict[str, Any], where: str) -> dict[str, Recipe]:
    recipes = {}
    for name, entry in entries.items():
        plugin = known(name, PLUGINS, "plug-in")
        recipes[plugin] = Recipe.of(entry, f"{where}.{name}")
    return recipes


def folder(name: str, write: bool = False) -> Path:
    """Return the folder that holds a plug-in in its published format."""
    return project.artifact(f"data/plugins/{name}", write)
