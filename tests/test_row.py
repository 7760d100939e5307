"""`make row`: what is refused before anything is computed, and a row from start to end at `tiny`.

The tests below "One row" are one story in a copy of the repository, and run in its order: the first
run, the second, an edited file, an interrupted run, a failed one.
"""

import dataclasses
import os
import re
import subprocess
import sys

import pytest
from PIL import Image

from linattn import params, pipeline, project, report, students
from linattn.attention import OPERATORS
from linattn.evaluation import evaluation
from linattn.report import budget, leaderboard
from linattn.row import command, making, supplies
from linattn.row.request import read_options, requested
from linattn.row.source import find


def code() -> str:
    """Return the operator of CONTRIBUTING.md under a name that nobody who tries it out takes."""
    text = (project.ROOT / "CONTRIBUTING.md").read_text()
    (shown,) = re.findall(r"```python\n(# linattn/attention/bands.py.*?)```", text, re.S)
    assert shown.count('name = "bands"') == 1
    return shown.replace('name = "bands"', 'name = "stripes"')


@pytest.fixture
def at_nano(monkeypatch):
    """Let params.yaml name the profile nano, whatever it names in this clone."""
    load = params.load
    monkeypatch.setattr(params, "load", lambda profile=None: load(profile or "nano"))


@pytest.fixture(autouse=True)
def unregistered():
    """Forget what a test registered."""
    before = set(OPERATORS)
    yield
    for name in set(OPERATORS) - before:
        OPERATORS.remove(name)


@pytest.fixture
def file(tmp_path, at_nano):
    path = tmp_path / "stripes.py"
    path.write_text(code())
    return path


@pytest.fixture
def nothing_computed(monkeypatch):
    """Fail where anything is checked, drawn or trained."""
    for module, name in ((command, "check_operator"), (supplies, "provide"), (making, "make")):
        monkeypatch.setattr(module, name, lambda *_, name=name: pytest.fail(f"{name} was called"))


def typed(**arguments):
    """Return the command's arguments at profile nano."""
    words = ["--profile", "nano"]
    for name, text in arguments.items():
        words.append(f"--{name}={text}")
    return words


def refusal(capsys, **arguments):
    """Return the one line that refuses these arguments."""
    assert command.main(typed(**arguments)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("linattn: ")
    return line


# What is typed
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operator": ""}, "no operator is named: make row OPERATOR=path.py TEACHER=class"),
        ({"operator": "nowhere/stripes.py"}, r"OPERATOR=nowhere/stripes.py is not there"),
        ({"operator": "/"}, "OPERATOR=/ is a folder"),
        ({"operator": os.devnull}, f"OPERATOR={os.devnull} is no file"),
        ({"operator": f"/{'long' * 99}.py"}, "long.py is not there"),
        ({"operator": "claer"}, r"OPERATOR=claer is no file, .*did you mean 'clear'\?"),
        ({"teacher": ""}, "no teacher is named: .* one of class, text, text-joint"),
        ({"teacher": "clas"}, r"unknown teacher 'clas': did you mean 'class'\?"),
        ({"teacher": "dit-nano"}, "TEACHER=dit-nano is a teacher, .* its role: class"),
        ({"name": "b" * 81}, "NAME=b+: a name has at most 80 characters, .* has 81"),
        ({"name": "-b"}, "NAME=-b: a name is made of"),
        ({"name": "clear"}, "'clear' is the name of a student here: .*NAME=clear-2"),
        ({"name": "Mine"}, "NAME=Mine: a name is made of a-z, 0-9 and '-'"),
        ({"name": "teacher-mine"}, "'teacher-mine' is the name of another row"),
        ({"options": "radius=4"}, r"OPTIONS.radius is 4: .*radius"),
        ({"options": "rows=0"}, "OPTIONS.rows is 0: .*1"),
        ({"options": "rows"}, "'rows' is no list of options"),
        ({"options": "rows= pool=2"}, "'rows=' is no option=value"),
        ({"options": "rows=[1"}, "OPTIONS: '.1' is not valid YAML"),
        ({"options": "rows=2 rows=4"}, "'rows' stands there 2 times; keep one"),
        ({"options": "rows='2"}, "OPTIONS: .* has a quotation mark without its twin"),
        ({"options": "schedule=3"}, "OPTIONS.schedule is 3: .*schedule is a list like"),
        ({"options": "name=3"}, "OPTIONS.name is 3: unknown option of stripes 'name'"),
        ({"options": "layers=1"}, "'layers' belongs to the student"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line_before_any_compute(
    arguments, message, file, nothing_computed, capsys
):
    arguments = {"operator": file, "teacher": "class", **arguments}
    assert re.search(message, refusal(capsys, **arguments))


def test_the_name_of_another_operator_is_refused(file, nothing_computed, capsys, monkeypatch):
    usual = params.load("nano")
    fewer = {name: entry for name, entry in usual.students.items() if name != "mediator"}
    settings = dataclasses.replace(usual, students=fewer)
    monkeypatch.setattr(params, "load", lambda profile=None: settings)
    line = refusal(capsys, operator=file, teacher="class", name="mediator")
    assert "'mediator' is the name of an operator here" in line


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "has no operator: it needs a class derived from linattn.attention.Operator"),
        ("from linattn.attention.clear import Clear\n", "has no operator"),
        ("import helper_that_nobody_has\n", "ModuleNotFoundError: .*one file holds the operator"),
        ("x = 1 +\n", "cannot be imported: SyntaxError: .*line 1"),
        ("raise SystemExit(3)\n", "cannot be imported: SystemExit: 3"),
        (
            "CODE\nclass Second(Bands):\n    pass\n\n\nclass Third(Bands):\n    pass\n",
            "2 operators",
        ),
        ('CODE\nBands.name = "clear"\n', "named 'clear', which is the name of linattn.attention"),
        ("CODE\nBands.table = 3\n", "table is 3; it must be a dictionary"),
        ('CODE\nBands.forms = {"two": 2}\n', "forms.'two'. is 2; it must be a dictionary of"),
        (
            "CODE\n    def __init__(self, shape, **options):\n        [][0]\n",
            "OPTIONS: stripes cannot be built: IndexError: list index out of range",
        ),
    ],
)
def test_a_file_that_is_no_operator_is_refused_in_one_line(
    source, message, file, nothing_computed, capsys
):
    file.write_text(source.replace("CODE", code()))
    line = refusal(capsys, operator=file, teacher="class")
    assert re.search(message, line)


