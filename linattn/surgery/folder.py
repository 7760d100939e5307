"""Keep what was learned in a small folder, and make a base the student that a folder holds.

- A student's folder holds all weights of the replaced layers, any other weights that were trained,
  and `linattn.json`. That card names the base: class, public config and a digest of the weights.
- `load` refuses another base, because a student of equal shapes would load silently and draw
  nonsense. `load(..., strict=False)` takes a fine-tune of the base.
- A load that fails half way leaves the model unchanged.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from linattn import digests, families
from linattn.families import KEY, Layer
from linattn.surgery import identity, released
from linattn.surgery.convert import (
    Conversion,
    _attach_conversion,
    _build_operator,
    _check_backend,
    _conversion,
    _copy_into,
    _cpu_copies,
    _install,
    _require_conversion,
    _require_reachable,
    _shortened,
    restore,
)

FORMAT = 1
CARD, WEIGHTS = "linattn.json", "linattn.safetensors"


def save(model_or_pipeline: Any, folder: str | Path) -> Path:
    """Write the replaced layers and every other tensor that differs from the base, and return the
    folder.

    The base itself is not written.
    """
    model = _require_reachable(families.model_of(model_or_pipeline))
    conversion = _require_conversion(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    delta = _delta(model, conversion)
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in delta.items()
    }
    weights, card = folder / f".{WEIGHTS}.draft", folder / f".{CARD}.draft"
    try:
        save_file(tensors, weights, metadata={"format": "pt"})
        card.write_text(
            json.dumps(_card(model, conversion, digests.of_file(weights)), indent=2) + "\n"
        )
        # safetensors writes 0600, which another user of the folder cannot read
        shutil.copymode(card, weights)
        os.replace(weights, folder / WEIGHTS)
        os.replace(card, folder / CARD)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{folder} could not be written ({error})") from error
    finally:
        weights.unlink(missing_ok=True)
        card.unlink(missing_ok=True)
    return folder


def _delta(model: nn.Module, conversion: Conversion) -> dict[str, Tensor]:
    """Collect the tensors by which the model differs from its base, operators included."""
    live = identity.tensors(model)
    inside = tuple(f"{name}." for name in conversion.processors)
    outside = {
        name: t
        for name, t in live.items()
        if not name.startswith(inside) and name in conversion.digests
    }
    trained = set(identity.changed(outside, conversion.digests))
    changed = {name: t for name, t in live.items() if name.startswith(inside) or name in trained}
    return {**changed, **_operator_state(families.layers(model))}


def _operator_state(layers: Iterable[Layer]) -> dict[str, Tensor]:
    """Collect the live tensors of all operators by their names in a student's folder."""
    state = {}
    for layer in layers:
        if layer.operator is not None:
            for name, tensor in layer.operator.state_dict(keep_vars=True).items():
                state[f"{layer.name}.{KEY}.{name}"] = tensor
    return state


