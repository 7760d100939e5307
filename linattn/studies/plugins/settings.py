"""The study's plug-ins, its settings, and the paths of its files."""

from dataclasses import dataclass
from pathlib import Path

from linattn import project, reader
from linattn.names import known
from linattn.reader import between
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
    pictures: int = between(1)  # in each row of the result
    steps: int = between(1)
    batch: int = between(1)
    seed: int = between(0)
    checked: int = between(1)  # pictures that are compared bit for bit
    shown: int = between(1)  # pictures in each row of the sheet


@dataclass(frozen=True, kw_only=True)
class Settings:
    teacher: str
    students: tuple[str, ...]
    recipes: dict[str, Recipe]  # by plug-in
    measure: Measure


def load(path: str | Path = PARAMS) -> Settings:
    """Read the settings as strictly as params.yaml."""
    settings = reader.read(Settings, reader.read_yaml(project.ROOT / path), str(path))
    for name in settings.recipes:
        known(name, PLUGINS, "plug-in")
    return settings


def folder(name: str, write: bool = False) -> Path:
    """Return the folder that holds a plug-in in its published format."""
    return project.artifact(f"data/plugins/{name}", write)
