"""Make one student of params.yaml: distil it for every seed, and write its weights and curve.

- reports/students/<name>/ holds the replaced layers, as `linattn.load` reads them, and the training
  curve. The curve leaves out times, so that the same code gives the same bytes. The run file holds
  times, the machine and every training setting.
- Under `accelerate launch` all processes train and one writes.
- Checkpoints lie in a scratch folder named by everything the result depends on, code included. A
  killed run therefore goes on from its checkpoint, and edited code starts a new run.

`python -m linattn.distill --student clear --profile nano`, or `accelerate launch -m linattn.distill
...`.
"""

import argparse
import dataclasses
import shutil
import sys
from typing import Any

from accelerate import Accelerator

from linattn import memory, params, project, roles, surgery
from linattn.distillation.config import DistillConfig, of_params
from linattn.distillation.distill import Result, distill
from linattn.distillation.settings import Settings
from linattn.samples import Samples

NOT_IN_CURVE = ("seconds",)  # times belong in the run file


def make(name: str, profile: str | None = None) -> list[Result]:
    """Distil student `name` of params.yaml for every seed of its recipe."""
    return make_of(params.load(profile), name)


def make_of(settings: params.Params, name: str, **origin: str) -> list[Result]:
    """Distil a student of these settings, which params.yaml need not hold.

    The first seed is written into the student's folder, the others into folders below it. `origin`
    names what else a checkpoint depends on: the file of an operator that is not of this repository.
    """
    student, recipe = settings.student(name), settings.recipe(name)
    accelerator = Accelerator(cpu=project.device() == "cpu")
    # where the encoders leave, training itself brings the model to the device
    device = "cpu" if recipe.encoders == "leave" else accelerator.device
    teacher = roles.load(settings, student.teacher, device)
    samples = Samples(project.samples(student.teacher))
    results = []
    for seed in recipe.seeds:
        config = of_params(student, recipe, seed)
        if seed == recipe.seeds[0]:
            memory.check(config, teacher, accelerator.device, accelerator.num_processes)
        identity = config.recipe(teacher, samples)
        scratch = project.scratch(f"distill-{name}", code=project.code(), **origin, **identity)
        folder = project.student(name, None if seed == recipe.seeds[0] else seed, write=True)
        config = dataclasses.replace(config, scratch=str(scratch))
        result = distill(config, teacher, samples, folder=folder, accelerator=accelerator)
        results.append(result)
        if accelerator.is_main_process:
            project.write_json(folder / "training.json", training(config, result, len(samples)))
            shutil.rmtree(scratch, ignore_errors=True)
    if accelerator.is_main_process:
        _write_run(name, results, recipe)
    return results


def _write_run(name: str, results: list[Result], settings: Settings) -> None:
    """Write the run file: machine, seconds, speed, backends and all training settings."""
    seconds = round(sum(result.seconds for result in results), 2)
    run = {
        "facts": project.facts(),
        "seconds": {"distill": seconds},
        "samples_per_second": results[0].samples_per_second,
        "backend": surgery.backends(results[0].model),
        "settings": dataclasses.asdict(settings),
    }
    project.write_json(project.run_result(f"{name}.distill", write=True), run)


def training(config: DistillConfig, result: Result, samples: int) -> dict[str, Any]:
    """Return steps, sizes and the curve of one training, with one loss a logged step."""
    return {
        "steps": config.layerwise_steps + config.steps,
        "layerwise_steps": config.layerwise_steps,
        "batch": config.batch,
        "samples": samples,
        "objective": config.objective,
        "seed": config.seed,
        "trained": result.trained,
        "added": result.added,
        "curve": curve(config, result.history),
        "history": [_without_times(logged) for logged in result.history],
    }


def _without_times(logged: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in logged.items() if key not in NOT_IN_CURVE}


def curve(config: DistillConfig, history: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return step, loss and stage as lists; steps are counted through both stages."""
    offset = {"layerwise": 0, "end-to-end": config.layerwise_steps}
    return {
        "step": [logged["step"] + offset[logged["stage"]] for logged in history],
        "loss": [logged["loss"] for logged in history],
        "stage": [logged["stage"] for logged in history],
    }


def main(arguments: list[str] | None = None) -> int:
    """Distil the student that the command line names, once for each seed.

    Args:
        arguments: those of the command line; None takes this process's.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", required=True, help="a name of params.yaml")
    parser.add_argument("--profile", help="tiny, nano, full or paper; the file's own by default")
    typed = parser.parse_args(arguments)
    try:
        for result in make(typed.student, typed.profile):
            trained = f"{result.trained:,} parameters trained in {result.seconds:.0f} s"
            print(f"{result.folder}: {trained}", flush=True)
    except (ArithmeticError, OSError, ValueError) as error:
        print(f"linattn: {error}", file=sys.stderr)
        return 1
    return 0
