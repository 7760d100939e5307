"""Every operator of the registry is held to linattn.testing, and so is a newcomer's."""

import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
import types

import pytest
import torch

import linattn
from linattn import params, project, testing
from linattn.attention import OPERATORS, LayerShape, Operator, create
from linattn.attention.options import Values
from linattn.attention.registry import RESERVED, Registry
from linattn.attention.softmax import Softmax

EVERY = [check for operator in OPERATORS.values() for check in testing.checks(operator)]


@pytest.mark.parametrize("check", EVERY, ids=str)
def test_an_operator_holds(check):
    check()


def test_every_operator_and_every_check_is_there():
    assert {check.form.operator.name for check in EVERY} == set(OPERATORS)
    held = {check.name for check in EVERY}
    assert held == {*testing.CONTRACT, *testing.STUDENTS, *testing.ONCE}
    assert {check.backbone for check in EVERY} == {None, *testing.models.BACKBONES}


# The operator of CONTRIBUTING.md
# ---------------------------------------------------------------------------------------------


def code() -> str:
    text = (project.ROOT / "CONTRIBUTING.md").read_text()
    return re.search(r"```python\n(# linattn/attention/bands.py.*?)```", text, re.S).group(1)


def bands(edit=lambda source: source) -> type[Operator]:
    module = types.ModuleType("bands")
    exec(compile(edit(code()), "CONTRIBUTING.md", "exec"), module.__dict__)
    return module.Bands


def replaced(old: str, new: str):
    def edit(source: str) -> str:
        assert old in source
        return source.replace(old, new)

    return edit


SCALED = replaced("return torch.cat(outputs, 1)", "return 1.01 * torch.cat(outputs, 1)")
OFF_BY_ONE = replaced("return 2 * pairs *", "return 1 + 2 * pairs *")
FRACTION = replaced("return 2 * pairs *", "return 2.0 * pairs *")
LEAVES = replaced("outputs = [", 'raise SystemExit("square only")\n        outputs = [')
FORGETFUL = replaced(
    "    def cost(",
    "    @property\n"
    "    def options(self):\n"
    '        return {n: v for n, v in super().options.items() if n != "rows"}\n\n'
    "    def cost(",
)
FORMS = '    forms = {"two": {"rows": 2}}  # tests run the defaults and these\n'


def formless(source: str) -> str:
    return FORGETFUL(replaced(FORMS, "")(source))


def idle(source: str) -> str:
    table = replaced("whole(4, least=1)}", 'whole(4, least=1), "spare": whole(1, least=1)}')
    return table(replaced('"rows": 2}}', '"rows": 2}, "spare": {"spare": 2}}')(source))


UNSCHEDULED = replaced("values.rows", "self.values.rows")


LARGE = replaced(
    "return torch.cat(outputs, 1)",
    "return torch.cat(outputs, 1) * (1.01 if grid.tokens > 512 else 1)",
)


def test_the_operator_of_contributing_holds():
    testing.check_operator(bands())
    assert "bands" not in OPERATORS


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (SCALED, r"bands-definition: mix on Grid\(.* differs from its definition by .*0\.01"),
        (OFF_BY_ONE, r"bands-cost: .*counter sees \d+, of which 0 do not count.* differ by \+1"),
        (FRACTION, r"bands-cost: on Grid\(.*\) cost is 65536\.0; it must be a whole number"),
        (LEAVES, "bands-definition: SystemExit: square only"),
        (FORGETFUL, r"bands-two-options: option rows=2 is lost on save: options holds \[\]"),
        (formless, r"bands-options: option rows=4 is lost on save: options holds \[\]"),
        (idle, "bands-effect: option spare=2 changes nothing"),
        (UNSCHEDULED, r"bands-two-schedule: schedule \[.*\] is ignored"),
        (LARGE, r"bands-definition: mix on Grid\(height=33, width=17.* differs"),
    ],
    ids=[
        "core x 1.01",
        "cost + 1",
        "cost of a fraction's type",
        "core that leaves Python",
        "an option lost on save",
        "an option without a form, lost on save",
        "an option that changes nothing",
        "an option that does not follow the noise",
        "wrong above 512 tokens",
    ],
)
def test_a_faulty_operator_is_named_with_what_differs(edit, says, monkeypatch):
    monkeypatch.setattr(testing, "STUDENTS", {})  # whole models show none of these faults first
    with pytest.raises(AssertionError, match=says):
        testing.check_operator(bands(edit))


