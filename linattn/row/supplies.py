"""Provide what a row is made with: the teacher's samples, and its reference pictures."""

from linattn import params, pipeline, project
from linattn.report import budget
from linattn.samples import manifest


def provide(settings: params.Params, role: str) -> None:
    """Run the stages of the pipeline that make what lacks, and say how long they take."""
    stages = missing(settings, role)
    if not stages:
        return
    expected = budget.in_words(budget.of_supplies(settings, role))
    print(f"First, since they are not here: {', '.join(stages)}{expected}", flush=True)
    with pipeline.naming_what_changed("dvc.lock"):
        code = pipeline.dvc("repro", "--single-item", *stages).returncode
    still = missing(settings, role)
    if code or still:
        raise RuntimeError(
            f"{', '.join(still or stages)} failed, see the messages above; no row was made, and "
            "what was there is kept"
        )


def missing(settings: params.Params, role: str) -> list[str]:
    """Name the stages whose results are not here, or are those of other settings."""
    stages = []
    if not _has_samples(settings, role):
        stages.append(f"sample@{role}")
    if not _has_reference(settings, role):
        stages.append(f"reference@{role}")
    return stages


def _has_samples(settings: params.Params, role: str) -> bool:
    recorded = manifest.read(project.samples(role))
    if recorded is None:
        return False
    recipe, sample = recorded["recipe"], settings.sample
    actual = (recorded["count"], recipe.get("steps"), recipe.get("seed"))
    return actual == (sample.pictures, sample.steps, sample.seed)


def _has_reference(settings: params.Params, role: str) -> bool:
    row = project.result(project.teacher_row(role))
    if not project.reference(role).exists() or not row.exists():
        return False
    sizes, evaluate = project.read_json(row)["pictures"], settings.evaluate
    names = ("pictures", "steps", "quick_pictures", "quick_steps", "cross", "cross_pictures")
    return all(sizes[name] == getattr(evaluate, name) for name in (*names, "seed"))
