"""Change the library in one place at a time, and ask which tests notice.

`python tests/mutants.py map` learns which tests run which lines (it needs coverage: pip install
coverage). `python tests/mutants.py run --count 300` then makes so many changes, each in a copy of
the repository, and runs the tests of that line. A change that no test notices is printed: it is a
missing test, or a change that alters nothing.
"""

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAP = ROOT / ".scratch" / "mutants.json"
PACKAGES = ("linattn", "kernels/linattn_kernels")
TESTS = 10  # that are run for a change
SECONDS = 240  # that they may take
# These run the pipeline or build pages; what they cover is covered by others too.
SLOW = {
    "test_pipeline",
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


def learn(files: list[str]) -> None:
    """Run the tests under coverage, and write which of them run which lines."""
    import coverage

    names = files or sorted(
        p.stem for p in (ROOT / "tests").glob("test_*.py") if p.stem not in SLOW
    )
    known = json.loads(MAP.read_text()) if MAP.is_file() else {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            data, settings = Path(folder) / "data", Path(folder) / "settings"
            settings.write_text(
                "[run]\ndynamic_context = test_function\nsource = linattn,linattn_kernels\n"
            )
            command = [sys.executable, "-m", "coverage", "run", f"--rcfile={settings}"]
            command += [
                f"--data-file={data}",
                "-m",
                "pytest",
                "-q",
                "-n",
                "0",
                "-x",
                f"tests/{name}.py",
            ]
            began = time.monotonic()
            subprocess.run(command, cwd=ROOT, capture_output=True)
            if not data.exists():
                continue
            read = coverage.CoverageData(basename=str(data))
            read.read()
            for file in read.measured_files():
                relative = Path(file).relative_to(ROOT).as_posix()
                for line, contexts in read.contexts_by_lineno(file).items():
                    tests = known.setdefault(relative, {}).setdefault(str(line), [])
                    for context in contexts:
                        test = context.rpartition(".")[2].split("|")[0]
                        if test.startswith("test_") and f"{name}::{test}" not in tests:
                            tests.append(f"{name}::{test}")
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
        MAP.parent.mkdir(exist_ok=True)
        MAP.write_text(json.dumps(known))


def of_line(lines: dict[str, list[str]], line: int) -> list[str]:
    """Return the tests that run a line; those of the file where an import runs it, as a default."""
    return lines.get(str(line)) or sorted({test for tests in lines.values() for test in tests})


def judged(folder: Path, path: Path, number: int, known: dict[str, dict[str, list[str]]]) -> str:
    """Make one change in a copy, run the tests of its line, and say what came of it."""
    relative = path.relative_to(ROOT).as_posix()
    text, line, said = mutated(path, number)
    tests = of_line(known.get(relative, {}), line)
    place = f"{relative}:{line}: {said}"
    if not tests:
        return f"not run | {place}"
    own = [test for test in tests if path.stem in test.split("::")[0]]
    chosen = [*own, *(test for test in tests if test not in own)][:TESTS]
    target = folder / relative
    good = target.read_text()
    target.write_text(text)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}:{folder / 'kernels'}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    words = [f"tests/{test.replace('::', '.py::')}" for test in chosen]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        *words,
    ]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=SECONDS
        )
        noticed = done.returncode != 0
    except subprocess.TimeoutExpired:
        noticed = True
    finally:
        target.write_text(good)
    return f"{'noticed' if noticed else 'SURVIVED'} | {place}"


def run(count: int, seed: int, part: str) -> None:
    """Make a sample of changes, and print what came of each and the share that was noticed."""
    known = json.loads(MAP.read_text())
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    files = [path for path in files if "_triton" not in path.name and path.name != "tiles.py"]
    everything = [(path, number) for path in files for number in places(path)]
    sample = random.Random(seed).sample(everything, min(count, len(everything)))
    index, of = map(int, part.split("/"))
    counts: dict[str, int] = {}
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
    print(f"{counts}: {counts.get('noticed', 0) / max(1, ran):.1%} of {ran} noticed, seed {seed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=("map", "run"))
    parser.add_argument("files", nargs="*", help="for map: test files without .py; all by default")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="0/1", help="0/2 and 1/2 run side by side")
    options = parser.parse_args()
    learn(options.files) if options.step == "map" else run(
        options.count, options.seed, options.part
    )


if __name__ == "__main__":
    main()