def _card(model: nn.Module, conversion: Conversion, digest: str) -> dict[str, Any]:
    """Describe the replaced layers, the weights' file and the base as plain JSON."""
    layers = [
        {
            "index": layer.index,
            "name": layer.name,
            "operator": layer.operator.name,
            "options": layer.operator.options,
            "initialise": conversion.initialise[layer.name],
        }
        for layer in families.layers(model)
        if layer.operator is not None
    ]
    return {
        "format": FORMAT,
        "weights": {"file": WEIGHTS, "sha256": digest},
        "layers": layers,
        "base": conversion.base,
    }


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
    weights is refused. `strict=False` takes any base whose tensors have the same shapes, for
    instance a fine-tune, and warns about the differences. Nothing is unpickled. `backend` has the
    meaning it has in `linearize`; it belongs to the machine, so no folder holds it.

    The weights that LinFusion and CLEAR released are read too (released.py). Their files name no
    base, and CLEAR's files name no radius: `options` gives what a file lacks.
    """
    model = _require_reachable(families.model_of(model_or_pipeline))
    _check_backend(backend)
    folder = _folder(folder_or_hub_id, revision)
    conversion = _conversion(model) or Conversion.of(model)
    is_released = released.recognised(folder)
    if is_released:
        entries, tensors = released.read(folder, options)
        card = {"layers": entries}
    elif options and (folder / CARD).is_file():
        raise ValueError(
            f"{folder} is a student of linattn's, which holds its options; leave out "
            f"{', '.join(options)}"
        )
    else:
        card, tensors = _read(folder)
        _check_base(conversion.base, card["base"], folder, strict)
    chosen, operators = _operators(model, card, folder, backend)
    if is_released:
        released.check(entries, families.layers(model), folder)
    _check_tensors(model, chosen, operators, tensors, folder, partial=is_released)
    reinstate = _reinstatement(model)
    if _conversion(model):
        restore(model)
        conversion = Conversion(conversion.base, conversion.digests)
    outside = _outside(chosen, tensors)
    overwritten = _cpu_copies(
        {name: tensor for name, tensor in identity.tensors(model).items() if name in outside}
    )

    def set_weights(layer: Layer, operator: nn.Module) -> None:
        state = {name: tensors[f"{layer.name}.{KEY}.{name}"] for name in operator.state_dict()}
        operator.load_state_dict(state)
        inside = {
            f"{layer.name}.{name}": tensor for name, tensor in identity.tensors(layer.attn).items()
        }
        _copy_into(inside, tensors)

    policies = [entry["initialise"] for entry in card["layers"]]
    try:
        _install(model, conversion, chosen, operators, policies, set_weights, keep_original)
    except BaseException:
        reinstate()
        raise
    _copy_into(identity.tensors(model), outside)
    if keep_original:
        conversion.originals.update(overwritten)
    return model_or_pipeline


def _reinstatement(model: nn.Module) -> Callable[[], None]:
    """Return a function that turns the model back into its present student after a `restore`.

    The function does nothing where the model is no student.
    """
    conversion = _conversion(model)
    if conversion is None:
        return lambda: None
    replaced = [layer for layer in families.layers(model) if layer.operator is not None]
    installed = [(layer.attn, layer.operator, layer.attn.processor) for layer in replaced]
    inside = tuple(f"{layer.name}." for layer in replaced)
    live = identity.tensors(model)
    values = _cpu_copies(
        {
            name: t
            for name, t in live.items()
            if name.startswith(inside) or name in conversion.originals
        }
    )

    def reinstate() -> None:
        _copy_into(live, values)
        for attn, operator, processor in installed:
            setattr(attn, KEY, operator)
            attn.set_processor(processor)
        _attach_conversion(model, conversion)

    return reinstate


def _outside(chosen: Sequence[Layer], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors outside the chosen layers."""
    inside = tuple(f"{layer.name}." for layer in chosen)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(inside)}


