"""Linearise a diffusers model in place, take it back bit for bit, and keep what was learned in a small folder.

- Nothing is changed before everything is checked; a step that fails half way is undone.
- A layer is always converted from its original weights, however often it is converted.
- What `linearize` has done is an attribute of the model, so a deepcopy is a student of its own; the CPU copies of the
  original weights are shared by the copies, which never write them.
- A student's folder holds the replaced layers whole, whatever else was trained, and `linattn.json`, which names its
  base: class, public config and a digest of the weights. On another base it is refused, since a student of equal
  shapes would load without a word and draw nonsense; `load(..., strict=False)` takes a fine-tune of the base.
"""

import copy
import difflib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from linattn import attention, families, identity, released
from linattn.attention.options import nearest
from linattn.families import KEY, Layer
from linattn_kernels.launch import PATHS, Backend

FORMAT = 1
CARD, WEIGHTS = "linattn.json", "linattn.safetensors"
ATTRIBUTE = "_linattn"

Selection = str | int | Sequence[int | str] | Callable[[Layer], bool]


@dataclass
class Conversion:
    """What was done to a model, kept on it."""

    base: dict[str, Any]
    digests: dict[str, identity.Digests]  # of every tensor of the base
    originals: dict[str, Tensor] = field(default_factory=dict)  # CPU copies of what was overwritten
    processors: dict[str, Any] = field(default_factory=dict)  # by layer
    initialise: dict[str, str] = field(default_factory=dict)  # by layer
    forgotten: set[str] = field(default_factory=set)  # layers whose original was not kept

    @classmethod
    def of(cls, model: nn.Module) -> "Conversion":
        digests = identity.all_digests(identity.tensors(model))
        return cls(identity.base(model, digests), digests)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Conversion":
        parts = {name: copy.copy(value) for name, value in vars(self).items()}
        parts["processors"] = copy.deepcopy(self.processors, memo)
        return Conversion(**parts)


# Choosing layers -----------------------------------------------------------------------------------------------------


def select(layers: Sequence[Layer], which: Selection = "all") -> list[Layer]:
    """The chosen layers in forward order: all, every:2 (0, 2, ...), first:4, last:4, except:<any of these>, a layer's
    number or name, a list of them, or a predicate of the layer."""
    numbers = _numbers(layers, which)
    if not numbers:
        raise ValueError(f"layers={which!r} selects none of the {len(layers)} layers")
    return [layer for layer in layers if layer.index in numbers]


def _numbers(layers: Sequence[Layer], which: Selection) -> set[int]:
    if callable(which):
        return {layer.index for layer in layers if which(layer)}
    if isinstance(which, str):
        return _spoken(layers, which)
    if isinstance(which, Iterable):
        return {number for each in which for number in _numbers(layers, each)}
    return {_number(layers, which)}


def _spoken(layers: Sequence[Layer], which: str) -> set[int]:
    every = {layer.index for layer in layers}
    word, _, rest = which.partition(":")
    if which == "all":
        return every
    if word == "except" and rest:
        return every - _numbers(layers, rest)
    if word in ("first", "last", "every") and rest.isdecimal():
        count = int(rest)
        if not 1 <= count <= len(layers):
            raise ValueError(f"layers={which!r}: a number from 1 to {len(layers)}, the layers of this model")
        total = len(layers)
        spans = {"first": range(count), "last": range(total - count, total), "every": range(0, total, count)}
        return set(spans[word])
    return {_number(layers, which)}


