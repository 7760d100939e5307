"""What a fresh clone promises: files, the lock, the two commands, complete lists of deps."""

import ast
import contextlib
import functools
import hashlib
import itertools
import os
import re
import shlex
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


REQUIRED = (
    *("README.md", "CONTRIBUTING.md", "LICENSE", "docs/LOG.md"),
    *("Makefile", ".ci/run", "requirements.lock", "dvc.lock"),
)


@pytest.mark.parametrize("path", REQUIRED)
def test_the_repository_has(path):
    assert path in FILES
    assert text(path).strip()


def test_the_licence_is_apache_2_in_full():
    licence = text("LICENSE")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


# The lock


def pins(path):
    """Return the requirements of a file, without their digests."""
    lines = text(path).replace("\\\n", " ").splitlines()
    return [line.split(" --hash")[0].strip() for line in lines if line and line[0] not in "#"]


LOCKS = ("requirements.lock", "requirements-torch.lock")


def locked():
    return [line for lock in LOCKS for line in pins(lock)]


def test_the_lock_pins_everything_and_names_no_address():
    lines = locked()
    assert len(lines) > 100
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+( ; .+)?", line), line
    assert "torch==2.13.0" in lines
    assert pins("requirements-torch.lock") == ["torch==2.13.0"]
    assert "triton==3.7.1 ; sys_platform == 'linux'" in lines
    assert "+" not in "".join(line.split(";")[0] for line in lines)


def test_every_pin_but_torch_has_the_digests_of_its_files():
    entries = text("requirements.lock").replace("\\\n", " ").splitlines()
    entries = [line for line in entries if line and not line.startswith("#")]
    assert len(entries) == len(pins("requirements.lock"))
    for entry in entries:
        assert re.fullmatch(r"[^ ]+( ; [^-]+?)?( +--hash=sha256:[0-9a-f]{64})+", entry), entry[:80]


def test_every_direct_requirement_is_in_the_lock():
    direct = {canonicalize_name(re.split(r"[=<>; ]", line)[0]) for line in pins("requirements.in")}
    assert direct <= {canonicalize_name(line.split("==")[0]) for line in locked()}


def test_this_environment_is_the_locked_one():
    wrong = []
    for line in locked():
        pin = Requirement(line)
        if pin.marker and not pin.marker.evaluate():
            continue
        try:
            installed = metadata.version(pin.name).split("+")[0]
        except metadata.PackageNotFoundError:
            installed = None
        if installed != next(iter(pin.specifier)).version:
            wrong.append(f"{line}: {installed}")
    assert not wrong


# What no file may hold


TEXT = {*(".py", ".md", ".yaml", ".yml", ".toml", ".ipynb", ".json", ".lock", ".in", ".sh", "")}


def readable():
    """Yield the paths and contents of all text files."""
    for path in FILES:
        if (ROOT / path).suffix in TEXT:
            with contextlib.suppress(UnicodeDecodeError):
                yield path, text(path)


def test_no_file_holds_a_path_of_this_machine():
    clone, home = f"{ROOT}/", os.path.expanduser("~") + "/"
    wrong = [path for path, content in readable() if clone in content or home in content]
    assert not wrong


def test_no_file_is_too_large_for_git():
    sizes = {path: (ROOT / path).stat().st_size for path in FILES}
    assert not [path for path, size in sizes.items() if size > 16 * 2**20]
    # Three teachers take 44 MB, the eye 7.
    assert sum(size for path, size in sizes.items() if path.startswith("data/")) < 55e6


def test_weights_of_all_teachers_are_small():
    """Two of them share an autoencoder, which Git stores once."""
    weights = [path for path in FILES if re.fullmatch(r"data/teachers/.*\.safetensors", path)]
    distinct = {}
    for path in weights:
        content = (ROOT / path).read_bytes()
        distinct[hashlib.md5(content).hexdigest()] = len(content)
    assert len(distinct) > 5
    assert sum(distinct.values()) <= 40e6


def test_kernels_is_a_plain_folder():
    assert "kernels/__init__.py" not in FILES  # it would hide Hugging Face's package of that name


# make


