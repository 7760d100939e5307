"""Side studies: pipelines of their own, with every module they use among their deps, that a dvc
repro never runs.
"""

import ast
import re
import runpy
import sys
from pathlib import PurePosixPath

import nbformat
import pytest
from ruamel.yaml import YAML

from linattn import notebooks, project
from linattn.studies.plugins.settings import PLUGINS

ROOT = project.ROOT
# Modules that carry values, names and paths, or show them; `attention` finds an operator's file,
# which is a dep itself.
CARRYING = (
    "names",
    "params/__init__",
    "project",
    "reader",
    "notebooks",
    "studies/plugins/settings",
    "studies/plugins/report",
)
CARRIERS = {f"linattn/{name}.py" for name in CARRYING} | {"linattn/report"}
# An __init__ that only says where names lie is no dep; it is followed, but for attention's.
CARRIERS |= {
    "linattn/__init__.py",
    "linattn/attention/__init__.py",
    "linattn/studies/plugins/__init__.py",
}
NAMING = {
    f"linattn/{name}/__init__.py" for name in ("distillation", "evaluation", "studies", "world")
}
# Packages that a stage depends on as on one thing.
ROOMS = ("families", "pretraining", "redraw", "report", "samples", "surgery")
WHOLE = tuple(f"linattn/{room}" for room in ROOMS)
# What a stage does not run: how a plug-in is marked, when it is trained; how it is trained, when it
# is marked.
PLUGIN = "linattn/studies/plugins"
LOOP = ("history", "optimizers", "schedules", "settings", "training")
TRAINING = {
    *(f"linattn/distillation/{name}.py" for name in LOOP),
    *(f"{PLUGIN}/{name}.py" for name in ("batch", "encoder", "recipe")),
}
UNUSED = {
    "train": {f"{PLUGIN}/marks.py", "linattn/distillation/objectives.py"},
    "measure": TRAINING,
}


def yaml(path):
    return YAML(typ="safe").load(ROOT / path)


def stages(study="plugins"):
    told = yaml(f"studies/{study}/dvc.yaml")["stages"]
    return {name: stage.get("do", stage) | stage for name, stage in told.items()}


def files(name):
    """What a dotted name of linattn stands for, as deps name it."""
    path = name.replace(".", "/")
    if path in WHOLE:
        return {path}
    return {each for each in (f"{path}.py", f"{path}/__init__.py") if (ROOT / each).is_file()}


def imported(source):
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(each.name == "linattn" for each in node.names):
            found |= files("linattn.surgery")  # where linearize, load and restore are
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "linattn":
            below = [f"{node.module}.{each.name}" for each in node.names]
            found |= files(node.module).union(*map(files, below))
    return {
        next((whole for whole in WHOLE if path.startswith(f"{whole}/")), path) for path in found
    }


def closure(sources, unused):
    found, waiting = set(), set().union(*map(imported, sources)) - CARRIERS - unused
    while waiting:
        path = waiting.pop()
        found.add(path)
        parts = sorted((ROOT / path).glob("*.py")) if path in WHOLE else [ROOT / path]
        waiting |= (
            set().union(*(imported(part.read_text()) for part in parts)) - found - CARRIERS - unused
        )
    return found - NAMING


def cells(notebook):
    return [
        cell.source
        for cell in nbformat.read(ROOT / notebook, as_version=4).cells
        if cell.cell_type == "code"
    ]


@pytest.mark.parametrize("name", ["train", "measure"])
def test_a_stage_lists_the_modules_it_uses_and_no_others(name):
    stage = stages()[name]
    modules = {plugin.__module__.replace(".", "/") + ".py" for plugin in PLUGINS.values()}
    listed = {dep for dep in stage["deps"] if dep.startswith("linattn/")}
    listed = {dep for dep in listed if "${" not in dep} | (modules if name == "train" else set())
    own = [(ROOT / path).read_text() for path in modules]
    wanted = closure([*cells(stage["deps"][0]), *own], UNUSED[name]) | modules
    operators = {dep for dep in listed if dep.startswith("linattn/attention/")}
    assert wanted - listed == set(), "missing deps"
    assert listed - operators - wanted == set(), "deps that the stage does not use"


