"""Both packages as others install them: what a wheel holds and asks for; the kernels without
Triton, without linattn, and beside another package that is called kernels."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import linattn
from linattn import project
from linattn_kernels import launch

SOURCES = {"linattn": project.ROOT, "linattn_kernels": project.ROOT / "kernels"}
PROJECT = tomllib.loads((project.ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def python(code, *paths):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_it_works_without_triton_and_without_linattn():
    code = """
import sys
sys.modules["triton"] = None  # as where it is not installed
sys.modules["linattn"] = None
import torch, linattn_kernels as kernels
q = torch.randn(2, 12, 3, 8, requires_grad=True)
out = kernels.linear_attention(q, q, q)
out = out + kernels.window_attention(q, q, q, height=3, width=4, radius=2)
out = out + kernels.mediator_attention(q, q, q, q[:, ::4])
out.sum().backward()
assert q.grad.isfinite().all()
try:
    kernels.linear_attention(q, q, q, backend="triton")
except RuntimeError as error:
    assert "Triton is not installed" in str(error), error
    print(kernels.backend(q).path)
"""
    assert python(code, project.ROOT / "kernels") == ["torch"]


def test_another_package_called_kernels_is_still_found_from_the_root(tmp_path):
    """Hugging Face has one. Our folder is no package, so theirs wins anywhere in the path."""
    theirs = tmp_path / "kernels"
    theirs.mkdir()
    (theirs / "__init__.py").write_text("def get_kernel(name):\n    return name\n")
    code = "from kernels import get_kernel; import linattn_kernels; print(get_kernel('theirs'))"
    assert python(code, project.ROOT / "kernels", tmp_path) == ["theirs"]


# The wheel


def test_a_wheel_holds_every_file_of_both_packages(tmp_path):
    """The wheel is built as by pip, from a copy and without fetching anything."""
    for name, root in SOURCES.items():
        target = tmp_path / root.relative_to(project.ROOT) / name
        shutil.copytree(root / name, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(project.ROOT / name, tmp_path)
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob(f"linattn-{linattn.__version__}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {
        path.relative_to(root).as_posix()
        for name, root in SOURCES.items()
        for path in (root / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert {
        f"linattn_kernels/configs/{table}.json" for table in ("linear", "softmax", "window")
    } <= held


def test_an_installation_without_configurations_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "__file__", str(tmp_path / "launch.py"))
    with pytest.raises(
        FileNotFoundError, match=r"configs has no \*\.json.*install it again.*use_backend"
    ):
        launch.table.__wrapped__()


def test_a_wheel_declares_what_is_imported():
    """What is imported later may be declared by an extra; triton comes with torch."""
    provided, core = metadata.packages_distributions(), _names(PROJECT["dependencies"])
    all_declared = core | _names(line for lines in EXTRAS.values() for line in lines)
    for path in (path for name, root in SOURCES.items() for path in (root / name).rglob("*.py")):
        tree = ast.parse(path.read_text())
        # What the pipeline or a study runs, each with its extra.
        served = (
            path.name in ("executed.py", "notebooks.py", "explore.py")
            or path.parent.name == "plugins"
        )
        for nodes, declared in (
            (tree.body, all_declared if served else core),
            (ast.walk(tree), all_declared),
        ):
            for name in _imported(nodes) - set(sys.stdlib_module_names) - set(SOURCES) - {"triton"}:
                assert _names(provided[name]) & declared, (
                    f"{path.name} imports {name}, which pyproject.toml does not name"
                )


LOCKS = ("requirements.lock", "requirements-torch.lock")


def test_the_lock_is_among_what_a_wheel_accepts():
    text = "".join((project.ROOT / lock).read_text() for lock in LOCKS).replace("\\\n", " ")
    pins = [line.split(" --hash")[0] for line in text.splitlines() if not line.startswith("#")]
    locked = {canonicalize_name(pin.name): pin for pin in map(Requirement, pins)}
    for line in [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]:
        wanted = Requirement(line)
        (version,) = locked[canonicalize_name(wanted.name)].specifier
        assert wanted.specifier.contains(version.version), f"{line}, and the lock has {version}"


def _names(lines):
    return {canonicalize_name(Requirement(line).name) for line in lines}


def _imported(nodes):
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
    return names