def _folder(folder_or_hub_id: str | Path, revision: str | None) -> Path:
    """Return the local folder or file of a student, downloaded where the argument is a hub id."""
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        return folder
    if folder.suffix == ".safetensors" and folder.is_file():
        return folder  # CLEAR's release is a single file
    if folder.exists():
        raise ValueError(f"{folder} is a file; a student is a folder with {CARD} and {WEIGHTS}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder_or_hub_id)):
        raise ValueError(
            f"there is no folder {str(folder)!r}, and it is no id of the Hugging Face hub "
            "(owner/name)"
        )
    # The cards come first: with the id of a base in place of a student's, the weights would be tens
    # of gigabytes.
    cards = _downloaded(folder, revision, [CARD, released.CONFIG])
    if not (cards / CARD).is_file() and not released.recognised(cards):
        raise ValueError(
            f"{folder} on the Hugging Face hub is no student: it has neither {CARD} nor "
            f"LinFusion's {released.CONFIG}; "
            "is it the base's id? (CLEAR's files are read from a path: download the one you want)"
        )
    return _downloaded(folder, revision, [CARD, released.CONFIG, "*.safetensors"], ["*/*"])


def _downloaded(
    name: Path, revision: str | None, allowed: list[str], ignored: list[str] | None = None
) -> Path:
    # takes a second to import, and a local folder does not need it
    from huggingface_hub import snapshot_download

    kwargs = {"revision": revision, "allow_patterns": allowed, "ignore_patterns": ignored}
    try:
        return Path(snapshot_download(name.as_posix(), **kwargs))
    except Exception as error:  # the network, the hub and its cache raise errors of many types
        raise ValueError(
            f"there is no folder {str(name)!r}, and the Hugging Face hub did not give it either "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason'})"
        ) from error


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the card and the tensors of a folder that `save` wrote."""
    for name in (CARD, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} holds no student: {name} is missing (linattn.save writes it)"
            )
    try:
        card = json.loads((folder / CARD).read_text())
        _check_card(card)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / CARD} is damaged or was not written by linattn.save ({error})"
        ) from error
    if card["format"] != FORMAT:
        raise ValueError(
            f"{folder / CARD} has format {card['format']}; this linattn reads {FORMAT}: use a "
            "newer one"
        )
    if digests.of_file(folder / WEIGHTS) != card["weights"]["sha256"]:
        raise ValueError(
            f"{folder / WEIGHTS} is damaged: not the file that {CARD} was written with; fetch it "
            "again"
        )
    try:
        return card, load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged ({error}); fetch it again") from error


def _check_card(card: Any) -> None:
    """Raise ValueError, KeyError or TypeError unless the card has every key that `load` reads."""
    if not isinstance(card["format"], int):
        raise ValueError(f"format {card['format']!r} is no number")
    for entry in card["layers"]:
        if not isinstance(entry["name"], str) or not isinstance(entry["options"], dict):
            raise ValueError(f"layer {entry!r}")
        _ = entry["operator"], entry["initialise"]
    _ = card["weights"]["sha256"]
    base = card["base"]
    types = {"class": str, "name": str, "config": dict, "config_digest": str, "weights": dict}
    for key, expected in types.items():
        if not isinstance(base[key], expected):
            raise ValueError(f"base {key} {base[key]!r}")


def _check_base(ours: dict[str, Any], theirs: dict[str, Any], folder: Path, strict: bool) -> None:
    """Raise if the student's base differs from this one; without `strict`, only warn where the
    class is the same.
    """
    differences = identity.differences(theirs, ours)
    if not differences:
        return
    message = (
        f"{folder} is a student of {identity.label(theirs)}, but this is {identity.label(ours)}; "
        f"they differ in {'; '.join(differences)}"
    )
    if strict or theirs["class"] != ours["class"]:
        raise ValueError(f"{message}. If this is a fine-tune of that base: load(..., strict=False)")
    warnings.warn(message, stacklevel=3)


def _operators(
    model: nn.Module, card: dict[str, Any], folder: Path, backend: str | None
) -> tuple[list[Layer], list[nn.Module]]:
    """Find the layers that the card names, and build their operators."""
    layers = {layer.name: layer for layer in families.layers(model)}
    if unknown := [entry["name"] for entry in card["layers"] if entry["name"] not in layers]:
        raise ValueError(
            f"{folder} replaces {_shortened(unknown)}, which this {type(model).__name__} does not "
            "have"
        )
    chosen = [layers[entry["name"]] for entry in card["layers"]]
    try:
        operators = [
            _build_operator(layer, entry["operator"], entry["options"], backend)
            for layer, entry in zip(chosen, card["layers"], strict=True)
        ]
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return chosen, operators


def _check_tensors(
    model: nn.Module,
    chosen: Sequence[Layer],
    operators: Sequence[nn.Module],
    tensors: dict[str, Tensor],
    folder: Path,
    partial: bool = False,
) -> None:
    """Raise unless every tensor of the replaced layers is there, none is unknown, and all have the
    base's shapes.

    With `partial`, tensors that the base has itself may be missing, and a warning names them.
    """
    known = identity.tensors(model)
    inside = tuple(f"{layer.name}." for layer in chosen)
    required = {name: tensor for name, tensor in known.items() if name.startswith(inside)}
    for layer, operator in zip(chosen, operators, strict=True):
        required.update(
            {f"{layer.name}.{KEY}.{name}": tensor for name, tensor in operator.state_dict().items()}
        )
    known = {**known, **required}
    missing = sorted(set(required) - set(tensors))
    unknown = sorted(set(tensors) - set(known))
    if partial and (kept := [name for name in missing if f".{KEY}." not in name]):
        warnings.warn(f"{folder} does not hold {_shortened(kept)}: the base's stay", stacklevel=3)
        missing = [name for name in missing if name not in set(kept)]
    if missing or unknown:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit this {type(model).__name__}: "
            f"missing {_shortened(missing) or 'nothing'}, unknown "
            f"{_shortened(unknown) or 'nothing'}"
        )
    shapes = [
        (name, tuple(tensor.shape), tuple(known[name].shape)) for name, tensor in tensors.items()
    ]
    mismatches = [
        f"{name} is {there} there, {here} here" for name, there, here in shapes if there != here
    ]
    if mismatches:
        raise ValueError(
            f"{folder} does not fit this {type(model).__name__}: {_shortened(mismatches)}"
        )
