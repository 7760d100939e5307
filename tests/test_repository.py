"""What a fresh clone promises: files, the lock, the two commands' sentences, a pipeline that lists
what it uses.
"""

import ast
import functools
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
from importlib import metadata

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from linattn import notebooks, params, pipeline, project, publish
from linattn.attention import OPERATORS
from linattn.report import studies

ROOT = project.ROOT
FILES = pipeline.files()


def text(path):
    return (ROOT / path).read_text()


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "Makefile",
        "docs/LOG.md",
        ".ci/run",
        "requirements.lock",
        "dvc.lock",
    ],
)
def test_the_repository_has_its(path):
    assert path in FILES
    assert text(path).strip()


def test_the_licence_is_apache_2_in_full():
    licence = text("LICENSE")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


# The lock


def pins(path):
    return [line for line in text(path).splitlines() if line and not line.startswith("#")]


def test_the_lock_pins_everything_and_names_no_address():
    lines = pins("requirements.lock")
    assert len(lines) > 100
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+( ; .+)?", line), line
    assert "torch==2.13.0" in lines
    assert "triton==3.7.1 ; sys_platform == 'linux'" in lines
    assert "+" not in "".join(line.split(";")[0] for line in lines)


def test_what_is_asked_for_directly_is_in_the_lock():
    asked = {canonicalize_name(re.split(r"[=<>; ]", line)[0]) for line in pins("requirements.in")}
    assert asked <= {canonicalize_name(line.split("==")[0]) for line in pins("requirements.lock")}


def test_this_environment_is_the_locked_one():
    wrong = []
    for line in pins("requirements.lock"):
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate():
            continue
        try:
            found = metadata.version(wanted.name).split("+")[0]
        except metadata.PackageNotFoundError:
            found = None
        if found != next(iter(wanted.specifier)).version:
            wrong.append(f"{line}: {found}")
    assert not wrong


# What no file may hold


def readable():
    for path in FILES:
        if (ROOT / path).suffix in {
            ".py",
            ".md",
            ".yaml",
            ".yml",
            ".toml",
            ".ipynb",
            ".json",
            ".lock",
            ".in",
            ".sh",
            "",
        }:
            try:
                yield path, text(path)
            except UnicodeDecodeError:
                continue


def test_no_file_holds_a_path_of_this_machine():
    places = [str(ROOT) + "/", os.path.expanduser("~") + "/"]
    found = [path for path, content in readable() if any(place in content for place in places)]
    assert not found


def test_no_file_is_too_large_for_git():
    sizes = {path: (ROOT / path).stat().st_size for path in FILES}
    assert not [path for path, size in sizes.items() if size > 16 * 2**20]
    assert sum(size for path, size in sizes.items() if path.startswith("data/")) < 45e6


def test_weights_of_all_teachers_are_small():
    """Git stores the autoencoder that two of them share once."""
    weights = [
        ROOT / path
        for path in FILES
        if path.startswith("data/teachers/") and path.endswith(".safetensors")
    ]
    distinct = {hashlib.md5(path.read_bytes()).hexdigest(): path.stat().st_size for path in weights}
    assert len(distinct) > 5
    assert sum(distinct.values()) <= 40e6


def test_kernels_is_a_plain_folder():
    assert "kernels/__init__.py" not in FILES  # it would hide Hugging Face's package of that name


# make


# Of the make that runs these tests: VENV would have a test's setup point the tests' own environment
# elsewhere.
VARIABLES = {"VENV", "PYTHON", "PIP_ARGS", "PROFILE", "TEACHER", "STUDY", "PYTEST_ARGS"}


