"""Print what a training takes of a device's memory: of published models, or of a folder."""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from linattn import families, params, project
from linattn.configs import class_name
from linattn.diffusion import Diffusion
from linattn.distillation.config import DistillConfig
from linattn.distillation.settings import DTYPES
from linattn.memory.models import MODELS
from linattn.memory.need import GB, Need, needed
from linattn.memory.step import META, Shapes
from linattn.names import short
from linattn.sampling import card_in

DEVICES = (24, 80, 141)  # GB
HEAD = ("teacher", "fixed GB", "GB a picture", *(f"pictures in {size} GB" for size in DEVICES))


def config_of(arguments: argparse.Namespace) -> DistillConfig:
    """Return the training that the table is about: all that saves memory is on."""
    options = {"radius": 8} if arguments.operator == "clear" else {}
    return DistillConfig(
        arguments.operator,
        options,
        trains=arguments.trains,
        optimizer="adamw",
        objective=arguments.objective,
        checkpointing=not arguments.no_checkpointing,
        encoders="leave",
    )


def line(name: str, need: Need) -> tuple[str, ...]:
    """Return a line of the table."""
    fitting = [str(need.fits(size * GB)) for size in DEVICES]
    fixed, picture = (need.fixed + need.step) / GB, need.picture / GB
    return (name, f"{fixed:.1f}", f"{picture:.2f}", *fitting)


def lines(arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Yield the lines of the published models, or that of the teacher."""
    config, dtype = config_of(arguments), DTYPES[arguments.dtype]
    if arguments.teacher:
        shapes = of_folder(folder_of(arguments.teacher), dtype)
        yield line(arguments.teacher, needed(shapes, config, device=arguments.device))
        return
    for name, published in MODELS.items():
        yield line(name, needed(published.shapes(dtype), config, device=arguments.device))


def folder_of(teacher: str) -> Path:
    """Return the folder of a role of params.yaml, or the folder itself."""
    roles = params.load().teachers
    folder = (roles[teacher].folder if teacher in roles else None) or Path(teacher)
    if not os.path.isfile(folder / "model_index.json"):
        raise ValueError(
            f"{short(teacher)} is neither a pipeline's folder nor one of the roles "
            f"{', '.join(roles)} with a folder: pass a folder with model_index.json"
        )
    return folder


def of_folder(folder: Path, dtype: torch.dtype) -> Shapes:
    """Read the shapes of a pipeline's folder, from configs alone."""
    index = project.read_json(folder / "model_index.json")
    part = "transformer" if "transformer" in index else "unet"
    config = project.read_json(folder / part / "config.json")
    maker: Any = getattr(diffusers, class_name(config))
    with META:
        model: nn.Module = maker.from_config(config)
    family = families.family(model)
    scheduler: Any = getattr(diffusers, index["scheduler"][1])
    process = Diffusion.of(scheduler.from_pretrained(folder / "scheduler"))
    card = card_in(folder)
    text = family.text_tokens(card.get("text_length"))
    conditions: Any = family.conditions
    factor = conditions.factor(project.read_json(folder / "vae" / "config.json"))
    size = trained_side(model)
    side = card["side"] // factor if "side" in card else size
    return Shapes(nn.Module.to(model, dtype), process, side, text)


def trained_side(model: Any) -> int:
    """Return the side of the latents that a config names; FLUX's names none."""
    return model.config.get("sample_size", 128)


def written(table: Iterable[tuple[str, ...]]) -> str:
    """Write the lines in columns, the first to the left and the numbers to the right."""
    texts = [HEAD, *table]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    aligned = []
    for first, *numbers in texts:
        cells = [first.ljust(widths[0])]
        cells += [text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True)]
        aligned.append("  ".join(cells))
    return "\n".join(aligned)


def main(arguments: list[str] | None = None) -> int:
    """Print the table, and return the exit code."""
    parser = argparse.ArgumentParser(prog="linattn.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", help="a role of params.yaml or a pipeline's folder")
    parser.add_argument("--operator", default="clear", help="the student's; clear by default")
    parser.add_argument("--trains", default="attention", help="attention, new or all")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES, help="of the weights")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cuda by default")
    parser.add_argument("--objective", default="clear", help="a preset; clear by default")
    parser.add_argument("--no-checkpointing", action="store_true", help="hold every activation")
    parser.add_argument("--json", type=Path, help="a file that the table is written to as well")
    typed = parser.parse_args(arguments)
    try:
        _check_file(typed.json)
        table = list(lines(typed))
        if typed.json:
            project.write_json(typed.json, {"head": HEAD, "lines": table})
    except (OSError, ValueError) as error:
        print(f"linattn: {error}", file=sys.stderr)
        return 1
    print(written(table))
    return 0


def _check_file(path: Path | None) -> None:
    """Raise ValueError before anything is computed where a file could not be written."""
    if path is not None and (os.path.isdir(path) or not os.path.isdir(path.parent)):
        raise ValueError(f"{path} cannot be written: name a file in a folder that is there")


if __name__ == "__main__":
    sys.exit(main())
