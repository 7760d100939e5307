"""Say what a row costs: the protocol's budget, and the minutes that the committed run took."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from linattn import params, project
from linattn.report import schema
from linattn.report.data import Data, Report
from linattn.report.stored import Files
from linattn.report.words import number

TRAINED = ("layerwise_steps", "steps", "batch", "samples")  # of a result's training


@dataclass(frozen=True)
class Expected:
    """Hold how long something took, and the cores or the GPU that it took them on."""

    seconds: float
    hardware: Mapping[str, Any]


def of_row(profile: str, students: Iterable[str]) -> Expected | None:
    """Return what one of these students took in the committed run, or None without one."""
    seconds, hardware = [], {}
    for name in students:
        if run := _run(name, profile, ("distill", "evaluate")):
            seconds.append(run["seconds"]["distill"] + run["seconds"]["evaluate"])
            hardware = run["facts"]["hardware"]
    return Expected(statistics.median(seconds), hardware) if seconds else None


def of_supplies(settings: params.Params, role: str) -> Expected | None:
    """Return what the samples and the reference of a teacher take.

    The reference's seconds are those of the committed run. The samples' seconds follow from their
    pictures and steps.
    """
    run = _run(project.teacher_row(role), settings.profile, ("draw", "evaluate"))
    if not run:
        return None
    evaluate, sample = settings.evaluate, settings.sample
    enlarged = evaluate.cross_pictures * evaluate.quick_steps * evaluate.cross**2
    drawn = evaluate.pictures * evaluate.steps + evaluate.quick_pictures * evaluate.quick_steps
    share = sample.pictures * sample.steps / (drawn + enlarged)
    seconds = run["seconds"]["evaluate"] + share * run["seconds"]["draw"]
    return Expected(seconds, run["facts"]["hardware"])


def _run(name: str, profile: str, measured: Iterable[str]) -> dict[str, Any]:
    """Return the committed run of a row where it is of this profile and timed, else nothing."""
    files = Files()
    result = files.json(project.published(f"results/{name}.json"), schema.ROW).content
    run = files.json(project.published(f"runs/{name}.run.json"), schema.RUN).content
    if result.get("profile") != profile or "facts" not in run:
        return {}
    return run if (run.get("seconds") or {}).keys() >= set(measured) else {}


def in_words(expected: Expected | None) -> str:
    """Say how long something takes, as a clause; nothing where no run tells."""
    if expected is None:
        return ""
    minutes = number(max(1, round(expected.seconds / 60)), "minute")
    hardware = expected.hardware
    machine = hardware.get("gpu") or f"{number(hardware['cores'], 'core')} of {hardware['cpu']}"
    return f", some {minutes} on {machine}"


def training_of(result: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what rows of one budget share: steps, batch, samples, seeds."""
    training = result.get("training") or {}
    return (*(training.get(key) for key in TRAINED), tuple(result.get("seeds") or ()))


def training(data: Data) -> str:
    """Say how the rows of a teacher were trained."""
    results = (data.results[name] for name in data.done)
    trained = [result for result in results if "recipe" not in result]  # by the protocol
    if not trained or None in training_of(trained[0]):
        return ""
    layerwise, steps, batch, samples, seeds = training_of(trained[0])
    return (
        f"{layerwise} steps layer by layer, then {steps - layerwise} of the whole model, of "
        f"{batch} pictures each; {samples} pictures that the teacher drew; training "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
    )


def machine(report: Report) -> str:
    """Name the machine, the versions and the commits that made the rows.

    A stage that is up to date keeps the commit at which it ran.
    """
    facts = [run["facts"] for run in report.runs.values() if run.get("facts")]
    if not facts:
        return ""
    hardware, versions = facts[0]["hardware"], facts[0]["versions"]
    commits = sorted({fact["commit"] for fact in facts if fact.get("commit")})
    return (
        f"{hardware['gpu'] or hardware['cpu']}, {number(hardware['cores'], 'core')}; torch "
        f"{versions['torch']}, diffusers {versions['diffusers']}; "
        f"{'commit' if len(commits) == 1 else 'commits'} {', '.join(commits) or 'unknown'}"
    )
