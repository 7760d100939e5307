"""Every script of examples/ runs as its first lines say: alone, offline, in a folder of its own."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from PIL import Image

from linattn import project
from linattn.attention import OPERATORS, Operator
from linattn.testing import check_operator

SCRIPTS = sorted((project.ROOT / "examples").glob("*.py"))
NUMBER = re.compile(r"\d+(\.\d+)?(e[-+]?\d+)?")
LIMIT = 120  # seconds of computing for all of them together; 50 on one core of an AMD EPYC
# Imported by Python before the script: whatever asks for an address or a connection fails.
OFFLINE = """
import socket
def refuse(*args, **kwargs):
    raise OSError("this test has no network")
socket.socket.connect = socket.getaddrinfo = refuse
"""


def python(folder, *arguments):
    """Run Python in a folder, without a network and without the variables that make sets."""
    (folder / "offline").mkdir()
    (folder / "offline" / "sitecustomize.py").write_text(OFFLINE)
    (folder / "work").mkdir()
    paths = os.pathsep.join([str(folder / "offline"), project.python_path()])
    environment = {name: value for name, value in os.environ.items() if "HF_" not in name}
    environment["OMP_NUM_THREADS"] = "1"  # beside other work two threads wait for one another
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder / "work",
        env=environment | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=4 * LIMIT,  # a machine may be busy
    )


def written(folder):
    """Return the files that a script left in its working directory."""
    work = folder / "work"
    return {path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file()}


def in_the_clone():
    """Return what Git sees in this clone that it does not hold."""
    command = ["git", "status", "--porcelain", "--untracked-files=all"]
    return subprocess.run(command, cwd=project.ROOT, capture_output=True, text=True).stdout


def children_seconds():
    """Return how long processes that ended have computed, whatever else ran beside them."""
    times = os.times()
    return times.children_user + times.children_system


class Run:
    """One run of a script, and what it left."""

    def __init__(self, script, folder):
        self.name, self.folder = script.name, folder
        before, start = in_the_clone(), children_seconds()
        process = python(folder, script)
        self.seconds = children_seconds() - start
        self.changed = in_the_clone() != before
        self.error = process.stderr if process.returncode else ""
        self.lines, self.files = process.stdout.splitlines(), written(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run every script once."""
    return {script.name: Run(script, tmp_path_factory.mktemp("example")) for script in SCRIPTS}


@pytest.fixture(params=[script.name for script in SCRIPTS])
def run(request, runs):
    return runs[request.param]


def docstring(name):
    text = (project.ROOT / "examples" / name).read_text()
    assert text.startswith('"""')
    return text.split('"""')[1]


def promised(name):
    """Return the lines that a script's docstring says it prints: the last indented block."""
    block = docstring(name).rstrip().rpartition("\n\n")[2]
    lines = [line.strip() for line in block.splitlines()]
    return [line for line in lines if "..." not in line]


def without_numbers(line):
    return NUMBER.sub("#", line)


def values(line):
    return [float(match.group()) for match in NUMBER.finditer(line)]


# All scripts, a new one too


def test_they_run_within_two_minutes_together(runs):
    assert len(runs) >= 4
    assert sum(run.seconds for run in runs.values()) < LIMIT


def test_it_ends_well(run):
    assert not run.error, run.error


def test_it_prints_what_its_first_lines_promise(run):
    printed = {without_numbers(line) for line in run.lines}
    lines = promised(run.name)
    assert lines
    assert [line for line in lines if without_numbers(line) not in printed] == []


def test_the_shares_that_its_first_lines_promise_are_those_that_it_prints(run):
    """Within a fifth: another processor rounds otherwise. Times and rounding errors differ more."""
    printed = {without_numbers(line): values(line) for line in run.lines}
    for line in promised(run.name):
        if " % " in line:
            assert printed[without_numbers(line)] == pytest.approx(
                values(line), rel=0.2, abs=0.1
            ), line


def test_it_says_how_it_is_run(run):
    assert f"\n    python examples/{run.name}" in docstring(run.name)


def test_it_leaves_nothing_in_the_clone(run):
    assert not run.changed


