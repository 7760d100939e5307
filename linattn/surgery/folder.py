"""Keep what was learned in a small folder, and make a base the student that a folder holds.

- A student's folder holds all weights of the replaced layers and any other weights that were
  trained, beside a card (card.py) that names the base.
- `load` refuses another base, because a student of equal shapes would load silently and draw
  nonsense. `load(..., strict=False)` takes a fine-tune of the base.
- A load that fails half way leaves the model unchanged.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from linattn import families, files
from linattn.families import KEY
from linattn.surgery import card, clear, hub, identity, linfusion, quantised
from linattn.surgery.convert import require_base, take_back
from linattn.surgery.fit import fitted
from linattn.surgery.install import (
    Replacement,
    check_backend,
    check_flags,
    install,
    operator_tensors,
)
from linattn.surgery.offload import at_hand
from linattn.surgery.reach import require_reachable
from linattn.surgery.record import Conversion, conversion_of, require_conversion
from linattn.surgery.student import Student
from linattn.surgery.undo import Before, copy_into, wholly

SOURCES = (linfusion, clear, card)  # the last says what is missing where none recognises a path


def save(model_or_pipeline: Any, folder: str | Path) -> Path:
    """Write the replaced layers and all that differs from the base, and return the folder.

    The base itself is not written.

    Args:
        model_or_pipeline: a linearised model, or a pipeline or Teacher that holds one.
        folder: where to write linattn.json and linattn.safetensors; it is made where it is missing.
    """
    model = require_reachable(families.model_of(model_or_pipeline))
    conversion, path = require_conversion(model), files.path_of(folder, "folder")
    with at_hand(model):
        conversion.refuse_quantised(model)
        layers, learned = _layers(model, conversion), _learned(model, conversion)
        card.write(path, layers, learned, conversion.base)
    return path


def _layers(model: nn.Module, conversion: Conversion) -> list[dict[str, Any]]:
    """Describe the replaced layers as plain JSON."""
    descriptions = []
    for layer in families.layers(model):
        if layer.operator is not None:
            description = {
                "index": layer.index,
                "name": layer.name,
                "operator": layer.operator.name,
                "options": layer.operator.options,
                "initialise": conversion.initialise[layer.name],
            }
            descriptions.append(description)
    return descriptions


def _learned(model: nn.Module, conversion: Conversion) -> dict[str, Tensor]:
    """Collect the tensors by which the model differs from its base, operators included."""
    trained = set(conversion.changed_outside(model))
    live = identity.tensors(model)
    kept = quantised.held(live)
    tensors = {
        name: tensor
        for name, tensor in live.items()
        if (conversion.inside(name) or name in trained) and name not in kept
    }
    for layer in families.layers(model):
        if layer.operator is not None:
            tensors.update(operator_tensors(layer.name, layer.operator))
    return tensors


def load(
    model_or_pipeline: Any,
    folder_or_hub_id: str | Path,
    *,
    strict: bool = True,
    keep_original: bool = True,
    revision: str | None = None,
    backend: str | None = None,
    **options: Any,
) -> Any:
    """Turn the base into a saved student in place, and return `model_or_pipeline`.

    A model that is already a student is restored first. A base of another class, public config or
    weights is refused. Nothing is unpickled. The weights that LinFusion and CLEAR released are read
    too (linfusion.py, clear.py); their files name no base.

    Args:
        model_or_pipeline: the base: a diffusers model, a pipeline or a Teacher.
        folder_or_hub_id: a folder that `save` wrote, or a repository of the hub with the same
            files.
        strict: whether the base must be the very one that was saved. Without it any base whose
            tensors have the same shapes is taken, for instance a fine-tune, with a warning about
            the differences.
        keep_original: whether to keep a copy of the replaced weights on the CPU. Without it
            `restore` is impossible.
        revision: a branch, tag or commit of the hub's repository.
        backend: as in `linearize`. It belongs to the machine, so no folder holds it.
        options: what the files of released weights lack, such as CLEAR's radius.
    """
    model = require_reachable(families.model_of(model_or_pipeline))
    check_backend(backend)
    check_flags(strict=strict, keep_original=keep_original)
    student = _read(hub.local(folder_or_hub_id, revision), options)
    with at_hand(model):
        conversion = conversion_of(model) or Conversion.of(model)
        conversion.refuse_quantised(model)
        replacements = fitted(model, conversion.base, student, strict, backend)
        _become(model, conversion, student, replacements, keep_original)
    return model_or_pipeline


def _read(path: Path, options: dict[str, Any]) -> Student:
    for source in SOURCES:
        if source.recognises(path):
            return source.read(path, options)
    return SOURCES[-1].read(path, options)


def _become(
    model: nn.Module,
    conversion: Conversion,
    student: Student,
    replacements: Sequence[Replacement],
    keep_original: bool,
) -> None:
    """Make the model the student; if that fails, the model stays what it is."""
    previous = conversion_of(model)
    if previous:
        require_base(model, previous)
        conversion = Conversion(previous.base, previous.digests)
    prefixes = tuple(f"{replacement.layer.name}." for replacement in replacements)
    outside = {
        name: tensor for name, tensor in student.tensors.items() if not name.startswith(prefixes)
    }

    def set_weights(replacement: Replacement) -> None:
        _set_weights(replacement, student.tensors)

    def change(before: Before) -> None:
        if previous:
            take_back(model, before, previous)
        live = identity.tensors(model)
        originals = before.keep({name: live[name] for name in outside})
        copy_into(live, outside)
        if keep_original:
            conversion.originals.update(originals)
        install(model, before, conversion, replacements, set_weights, keep_original)

    wholly(model, change)


def _set_weights(replacement: Replacement, tensors: dict[str, Tensor]) -> None:
    """Give a layer and its operator the weights of a student."""
    name, operator = replacement.layer.name, replacement.operator
    state = {key: tensors[f"{name}.{KEY}.{key}"] for key in operator.state_dict()}
    operator.load_state_dict(state)
    live = identity.tensors(replacement.layer.attn)
    copy_into({f"{name}.{key}": tensor for key, tensor in live.items()}, tensors)
