"""`make lab` saves a source notebook as Git holds it: JupyterLab saves by itself, and would change
what stages read.

What cells have shown stays in the open window. It is not written into notebooks/ and studies/,
where it would make each student's stage new and the tests red.
"""

from pathlib import Path
from typing import Any

SOURCES = ("notebooks/", "studies/")
OF_A_RUN = ["cell.metadata.execution", "cell.metadata.trusted"]


def save_source(model: dict[str, Any], path: str, contents_manager: Any, **_: Any) -> None:
    """Take outputs, counts and this kernel's own metadata out of a source notebook before it is
    written.
    """
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
        names = ("kernelspec", "language_info")
        notebook.metadata = {
            **notebook.metadata,
            **{name: before[name] for name in names if name in before},
        }
    model["content"] = notebook