@pytest.fixture(scope="module")
def newcomer(committed, tmp_path_factory):
    """The repository after the three edits of CONTRIBUTING.md, and a way to run its tests."""
    root = tmp_path_factory.mktemp("newcomer") / "linattn"
    subprocess.run(["cp", "-r", str(committed), str(root)], check=True)
    for name, line, more in (
        ("linattn/attention/__init__.py", '    "lit:LiT",\n', '    "bands:Bands",\n'),
        ("params.yaml", "\nstudents:\n", "  bands: {operator: bands, teacher: class, rows: 4}\n"),
    ):
        (root / name).write_text(replaced(line, line + more)((root / name).read_text()))

    def run(source: str, *words: str) -> subprocess.CompletedProcess:
        (root / "linattn" / "attention" / "bands.py").write_text(source)
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *words],
            cwd=root,
            env=os.environ | {"PYTHONPATH": f"{root}:{root / 'kernels'}"},
            capture_output=True,
            text=True,
        )

    return run


def test_a_newcomers_operator_is_in_every_test(newcomer):
    files = {
        "tests/test_operators.py",
        "tests/test_attention.py",
        "tests/test_surgery.py",
        "tests/test_costs.py",
        "tests/test_true_shapes.py",
        "tests/test_distill.py",
        "tests/test_repository.py",
    }
    done = newcomer(code(), "-k", "bands", "-rA", *sorted(files))
    assert done.returncode == 0, done.stdout[-2000:]
    assert set(re.findall(r"^PASSED (\S+)::", done.stdout, re.M)) == files


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (SCALED, "differs from its definition"),
        (OFF_BY_ONE, "they differ by +1"),
    ],
    ids=["core x 1.01", "cost + 1"],
)
def test_make_test_fails_on_a_faulty_operator(newcomer, edit, says):
    chosen = "bands and (definition or cost or options)"
    done = newcomer(edit(code()), "-k", chosen, "tests/test_operators.py")
    assert done.returncode == 1
    assert says in done.stdout


# Registration
# ---------------------------------------------------------------------------------------------


def test_an_operator_is_registered_by_hand_and_by_a_decorator():
    operator = bands()
    try:
        assert linattn.register(operator) is operator
        assert linattn.register(operator) is operator  # a cell of a notebook that runs twice
        assert isinstance(create("bands", LayerShape(16, 4, 4)), operator)
    finally:
        OPERATORS.remove("bands")


class Nameless(Softmax):
    name = "Not A Name"


class Twin(Softmax):
    """Has the name of another."""


class Unfinished(Operator):
    name = "unfinished"


class Mapless(Softmax):
    name = "mapless"
    has_map = False


class Unsure(Softmax):
    name = "unsure"
    has_map = "no"


class Typed(Softmax):
    name = "typed"
    table = {"conv": 3}


class Listed(Softmax):
    name = "listed"
    table = ["conv"]


class Misspelt(Softmax):
    name = "misspelt"
    forms = {"large": {"cnv": 5}}


class Shadowing(Softmax):
    name = "shadowing"
    table = {**Softmax.table, "replace": Softmax.table["conv"]}


@pytest.mark.parametrize(
    ("operator", "says"),
    [
        (Nameless, "Nameless.name is 'Not A Name'; it must be lower-case"),
        (Twin, "is the name of linattn.attention.softmax.Softmax: choose another"),
        (Unfinished, "Unfinished lacks core, dense, cost"),
        (Mapless, "Mapless lacks defined: an operator with has_map=False writes core, defined"),
        (Unsure, "Unsure.has_map is 'no'; it must be True or False"),
        (Typed, r"Typed.table\['conv'\] is 3; it must be an Option"),
        (Listed, r"Listed.table is \['conv'\]; it must be a dictionary"),
        (Misspelt, r"option of misspelt in .*forms\['large'\] 'cnv': did you mean 'conv'"),
        (Shadowing, r"table\['replace'\]: 'replace' means something else already"),
        (int, "int is no operator: derive it from linattn.attention.Operator"),
        (3, "3 is no operator"),
    ],
    ids=str,
)
def test_what_is_no_operator_is_refused(operator, says):
    with pytest.raises(ValueError, match=says):
        linattn.register(operator)
    assert list(OPERATORS) == list(dict.fromkeys(OPERATORS))