def test_the_study_of_sizes_lists_the_modules_it_uses_and_no_others():
    deps = stages("resolution")["measure"]["deps"]
    listed = {dep for dep in deps if dep.startswith("linattn/")} - {"linattn/attention"}
    listed |= {str(path.relative_to(ROOT)) for path in ROOT.glob("linattn/attention/*.py")}
    assert "linattn/attention" in deps
    wanted = closure(cells(deps[0]), set())
    operators = {dep for dep in listed if dep.startswith("linattn/attention/")}
    assert wanted - listed == set(), "missing deps"
    assert listed - operators - wanted == set(), "deps that the stage does not use"


def test_each_plugin_is_trained_from_its_own_file():
    stage = yaml("studies/plugins/dvc.yaml")["stages"]["train"]
    assert {name: each.__module__.rpartition(".")[2] for name, each in PLUGINS.items()} == stage[
        "foreach"
    ]
    assert set(yaml("studies/plugins/params.yaml")["recipes"]) == set(PLUGINS)


def test_students_and_teacher_of_the_numbers_are_deps():
    told, deps = yaml("studies/plugins/params.yaml"), stages()["measure"]["deps"]
    assert {told["teacher"], *(f"reports/students/{name}" for name in told["students"])} <= set(
        deps
    )


def test_students_and_teachers_of_the_sizes_are_deps():
    told, deps = (
        yaml("studies/resolution/params.yaml"),
        set(stages("resolution")["measure"]["deps"]),
    )
    named = {f"reports/students/{name}" for names in told["teachers"].values() for name in names}
    assert {dep for dep in deps if dep.startswith("reports/students/")} == named
    assert {"data/teachers", "data/judge"} <= deps


def test_nothing_of_the_pipeline_hangs_on_a_study():
    """DVC would run a study whose outs lie inside another pipeline's deps."""
    made = [stage for study in ("plugins", "resolution") for stage in stages(study).values()]
    outs = [out for stage in made for kind in ("outs", "metrics") for out in stage.get(kind, [])]
    made = [
        PurePosixPath(path) for out in outs for path in ([out] if isinstance(out, str) else out)
    ]
    for name, stage in yaml("dvc.yaml")["stages"].items():
        for dep in stage.get("do", stage)["deps"]:
            assert not [
                path for path in made if path.is_relative_to(dep) or PurePosixPath(dep) == path
            ], (name, dep)


@pytest.mark.parametrize("study", ["plugins", "resolution"])
def test_a_study_names_no_profile_but_the_chosen_one(study):
    assert not re.findall(
        r"profiles\.(?!\$\{profile\})", (ROOT / f"studies/{study}/dvc.yaml").read_text()
    )


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize(
    ("study", "name"), [("plugins", "train"), ("plugins", "measure"), ("resolution", "measure")]
)
@pytest.mark.parametrize(
    "error", [None, notebooks.Failed("see reports/failed"), ValueError("no notebook")]
)
def test_a_command_runs_its_notebook_or_says_why_not(study, name, error, monkeypatch, capsys):
    stage, ran = stages(study)[name], []

    def run(notebook, out, **names):
        ran.extend(path.relative_to(ROOT).as_posix() for path in (notebook, out))
        if error:
            raise error

    monkeypatch.setattr(notebooks, "run", run)
    _, _, module, *words = stage["cmd"].replace("${key}", "control").split()
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises(SystemExit) as left:
        runpy.run_module(module, run_name="__main__")
    assert ran[0] == stage["deps"][0]
    assert ran[1] in [out.replace("${key}", "control") for out in stage["outs"]]
    said = capsys.readouterr().err
    assert (left.value.code, said.count("\n")) == ((1, 1) if error else (0, 0))
    assert not error or (f"linattn: study {study}, " in said and str(error) in said)


@pytest.mark.parametrize("name", ["plugins/plugins", "plugins/train", "resolution/resolution"])
def test_notebooks_are_stripped_and_take_names_alone(name, committed):
    path = committed / "studies" / f"{name}.ipynb"
    assert "numbers" in notebooks.declared(path)
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
