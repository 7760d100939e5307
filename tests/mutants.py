"""Change the library in one place at a time, and ask which tests notice.

`python tests/mutants.py map` learns which tests run which lines (it needs coverage: pip install
coverage). `python tests/mutants.py run --count 300` then makes so many changes, each in a copy of
the repository, and runs the tests of that line. A change that no test notices is printed: it is a
missing test, or a change that alters nothing.
"""

import argparse
import ast
import collections
import copy
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MAPS = ROOT / ".scratch" / "mutants"  # a file for each file of tests
PACKAGES = ("linattn", "kernels/linattn_kernels")
FIRST, MOST = 10, 60  # tests that are run for a change, and for one that these do not notice
SECONDS = 240  # that they may take
# These run the pipeline or build pages; what they cover is covered by others too.
SLOW_FIXTURES = {"finished", "clone"}
SLOW = {
    "test_foreign",
    "test_repository",
    "test_docs",
    "test_faults",
    "test_examples",
}
COMPARED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
COMPUTED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
}


def changed(node: ast.AST) -> ast.AST | None:
    """Return another node for this one, or None where it is left."""
    other = copy.deepcopy(node)
    if isinstance(other, ast.Compare) and type(other.ops[0]) in COMPARED:
        other.ops[0] = COMPARED[type(other.ops[0])]()
    elif isinstance(other, ast.BinOp) and type(other.op) in COMPUTED:
        other.op = COMPUTED[type(other.op)]()
    elif isinstance(other, ast.BoolOp):
        other.op = ast.Or() if isinstance(other.op, ast.And) else ast.And()
    elif isinstance(other, ast.UnaryOp) and isinstance(other.op, (ast.Not, ast.USub)):
        return other.operand
    elif isinstance(other, ast.Constant) and isinstance(other.value, bool):
        other.value = not other.value
    elif isinstance(other, ast.Constant) and isinstance(other.value, (int, float)):
        other.value = other.value + 1 if other.value != 1 else 2
    elif isinstance(other, ast.IfExp):
        other.body, other.orelse = other.orelse, other.body
    elif isinstance(other, ast.Return) and other.value is not None:
        if isinstance(other.value, ast.Constant) and other.value.value is None:
            return None
        other.value = ast.Constant(None)
    else:
        return None
    return other


class Replace(ast.NodeTransformer):
    """Replace one node of a tree."""

    def __init__(self, target: ast.AST, other: ast.AST):
        self.target, self.other = target, other

    def visit(self, node: ast.AST) -> ast.AST:
        return self.other if node is self.target else self.generic_visit(node)


def places(path: Path) -> Iterator[int]:
    """Yield the numbers, in the order of ast.walk, of the nodes of a file that can be changed."""
    tree = ast.parse(path.read_text())
    kept = {id(inner) for node in ast.walk(tree) for inner in _said(node)}
    for number, node in enumerate(ast.walk(tree)):
        if hasattr(node, "lineno") and id(node) not in kept and changed(node) is not None:
            yield number


