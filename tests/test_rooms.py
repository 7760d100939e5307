"""Imports run down a list of floors and never in a circle: a reader of one room needs only what
lies below it.

What is found by its name while it runs is not seen here: the names of `linattn` and `evaluation`,
the report's studies.
"""

import ast
import graphlib
from pathlib import Path

import pytest

from linattn import project

ROOT = project.ROOT
# From the ground up; a room is a package or a module beside them. Rooms of one floor do not know
# one another.
FLOORS = (
    ("linattn_kernels", "names", "digests", "seeds"),
    ("project", "checkpoint", "intervals", "diffusion", "conditions", "lab"),
    ("attention",),
    ("families", "params", "world"),
    ("surgery", "sampling", "notebooks"),
    ("teachers", "samples", "redraw"),
    ("pretraining", "distillation", "evaluation"),
    ("report",),
    ("linattn", "explore", "pipeline", "testing"),
    ("studies", "publish"),
    # names that are typed, for what lies in rooms
    ("distill", "figures", "readme", "plugins", "resolution"),
)
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def modules(root=ROOT):
    """Dotted name -> file, of the library and its kernels; an __init__ is its package."""
    found = {}
    for folder in (root / "linattn", root / "kernels" / "linattn_kernels"):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source, known):
    """What a module imports, wherever it does: in a function and for its types too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import; name the module in full"
            below = {f"{node.module}.{each.name}" for each in node.names}
            found |= {name if name in known else node.module for name in below}
    return found & known


def graph(root=ROOT):
    files = modules(root)
    return {name: imports(path.read_text(), set(files)) - {name} for name, path in files.items()}


def room(module):
    package, _, inner = module.partition(".")
    return inner.partition(".")[0] if package == "linattn" and inner else package


def floor(module):
    return f"{module} on floor {FLOOR[room(module)]} ({', '.join(FLOORS[FLOOR[room(module)]])})"


def upward(root=ROOT):
    files = modules(root)
    return [
        f"{files[name].relative_to(root)} imports {other}: {floor(name)} must not know "
        f"{floor(other)}"
        for name, others in sorted(graph(root).items())
        for other in sorted(others)
        if room(name) != room(other) and FLOOR[room(other)] >= FLOOR[room(name)]
    ]


def circle(arrows):
    """The members of a circle, if there is one, each importing the next."""
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        return " <- ".join(error.args[1])
    return None


def test_every_room_has_one_floor():
    rooms = {room(name) for name in modules()}
    assert rooms == set(FLOOR)
    assert sum(map(len, FLOORS)) == len(FLOOR)


def test_no_import_runs_upward():
    wrong = upward()
    assert not wrong, "\n".join(wrong)


def test_no_circle_among_modules():
    assert circle(graph()) is None


def test_no_circle_among_rooms():
    arrows = {}
    for name, others in graph().items():
        arrows.setdefault(room(name), set()).update(
            room(other) for other in others if room(other) != room(name)
        )
    assert circle(arrows) is None


def reached(name, arrows):
    found, waiting = set(), {name}
    while waiting:
        found.add(each := waiting.pop())
        waiting |= arrows[each] - found
    return found


def test_a_figure_needs_no_model():
    rooms = {room(each) for each in reached("linattn.report.figures", graph())}
    assert not rooms & {
        "linattn_kernels",
        "attention",
        "families",
        "surgery",
        "sampling",
        "teachers",
    }


def test_a_small_teacher_needs_no_evaluation():
    arrows = graph()
    found = set().union(*(reached(name, arrows) for name in arrows if room(name) == "pretraining"))
    assert not {room(each) for each in found} & {"evaluation", "distillation", "report"}


@pytest.mark.parametrize(
    "planted",
    [
        "from linattn import report",
        "from linattn.report import figures",
        "import linattn.report.figures",
        "def late():\n    from linattn.report.figures import grid",
        "if TYPE_CHECKING:\n    from linattn.report.picture import Picture",
    ],
)
def test_an_import_that_runs_upward_is_named(planted, tmp_path):
    """Planted in a copy: these tests can fail, and say where."""
    for name, path in modules().items():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(
            path.read_text() + (f"\n{planted}\n" if name == "linattn.evaluation.growth" else "")
        )
    (wrong,) = upward(tmp_path)
    assert wrong.startswith(f"{Path('linattn/evaluation/growth.py')} imports linattn.report")
    assert f"floor {FLOOR['evaluation']} (" in wrong
    assert f"floor {FLOOR['report']} (" in wrong
    assert ("figures" not in planted) or "linattn.report.figures" in circle(graph(tmp_path))
