"""Read the command's arguments, print the advice, and write its files."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from linattn.advise import picture, table
from linattn.advise.advising import advise
from linattn.project import write_json
from linattn.shapes import SHAPES

DTYPES = ("float32", "bfloat16", "float16")


def main(arguments: list[str] | None = None) -> int:
    """Print an advice, and return the exit code."""
    typed = _parser().parse_args(arguments)
    try:
        _check_folders([typed.json, typed.picture])
        advice = advise(
            typed.model,
            typed.side,
            operators=typed.operators,
            backward=typed.backward,
            seconds=typed.seconds,
            repeats=typed.repeats,
            text=typed.text,
            device=typed.device,
            dtype=typed.dtype and getattr(torch, typed.dtype),
            seed=typed.seed,
            progress=_progress,
        )
        print("\n".join(table.lines(advice)))
        if typed.json:
            write_json(typed.json, advice.as_json())
        if typed.picture:
            typed.picture.write_bytes(picture.steps(advice).png)
    except (OSError, ValueError) as error:
        print(f"linattn: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m linattn.advise",
        description="Say from which size a faster attention pays, for one model on this device.",
    )
    known = ", ".join(SHAPES)
    parser.add_argument(
        "model", help=f"a pipeline's or model's folder, a hub id, or a known shape: {known}"
    )
    parser.add_argument("--side", type=int, nargs="+", required=True, help="of pictures, in pixels")
    parser.add_argument("--operators", nargs="+", help="some instead of all, by label or name")
    parser.add_argument("--backward", action="store_true", help="forward and backward too")
    parser.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        help="that a point may take; longer ones are estimated",
    )
    parser.add_argument("--repeats", type=int, default=3, help="of which the median counts")
    parser.add_argument(
        "--text", type=int, help="tokens of text, instead of the model's own length"
    )
    parser.add_argument("--device", help="such as cpu or cuda; a GPU by default where there is one")
    parser.add_argument("--dtype", choices=DTYPES, help="bfloat16 on a GPU, float32 elsewhere")
    parser.add_argument("--seed", type=int, default=0, help="of the random tensors")
    parser.add_argument("--json", type=Path, help="write every number and the machine's facts")
    parser.add_argument("--picture", type=Path, help="write the figure, as PNG")
    return parser


def _check_folders(files: Sequence[Path | None]) -> None:
    """Raise before anything is timed where a file could not be written afterwards."""
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise ValueError(f"{file} cannot be written: there is no folder {file.parent}")
        if file is not None and file.is_dir():
            raise ValueError(f"{file} cannot be written: it is a folder; name a file in it")


def _progress(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)