def test_git_ignores_what_it_writes_into_a_clone(run):
    """Else a run file that comes after it would say that the code has changes."""
    if run.files:
        command = ["git", "check-ignore", "--no-index", *run.files]
        done = subprocess.run(command, cwd=project.ROOT, capture_output=True, text=True)
        assert set(done.stdout.split()) == run.files


def test_a_picture_that_it_writes_is_the_one_that_it_names(run):
    pictures = {path for path in run.files if path.endswith(".png")}
    assert pictures == {line for line in run.lines if line.endswith(".png")}
    for path in pictures:
        with Image.open(run.folder / "work" / path) as picture:
            colours = picture.convert("RGB").resize((64, 64)).getcolors(64 * 64)
        assert len(colours) > 50  # not one flat surface


def test_it_is_short_enough_to_read(run):
    lines = (project.ROOT / "examples" / run.name).read_text().splitlines()
    assert 30 <= len(lines) <= 90


def test_the_readme_names_each_script_and_no_other():
    text = (project.ROOT / "examples" / "README.md").read_text()
    assert re.findall(r"\]\((\w+\.py)\)", text) != []
    assert set(re.findall(r"\]\((\w+\.py)\)", text)) == {script.name for script in SCRIPTS}


def test_the_network_is_refused_where_a_script_asks_for_it(tmp_path):
    code = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')"
    process = python(tmp_path, "-c", code)
    assert process.returncode != 0
    assert "this test has no network" in process.stderr


# One by one


def numbers(run, start):
    """Return the numbers of the line that begins so, without those of its beginning."""
    (line,) = [line for line in run.lines if line.startswith(start)]
    return values(line.removeprefix(start))


def test_linearizing_changes_pictures_and_restoring_gives_them_back(runs):
    run = runs["linearize_a_pipeline.py"]
    (change,) = numbers(run, "replaced: ")
    assert 1 < change < 30
    assert "restored: bit for bit the pictures of before" in run.lines
    assert sum(": clear, " in line for line in run.lines) == 7


def test_linearizing_refuses_what_is_no_name_of_a_picture_before_it_draws(tmp_path):
    script = project.ROOT / "examples" / "linearize_a_pipeline.py"
    process = python(tmp_path, script, "--out", "pictures")
    assert process.returncode == 2
    assert "pictures is no picture's name, as in linearized.png" in process.stderr
    assert not written(tmp_path)


def test_distilling_brings_the_student_close_and_saves_it(runs):
    run = runs["distil_on_your_prompts.py"]
    undistilled, distilled = numbers(run, "not distilled: "), numbers(run, "distilled: ")
    assert distilled[0] < undistilled[0] / 5
    assert {"student/layers/linattn.json", "student/samples/manifest.json"} <= run.files


def test_a_file_without_a_prompt_is_refused_before_anything_is_drawn(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n  \n")
    script = project.ROOT / "examples" / "distil_on_your_prompts.py"
    process = python(tmp_path, script, "--prompts", prompts)
    assert process.returncode == 2
    assert "prompts.txt holds no prompt; write one a line" in process.stderr
    assert not written(tmp_path)


@pytest.mark.parametrize("name", ["linear", "window", "mediator"])
def test_a_kernel_alone_is_its_definition(runs, name):
    lines = [line for line in runs["kernels_alone.py"].lines if line.startswith(f"{name}: ")]
    compared, timed = lines
    output, gradients = values(compared)
    assert 0 < output < 1e-5
    assert 0 < gradients < 1e-4
    assert "softmax takes" in timed


@pytest.fixture
def new_operator():
    """Import the file as a module of its own, as `make row` would."""
    path = project.ROOT / "examples" / "new_operator.py"
    spec = importlib.util.spec_from_file_location("example_of_an_operator", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def operators_of(module):
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    return [
        value
        for value in classes
        if issubclass(value, Operator) and value.__module__ == module.__name__
    ]


def test_importing_the_new_operator_defines_one_class_and_registers_nothing(new_operator):
    (operator,) = operators_of(new_operator)
    assert operator.name not in OPERATORS


def test_the_new_operator_is_held_to_its_contract(new_operator):
    check_operator(new_operator.Crossing)
