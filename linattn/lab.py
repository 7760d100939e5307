"""Save a source notebook from `make lab` as Git holds it.

JupyterLab saves by itself, outputs included, which would change what stages read: every student's
stage would run again. Outputs stay in the open window alone.
"""

from pathlib import Path
from typing import Any

SOURCES = ("notebooks/", "studies/")
KERNEL = ("kernelspec", "language_info")  # as committed
OF_A_RUN = ["cell.metadata.execution", "cell.metadata.trusted"]


def save_source(model: dict[str, Any], path: str, contents_manager: Any, **_: Any) -> None:
    """Remove outputs, counts and the kernel's metadata from a source notebook that is saved."""
    if model["type"] != "notebook" or not path.lstrip("/").startswith(SOURCES):
        return
    import nbformat
    from nbstripout import strip_output

    content = nbformat.from_dict(model["content"])
    notebook = strip_output(
        content, keep_output=False, keep_count=False, keep_id=True, extra_keys=OF_A_RUN
    )
    old = Path(contents_manager.root_dir, path.lstrip("/"))
    if old.is_file():
        before = nbformat.read(old, as_version=4).metadata
        for name in KERNEL:
            if name in before:
                notebook.metadata[name] = before[name]
    model["content"] = notebook
