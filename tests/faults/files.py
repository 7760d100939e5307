"""Every kind of file that one part writes and another reads, under every damage."""

import functools
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tiny
import torch

import linattn
from faults.damage import DAMAGE
from faults.fault import MADE_AGAIN, NAMED, Fault, named
from linattn import checkpoint, eye, params, project, samples, sealed, sums, teachers
from linattn.samples import Samples
from linattn.world import judge

DATA = project.ROOT / "data"
CHECKPOINT, REFERENCE = "end-to-end.safetensors", "class.safetensors"
DRAWN = {"shard": 2, "steps": 1, "guidance": 1.0, "size": 32}


@dataclass(frozen=True)
class Kind:
    """Name a kind of file, how one is made in a folder, and how it is read."""

    name: str
    make: Callable[[Path], Path]  # returns the file
    read: Callable[[Path], object]  # takes the folder
    without: tuple[str, ...] = ()  # damages that leave a valid file of this kind


def _checkpoint(folder: Path) -> Path:
    path = folder / CHECKPOINT
    checkpoint.save(path, {"step": 3, "recipe": {}, "parts": {"a": torch.randn(64)}})
    return path


def _reference(folder: Path) -> Path:
    path = folder / REFERENCE
    pictures = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    sealed.save({"pictures": pictures}, path)
    return path


@functools.cache
def _pipe() -> object:
    return tiny.pipeline()


def _samples(folder: Path) -> None:
    samples.write(_pipe(), folder, 4, **DRAWN)


def _shard(folder: Path) -> Path:
    _samples(folder)
    return folder / "shard-00001.safetensors"


def _manifest(folder: Path) -> Path:
    _samples(folder)
    return folder / "manifest.json"


def _student(folder: Path, name: str) -> Path:
    model = tiny.model()
    linattn.linearize(model, "clear", radius=2)
    linattn.save(model, folder)
    return folder / name


def _copied(source: Path, name: str, folder: Path) -> Path:
    shutil.copytree(source, folder / source.name)
    sums.write(folder / source.name, folder)
    return folder / source.name / name


def _params(folder: Path) -> Path:
    shutil.copy(project.ROOT / "params.yaml", folder / "params.yaml")
    return folder / "params.yaml"


def _result(folder: Path) -> Path:
    path = folder / "result.json"
    project.write_json(path, {"quality": {"error": {"value": 0.5}}})
    return path


def _list(folder: Path) -> Path:
    _copied(DATA / "judge", "judge.safetensors", folder)
    return folder / sums.NAME


JUDGE, EYE, TEACHER = DATA / "judge", DATA / "eye", DATA / "teachers" / "dit-nano"
KINDS = (
    Kind("checkpoint", _checkpoint, lambda folder: checkpoint.load(folder / CHECKPOINT)),
    Kind(
        "reference and pictures",
        _reference,
        lambda folder: sealed.load(folder / REFERENCE),
    ),
    Kind("shard", _shard, lambda folder: Samples(folder).batch(range(4))),
    Kind("manifest", _manifest, Samples, without=("a flipped bit",)),
    Kind(
        "student's weights",
        functools.partial(_student, name="linattn.safetensors"),
        lambda folder: linattn.load(tiny.model(), folder),
    ),
    Kind(
        "student's card",
        functools.partial(_student, name="linattn.json"),
        lambda folder: linattn.load(tiny.model(), folder),
    ),
    Kind(
        "judge's weights",
        functools.partial(_copied, JUDGE, "judge.safetensors"),
        lambda folder: judge.load(folder / "judge"),
    ),
    Kind(
        "judge's card",
        functools.partial(_copied, JUDGE, "card.json"),
        lambda folder: judge.load(folder / "judge"),
    ),
    Kind(
        "eye's weights",
        functools.partial(_copied, EYE, "eye.safetensors"),
        lambda f: eye.load(f / "eye"),
    ),
    Kind(
        "teacher's card",
        functools.partial(_copied, TEACHER, "card.json"),
        lambda folder: teachers.load(folder / "dit-nano"),
    ),
    Kind(
        "teacher's config",
        functools.partial(_copied, TEACHER, "transformer/config.json"),
        lambda folder: teachers.load(folder / "dit-nano"),
    ),
    Kind(
        "teacher's weights",
        functools.partial(_copied, TEACHER, "transformer/diffusion_pytorch_model.safetensors"),
        lambda folder: teachers.load(folder / "dit-nano"),
    ),
    Kind("list of digests", _list, lambda folder: judge.load(folder / "judge"), without=("gone",)),
    Kind(
        "params.yaml",
        _params,
        lambda folder: params.load(path=folder / "params.yaml"),
        without=("a flipped bit", "zeros at its end"),
    ),
)


def _read_damaged(kind: Kind, damage: str, folder: Path) -> str:
    path = kind.make(folder)
    DAMAGE[damage](path)
    return named(lambda: kind.read(folder), path.name)


def _written_again(damage: str, listed: bool, folder: Path) -> str:
    """Damage a shard, with its manifest or before there is one, and ask for the samples again."""
    path = _shard(folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    DAMAGE[damage](path)
    if not listed:
        (folder / "manifest.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _samples(folder)
    after = {file.name: file.read_bytes() for file in folder.iterdir()}
    return MADE_AGAIN if after == before else "other bytes"


def faults() -> Iterator[Fault]:
    """Yield every kind of file under every damage."""
    for kind in KINDS:
        for damage in DAMAGE:
            if damage not in kind.without:
                inject = functools.partial(_read_damaged, kind, damage)
                yield Fault(f"{kind.name}: {damage}", NAMED, inject)
    for damage in DAMAGE:
        for listed in (True, False):
            when = "" if listed else ", before there is a manifest"
            inject = functools.partial(_written_again, damage, listed)
            yield Fault(f"shard, written again: {damage}{when}", MADE_AGAIN, inject)
