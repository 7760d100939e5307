"""Which plug-ins there are, the study's numbers, and where what it makes lies."""

from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from linattn import params, project
from linattn.plugins.adapter import Adapter
from linattn.plugins.control import Control
from linattn.plugins.lora import Lora
from linattn.plugins.plugin import Plugin
from linattn.plugins.recipe import Recipe
from linattn.plugins.recolour import Recolour

PLUGINS: dict[str, Plugin] = {
    plugin.name: plugin for plugin in (Control(), Lora("attn1"), Lora("attn2"), Adapter(), Recolour())
}
PARAMS = "studies/plugins/params.yaml"
RESULT, SHEET = "reports/studies/plugins.json", "reports/studies/plugins.jpg"
RUN = "reports/notebooks/studies/plugins/measure.run.json"  # not in Git, as the notebooks beside it


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
    recipes: dict[str, Recipe]
    measure: Measure


def load(path: str | Path = PARAMS) -> Settings:
    """Strictly: an unknown key is an error here."""
    told = YAML(typ="safe").load(project.ROOT / path)
    recipes = {params.known(name, PLUGINS, "plug-in"): Recipe.of(each) for name, each in told.pop("recipes").items()}
    students, measure = tuple(told.pop("students")), Measure(**told.pop("measure"))
    return Settings(**told, students=students, recipes=recipes, measure=measure)


def folder(name: str, write: bool = False) -> Path:
    """Where a plug-in lies in its published format."""
    return project.place(f"data/plugins/{name}", write)
