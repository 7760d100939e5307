"""Provide what a row is made with: the teacher's samples, and its reference pictures."""

from pathlib import Path

from linattn import params, pipeline, project
from linattn.report import budget


def provide(settings: params.Params, role: str) -> None:
    """Run the stages of the pipeline that make what lacks, and say how long they take."""
    stages = missing(role)
    if not stages:
        return
    expected = budget.in_words(budget.of_supplies(settings, role))
    print(f"First, since they are not here: {', '.join(stages)}{expected}", flush=True)
    with pipeline.running("make row"), pipeline.naming_what_changed("dvc.lock"):
        code = pipeline.dvc("repro", "--single-item", f"source@{role}", *stages)
    absent = [stage for stage, path in outs(role).items() if not path.exists()]
    if code or absent:
        raise RuntimeError(
            f"{', '.join(absent or stages)} failed, see the messages above; no row was made, and "
            "what was there is kept"
        )


def missing(role: str) -> list[str]:
    """Name the stages whose results are not here, or not those of this code and these settings."""
    behind = pipeline.stale()
    return [stage for stage, path in outs(role).items() if not path.exists() or stage in behind]


def outs(role: str) -> dict[str, Path]:
    """Return what a row reads, by the stage that makes it."""
    return {f"sample@{role}": project.samples(role), f"reference@{role}": project.reference(role)}