def test_a_base_class_in_the_file_is_no_operator_of_its_own(file):
    file.write_text(f'{code()}\n\nclass Narrow(Bands):\n    name = "narrow"\n')
    assert find(str(file)).operator.name == "narrow"


def test_a_byte_order_mark_is_no_part_of_the_operators_code(file):
    file.write_text(code(), encoding="utf-8-sig")
    assert find(str(file)).text == code()


def test_a_files_import_leaves_nothing_beside_it(file):
    find(str(file))
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    "text", ["radius=4 pool=2", "{radius: 4, pool: 2}", "radius: 4, pool: 2", " radius=4  pool=2 "]
)
def test_options_are_read_from_words_and_from_yaml(text):
    assert read_options(text) == {"radius": 4, "pool": 2}


def test_no_options_are_none_and_a_schedule_is_a_list():
    assert read_options("") == {}
    assert read_options("schedule: [{until: 0.5, count: 4}], conv: 3") == {
        "schedule": [{"until": 0.5, "count": 4}],
        "conv": 3,
    }


def test_another_profile_runs_the_same_command_in_a_copy(file, monkeypatch, nothing_computed):
    seen = []
    monkeypatch.setattr(pipeline, "elsewhere", lambda *words: seen.append(words) or 0)
    monkeypatch.chdir(file.parent)
    other = "nano" if params.load().profile == "tiny" else "tiny"
    typed = ["--operator", "stripes.py", "--teacher", "class", "--options", "rows=2"]
    assert command.main([*typed, "--profile", other]) == 0
    words = [f"--operator={file}", "--teacher=class", "--options=rows=2", "--name="]
    assert seen == [(other, words, "linattn.row")]


def test_a_copy_that_another_command_refreshes_keeps_its_profile_meanwhile(tmp_path, monkeypatch):
    folder = pipeline.copy(tmp_path / "copy", "tiny")
    before = {path: path.stat().st_ino for path in folder.rglob("*.py")}
    params_file, choose, seen = folder / "params.yaml", pipeline._choose, []
    monkeypatch.setattr(
        pipeline, "_choose", lambda *_: (seen.append(params_file.read_text()), choose(*_))
    )
    pipeline.copy(folder, "tiny")
    assert re.findall("^profile: (.*)$", seen[0], re.M) == ["tiny"]
    assert {path: path.stat().st_ino for path in folder.rglob("*.py")} == before
    assert not list(folder.rglob("*.draft"))


