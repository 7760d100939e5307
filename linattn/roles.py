"""Load the teacher of a role of params.yaml, as every stage does."""

from typing import Any

import torch

from linattn import params, project, teachers
from linattn.teachers import Teacher


def load(
    settings: params.Params, role: str, device: str | torch.device | None = None, **options: Any
) -> Teacher:
    """Load the teacher of a role; one of the hub at the commit that its notes name.

    A branch may have moved since the notes were taken, between two stages even.

    Args:
        settings: the parameters that name the role.
        role: the teacher's.
        device: where its models are moved; None: the project's device.
        options: keyword arguments of `teachers.load` that replace the entry's.
    """
    entry = settings.teacher(role)
    loading = entry.loading
    if commit := _noted_commit(role, entry):
        loading["revision"] = commit
    device = project.device() if device is None else device
    return teachers.load(entry.name_or_path, device=device, **{**loading, **options})


def _noted_commit(role: str, entry: params.Teacher) -> str | None:
    """Return the commit in the notes of a teacher of the hub, where they are of this revision."""
    path = project.source(role) / "model.json"
    if entry.folder or not path.is_file():
        return None
    noted = project.read_json(path)
    revision = noted["revision"] or {}
    same = (noted["source"], revision.get("name")) == (entry.source, entry.revision)
    return revision["commit"] if same else None
