"""What `make lab` saves: a source notebook stays as Git holds it, whatever was run in it."""

import json
import shlex
import subprocess
from pathlib import Path

import nbformat
import pytest
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from traitlets.config import Config

from linattn import project


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """JupyterLab's own, at the root of a clone, with the hook that the Makefile names."""
    dry = subprocess.run(
        ["make", "--dry-run", "lab"], cwd=project.ROOT, capture_output=True, text=True, check=True
    )
    (line,) = [line for line in dry.stdout.splitlines() if line.startswith("jupyter lab")]
    options = dict(word.partition("=")[::2] for word in shlex.split(line) if "=" in word)
    # Without it the root is the notebook's own folder, and no path begins with notebooks/.
    assert Path(options["--ServerApp.root_dir"]) == project.ROOT
    for folder in ("notebooks", "elsewhere"):
        (tmp_path / folder).mkdir()
    config = Config(
        {"ContentsManager": {"pre_save_hook": options["--ContentsManager.pre_save_hook"]}}
    )
    return AsyncLargeFileManager(root_dir=str(tmp_path), config=config, allow_hidden=True)


def source(manager, folder, path=project.ROOT / "notebooks" / "00_tour.ipynb"):
    committed = subprocess.run(
        ["git", "show", f":notebooks/{path.name}"], cwd=project.ROOT, capture_output=True
    )
    content = committed.stdout if committed.returncode == 0 else path.read_bytes()
    target = f"{manager.root_dir}/{folder}/{path.name}"
    with open(target, "wb") as file:
        file.write(content)
    return f"{folder}/{path.name}", target, content


async def run_and_save(manager, path, edit=lambda notebook: None):
    """As a window does: cells get counts and outputs, the notebook the kernel's metadata."""
    model = await manager.get(path)
    notebook = model["content"]
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.execution_count = number
        cell.outputs = [
            nbformat.v4.new_output("execute_result", {"text/plain": "1"}, execution_count=number)
        ]
        cell.metadata["execution"] = {"iopub.execute_input": "2026"}
    notebook.metadata["language_info"] = {"name": "python", "version": "3.11.7"}
    edit(notebook)
    await manager.save(
        {"type": "notebook", "format": "json", "content": json.loads(nbformat.writes(notebook))},
        path,
    )


@pytest.mark.anyio
async def test_a_notebook_that_was_run_and_saved_is_the_same_bytes(manager):
    path, target, content = source(manager, "notebooks")
    await run_and_save(manager, path)
    with open(target, "rb") as file:
        assert file.read() == content


@pytest.mark.anyio
async def test_an_edit_is_saved(manager):
    path, target, _ = source(manager, "notebooks")
    await run_and_save(
        manager, path, lambda notebook: notebook.cells[0].update(source="# My own tour")
    )
    saved = nbformat.read(target, as_version=4)
    assert saved.cells[0].source == "# My own tour"
    assert not any(cell.get("outputs") for cell in saved.cells)


@pytest.mark.anyio
async def test_a_notebook_elsewhere_keeps_what_it_shows(manager):
    path, target, _ = source(manager, "elsewhere")
    await run_and_save(manager, path)
    assert any(cell.get("outputs") for cell in nbformat.read(target, as_version=4).cells)


@pytest.fixture
def anyio_backend():
    return "asyncio"
