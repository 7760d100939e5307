"""Imports run down a list of floors and never in a circle.

So a reader of one room needs to know only the rooms below it. Imports by name at run time are not
seen here: the names of `linattn` and `evaluation`, and the report's studies.
"""

import ast
import graphlib
import shutil
from pathlib import Path

import pytest

from linattn import project

ROOT = project.ROOT
# From the ground up. A room is a package or a module beside the packages; rooms of one floor do not
# import one another.
FLOORS = (
    ("linattn_kernels", "names", "digests", "seeds", "files", "signals", "finite"),
    ("sealed", "sums", "project", "reader"),
    (
        "outs",
        "named",
        "executed",
        "alone",
        "checkpoint",
        "intervals",
        "diffusion",
        "lab",
        "shapes",
        "configs",
    ),
    ("attention", "contrasts"),
    ("families", "world", "eye"),
    ("conditions",),
    ("surgery", "sampling"),
    ("teachers", "samples", "redraw"),
    ("pretraining", "distillation"),
    ("params",),
    ("prompts", "memory", "parts"),
    ("source", "roles"),
    ("students", "evaluation", "notebooks", "scorers"),
    ("report", "hours", "planning", "drafts"),
    ("advise",),
    ("linattn", "explore", "passages", "pipeline", "testing"),
    ("studies", "publish", "row", "rehearse"),
    # short names for modules that lie in rooms
    ("distill", "figures", "readme", "plugins", "resolution"),
)
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def modules(root=ROOT):
    """Return {dotted name: path} of the library and its kernels; an __init__ is its package."""
    files = {}
    for folder in (root / "linattn", root / "kernels" / "linattn_kernels"):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports(source, known):
    """Return what a module imports of the known names, also in functions and for types."""
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import; name the module in full"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= {name if name in known else node.module for name in names}
    return imported & known


def graph(root=ROOT):
    files = modules(root)
    return {name: imports(path.read_text(), set(files)) - {name} for name, path in files.items()}


def room(module):
    package, _, inner = module.partition(".")
    return inner.partition(".")[0] if package == "linattn" and inner else package


def floor(module):
    return f"{module} on floor {FLOOR[room(module)]} ({', '.join(FLOORS[FLOOR[room(module)]])})"


def upward(root=ROOT):
    """Describe every import that does not run down to a lower floor."""
    files, wrong = modules(root), []
    for name, others in sorted(graph(root).items()):
        for other in sorted(others):
            if room(name) != room(other) and FLOOR[room(other)] >= FLOOR[room(name)]:
                path = files[name].relative_to(root)
                wrong.append(f"{path} imports {other}: {floor(name)} must not know {floor(other)}")
    return wrong


def circle(arrows):
    """Return the members of a circle, if there is one, each importing the next."""
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
        rooms = {room(other) for other in others} - {room(name)}
        arrows[room(name)] = arrows.get(room(name), set()) | rooms
    assert circle(arrows) is None


def reached(names, arrows):
    """Return the rooms of the modules and of all that they import."""
    modules, waiting = set(), set(names)
    while waiting:
        module = waiting.pop()
        modules.add(module)
        waiting |= arrows[module] - modules
    return {room(module) for module in modules}


def test_a_figure_needs_no_model():
    rooms = reached(["linattn.report.figures"], graph())
    models = {"linattn_kernels", "attention", "families", "surgery", "sampling", "teachers"}
    assert not rooms & models


def test_a_small_teacher_needs_no_evaluation():
    arrows = graph()
    rooms = reached([name for name in arrows if room(name) == "pretraining"], arrows)
    assert not rooms & {"evaluation", "distillation", "report"}


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
    """The import is planted in a copy, so these tests can fail, and say where."""
    for path in modules().values():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    with (tmp_path / "linattn" / "evaluation" / "growth.py").open("a") as file:
        file.write(f"\n{planted}\n")
    (wrong,) = upward(tmp_path)
    assert wrong.startswith(f"{Path('linattn/evaluation/growth.py')} imports linattn.report")
    assert f"floor {FLOOR['evaluation']} (" in wrong
    assert f"floor {FLOOR['report']} (" in wrong
    assert ("figures" not in planted) or "linattn.report.figures" in circle(graph(tmp_path))