def make(*words, path=None, cwd=ROOT, **environment):
    """Run make in a copy of what it needs, with a PATH of our own and none of the outer make's
    variables.
    """
    outer = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MAKE") and name not in VARIABLES
    }
    environment = outer | environment
    if path:
        environment["PATH"] = path
    return subprocess.run(
        ["make", *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def bare(tmp_path):
    """A clone with a lock and no environment, and a PATH that holds the shell's tools and no
    Python.
    """
    clone, tools = tmp_path / "clone", tmp_path / "bin"
    (clone / ".ci").mkdir(parents=True)
    tools.mkdir()
    for name in ("Makefile", "requirements.lock", ".ci/setup"):
        shutil.copy(ROOT / name, clone / name)
    for name in (
        "sh",
        "make",
        "cksum",
        "cat",
        "df",
        "awk",
        "grep",
        "uname",
        "cut",
        "du",
        "sleep",
        "rm",
        "tail",
        "pwd",
    ):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    return clone, tools


def script(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def sentence(done):
    """The one line that says what is wrong."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("linattn: ")]
    assert done.returncode != 0
    assert len(lines) == 1
    assert "Traceback" not in done.stdout + done.stderr
    return lines[0]


def test_help_is_the_default_and_names_the_commands():
    said = make().stdout
    assert said == make("help").stdout
    assert all(f"make {name}" in said for name in ("repro", "test", "lab", "bench", "clean"))


def test_without_python_it_says_so(bare):
    clone, tools = bare
    assert "no Python here" in sentence(make("test", path=str(tools), cwd=clone))


def test_a_too_old_python_is_named(bare):
    clone, tools = bare
    # An old Python: it runs, is asked for its version, and is not new enough.
    script(
        tools / "python3", 'case "$2" in *version_info\\ \\<*) exit 1;; *print*) echo 3.9;; esac'
    )
    assert "this machine's is 3.9" in sentence(make("repro", path=str(tools), cwd=clone))


def test_a_named_python_that_does_not_run_is_named(bare):
    clone, tools = bare
    assert "PYTHON=/nowhere/python3 does not run" in sentence(
        make("test", "PYTHON=/nowhere/python3", path=str(tools), cwd=clone)
    )


def test_a_full_disk_is_said_before_anything_is_made(bare):
    clone, tools = bare
    (tools / "python3").symlink_to(sys.executable)
    (tools / "df").unlink()
    script(
        tools / "df",
        "echo Filesystem 1024-blocks Used Available Capacity Mounted; echo /dev/x 9 9 2097152 99% /",
    )
    assert "6 GB of disk space are needed" in sentence(make("test", path=str(tools), cwd=clone))
    assert not (clone / ".venv").exists()


def test_a_failed_installation_says_where_the_rest_is(bare):
    clone, _ = bare
    (clone / "requirements.lock").write_text("no-such-package-as-this==1.0\n")
    done = make(
        "test", f"PYTHON={sys.executable}", "PIP_ARGS=--no-index", cwd=clone, LINATTN_DISK_GB="0"
    )
    assert "pip.log" in sentence(done)
    assert not (clone / ".venv" / "linattn.stamp").exists()


# dvc.yaml

# Modules that draw or write what was measured, whose edit must not train again, and those that only
# carry values, names and paths.
SHOWING = {
    "report.columns",
    "report.figures",
    "report.looks",
    "report.markdown",
    "report.numbers",
    "report.picture",
}
NAMES = {"names", "attention", "attention.registry"}
CARRIERS = {"linattn", "params", "project", "notebooks", "pipeline", *NAMES, *SHOWING}
# Rooms that a stage depends on as on one thing; of the others it lists the files that it uses.
WHOLE = {"distillation", "families", "pretraining", "samples", "surgery"}
# Imports that a stage does not follow: what trains the judge, a context manager alone.
UNFOLLOWED = {("world.judge", "checkpoint"), ("evaluation.costs", "sampling")}


@functools.cache
def stages():
    return YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


def body(name):
    return stages()[name].get("do", stages()[name])


def module_path(name):
    room = name.partition(".")[0]
    if room in WHOLE:
        return f"linattn/{room}"
    path = f"linattn/{name.replace('.', '/')}"
    return f"{path}/__init__.py" if (ROOT / path).is_dir() else f"{path}.py"


def sources(name):
    path = ROOT / module_path(name)
    return sorted(path.glob("*.py")) if path.is_dir() else [path] if path.is_file() else []


def imported(source, name=""):
    """linattn modules that a piece of code imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] == "linattn"
        ):
            inner = node.module.removeprefix("linattn").lstrip(".")
            below = [f"{inner}.{each.name}".lstrip(".") for each in node.names]
            modules = {each for each in below if sources(each)}
            # A name that is no module is the package's own, or what its __init__ has from one.
            found |= modules if len(modules) == len(below) else modules | {inner or "linattn"}
    return {each for each in found if (name, each) not in UNFOLLOWED}


def closure(names, carriers=CARRIERS):
    found, waiting = set(), set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        for path in sources(name):
            waiting |= imported(path.read_text(), name) - found - carriers
    return found - carriers


def paths(names):
    """As deps name them; a package's __init__ only says where its names lie."""
    return {path for path in map(module_path, names) if not path.endswith("__init__.py")}


def used(notebook, carriers=CARRIERS):
    cells = nbformat.read(ROOT / notebook, as_version=4).cells
    names = set()
    for cell in cells:
        if cell.cell_type == "code":
            names |= imported(cell.source)
    return closure(names - carriers, carriers)


@pytest.mark.parametrize(
    "name", ["teacher", "sample", "anatomy", "distill", "reference", "evaluate", "benchmark"]
)
def test_a_stage_lists_the_modules_it_uses_and_no_others(name):
    deps = body(name)["deps"]
    (notebook,) = [dep for dep in deps if dep.startswith("notebooks/")]
    listed = {dep for dep in deps if dep.startswith("linattn/")}
    operators = {path for path in listed if "attention/" in path} - {"linattn/attention/grid.py"}
    wanted = paths(used(notebook))
    assert wanted <= listed, "missing deps"
    assert listed - operators <= wanted, "deps that the stage does not use"


def test_the_report_lists_the_modules_that_write_it():
    """A study's is found by its name, and what measures is not followed: the report reads what was
    measured.
    """
    listed = {dep for dep in body("report")["deps"] if dep.startswith("linattn/")}
    shown = {f"{module.replace('.', '/')}.py" for module in studies.STUDIES.values()}
    own = paths(used("notebooks/07_report.ipynb", CARRIERS - SHOWING))
    assert {path for path in own if path.startswith("linattn/report/")}
    assert (
        listed
        == {"linattn/report" if path.startswith("linattn/report/") else path for path in own}
        | shown
    )


@pytest.mark.parametrize(
    "name", ["teacher", "sample", "anatomy", "distill", "reference", "evaluate"]
)
def test_no_stage_before_the_report_hangs_on_how_it_is_written(name):
    assert not [dep for dep in body(name)["deps"] if dep.startswith("linattn/report")]


def test_a_stage_that_runs_operators_lists_their_files():
    for name in ("anatomy", "benchmark"):
        uses = {
            entry["operator"]
            for entry in YAML(typ="safe").load(ROOT / "params.yaml")["operators"][name].values()
        }
        assert {f"linattn/attention/{operator}.py" for operator in uses} <= set(body(name)["deps"])
    for name in ("distill", "evaluate"):
        assert "linattn/attention/${item.operator}.py" in body(name)["deps"]


@pytest.mark.parametrize("operator", OPERATORS)
def test_what_an_operator_imports_is_a_dep_of_its_students(operator):
    helpers = paths(
        module for module in closure({f"attention.{operator}"}) if module.startswith("attention.")
    )
    helpers -= {f"linattn/attention/{operator}.py"}
    for name in ("distill", "evaluate", "anatomy", "benchmark"):
        assert helpers <= set(body(name)["deps"])


def test_a_stage_that_runs_attention_depends_on_the_kernels_pytorch_side():
    for name in stages():
        deps = body(name)["deps"]
        assert ("kernels/linattn_kernels" in deps) == ("linattn/attention/base.py" in deps), name
    folder = ROOT / "kernels" / "linattn_kernels"
    every = [
        str(path.relative_to(ROOT))
        for path in folder.rglob("*.*")
        if "__pycache__" not in path.parts
    ]
    said = subprocess.run(
        [sys.executable, "-m", "dvc", "check-ignore", *every],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    only_triton = {path for path in every if path.endswith(("_triton.py", "tiles.py", ".json"))}
    assert set(said.stdout.split()) == only_triton


def test_every_stage_depends_on_its_notebook_and_every_path_in_deps_exists():
    for name in stages():
        deps = body(name)["deps"]
        assert sum(dep.startswith("notebooks/") for dep in deps) == 1
        for dep in deps:
            if "${" not in dep and not dep.startswith(
                ("data/samples", "data/reference", "data/pictures", "reports/")
            ):
                assert (ROOT / dep).exists(), f"{name}: {dep}"


def test_a_folder_that_a_stage_reads_is_wholly_in_git_or_wholly_out_of_it():
    """Of a folder partly there a clean clone cannot tell whether its stage is up to date, and CI
    refuses it.
    """
    outs = [
        out for name in stages() for kind in ("outs", "metrics") for out in body(name).get(kind, [])
    ]
    kept = {
        path: isinstance(out, dict)
        for out in outs
        for path in ([out] if isinstance(out, str) else out)
    }
    for name in stages():
        for dep in body(name)["deps"]:
            assert len({kept[out] for out in kept if out.startswith(f"{dep}/")}) < 2, (
                f"{name}: {dep}"
            )


def test_stages_run_the_notebooks_they_name():
    for name in stages():
        words = body(name)["cmd"].split()
        assert words[:3] == ["python", "-m", "linattn.notebooks"]
        assert f"notebooks/{notebooks.STAGES[words[3]].notebook}.ipynb" in body(name)["deps"]


# What Git holds, whatever a run on this machine has left


def test_dvc_lock_is_in_step_with_the_code(committed):
    changed = pipeline.stale(committed)
    assert not changed, (
        "make repro, or dvc commit for an edit that cannot alter results; then commit dvc.lock"
    )


def test_the_published_results_are_those_that_dvc_lock_records(committed, tmp_path):
    """In the place of this machine's, they are what the stages made: none would run again for them."""
    shutil.copytree(committed, tmp_path / "clone")
    for kind in publish.FOLDERS:
        shutil.copytree(committed / "reports" / kind, tmp_path / "clone" / project.LOCAL / kind)
    changed = pipeline.stale(tmp_path / "clone")
    assert not changed, "make publish, then commit reports and dvc.lock together"


def test_every_student_and_teacher_is_published_and_nothing_else(committed):
    settings = params.load("nano", committed / "params.yaml")
    rows = {
        *settings.students,
        *(f"{kind}-{role}" for kind in ("teacher", "chance") for role in settings.teachers),
    }
    assert {path.stem for path in (committed / "reports" / "results").iterdir()} == rows | {
        "anatomy"
    }
    assert {path.name for path in (committed / "reports" / "students").iterdir()} == set(
        settings.students
    )
    runs = {
        path.name.removesuffix(".run.json") for path in (committed / "reports" / "runs").iterdir()
    }
    distilled = {f"{name}.distill" for name in settings.students}
    assert runs == rows - {f"chance-{role}" for role in settings.teachers} | distilled | {
        "benchmark"
    }
