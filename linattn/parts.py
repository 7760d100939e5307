"""Check that the parts of a pipeline's folder are whole, before anything is loaded.

- diffusers says what lacks when it loads, which is after hours of other stages at worst, and not
  always: where a tokenizer's files are missing, transformers makes one without a vocabulary, and
  every prompt reads as the same unknown words.
- Only names, configs and the heads of weights are read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from linattn import configs, project, reader

WHOLE = ("diffusion_pytorch_model.safetensors", "model.safetensors")  # as they are looked for
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt")
WITHOUT_WEIGHTS = ("Tokenizer", "TokenizerFast", "Scheduler", "Processor", "Extractor")


def of(index: Mapping[str, Any]) -> dict[str, str]:
    """Return the parts of a pipeline that lie in folders of their own, with their classes."""
    entries = {name: value for name, value in index.items() if isinstance(value, list)}
    entries.pop("_class_name", None)  # a list where the pipeline's class is in a file beside
    return {name: value[1] for name, value in entries.items() if len(value) == 2 and value[1]}


def check(role: str, folder: Path, index: Mapping[str, Any]) -> None:
    """Raise a ValueError for the first part that could not be loaded as it lies there.

    Args:
        role: the teacher's.
        folder: the pipeline's.
        index: what its model_index.json says.
    """
    _check_code(role, folder, index)
    classes = of(index)
    if "vae" not in classes:
        raise ValueError(f"the {role} teacher has no VAE in {folder}: it cannot be a teacher")
    for part, made in classes.items():
        if not _names(folder / part):
            raise ValueError(
                f"the {role} teacher's {part} is missing: {folder / part} holds no file; copy or "
                "save the pipeline whole"
            )
        for path in sorted((folder / part).glob("*config.json")):
            configs.check(path, reader.mapping(project.read_json(path), str(path)))
        if made.endswith(("Tokenizer", "TokenizerFast")):
            _check_vocabulary(role, part, folder / part)
        elif not made.endswith(WITHOUT_WEIGHTS):
            _check_weights(role, part, folder / part)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if path.is_file())


def _check_code(role: str, folder: Path, index: Mapping[str, Any]) -> None:
    """Refuse a pipeline that brings code of its own, which diffusers would be asked to run."""
    entries = {name: value for name, value in index.items() if isinstance(value, list) and value}
    for name, value in entries.items():
        file = (folder if name == "_class_name" else folder / name) / f"{value[0]}.py"
        if file.is_file():
            raise ValueError(
                f"the {role} teacher brings code of its own, {file}, which is not run here: save "
                "the pipeline with diffusers' classes"
            )


def _check_vocabulary(role: str, part: str, folder: Path) -> None:
    names = _names(folder)
    if not any(name in VOCABULARIES or name.endswith(".model") for name in names):
        raise ValueError(
            f"the {role} teacher's {part} has no vocabulary: {folder} holds {', '.join(names)}; "
            "copy or save the pipeline whole"
        )


def _check_weights(role: str, part: str, folder: Path) -> None:
    """Refuse weights that are pickles, of a variant, incomplete or cut."""
    names = _names(folder)
    for name in _needed(role, part, folder, names):
        if name not in names:
            raise ValueError(
                f"the {role} teacher's {part} lacks {name}, which its index names: copy or save "
                "the pipeline whole"
            )
        _check_head(role, part, folder / name)


def _needed(role: str, part: str, folder: Path, names: list[str]) -> list[str]:
    """Return the files that hold a part's weights, whole or in shards."""
    if single_files := [name for name in names if name in WHOLE]:
        return single_files
    for name in WHOLE:
        if f"{name}.index.json" in names:
            index = project.read_json(folder / f"{name}.index.json")
            return sorted(set(index["weight_map"].values()))
    raise ValueError(f"the {role} teacher's {part} has {_instead(names)}")


def _instead(names: list[str]) -> str:
    """Say what lies where weights are looked for, and what to do."""
    if variants := [name for name in names if name.endswith(".safetensors")]:
        return (
            f"{variants[0]} and no {' or '.join(WHOLE)}: a variant is not looked for; save the "
            "pipeline again without variant"
        )
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        return (
            f"{pickles[0]} and no safetensors: nothing is unpickled here; save the pipeline again "
            "with safe_serialization=True"
        )
    return "no weights: copy or save the pipeline whole"


def _check_head(role: str, part: str, path: Path) -> None:
    """Refuse a file whose head does not describe it, as one that was cut or is a pointer to it."""
    try:
        with safe_open(path, framework="pt"):
            return
    except SafetensorError as error:
        raise ValueError(
            f"the {role} teacher's {part}: {path} is damaged or no weights at all ({error}); fetch "
            "it again (git lfs pull, where it is a pointer)"
        ) from None
