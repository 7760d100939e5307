"""A study is a pipeline of its own: it names the modules it uses, and dvc repro never runs it."""

import ast
import re
import runpy
import sys
from pathlib import PurePosixPath

import nbformat
import pytest
from ruamel.yaml import YAML
from test_repository import CARRIERS as CARRYING_VALUES, paths, used

from linattn import notebooks, project
from linattn.attention import OPERATORS
from linattn.studies.operators import settings
from linattn.studies.plugins.settings import PLUGINS

ROOT = project.ROOT
# Modules that carry values, names and paths, or show them, are no deps.
CARRYING = (
    "names",
    "params/__init__",
    "project",
    "reader",
    "notebooks",
    *("alone", "files", "finite", "named", "outs", "parts", "sealed", "signals", "sums"),
    "studies/plugins/settings",
    "studies/plugins/report",
)
CARRIERS = {f"linattn/{name}.py" for name in CARRYING} | {"linattn/report"}
# Nor is an __init__ that only imports names. That of `attention` imports every operator; the files
# of the operators that a stage runs are deps themselves, so it is not followed either.
CARRIERS |= {
    "linattn/__init__.py",
    "linattn/attention/__init__.py",
    "linattn/studies/plugins/__init__.py",
}
NAMING = {
    f"linattn/{name}/__init__.py" for name in ("distillation", "evaluation", "studies", "world")
}
# Packages that a stage depends on as on one thing.
ROOMS = ("families", "pretraining", "redraw", "report", "samples", "sampling", "surgery")
WHOLE = tuple(f"linattn/{room}" for room in ROOMS)
# Training a plug-in runs neither its marks nor the loss terms of distillation; measuring it does
# not run its training.
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
    named = yaml(f"studies/{study}/dvc.yaml")["stages"]
    return {name: stage.get("do", stage) | stage for name, stage in named.items()}


def files(name):
    """Return the files of a dotted name of linattn, as deps name them."""
    path = name.replace(".", "/")
    if path in WHOLE:
        return {path}
    candidates = (f"{path}.py", f"{path}/__init__.py")
    return {candidate for candidate in candidates if (ROOT / candidate).is_file()}


def package_of(path):
    """Return the package that a stage depends on as a whole, or the path of a file outside one."""
    for package in WHOLE:
        if path.startswith(f"{package}/"):
            return package
    return path


def imported(source):
    """Return the files and packages of linattn that a piece of code imports."""
    paths = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and "linattn" in [alias.name for alias in node.names]:
            paths |= files("linattn.surgery")  # where linearize, load and restore are
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "linattn":
            paths |= files(node.module)
            for alias in node.names:
                paths |= files(f"{node.module}.{alias.name}")
    return {package_of(path) for path in paths}


def closure(sources, unused):
    """Return all files and packages that pieces of code import, directly or not."""
    ignored, reached, waiting = CARRIERS | unused, set(), list(sources)
    while waiting:
        for path in imported(waiting.pop()) - reached - ignored:
            reached.add(path)
            modules = sorted((ROOT / path).glob("*.py")) if path in WHOLE else [ROOT / path]
            waiting += [module.read_text() for module in modules]
    return reached - NAMING


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
    deps = {dep for dep in stage["deps"] if dep.startswith("linattn/")}
    listed = {dep for dep in deps if "${" not in dep}
    if listed != deps:
        listed |= modules  # the file of each plug-in is named by a variable
    plugins = [(ROOT / path).read_text() for path in modules]
    wanted = closure([*cells(stage["deps"][0]), *plugins], UNUSED[name]) | modules
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


def test_a_student_of_the_operators_lists_the_modules_it_uses_and_no_others():
    """It is a stage that distils and evaluates, and is held to what those of the pipeline are."""
    deps = stages("operators")["student"]["deps"]
    listed = {dep for dep in deps if dep.startswith("linattn/")}
    operators = {path for path in listed if "/attention/" in path}
    needed = paths(used(deps[0], CARRYING_VALUES | {"studies.operators.settings"}))
    assert needed <= listed, "missing deps"
    assert listed - operators <= needed, "deps that the stage does not use"