def test_make_hands_over_what_was_typed_and_no_name_of_the_environment():
    """Some systems have a NAME in their environment."""
    words = ["make", "-n", "row", "OPERATOR=a b.py", "TEACHER=class", "OPTIONS=rows=2 conv=3"]
    environment = {**os.environ, "NAME": "a-machine", "OPTIONS": "of something else"}
    options = {"cwd": project.ROOT, "env": environment, "capture_output": True, "text": True}
    printed = subprocess.run(words, **options).stdout
    expected = "--operator='a b.py' --teacher='class' --options='rows=2 conv=3' --name=''"
    assert f"python -m linattn.row {expected}" in printed
    assert "--profile" not in printed
    assert "--profile 'tiny'" in subprocess.run([*words, "PROFILE=tiny"], **options).stdout


def test_a_registered_operator_is_found_by_its_name_and_needs_a_free_one():
    settings = params.load("nano")
    request = requested(settings, find("clear"), "class", "radius=6", "clear-wide")
    assert request.student.options == {"radius": 6}
    assert request.source.path.name == "clear.py"
    with pytest.raises(ValueError, match="name of a student here"):
        requested(settings, find("clear"), "class", "", "")


def test_what_a_row_depends_on_is_in_its_identity(file):
    settings = params.load("nano")
    first = requested(settings, find(str(file)), "class", "rows=2", "")
    assert first.identity == requested(settings, find(str(file)), "class", "rows=2", "").identity
    tiny = requested(params.load("tiny"), find(str(file)), "class", "rows=2", "")
    others = [requested(settings, find(str(file)), "class", "rows=4", ""), tiny]
    file.write_text(f"{code()}\n# edited\n")
    others.append(requested(settings, find(str(file)), "class", "rows=2", ""))
    assert len({first.identity, *(other.identity for other in others)}) == 4


# A wrong operator
# ---------------------------------------------------------------------------------------------