# Variables of the make that runs these tests. With VENV, a test's setup would write into the
# environment that the tests run in.
VARIABLES = {"VENV", "PYTHON", "PIP_ARGS", "PROFILE", "TEACHER", "STUDY", "PYTEST_ARGS"}


def make(*arguments, path=None, cwd=ROOT, **environment):
    """Run make in `cwd` with a PATH of our own and none of the outer make's variables."""
    outer = {}
    for name, value in os.environ.items():
        if not name.startswith("MAKE") and name not in VARIABLES:
            outer[name] = value
    environment = outer | environment
    if path:
        environment["PATH"] = path
    options = {"capture_output": True, "text": True, "timeout": 120}
    return subprocess.run(["make", *arguments], cwd=cwd, env=environment, **options)


TOOLS = "sh make cksum cat df awk grep uname cut du sleep rm tail pwd"


@pytest.fixture
def bare(tmp_path):
    """Return a clone with a lock and no environment, and a PATH with the shell's tools alone."""
    clone, tools = tmp_path / "clone", tmp_path / "bin"
    (clone / ".ci").mkdir(parents=True)
    tools.mkdir()
    for name in ("Makefile", "requirements.lock", ".ci/setup"):
        shutil.copy(ROOT / name, clone / name)
    for name in TOOLS.split():
        if program := shutil.which(name):
            (tools / name).symlink_to(program)
    return clone, tools


def script(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def sentence(process):
    """Return the one line that says why a process failed."""
    lines = [line for line in process.stderr.splitlines() if line.startswith("linattn: ")]
    assert process.returncode != 0
    assert len(lines) == 1
    assert "Traceback" not in process.stdout + process.stderr
    return lines[0]


def test_make_without_a_target_lists_the_commands():
    text = make().stdout
    assert text == make("help").stdout
    assert all(f"make {name}" in text for name in ("repro", "test", "lab", "bench", "clean"))


def test_a_missing_python_is_named(bare):
    clone, tools = bare
    assert "no Python here" in sentence(make("test", path=str(tools), cwd=clone))


def test_a_too_old_python_is_named(bare):
    clone, tools = bare
    # An old Python runs, and prints its version when it is asked for it.
    old = 'case "$2" in *version_info\\ \\<*) exit 1;; *print*) echo 3.9;; esac'
    script(tools / "python3", old)
    assert "this machine's is 3.9" in sentence(make("repro", path=str(tools), cwd=clone))


def test_a_named_python_that_does_not_run_is_named(bare):
    clone, tools = bare
    process = make("test", "PYTHON=/nowhere/python3", path=str(tools), cwd=clone)
    assert "PYTHON=/nowhere/python3 does not run" in sentence(process)


def test_a_full_disk_is_reported_before_anything_is_installed(bare):
    clone, tools = bare
    (tools / "python3").symlink_to(sys.executable)
    (tools / "df").unlink()
    heads = "echo Filesystem 1024-blocks Used Available Capacity Mounted"
    script(tools / "df", f"{heads}; echo /dev/x 9 9 2097152 99% /")
    assert "6 GB of disk space are needed" in sentence(make("test", path=str(tools), cwd=clone))
    assert not (clone / ".venv").exists()


def test_a_failed_installation_names_the_log(bare):
    clone, _ = bare
    (clone / "requirements.lock").write_text("no-such-package-as-this==1.0\n")
    options = (f"PYTHON={sys.executable}", "PIP_ARGS=--no-index")
    assert "pip.log" in sentence(make("test", *options, cwd=clone, LINATTN_DISK_GB="0"))
    assert not (clone / ".venv" / "linattn.stamp").exists()


def test_a_value_of_make_is_one_word_of_the_shell_and_runs_nothing(tmp_path):
    evil = f"tiny'; touch {tmp_path / 'ran'}; $(touch {tmp_path / 'ran'})"
    value = evil.replace("$", "$$")
    printed = make("-n", "repro", "study", f"PROFILE={value}", f"STUDY={value}").stdout
    words = shlex.split(printed.splitlines()[-1])
    assert words[-1] == evil
    assert "--profile" in printed
    make("repro", f"PROFILE={value}", f"VENV={tmp_path}", f"PYTHON={evil}")
    assert not (tmp_path / "ran").exists()


def test_an_environment_of_another_python_is_not_believed(bare):
    clone, _ = bare
    shutil.copy(ROOT / "requirements-torch.lock", clone)
    python = clone / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    script(python, "case $2 in *print*) echo 3.12;; esac")
    stamp = clone / ".venv" / "linattn.stamp"
    setup = (clone / ".ci" / "setup").read_text()
    wanted = setup[setup.index("version_of()") : setup.index("stamp=")]
    written = f'venv=.venv; build=; {wanted} wanted >"{stamp}"'
    subprocess.run(["sh", "-c", written], cwd=clone, check=True)
    script(python, "exit 1")
    options = (f"PYTHON={sys.executable}", "PIP_ARGS=--no-index")
    process = make("setup", *options, cwd=clone, LINATTN_DISK_GB="0")
    assert "Making the environment" in process.stdout


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
    "report.plans",
}
NAMES = {"names", "attention", "attention.registry"}
VALUES = {"params", "project", "reader"}
# What says, refuses or keeps, and alters no result.
KEEPING = {"alone", "files", "finite", "named", "outs", "parts", "sealed", "signals", "sums"}
MEMORY = {f"memory.{path.stem}" for path in (ROOT / "linattn/memory").glob("*.py")}
SAYING = {*KEEPING, "memory", *MEMORY}
CARRIERS = {"linattn", "notebooks", "pipeline", *VALUES, *NAMES, *SHOWING, *SAYING}
# Rooms of which a stage depends on all files; of the others it lists the files that it uses.
ROOMS = {
    *("distillation", "eye", "families", "planning", "pretraining"),
    *("samples", "sampling", "surgery"),
}
# Imports that a stage does not follow: this one is for training the judge.
UNFOLLOWED = {("world.judge", "checkpoint")}


