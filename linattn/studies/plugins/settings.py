"""Which plug-ins there are, the study's numbers, and where what it makes lies."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from linattn import params, project
from linattn.studies.plugins.adapter import Adapter
from linattn.studies.plugins.control import Control
from linattn.studies.plugins.lora import Lora
from linattn.studies.plugins.plugin import Plugin
from linattn.studies.plugins.recipe import Recipe
from linattn.studies.plugins.recolour import Recolour

PLUGINS: dict[str, Plugin] = {
    plugin.name: plugin for plugin in (Control(), Lora("attn1"), Lora("attn2"), Adapter(), Recolour())
}
PARAMS = "studies/plugins/params.yaml"
RESULT, SHEET = "plugins.json", "plugins.jpg"  # beside one another, here and published


@dataclass(frozen=True, kw_only=True)
class Measure:
    pictures: int  # a row
    steps: int
    batch: int
    seed: int
    checked: int  # pictures that are compared bit for bit
    shown: int  # pictures a row of the sheet


@dataclass(frozen=True, kw_only=True)
class Settings:
    teacher: str
    students: tuple[str, ...]
    recipes: dict  # plug-in -> Recipe
    measure: Measure


def load(path: str | Path = PARAMS) -> Settings:
    """Strictly, as params.yaml is read: an unknown key or a value of another kind is an error."""
    told = YAML(typ="safe").load(project.ROOT / path)
    readers = {"recipes": _recipes, "measure": functools.partial(params.read, Measure)}
    inner = {key: read(told[key], f"{path}: {key}") for key, read in readers.items() if key in told}
    return params.read(Settings, {**told, **inner}, str(path))


def _recipes(told: dict[str, Any], place: str) -> dict[str, Recipe]:
    return {params.known(name, PLUGINS, "plug-in"): Recipe.of(each, f"{place}.{name}") for name, each in told.items()}


def folder(name: str, write: bool = False) -> Path:
    """Where a plug-in lies in its published format."""
    return project.place(f"data/plugins/{name}", write)