def test_a_wrong_operator_is_refused_with_what_differs_and_nothing_is_written(
    file, monkeypatch, capsys
):
    right = "return torch.cat(outputs, 1)"
    assert right in code()
    file.write_text(code().replace(right, "return 1.01 * torch.cat(outputs, 1)"))
    for module, name in ((supplies, "provide"), (making, "make")):
        monkeypatch.setattr(module, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    assert command.main(typed(operator=file, teacher="class", name="stripes-wrong")) == 1
    printed = capsys.readouterr()
    assert re.search(
        r"stripes-definition: mix on Grid\(.* differs from its definition", printed.err
    )
    assert re.search(r"(\d+) of \1 checks", printed.out)
    assert not project.local("rows/class/stripes-wrong").exists()


def test_two_processes_do_not_make_one_row(file, nothing_computed, capsys):
    request = requested(params.load("nano"), find(str(file)), "class", "", "stripes-twice")
    OPERATORS.remove("stripes")
    with command.alone(request):
        line = refusal(capsys, operator=file, teacher="class", name="stripes-twice")
    assert "stripes-twice is being made by another process" in line


def test_other_rows_and_later_runs_are_free(file):
    first = requested(params.load("nano"), find(str(file)), "class", "", "stripes-one")
    second = requested(params.load("nano"), find(str(file)), "class", "", "stripes-two")
    with command.alone(first), command.alone(second):
        pass
    with command.alone(first):
        pass


@pytest.mark.parametrize(
    ("error", "last"),
    [
        (OSError(28, "No space left on device"), "No space left on device; no row was written"),
        (KeyError("late"), "KeyError: 'late'; no row was written"),
    ],
)
def test_what_fails_midway_ends_in_a_sentence(error, last, file, monkeypatch, capsys):
    monkeypatch.setattr(command, "check_operator", lambda *_: None)
    monkeypatch.setattr(supplies, "provide", lambda *_: None)

    def fails(*_):
        raise error

    monkeypatch.setattr(making, "make", fails)
    assert command.main(typed(operator=file, teacher="class", name="stripes-late")) == 1
    lines = capsys.readouterr().err.splitlines()
    assert last in lines[-1]
    assert ("Traceback" in lines[0]) == isinstance(error, KeyError)


# What is made first
# ---------------------------------------------------------------------------------------------


def test_what_lacks_is_made_by_the_pipelines_stages_and_its_failure_is_named(
    tmp_path, monkeypatch, capsys
):
    settings = params.load("nano")
    monkeypatch.setattr(project, "ROOT", tmp_path)
    hardware = {"cpu": "a CPU", "cores": 2, "gpu": "a GPU"}
    facts = {"hardware": hardware, "versions": {"torch": "2.13.0", "diffusers": "0.42.0"}}
    run = {"seconds": {"evaluate": 100, "draw": 90}, "facts": facts}
    project.write_json(tmp_path / "reports/runs/teacher-class.run.json", run)
    project.write_json(tmp_path / "reports/results/teacher-class.json", {"profile": "nano"})
    ran = []
    monkeypatch.setattr(pipeline, "dvc", lambda *words: ran.append(words) or 1)
    monkeypatch.setattr(pipeline, "stale", lambda: [])
    with pytest.raises(RuntimeError, match="sample@class, reference@class failed.*is kept"):
        supplies.provide(settings, "class")
    assert ran == [("repro", "--single-item", "source@class", "sample@class", "reference@class")]
    assert re.search(r"sample@class, reference@class, some \d minutes on a GPU", *_outs(capsys))


@pytest.mark.parametrize("behind", [[], ["sample@text"], ["reference@class", "report"]])
def test_samples_and_reference_are_made_anew_where_dvc_calls_them_stale(
    behind, tmp_path, monkeypatch
):
    """An edit of the code or the teacher alters what they would be, though their files are here."""
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setattr(pipeline, "stale", lambda: behind)
    project.samples("class", write=True).mkdir()
    project.reference("class", write=True).touch()
    assert supplies.missing("class") == [stage for stage in behind if stage == "reference@class"]


def _outs(capsys):
    return (capsys.readouterr().out,)


def test_minutes_are_those_of_the_committed_run_of_the_same_profile():
    names = params.load("nano").of_teacher("class")
    assert re.match(r", some \d+ minutes? on ", budget.in_words(budget.of_row("nano", names)))
    assert budget.in_words(budget.of_row("tiny", names)) == ""
    assert budget.of_supplies(params.load("tiny"), "class") is None


# One row
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Return a copy of the repository at profile tiny."""
    return pipeline.copy(tmp_path_factory.mktemp("clone"), "tiny")


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "stripes.py"
    path.write_text(code())
    return path


@pytest.fixture(scope="module")
def first(clone, outside):
    """Run the command in the copy, as make does."""
    words = ["--operator", str(outside), "--teacher", "class", "--options", "rows=2"]
    environment = {**os.environ, "PYTHONPATH": project.python_path(clone), "LINATTN_COMMIT": "abc"}
    return subprocess.run(
        [sys.executable, "-m", "linattn.row", *words],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def inside(clone, monkeypatch, first):
    """Work in the copy, in this process."""
    monkeypatch.setattr(project, "ROOT", clone)
    monkeypatch.setenv("LINATTN_COMMIT", "abc")


ROW = "reports/local/rows/class/stripes"
WORDS = ("--teacher", "class", "--options", "rows=2")


def test_a_right_operator_becomes_a_row(first, clone, outside):
    assert first.returncode == 0, first.stderr
    assert "First, since they are not here: sample@class, reference@class" in first.stdout
    folder = clone / ROW
    names = {path.name for path in folder.iterdir()}
    assert names == {"operator.py", "result.json", "run.json", "pictures.png", "student"}
    assert (folder / "operator.py").read_text() == outside.read_text()
    assert (folder / "student" / "linattn.safetensors").is_file()
    result = project.read_json(folder / "result.json")
    error = result["quality"]["error"]
    assert error["low"] < error["value"] < error["high"]
    assert result["cost"]["core_macs"] > 0
    assert (result["operator"], result["options"]) == ("stripes", {"rows": 2})
    assert (result["profile"], result["teacher"]) == ("tiny", "class")
    assert result["file"]["class"] == "Bands"
    run = project.read_json(folder / "run.json")
    assert run["facts"]["commit"] == "abc"
    assert {"distill", "evaluate", "draw"} <= set(run["seconds"])
    with Image.open(folder / "pictures.png") as strip:
        assert strip.size == (64 * 8, 64)


def test_nothing_else_of_the_copy_holds_the_row(first, clone):
    assert not list(clone.glob("reports/local/*/stripes*"))
    assert not list((clone / ".scratch").glob("*stripes*"))
    assert not list((clone / "data" / "pictures").glob("stripes*"))


def test_the_leaderboard_has_the_row_and_its_path_is_printed(first, clone):
    page = clone / "reports" / "leaderboard.html"
    assert f"The leaderboard: {page}" in first.stdout
    assert re.search(
        r"stripes: rank \d of \d for dit-nano; error [\d.]+ % \([\d.]+ to", first.stdout
    )
    text = page.read_text()
    assert "stripes rows=2" in text
    assert "made on this machine: stripes.py" in text


def test_the_student_of_a_row_loads_once_its_operator_is_registered(inside, clone, outside):
    from linattn import surgery, teachers

    teacher = teachers.load(clone / "data/teachers/dit-nano")
    find(str(outside))
    model = surgery.load(teacher.model, clone / ROW / "student")
    assert {layer["operator"] for layer in surgery.describe(model)} == {"stripes"}


def test_the_same_file_is_not_computed_again(inside, outside, nothing_computed, capsys):
    assert command.main(["--operator", str(outside), *WORDS]) == 0
    printed = capsys.readouterr().out
    assert "The row is there, made from the same file" in printed
    assert "The leaderboard: " in printed


def test_a_row_that_was_edited_in_place_is_made_anew(inside, outside, clone, monkeypatch):
    monkeypatch.setenv(project.PIPELINE, "1")
    request = requested(params.load("tiny"), find(str(outside)), "class", "rows=2", "")
    assert making.is_made(request)
    path = clone / ROW / "operator.py"
    path.write_text(f"{code()}\n# in place\n")
    assert not making.is_made(request)
    path.write_text(code())
    assert making.is_made(request)


def test_an_interrupted_run_leaves_the_row_and_goes_on_where_it_was(
    inside, outside, clone, monkeypatch, capsys
):
    outside.write_text(f"{code()}\n# edited\n")
    before = (clone / ROW / "result.json").read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate_student", interrupted)
        assert command.main(["--operator", str(outside), *WORDS]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert (clone / ROW / "result.json").read_bytes() == before
    monkeypatch.setattr(students, "make_of", lambda *_, **__: pytest.fail("distilled again"))
    assert command.main(["--operator", str(outside), *WORDS]) == 0
    assert (clone / ROW / "operator.py").read_text() == outside.read_text()
    assert {path.name for path in (clone / ROW).parent.iterdir()} == {"stripes"}


def test_the_row_of_an_edited_comment_has_the_same_numbers(inside, first, clone):
    """Computed twice, in two processes: nothing but the file's digest may differ."""
    printed = re.search(r"\| Error: .*", first.stdout)[0]
    error = project.read_json(clone / ROW / "result.json")["quality"]["error"]
    assert f"| {100 * error['value']:.1f} (" in printed


def test_a_failed_stage_keeps_the_row_and_says_why(inside, outside, clone, monkeypatch, capsys):
    outside.write_text(f"{code()}\n# edited again\n")
    before = (clone / ROW / "result.json").read_bytes()

    def diverged(*_, **__):
        raise ArithmeticError("12 pixels are not finite: the student diverged")

    monkeypatch.setattr(students, "make_of", diverged)
    assert command.main(["--operator", str(outside), *WORDS]) == 1
    assert "linattn: 12 pixels are not finite" in capsys.readouterr().err
    assert (clone / ROW / "result.json").read_bytes() == before


def test_a_row_given_to_git_is_a_contributed_one(inside, clone):
    """Committed rows are those files without the weights."""
    folder = clone / "reports" / "rows" / "class" / "stripes"
    folder.mkdir(parents=True)
    for name in ("operator.py", "result.json", "run.json", "pictures.png"):
        (folder / name).write_bytes((clone / ROW / name).read_bytes())
    settings = params.load("tiny")
    data = report.read(settings.students, "tiny", teachers=settings.teachers, committed=True)
    (row,) = data.contributed["class"]
    assert (row.in_git, row.problem) == (True, "")
    assert "| contributed: stripes.py |" in leaderboard.markdown_table(data)