def test_no_option_has_the_name_of_an_argument_or_a_students_key():
    arguments = set(inspect.signature(linattn.linearize).parameters) - {"options"}
    attributes = {name for name in dir(Values({})) if not name.startswith("_")}
    assert arguments | attributes | set(params.schema.STUDENT_KEYS) <= RESERVED


def test_operators_of_other_packages_join_by_their_entry_points(monkeypatch):
    good = types.SimpleNamespace(name="bands", value="other:Bands", load=bands)
    bad = types.SimpleNamespace(name="broken", value="other:Broken", load=lambda: 1 / 0)
    asked = []
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: asked.append(group) or [good, bad]
    )
    registry = Registry("softmax:Softmax")
    assert registry["softmax"] is Softmax
    assert not asked  # a built-in one is found without a look at other packages
    with pytest.warns(UserWarning, match=r"'broken' \(other:Broken\) is left out: division"):
        assert "bands" in registry
    assert list(registry) == ["softmax", "bands"]
    assert asked == ["linattn.operators"]


@pytest.fixture
def torn(monkeypatch):
    """A registry in which the file of one operator ends in the middle of a line."""
    whole = importlib.import_module

    def load(name):
        if name == "linattn.attention.lit":
            compile("class LiT(", "/a/clone/linattn/attention/lit.py", "exec")
        return whole(name)

    monkeypatch.setattr(importlib, "import_module", load)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    return Registry("softmax:Softmax", "lit:LiT", "clear:Clear")


def test_an_operators_broken_file_costs_that_operator_alone(torn):
    assert list(torn) == ["softmax", "lit", "clear"]
    assert len(torn) == 3
    assert torn["softmax"] is Softmax
    assert "lit" in torn
    assert torn.find("lit") is None
    assert torn.find("clear").name == "clear"
    assert torn.find("unknown") is None
    says = r"'lit' cannot be imported \(lit\.py, line 1: SyntaxError: .*mend linattn/attention/lit"
    with pytest.raises(ValueError, match=says):
        torn["lit"]
    assert set(torn.broken) == {"lit"}


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ImportError("no module named einops"), "ImportError: no module named einops"),
        (AttributeError("LiT"), "AttributeError: LiT"),
        (RuntimeError("a line\nand another"), "RuntimeError: a line and another"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_an_operators_file_raises_is_said_when_it_is_used(monkeypatch, error, says):
    def load(name):
        raise error

    monkeypatch.setattr(importlib, "import_module", load)
    with pytest.raises(ValueError, match=re.escape(says)):
        Registry("lit:LiT")["lit"]


def test_an_operator_that_is_mended_is_no_longer_broken(torn):
    class Mended(Softmax):
        name = "lit"

    torn.add(Mended)
    assert torn["lit"] is Mended
    assert not torn.broken


def test_an_outsiders_class_needs_five_things_and_nothing_else():
    class Uniform(Operator):
        name = "uniform"
        table = {}

        def core(self, q, k, v, grid, x, values):
            return v.mean(1, keepdim=True).expand_as(v)

        def dense(self, q, k, grid, values):
            batch, tokens, heads, _ = q.shape
            return q.new_full((batch, heads, tokens, tokens), 1 / tokens) + 0 * q.sum() * k.sum()

        def cost(self, grid, values):
            return 0

    operator = Uniform(LayerShape(16, 4, 4))
    q, k, v = torch.randn(3, 2, 6, 4, 4, dtype=torch.float64)
    grid = linattn.Grid(2, 3)
    assert torch.allclose(operator.mix(q, k, v, grid), operator.definition(q, k, v, grid))
    assert operator.options == {}
    assert operator.macs(grid) == 0