def _said(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what is said and not done: the insides of errors, f-strings and annotations."""
    if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Assert)):
        yield from ast.walk(node)
    for name in ("annotation", "returns"):
        if isinstance(getattr(node, name, None), ast.AST):
            yield from ast.walk(getattr(node, name))


def mutated(path: Path, number: int) -> tuple[str, int, str]:
    """Return a file with one node changed, the line, and what was changed."""
    tree = ast.parse(path.read_text())
    node = list(ast.walk(tree))[number]
    other = changed(node)
    said = f"{ast.unparse(node)[:60]} -> {ast.unparse(other)[:60]}"
    line = node.lineno
    return ast.unparse(ast.fix_missing_locations(Replace(node, other).visit(tree))), line, said


def learn(files: list[str], part: str) -> None:
    """Run the tests under coverage, and write which of them run which lines."""
    index, of = map(int, part.split("/"))
    names = sorted(path.stem for path in (ROOT / "tests").glob("test_*.py"))
    MAPS.mkdir(parents=True, exist_ok=True)
    for name in (files or [name for name in names if name not in SLOW])[index::of]:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            lines = _covered(name, Path(folder))
        (MAPS / f"{name}.json").write_text(json.dumps(lines))
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def _covered(name: str, folder: Path) -> dict[str, dict[str, list[str]]]:
    """Run one file of tests, and return its tests by file and line."""
    import coverage

    data, settings = folder / "data", folder / "settings"
    settings.write_text(
        "[run]\ndynamic_context = test_function\nsource = linattn,linattn_kernels\n"
    )
    measured = [sys.executable, "-m", "coverage", "run", f"--rcfile={settings}"]
    tested = ["-m", "pytest", "-q", "-n", "0", "-p", "tests.mutants", f"tests/{name}.py"]
    command = [*measured, f"--data-file={data}", *tested]
    subprocess.run(command, cwd=ROOT, capture_output=True)
    if not data.exists():
        return {}
    read = coverage.CoverageData(basename=str(data))
    read.read()
    known: dict[str, dict[str, list[str]]] = {}
    for file in read.measured_files():
        lines = known.setdefault(Path(file).relative_to(ROOT).as_posix(), {})
        for line, contexts in read.contexts_by_lineno(file).items():
            tests = {context.rpartition(".")[2].split("|")[0] for context in contexts}
            lines[str(line)] = sorted(
                f"{name}::{test}" for test in tests if test.startswith("test_")
            )
    return known


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Leave out the tests that wait for a whole run, where this file is a plugin of pytest."""
    items[:] = [item for item in items if not SLOW_FIXTURES & set(item.fixturenames)]


def learned() -> dict[str, dict[str, list[str]]]:
    """Return the tests of all files by file and line."""
    known: dict[str, dict[str, list[str]]] = {}
    for path in sorted(MAPS.glob("*.json")):
        for file, lines in json.loads(path.read_text()).items():
            for line, tests in lines.items():
                known.setdefault(file, {}).setdefault(line, []).extend(tests)
    return known


def of_line(path: Path, lines: dict[str, list[str]], line: int) -> list[str]:
    """Return the tests that run a line.

    An import runs defaults and decorators: those of a function count as its body. What else an
    import runs is a constant, for which all tests of the file count, those that run most of it
    first.
    """
    if tests := lines.get(str(line)):
        return tests
    inner = [tests for number in _around(path, line) for tests in lines.get(str(number), ())]
    every = inner or [test for tests in lines.values() for test in tests]
    return [test for test, _ in collections.Counter(every).most_common()]


def _around(path: Path, line: int) -> range:
    """Return the lines of the innermost function about a line, or none."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    spans = [
        range(min([node.lineno, *(item.lineno for item in node.decorator_list)]), node.end_lineno)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, functions) and node.end_lineno
    ]
    return min((span for span in spans if line in span), key=len, default=range(0))


def judged(folder: Path, path: Path, number: int, known: dict[str, dict[str, list[str]]]) -> str:
    """Make one change in a copy, run the tests of its line, and say what came of it."""
    relative = path.relative_to(ROOT).as_posix()
    text, line, said = mutated(path, number)
    tests = of_line(path, known.get(relative, {}), line)
    place = f"{relative}:{line}: {said}"
    if not tests:
        return f"not run | {place}"
    own = [test for test in tests if path.stem in test.split("::")[0]]
    ordered = [*own, *(test for test in tests if test not in own)]
    target = folder / relative
    good = target.read_text()
    target.write_text(text)
    try:
        batches = (ordered[:FIRST], ordered[FIRST:MOST], _files(path))
        noticed = any(fails(folder, batch) for batch in batches)
    finally:
        target.write_text(good)
    return f"{'noticed' if noticed else 'SURVIVED'} | {place}"


def _files(path: Path) -> list[str]:
    """Return the file of tests of a module's name, whose processes coverage does not see."""
    name = f"test_{path.stem}"
    return [name] if (ROOT / "tests" / f"{name}.py").is_file() and name not in SLOW else []


def preload() -> None:
    """Import what the tests import and what is not changed, once for all children."""
    for name in ("torch", "diffusers", "transformers", "pytest", "matplotlib.pyplot", "dvc.cli"):
        importlib.import_module(name)
    for name in ("DiffusionPipeline", "DiTTransformer2DModel", "UNet2DConditionModel"):
        getattr(importlib.import_module("diffusers"), name)


def fails(folder: Path, tests: list[str]) -> bool:
    """Run tests in a child of this process, and say whether one failed or none came to its end."""
    if not tests:
        return False
    child = os.fork()
    if child == 0:
        os._exit(_tested(folder, tests))
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) != 0
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def _tested(folder: Path, tests: list[str]) -> int:
    """Return pytest's exit code; this is a child, whose output nobody reads."""
    import pytest

    os.setsid()
    os.chdir(folder)
    packages = [str(folder), str(folder / "kernels")]
    sys.path[:0] = packages
    os.environ.update({"PYTHONPATH": ":".join(packages), "PYTHONDONTWRITEBYTECODE": "1"})
    sys.dont_write_bytecode = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    files = [test.partition("::") for test in tests]
    words = [f"tests/{file}.py{colons}{test}" for file, colons, test in files]
    plain = ["-p", "no:cacheprovider", "-p", "tests.mutants"]
    return int(pytest.main(["-q", "-x", "-n", "0", *plain, *words]))


def drawn(count: int, seed: int) -> list[tuple[Path, int]]:
    """Draw a sample of the places that can be changed."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    files = [path for path in files if "_triton" not in path.name and path.name != "tiles.py"]
    everything = [(path, number) for path in files for number in places(path)]
    return random.Random(seed).sample(everything, min(count, len(everything)))


def survived(log: Path) -> list[tuple[Path, int]]:
    """Find the places again that a run printed as not noticed, wherever their lines are now."""
    sample = []
    for text in re.findall(r"^SURVIVED \| (.*)", log.read_text(), re.M):
        file, line, said = re.split(r":(\d+): ", text, maxsplit=1)
        path = ROOT / file
        alike = [number for number in places(path) if mutated(path, number)[2] == said]
        if alike:
            sample.append((path, min(alike, key=lambda n: abs(mutated(path, n)[1] - int(line)))))
    return sample


def run(sample: list[tuple[Path, int]], part: str) -> None:
    """Make changes, and print what came of each and the share that was noticed."""
    known = learned()
    index, of = map(int, part.split("/"))
    counts: dict[str, int] = {}
    preload()
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "copy"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
        for path, number in sample[index::of]:
            line = judged(folder, path, number, known)
            word = line.split(" |")[0]
            counts[word] = counts.get(word, 0) + 1
            print(line, flush=True)
        shutil.rmtree(folder)
    ran = counts.get("noticed", 0) + counts.get("SURVIVED", 0)
    print(f"{counts}: {counts.get('noticed', 0) / max(1, ran):.1%} of {ran} noticed")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=("map", "run"))
    parser.add_argument("files", nargs="*", help="for map: test files without .py; all by default")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", type=Path, help="a former output: what survived there")
    parser.add_argument("--part", default="0/1", help="0/2 and 1/2 run side by side")
    options = parser.parse_args()
    if options.step == "map":
        learn(options.files, options.part)
    else:
        again = options.again and survived(options.again)
        run(again or drawn(options.count, options.seed), options.part)


if __name__ == "__main__":
    main()