@functools.cache
def stages():
    return YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


def body(name):
    return stages()[name].get("do", stages()[name])


def of_notebooks():
    """Name the stages that run a notebook: all but the one that notes what a teacher is."""
    return [name for name in stages() if name != "source"]


def module_path(name):
    room = name.partition(".")[0]
    if room in ROOMS:
        return f"linattn/{room}"
    path = f"linattn/{name.replace('.', '/')}"
    return f"{path}/__init__.py" if (ROOT / path).is_dir() else f"{path}.py"


def sources(name):
    path = ROOT / module_path(name)
    return sorted(path.glob("*.py")) if path.is_dir() else [path] if path.is_file() else []


def imported(source, name=""):
    """Return the linattn modules that a piece of code imports, at its top or in a function."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "linattn":
            modules |= imported_by(node)
    return {module for module in modules if (name, module) not in UNFOLLOWED}


def imported_by(node):
    """Return the modules of one import from a package of linattn."""
    inner = node.module.removeprefix("linattn").lstrip(".")
    names = [f"{inner}.{alias.name}".lstrip(".") for alias in node.names]
    modules = {name for name in names if sources(name)}
    # A name that is no module is defined in the package's __init__, or imported there.
    return modules if len(modules) == len(names) else modules | {inner or "linattn"}


def closure(names, carriers=CARRIERS):
    """Return the modules and all that they import, without the carriers."""
    reached, waiting = set(), set(names)
    while waiting:
        name = waiting.pop()
        reached.add(name)
        for path in sources(name):
            waiting |= imported(path.read_text(), name) - reached - carriers
    return reached - carriers


def paths(names):
    """Return the paths as deps name them, without __init__: it only says where its names lie."""
    return {path for path in map(module_path, names) if not path.endswith("__init__.py")}


def used(notebook, carriers=CARRIERS):
    """Return the modules that a notebook uses, without the carriers."""
    cells = nbformat.read(ROOT / notebook, as_version=4).cells
    names = set()
    for cell in cells:
        if cell.cell_type == "code":
            names |= imported(cell.source)
    return closure(names - carriers, carriers)


@pytest.mark.parametrize(
    "name",
    ["teacher", "sample", "anatomy", "distill", "reference", "evaluate", "benchmark", "plan"],
)
def test_a_stage_lists_the_modules_it_uses_and_no_others(name):
    deps = body(name)["deps"]
    (notebook,) = [dep for dep in deps if dep.startswith("notebooks/")]
    listed = {dep for dep in deps if dep.startswith("linattn/")}
    operators = {path for path in listed if "attention/" in path} - {"linattn/attention/grid.py"}
    needed = paths(used(notebook))
    assert needed <= listed, "missing deps"
    assert listed - operators <= needed, "deps that the stage does not use"


def test_the_report_lists_the_modules_that_write_it():
    """A study's module is found by its name, and so is an operator, whose sentence and colour the
    report shows. Modules that measure are not followed, since the report reads what they wrote.
    """
    listed = {dep for dep in body("report")["deps"] if dep.startswith("linattn/")}
    of_studies = {f"{module.replace('.', '/')}.py" for module in studies.STUDIES.values()}
    needed = paths(used("notebooks/07_report.ipynb", CARRIERS - SHOWING))
    of_report = {path for path in needed if path.startswith("linattn/report/")}
    assert of_report
    found_by_name = {"linattn/attention", *of_studies}
    assert listed == (needed - of_report) | {"linattn/report"} | found_by_name


@pytest.mark.parametrize(
    "name", ["teacher", "sample", "anatomy", "distill", "reference", "evaluate", "plan"]
)
def test_no_stage_before_the_report_depends_on_the_report(name):
    assert not [dep for dep in body(name)["deps"] if dep.startswith("linattn/report")]


def test_a_stage_that_runs_operators_lists_their_files():
    operators = YAML(typ="safe").load(ROOT / "params.yaml")["operators"]
    for name in ("anatomy", "benchmark"):
        used = {entry["operator"] for entry in operators[name].values()}
        assert {f"linattn/attention/{operator}.py" for operator in used} <= set(body(name)["deps"])
    for name in ("distill", "evaluate"):
        assert "linattn/attention/${item.operator}.py" in body(name)["deps"]
        assert "data/sources/${item.teacher}/parts/${key}.json" in body(name)["deps"]
    for profile in YAML(typ="safe").load(ROOT / "params.yaml")["profiles"].values():
        used = {entry["operator"] for entry in profile["plan"]["candidates"].values()}
        assert {f"linattn/attention/{operator}.py" for operator in used} <= set(
            body("plan")["deps"]
        )


@pytest.mark.parametrize("operator", OPERATORS)
def test_what_an_operator_imports_is_a_dep_of_its_students(operator):
    helpers = paths(
        module for module in closure({f"attention.{operator}"}) if module.startswith("attention.")
    )
    helpers -= {f"linattn/attention/{operator}.py"}
    for name in ("distill", "evaluate", "anatomy", "benchmark", "plan"):
        assert helpers <= set(body(name)["deps"])


def test_a_stage_that_runs_attention_depends_on_the_kernels_pytorch_side():
    for name in of_notebooks():
        deps = body(name)["deps"]
        assert ("kernels/linattn_kernels" in deps) == ("linattn/attention/base.py" in deps), name
    folder = ROOT / "kernels" / "linattn_kernels"
    files = [str(path.relative_to(ROOT)) for path in folder.rglob("*.*")]
    files = [path for path in files if "__pycache__" not in path]
    command = [sys.executable, "-m", "dvc", "check-ignore", *files]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    only_triton = {path for path in files if path.endswith(("_triton.py", "tiles.py", ".json"))}
    assert set(ignored) == only_triton


MADE = (
    "data/sources",
    "data/samples",
    "data/reference",
    "data/pictures",
    "reports/",
)  # by other stages


def test_every_stage_depends_on_its_notebook_and_every_path_in_deps_exists():
    for name in of_notebooks():
        deps = body(name)["deps"]
        assert sum(dep.startswith("notebooks/") for dep in deps) == 1
        for dep in deps:
            if "${" not in dep and not dep.startswith(MADE):
                assert (ROOT / dep).exists(), f"{name}: {dep}"


def in_git(outs):
    """Map the paths of outs to whether Git holds them: those have options, such as cache: false."""
    held = {}
    for out in outs:
        held |= {out: False} if isinstance(out, str) else dict.fromkeys(out, True)
    return held


def test_git_holds_all_of_a_folder_that_a_stage_reads_or_nothing_of_it():
    """Where Git holds a part, a clean clone cannot tell whether the stage is up to date."""
    bodies = [body(name) for name in stages()]
    outs = [stage.get("outs", []) + stage.get("metrics", []) for stage in bodies]
    held = in_git(itertools.chain.from_iterable(outs))
    for dep in itertools.chain.from_iterable(stage.get("deps", []) for stage in bodies):
        assert len({held[out] for out in held if out.startswith(f"{dep}/")}) < 2, dep


def test_the_notes_on_a_teacher_are_taken_every_time_and_depend_on_no_path():
    assert body("source")["always_changed"]
    assert "deps" not in body("source")
    assert body("source")["cmd"] == "python -m linattn.source ${key}"
    for name, key in (("sample", "${key}"), ("distill", "${item.teacher}")):
        assert f"data/sources/{key}/model.json" in body(name)["deps"]


def test_a_role_in_the_list_of_plans_has_a_stage_and_a_student_of_parts_its_note(tmp_path):
    """The list may be empty in params.yaml, so DVC reads another here."""
    from dvc.repo import Repo

    content = YAML(typ="safe").load(ROOT / "params.yaml")
    content["teachers_of"]["plan"] = ["text"]
    content["students"]["plan-50"] = {"operator": "mixed", "teacher": "class", "parts": []}
    with (tmp_path / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(content, file)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    (tmp_path / ".dvc").mkdir()  # as dvc init does, which prints
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = True\n")
    with Repo(str(tmp_path)) as repo:
        deps = {stage.name: set(map(str, stage.deps)) for stage in repo.index.stages}
    assert {"data/samples/text", "linattn/planning"} <= deps["plan@text"]
    assert "plan@class" not in deps
    for stage in ("distill@plan-50", "evaluate@plan-50"):
        notes = {"data/sources/class/parts/plan-50.json", "linattn/attention/mixed.py"}
        assert notes <= deps[stage]


def test_stages_run_the_notebooks_they_name():
    for name in of_notebooks():
        python, option, module, stage, *_ = body(name)["cmd"].split()
        assert (python, option, module) == ("python", "-m", "linattn.notebooks")
        assert f"notebooks/{notebooks.STAGES[stage].notebook}.ipynb" in body(name)["deps"]


# What Git holds, whatever a run on this machine has left


def test_dvc_lock_is_in_step_with_the_code(committed):
    changed = pipeline.stale(committed)
    assert not changed, (
        "make repro, or dvc commit for an edit that cannot alter results; then commit dvc.lock"
    )


def test_the_published_results_are_those_that_dvc_lock_records(committed, tmp_path):
    """Copied over this machine's results, they leave no stage to run."""
    shutil.copytree(committed, tmp_path / "clone")
    for folder in publish.COPIED:
        local = tmp_path / "clone" / project.LOCAL / folder
        shutil.copytree(committed / "reports" / folder, local)
    changed = pipeline.stale(tmp_path / "clone")
    assert not changed, "make publish, then commit reports and dvc.lock together"


def published(root, folder, suffix=""):
    """Return the names of what is published in a folder of reports/."""
    return {path.name.removesuffix(suffix) for path in (root / "reports" / folder).iterdir()}


def test_every_student_and_teacher_is_published_and_nothing_else(committed):
    settings = params.load("nano", committed / "params.yaml")
    students = set(settings.students)
    teachers = {f"teacher-{role}" for role in settings.teachers}
    chances = {f"chance-{role}" for role in settings.teachers}
    distilled = {f"{name}.distill" for name in students}
    anatomies = {f"anatomy-{role}" for role in settings.teachers_of["anatomy"]}
    benchmarks = {f"benchmark-{role}" for role in settings.teachers_of["benchmark"]}
    plans = {f"plan-{role}" for role in settings.teachers_of["plan"]}
    results = students | teachers | chances | anatomies | plans
    assert published(committed, "results", ".json") == results
    assert published(committed, "students") == students
    runs = students | teachers | distilled | benchmarks | plans
    assert published(committed, "runs", ".run.json") == runs
