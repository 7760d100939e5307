"""Draw a benchmark's prompts and lay the pictures out for its scorer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from linattn import digests, project, sampling
from linattn.conditions import Labels
from linattn.reader import between, checked
from linattn.sampling import Size
from linattn.sampling.plan import RULES as DRAW
from linattn.scorers.benchmark import Benchmark, Prompt
from linattn.scorers.registry import benchmark
from linattn.teachers import Teacher

RULES = {name: DRAW[name] for name in ("size", "steps", "guidance", "seed", "batch", "model")}


@checked(pictures=between(1), **RULES)
def lay_out(
    name: str,
    prompts: str | Path,
    teacher: Teacher,
    folder: str | Path,
    *,
    model: nn.Module | None = None,
    student: str | None = None,
    pictures: int | None = None,
    size: Size = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    batch: int = 4,
) -> Path:
    """Draw every prompt of a benchmark into a folder that its scorer reads, and return the folder.

    Scorers read everything in the folder, so what was drawn is noted beside it, in `FOLDER.json`.
    The same call goes on where it was ended; another one is refused, and one of a student that was
    trained again since.

    Args:
        name: geneval, dpg or hpsv2.
        prompts: the benchmark's own file or folder of prompts.
        teacher: a teacher that reads captions.
        folder: where the pictures go.
        model: draws in place of the teacher's own model, as a student does.
        student: what the student is called in the note.
        pictures: pictures of each prompt; None takes as many as the benchmark's authors.
        size: a side in px, or (height, width); None takes the card's side.
        steps: steps of a draw; None takes the card's value.
        guidance: scale of the guidance; None takes the card's value.
        seed: the seed of the noise; all pictures of a prompt have noise of their own.
        batch: how many pictures are drawn at once.
    """
    chosen, folder = benchmark(name), Path(folder).resolve()
    count = _count(chosen, pictures)
    all_prompts = chosen.prompts(_existing(Path(prompts)))
    _check_reader(chosen, teacher)
    drawing = {"size": size, "steps": steps, "guidance": guidance, "seed": seed}
    note = {
        "benchmark": chosen.name,
        "prompts": _digest(all_prompts),
        "teacher": teacher.folder,
        "student": student,
        "pictures": count,
        "weights": digests.of_values((model or teacher.model).state_dict().values()),
        **drawing,
    }
    _begin(folder, json.loads(json.dumps(note)))
    per_draw = max(1, batch // count)  # prompts
    for first in range(0, len(all_prompts), per_draw):
        some = all_prompts[first : first + per_draw]
        if all(_is_there(chosen, folder, prompt, count) for prompt in some):
            continue
        texts = [prompt.text for prompt in some for _ in range(count)]
        options = {**drawing, "model": model, "batch": batch, "start": first * count}
        drawn = sampling.eight_bits(_finite(sampling.draw(teacher, texts, **options)))
        for prompt, of_prompt in zip(some, drawn.split(count), strict=True):
            chosen.place(folder, prompt, of_prompt)
        print(f"{chosen.name}: {min(first + per_draw, len(all_prompts))} of {len(all_prompts)}")
    return folder


def _finite(pictures: Tensor) -> Tensor:
    """Return the pictures, or refuse numbers that are not finite."""
    if not pictures.isfinite().all():
        raise ArithmeticError("a picture has pixels that are not finite: the model diverged")
    return pictures


def _count(chosen: Benchmark, pictures: int | None) -> int:
    count = chosen.pictures if pictures is None else pictures
    if count < 1 or (chosen.counts and count not in chosen.counts):
        valid = " or ".join(map(str, chosen.counts)) or "1 or more"
        raise ValueError(f"{count} pictures of a prompt; {chosen.name}'s scorer takes {valid}")
    return count


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"no prompts at {path}; pass the benchmark's own file or folder")
    return path


def _check_reader(chosen: Benchmark, teacher: Teacher) -> None:
    if isinstance(teacher.conditions, Labels):
        raise ValueError(
            f"{teacher.folder} reads labels, and {chosen.name}'s prompts are texts: pass a "
            "text-to-image teacher"
        )


def _digest(prompts: Sequence[Prompt]) -> str:
    return digests.of_settings([[prompt.key, prompt.text] for prompt in prompts])


def _begin(folder: Path, note: dict[str, Any]) -> None:
    """Write the note beside the folder, or raise a ValueError where the folder has another."""
    path = folder.with_name(f"{folder.name}.json")
    is_empty = not folder.exists() or not any(folder.iterdir())
    before = project.read_json(path) if path.is_file() else None
    if not is_empty and before != note:
        others = [key for key in note if (before or {}).get(key) != note[key]]
        raise ValueError(
            f"{folder} holds pictures of another draw ({', '.join(others)} differ from "
            f"{path.name}): name another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    project.write_json(path, note)


def _is_there(chosen: Benchmark, folder: Path, prompt: Prompt, count: int) -> bool:
    return all((folder / file).is_file() for file in chosen.files(prompt, count))