def _number(layers: Sequence[Layer], which: int | str) -> int:
    if isinstance(which, int) and not isinstance(which, bool):
        if not -len(layers) <= which < len(layers):
            raise ValueError(f"no layer {which}: this model has {len(layers)}, numbered from 0")
        return which % len(layers)
    for layer in layers:
        if layer.name == which:
            return layer.index
    names = [layer.name for layer in layers]
    words = ("all", "every:2", "first:1", "last:1", "except:first:1")
    close = difflib.get_close_matches(str(which), [*names, *words], n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(
        f"no layer {which!r}: {hint}valid are all, every:2, first:4, last:4, except:first:2, "
        f"numbers up to {len(layers) - 1}, and names like {names[0]!r}"
    )


# Conversion and back -------------------------------------------------------------------------------------------------


def linearize(
    model_or_pipeline: Any,
    name: str,
    *,
    layers: Selection = "all",
    initialise: str = "all",
    keep_original: bool = True,
    backend: str | None = None,
    **options: Any,
) -> Any:
    """Replace the attention of the chosen self-attention layers, in place; returns what it was given.

    Called again on other layers it mixes operators; on the same layers it starts from their original weights.
    `keep_original=False` saves the memory of a CPU copy and gives up `restore`. `backend` is triton, torch or
    reference; None leaves it to the device, and `describe` says which one that is.
    """
    model = _here(families.model_of(model_or_pipeline))
    if initialise not in attention.POLICIES:
        raise nearest("initialise policy", initialise, attention.POLICIES)
    _check_backend(backend)
    chosen = select(families.layers(model), layers)
    before = _conversion(model)
    if lost := [layer.name for layer in chosen if before and layer.name in before.forgotten]:
        raise ValueError(
            f"the original weights of {_few(lost)} were not kept (keep_original=False), and a layer is always "
            "converted from its original: load the base again"
        )
    operators = [_built(layer, name, options, backend) for layer in chosen]
    _check_text(model, name, options, operators)
    if backend is not None and operators[0].widest is None:
        raise ValueError(f"{name} has no kernels to choose among: PyTorch's own operations serve it; leave out backend")

    def start(layer: Layer, operator: nn.Module) -> None:
        operator.initialise(layer.attn, initialise)

    conversion = copy.deepcopy(before) if before else Conversion.of(model)
    _install(model, conversion, chosen, operators, [initialise] * len(chosen), start, keep_original)
    return model_or_pipeline


def restore(model_or_pipeline: Any, *, strict: bool = True) -> Any:
    """The original model again, bit for bit, in place.

    Weights that were trained elsewhere in the model are not known here: then it raises and names them, and nothing is
    changed. `strict=False` restores the replaced layers all the same and leaves the others as they are.
    """
    model = _here(families.model_of(model_or_pipeline))
    conversion = _converted(model)
    if conversion.forgotten:
        raise ValueError(
            f"the original weights of {_few(sorted(conversion.forgotten))} were not kept (keep_original=False): "
            f"load {conversion.base['name']!r} again"
        )
    if strict and (trained := _trained_elsewhere(model, conversion)):
        raise ValueError(
            f"{len(trained)} tensors outside the replaced layers have changed since linearize, so the original cannot "
            f"be restored: {_few(trained)}; load the base again, or take back the replaced layers alone by "
            "restore(model, strict=False)"
        )
    _write(identity.tensors(model), conversion.originals)
    for layer in families.layers(model):
        if layer.name in conversion.processors:
            layer.attn.set_processor(conversion.processors[layer.name])
            delattr(layer.attn, KEY)
    _release(model)
    return model_or_pipeline


def _install(
    model: nn.Module,
    conversion: Conversion,
    chosen: Sequence[Layer],
    operators: Sequence[nn.Module],
    initialise: Sequence[str],
    start: Callable[[Layer, nn.Module], None],
    keep_original: bool,
) -> None:
    """Put every operator in its place; `start` gives the layer its first weights. All of it, or none."""
    live, undo = identity.tensors(model), []
    try:
        for layer, operator, policy in zip(chosen, operators, initialise, strict=True):
            own = {name: tensor for name, tensor in live.items() if name.startswith(f"{layer.name}.")}
            now = _copies(own)
            undo.append((layer, own, now, layer.operator, layer.attn.processor))
            if layer.name in conversion.processors:
                _write(own, conversion.originals)
            else:
                conversion.processors[layer.name] = layer.attn.processor
                conversion.originals.update(now if keep_original else {})
                conversion.forgotten.update(set() if keep_original else {layer.name})
            conversion.initialise[layer.name] = policy
            setattr(layer.attn, KEY, operator)
            layer.attn.set_processor(layer.processor())
            start(layer, operator)
    except BaseException:
        for layer, own, values, operator, processor in undo:
            _write(own, values)
            layer.attn.set_processor(processor)
            if layer.operator is not None:
                delattr(layer.attn, KEY)
            if operator is not None:
                setattr(layer.attn, KEY, operator)
        raise
    _mark(model, conversion)


def _mark(model: nn.Module, conversion: Conversion) -> None:
    setattr(model, ATTRIBUTE, conversion)
    model.save_pretrained = _refuse_to_save
    families.watch(model)


def _built(layer: Layer, name: str, options: dict[str, Any], backend: str | None = None) -> nn.Module:
    like = identity.tensors(layer.attn)["to_q.weight"]
    # Drawn on the CPU, so that a seed means the same everywhere; of FLUX without weights that would be 8 GB.
    with torch.device("meta" if like.is_meta else "cpu"):
        operator = attention.create(name, layer.shape, **options)
    operator.backend = None if operator.widest is None else backend
    dtype = like.dtype if like.is_floating_point() else None
    return operator.to(like.device, dtype).train(layer.attn.training)


def _check_text(model: nn.Module, name: str, options: dict[str, Any], operators: Sequence[nn.Module]) -> None:
    joint = [option for option in options if option in operators[0].table and operators[0].table[option].joint]
    if joint and not any(operator.shape.has_text for operator in operators):
        raise ValueError(
            f"{name}: {joint[0]} says how text takes part, but in the chosen layers of this {type(model).__name__} "
            "only the picture's tokens attend; leave it out"
        )
    rope = operators[0].ever("rope") if "rope" in operators[0].table else []
    if "numerator" in rope and not families.family(model).rotates:
        raise ValueError(
            f"{name}: rope='numerator' divides by queries and keys before their rotation, and those of this "
            f"{type(model).__name__} are not rotated; leave it out"
        )


def _check_backend(backend: str | None) -> None:
    if backend is not None and backend not in PATHS:
        raise nearest("backend", backend, PATHS)


def _release(model: nn.Module) -> None:
    families.unwatch(model)
    delattr(model, ATTRIBUTE)
    del model.save_pretrained  # the instance's; the class has its own


def _refuse_to_save(*args: Any, **kwargs: Any) -> None:
    raise ValueError(
        "save_pretrained would write a folder that loads as the softmax model again, with weights that do not fit it: "
        "write the student with linattn.save(model, folder) and read it with linattn.load(base, folder), "
        "or linattn.restore(model) first"
    )


def _here(model: nn.Module) -> nn.Module:
    """The model, if its weights are where they are looked for.

    Offloaded ones lie on meta between calls, and what is built or copied from there is noise without a word; fused
    ones are a copy that `restore` would not reach.
    """
    parts = dict(model.named_modules())
    hooked = [name for name, part in parts.items() if hasattr(part, "_hf_hook")]
    if hooked and any(tensor.is_meta for tensor in identity.tensors(model).values()):
        raise ValueError(
            f"the weights of this {type(model).__name__} are offloaded (accelerate holds those of {_few(hooked)}): "
            "call pipe.remove_all_hooks() before, and enable_sequential_cpu_offload() again after"
        )
    if fused := [name for name, part in parts.items() if _fused(part)]:
        raise ValueError(f"the projections of {_few(fused)} are fused: call unfuse_qkv_projections() before")
    return model


def _fused(part: nn.Module) -> bool:
    """diffusers' older attention keeps its flag when it is unfused, and only its processor tells."""
    if not getattr(part, "fused_projections", False):
        return False
    return hasattr(part, "unfuse_projections") or type(part.processor).__name__.startswith("Fused")


def _conversion(model: nn.Module) -> Conversion | None:
    return getattr(model, ATTRIBUTE, None)


def _converted(model: nn.Module) -> Conversion:
    conversion = _conversion(model)
    if conversion is None:
        raise ValueError(f"this {type(model).__name__} is not linearised: call linattn.linearize(model, name) first")
    return conversion


def _copies(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().clone() if tensor.is_meta else tensor.detach().to("cpu", copy=True)
        for name, tensor in named.items()
    }


@torch.no_grad()
def _write(live: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        if name in live:
            live[name].copy_(value)


def _trained_elsewhere(model: nn.Module, conversion: Conversion) -> list[str]:
    """Tensors of the base that changed and that no copy was taken of."""
    own = tuple(f"{name}." for name in conversion.processors)
    others = {
        name: tensor
        for name, tensor in identity.tensors(model).items()
        if not name.startswith(own) and name not in conversion.originals and name in conversion.digests
    }
    return identity.changed(others, conversion.digests)


def _few(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# Looking -------------------------------------------------------------------------------------------------------------


def describe(model_or_pipeline: Any) -> list[dict[str, Any]]:
    """A row for every self-attention layer, linearised or not."""
    rows = []
    for layer in families.layers(model_or_pipeline):
        operator = layer.operator
        weight = identity.tensors(layer.attn)["to_q.weight"]
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        runs = Backend("torch", "not linearised") if operator is None else operator.runs(weight.device, dtype)
        rows.append(
            {
                "index": layer.index,
                "name": layer.name,
                "operator": "softmax (dense)" if operator is None else operator.name,
                "options": {} if operator is None else operator.options,
                "parameters": sum(parameter.numel() for parameter in layer.attn.parameters()),
                "backend": runs.path,
                "because": runs.reason,
            }
        )
    return rows


def backends(model_or_pipeline: Any) -> dict[str, str]:
    """Which path every layer takes where the model lies, and why: what a run writes down."""
    return {row["name"]: f"{row['backend']}: {row['because']}" for row in describe(model_or_pipeline)}


def attention_parameters(model_or_pipeline: Any) -> list[tuple[str, nn.Parameter]]:
    """Everything inside the replaced layers."""
    return [
        (f"{layer.name}.{name}", parameter)
        for layer in families.layers(model_or_pipeline)
        if layer.operator is not None
        for name, parameter in layer.attn.named_parameters()
    ]


def new_parameters(model_or_pipeline: Any) -> list[tuple[str, nn.Parameter]]:
    """What the teacher does not have."""
    return [
        (f"{layer.name}.{KEY}.{name}", layer.operator.get_parameter(name))
        for layer in families.layers(model_or_pipeline)
        if layer.operator is not None
        for name in layer.operator.new_parameters()
    ]


@torch.no_grad()
def attention_map(model_or_pipeline: Any, layer: int | str, *args: Any, **inputs: Any) -> Tensor:
    """Whom each token reads in one layer, (batch, heads, tokens, tokens), for these arguments of the model's forward.

    Of the teacher and of a student alike; in float32, or float64 where the model is. A convolution is no part of it.
    """
    model = families.model_of(model_or_pipeline)
    if len(found := select(families.layers(model), layer)) != 1:
        raise ValueError(f"layer={layer!r} names {len(found)} layers, and a map is of one: give its number or its name")
    (chosen,) = found
    with families.capture(model) as seen:
        model(*args, **inputs)
    here = seen[chosen.index]
    return families.attention_map(chosen, here["input"], here["grid"], here["noise"], **here["more"])


# A student's folder --------------------------------------------------------------------------------------------------


def save(model_or_pipeline: Any, folder: str | Path) -> Path:
    """Write the replaced layers and whatever else differs from the base; the base itself is not written."""
    model = _here(families.model_of(model_or_pipeline))
    conversion = _converted(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = _delta(model, conversion)
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in kept.items()}
    weights, card = folder / f".{WEIGHTS}.draft", folder / f".{CARD}.draft"
    try:
        save_file(tensors, weights, metadata={"format": "pt"})
        card.write_text(json.dumps(_card(model, conversion, _sha256(weights)), indent=2) + "\n")
        shutil.copymode(card, weights)  # safetensors writes 0600, which another user of the folder cannot read
        os.replace(weights, folder / WEIGHTS)
        os.replace(card, folder / CARD)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{folder} could not be written ({error})") from error
    finally:
        weights.unlink(missing_ok=True)
        card.unlink(missing_ok=True)
    return folder


def _delta(model: nn.Module, conversion: Conversion) -> dict[str, Tensor]:
    live = identity.tensors(model)
    inside = tuple(f"{name}." for name in conversion.processors)
    outside = {name: t for name, t in live.items() if not name.startswith(inside) and name in conversion.digests}
    trained = set(identity.changed(outside, conversion.digests))
    own = {name: t for name, t in live.items() if name.startswith(inside) or name in trained}
    return {**own, **_operator_state(families.layers(model))}


def _operator_state(layers: Iterable[Layer]) -> dict[str, Tensor]:
    return {
        f"{layer.name}.{KEY}.{name}": tensor
        for layer in layers
        if layer.operator is not None
        for name, tensor in layer.operator.state_dict(keep_vars=True).items()
    }


def _card(model: nn.Module, conversion: Conversion, digest: str) -> dict[str, Any]:
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
    return {"format": FORMAT, "weights": {"file": WEIGHTS, "sha256": digest}, "layers": layers, "base": conversion.base}


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
    """Make the base a saved student, in place; returns what it was given. A student already there is restored first.

    A base of another class, public config or weights is refused. `strict=False` takes any base whose tensors have the
    same shapes, a fine-tune for instance, and warns of what differs. Nothing is ever unpickled. `backend` is
    `linearize`'s: it belongs to the machine, so no folder holds it. The weights that LinFusion and CLEAR released are
    read too (released.py); they name no base, and CLEAR's no radius: `options` say what a file does not.
    """
    model = _here(families.model_of(model_or_pipeline))
    _check_backend(backend)
    folder = _folder(folder_or_hub_id, revision)
    conversion = _conversion(model) or Conversion.of(model)
    foreign = released.recognised(folder)
    if foreign:
        entries, tensors = released.read(folder, options)
        card = {"layers": entries}
    elif options and (folder / CARD).is_file():
        raise ValueError(f"{folder} is a student of linattn's, which holds its options; leave out {', '.join(options)}")
    else:
        card, tensors = _read(folder)
        _check_base(conversion.base, card["base"], folder, strict)
    chosen, operators = _operators(model, card, folder, backend)
    if foreign:
        released.check(entries, families.layers(model), folder)
    _check_tensors(model, chosen, operators, tensors, folder, partial=foreign)
    put_back = _remembered(model)
    if _conversion(model):
        restore(model)
        conversion = Conversion(conversion.base, conversion.digests)
    others = _others(chosen, tensors)
    overwritten = _copies({name: tensor for name, tensor in identity.tensors(model).items() if name in others})

    def start(layer: Layer, operator: nn.Module) -> None:
        state = {name: tensors[f"{layer.name}.{KEY}.{name}"] for name in operator.state_dict()}
        operator.load_state_dict(state)
        own = {f"{layer.name}.{name}": tensor for name, tensor in identity.tensors(layer.attn).items()}
        _write(own, tensors)

    policies = [entry["initialise"] for entry in card["layers"]]
    try:
        _install(model, conversion, chosen, operators, policies, start, keep_original)
    except BaseException:
        put_back()
        raise
    _write(identity.tensors(model), others)
    if keep_original:
        conversion.originals.update(overwritten)
    return model_or_pipeline


def _remembered(model: nn.Module) -> Callable[[], None]:
    """Puts the student back that the model is now, after a `restore`; nothing to do where it is none."""
    conversion = _conversion(model)
    if conversion is None:
        return lambda: None
    replaced = [layer for layer in families.layers(model) if layer.operator is not None]
    parts = [(layer.attn, layer.operator, layer.attn.processor) for layer in replaced]
    inside = tuple(f"{layer.name}." for layer in replaced)
    live = identity.tensors(model)
    values = _copies({name: t for name, t in live.items() if name.startswith(inside) or name in conversion.originals})

    def put_back() -> None:
        _write(live, values)
        for attn, operator, processor in parts:
            setattr(attn, KEY, operator)
            attn.set_processor(processor)
        _mark(model, conversion)

    return put_back


def _others(chosen: Sequence[Layer], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    inside = tuple(f"{layer.name}." for layer in chosen)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(inside)}


def _folder(folder_or_hub_id: str | Path, revision: str | None) -> Path:
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        return folder
    if folder.suffix == ".safetensors" and folder.is_file():
        return folder  # CLEAR's
    if folder.exists():
        raise ValueError(f"{folder} is a file; a student is a folder with {CARD} and {WEIGHTS}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder_or_hub_id)):
        raise ValueError(f"there is no folder {str(folder)!r}, and it is no id of the Hugging Face hub (owner/name)")
    # The cards first: the id of a base instead of a student's would fetch tens of gigabytes.
    place = _fetched(folder, revision, [CARD, released.CONFIG])
    if not (place / CARD).is_file() and not released.recognised(place):
        raise ValueError(
            f"{folder} on the Hugging Face hub is no student: it has neither {CARD} nor LinFusion's {released.CONFIG}; "
            "is it the base's id? (CLEAR's files are read from a path: download the one you want)"
        )
    return _fetched(folder, revision, [CARD, released.CONFIG, "*.safetensors"], ["*/*"])


def _fetched(name: Path, revision: str | None, wanted: list[str], unwanted: list[str] | None = None) -> Path:
    from huggingface_hub import snapshot_download  # a second's import that a local folder does not need

    how = {"revision": revision, "allow_patterns": wanted, "ignore_patterns": unwanted}
    try:
        return Path(snapshot_download(name.as_posix(), **how))
    except Exception as error:  # whatever the network, the hub or its cache may say
        raise ValueError(
            f"there is no folder {str(name)!r}, and the Hugging Face hub did not give it either "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason'})"
        ) from error


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for name in (CARD, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no student: {name} is missing (linattn.save writes it)")
    try:
        card = json.loads((folder / CARD).read_text())
        _check_card(card)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CARD} is damaged or was not written by linattn.save ({error})") from error
    if card["format"] != FORMAT:
        raise ValueError(f"{folder / CARD} has format {card['format']}; this linattn reads {FORMAT}: use a newer one")
    if _sha256(folder / WEIGHTS) != card["weights"]["sha256"]:
        raise ValueError(f"{folder / WEIGHTS} is damaged: not the file that {CARD} was written with; fetch it again")
    try:
        return card, load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged ({error}); fetch it again") from error


def _check_card(card: Any) -> None:
    if not isinstance(card["format"], int):
        raise ValueError(f"format {card['format']!r} is no number")
    for entry in card["layers"]:
        if not isinstance(entry["name"], str) or not isinstance(entry["options"], dict):
            raise ValueError(f"layer {entry!r}")
        _ = entry["operator"], entry["initialise"]
    _ = card["weights"]["sha256"]
    base = card["base"]
    for part, kind in {"class": str, "name": str, "config": dict, "config_digest": str, "weights": dict}.items():
        if not isinstance(base[part], kind):
            raise ValueError(f"base {part} {base[part]!r}")


def _check_base(ours: dict[str, Any], theirs: dict[str, Any], folder: Path, strict: bool) -> None:
    found = identity.differences(theirs, ours)
    if not found:
        return
    message = (
        f"{folder} is a student of {identity.label(theirs)}, but this is {identity.label(ours)}; "
        f"they differ in {'; '.join(found)}"
    )
    if strict or theirs["class"] != ours["class"]:
        raise ValueError(f"{message}. If this is a fine-tune of that base: load(..., strict=False)")
    warnings.warn(message, stacklevel=3)


def _operators(
    model: nn.Module, card: dict[str, Any], folder: Path, backend: str | None
) -> tuple[list[Layer], list[nn.Module]]:
    layers = {layer.name: layer for layer in families.layers(model)}
    if unknown := [entry["name"] for entry in card["layers"] if entry["name"] not in layers]:
        raise ValueError(f"{folder} replaces {_few(unknown)}, which this {type(model).__name__} does not have")
    chosen = [layers[entry["name"]] for entry in card["layers"]]
    try:
        built = [
            _built(layer, entry["operator"], entry["options"], backend)
            for layer, entry in zip(chosen, card["layers"], strict=True)
        ]
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return chosen, built


def _check_tensors(
    model: nn.Module,
    chosen: Sequence[Layer],
    operators: Sequence[nn.Module],
    tensors: dict[str, Tensor],
    folder: Path,
    partial: bool = False,
) -> None:
    """Every tensor of the replaced layers is there, none is unknown, and all have the base's shapes.

    `partial`: what the base has itself may be missing, and a warning says what that is.
    """
    known = identity.tensors(model)
    inside = tuple(f"{layer.name}." for layer in chosen)
    required = {name: tensor for name, tensor in known.items() if name.startswith(inside)}
    for layer, operator in zip(chosen, operators, strict=True):
        required.update({f"{layer.name}.{KEY}.{name}": tensor for name, tensor in operator.state_dict().items()})
    known = {**known, **required}
    missing = sorted(set(required) - set(tensors))
    unknown = sorted(set(tensors) - set(known))
    if partial and (kept := [name for name in missing if f".{KEY}." not in name]):
        warnings.warn(f"{folder} does not hold {_few(kept)}: the base's stay", stacklevel=3)
        missing = [name for name in missing if name not in set(kept)]
    if missing or unknown:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit this {type(model).__name__}: "
            f"missing {_few(missing) or 'nothing'}, unknown {_few(unknown) or 'nothing'}"
        )
    shapes = [(name, tuple(tensor.shape), tuple(known[name].shape)) for name, tensor in tensors.items()]
    if wrong := [f"{name} is {there} there, {here} here" for name, there, here in shapes if there != here]:
        raise ValueError(f"{folder} does not fit this {type(model).__name__}: {_few(wrong)}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
