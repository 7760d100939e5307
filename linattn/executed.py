"""Make an executed notebook a result: what a cell shows is kept, what differs by the run is not."""

import os
import re
from pathlib import Path
from typing import Any

import nbformat

WIDGET = "application/vnd.jupyter.widget-view+json"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def move(draft: Path, out: Path) -> Path:
    """Put a draft that has run to its end into its place, in its normal form."""
    nbformat.write(normalise(nbformat.read(draft, as_version=4)), draft)
    out.parent.mkdir(parents=True, exist_ok=True)
    os.replace(draft, out)
    return out


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove times, ids, logs and addresses, which differ between runs with the same results."""
    title = notebook.metadata.get("title")
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    if title:
        notebook.metadata["title"] = title
    for number, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        injected = "injected-parameters" in tags
        cell["id"] = "injected" if injected else cell.get("id", f"cell-{number}")
        if cell.cell_type == "code":
            cell.outputs = [_plain(output) for output in cell.outputs if _is_result(output)]
    return notebook


def _is_result(output: Any) -> bool:
    """Say whether an output is a result: no log, and no widget such as a progress bar."""
    return output.output_type != "stream" and WIDGET not in output.get("data", {})


def _plain(output: Any) -> Any:
    """Remove an output's metadata and the addresses of objects that it names."""
    output.metadata = nbformat.from_dict({})
    data = output.get("data", {})
    if "text/plain" in data:
        data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", data["text/plain"])
    return output