def test_a_student_of_the_operators_depends_on_its_operator_and_on_what_operators_share():
    deps = stages("operators")["student"]["deps"]
    assert "linattn/attention/${item.operator}.py" in deps
    names = {*OPERATORS, "__init__", "registry"}
    shared = [path for path in ROOT.glob("linattn/attention/*.py") if path.stem not in names]
    assert shared
    assert {path.relative_to(ROOT).as_posix() for path in shared} <= set(deps)
    mixed = [student for student in study_students() if student.operator == "mixed"]
    parts = {part["operator"] for student in mixed for part in student.options["parts"]}
    assert {f"linattn/attention/{operator}.py" for operator in parts} <= set(deps)


def study_students():
    study = settings.load()
    return [study.params.students[name] for name in study.names]


def test_the_operators_study_has_every_teacher_and_its_strongest_five_on_all():
    by_operator = {}
    for student in settings.load().params.students.values():
        by_operator.setdefault(student.operator, set()).add(student.teacher)
    everywhere = [name for name, roles in by_operator.items() if len(roles) == 3]
    assert len(everywhere) >= 5


def test_each_plugin_is_trained_from_its_own_file():
    stage = yaml("studies/plugins/dvc.yaml")["stages"]["train"]
    files = {name: plugin.__module__.rpartition(".")[2] for name, plugin in PLUGINS.items()}
    assert files == stage["foreach"]
    assert set(yaml("studies/plugins/params.yaml")["recipes"]) == set(PLUGINS)


def test_students_and_teacher_of_the_plugins_are_deps():
    settings, deps = yaml("studies/plugins/params.yaml"), stages()["measure"]["deps"]
    students = {f"reports/students/{name}" for name in settings["students"]}
    assert {settings["teacher"], *students} <= set(deps)


def test_students_and_teachers_of_the_sizes_are_deps():
    settings, deps = yaml("studies/resolution/params.yaml"), stages("resolution")["measure"]["deps"]
    named = set()
    for names in settings["teachers"].values():
        named |= {f"reports/students/{name}" for name in names}
    assert {dep for dep in deps if dep.startswith("reports/students/")} == named
    assert {"data/teachers", "data/judge"} <= set(deps)


def outs_of(study):
    """Return the paths that the stages of a study write."""
    outs = []
    for stage in stages(study).values():
        for out in [*stage.get("outs", []), *stage.get("metrics", [])]:
            outs += [out] if isinstance(out, str) else list(out)
    return outs


def test_no_stage_of_the_pipeline_depends_on_a_study():
    """DVC would run a study whose outs lie inside another pipeline's deps."""
    outs = [
        PurePosixPath(path)
        for path in (*outs_of("plugins"), *outs_of("resolution"), *outs_of("operators"))
    ]
    for name, stage in yaml("dvc.yaml")["stages"].items():
        for dep in stage.get("do", stage).get("deps", []):
            assert not any(out.is_relative_to(dep) for out in outs), (name, dep)


@pytest.mark.parametrize("study", ["operators", "plugins", "resolution"])
def test_a_study_names_no_profile_but_the_chosen_one(study):
    assert not re.findall(
        r"profiles\.(?!\$\{profile\})", (ROOT / f"studies/{study}/dvc.yaml").read_text()
    )


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize(
    ("study", "name"),
    [
        ("operators", "student"),
        ("operators", "collect"),
        ("plugins", "train"),
        ("plugins", "measure"),
        ("resolution", "measure"),
    ],
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
    key = {"operators": "pisa", "plugins": "control"}.get(study, "")
    _, _, module, *words = stage["cmd"].replace("${key}", key).split()
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises(SystemExit) as left:
        runpy.run_module(module, run_name="__main__")
    assert ran[0] == stage["deps"][0]
    assert ran[1] in [out.replace("${key}", key) for out in stage["outs"]]
    message = capsys.readouterr().err
    assert (left.value.code, message.count("\n")) == ((1, 1) if error else (0, 0))
    assert not error or (f"linattn: study {study}, " in message and str(error) in message)


NOTEBOOKS = (
    *("operators/operators", "operators/student", "plugins/plugins", "plugins/train"),
    "resolution/resolution",
)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_stripped_and_take_names_alone(name, committed):
    path = committed / "studies" / f"{name}.ipynb"
    assert "numbers" in notebooks.declared(path)
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
