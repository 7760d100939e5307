"""Check that a saved student fits a model, before anything in the model changes."""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from linattn import families
from linattn.families import KEY, Layer
from linattn.finite import NotFinite, finite
from linattn.names import shortened
from linattn.surgery import identity, quantised
from linattn.surgery.card import WEIGHTS
from linattn.surgery.install import Replacement, build_operator, operator_tensors
from linattn.surgery.student import Student

CALLER = 4  # frames from a warning here to the call of `load`


def fitted(
    model: nn.Module,
    base: dict[str, Any],
    student: Student,
    strict: bool,
    backend: str | None,
) -> list[Replacement]:
    """Return the layers that the student replaces and their operators, or raise if it does not fit.

    `base` describes the model. The files of the papers' authors name no base, and may lack tensors
    that the base has itself: a warning names these, and the layers that such a file does not name.
    """
    if student.base is not None:
        _check_base(student, student.base, base, strict)
    replacements = _replacements(model, student, backend)
    if student.base is None:
        _check_layers(families.layers(model), student)
    _check_tensors(model, replacements, student)
    return replacements


def _check_base(
    student: Student, theirs: dict[str, Any], ours: dict[str, Any], strict: bool
) -> None:
    """Raise if the student's base is another; without `strict`, warn if the class is the same."""
    differences = identity.differences(theirs, ours)
    if not differences:
        return
    message = (
        f"{student.path} is a student of {identity.label(theirs)}, but this is "
        f"{identity.label(ours)}; they differ in {'; '.join(differences)}"
    )
    if strict or theirs["class"] != ours["class"]:
        raise ValueError(f"{message}. If this is a fine-tune of that base: load(..., strict=False)")
    warnings.warn(message, stacklevel=CALLER)


def _replacements(model: nn.Module, student: Student, backend: str | None) -> list[Replacement]:
    """Find the layers that the student names, and build their operators."""
    layers = {layer.name: layer for layer in families.layers(model)}
    if unknown := [entry.name for entry in student.entries if entry.name not in layers]:
        raise ValueError(
            f"{student.path} replaces {shortened(unknown)}, which this {type(model).__name__} does "
            "not have"
        )
    replacements = []
    for entry in student.entries:
        layer = layers[entry.name]
        try:
            operator = build_operator(layer, entry.operator, entry.options, backend)
        except ValueError as error:
            raise ValueError(f"{student.path}: {error}") from error
        replacements.append(Replacement(layer, operator, entry.initialise))
    return replacements


def _check_layers(layers: Sequence[Layer], student: Student) -> None:
    """Raise if a layer was trained with other heads, and warn about layers without an entry."""
    heads = {layer.name: layer.shape.heads for layer in layers}
    for entry in student.entries:
        if entry.heads is not None and entry.heads != heads[entry.name]:
            raise ValueError(
                f"{student.path} was trained with {entry.heads} heads in {entry.name}, which has "
                f"{heads[entry.name]} here: it belongs to another base"
            )
    named = {entry.name for entry in student.entries}
    if unnamed := [name for name in heads if name not in named]:
        warnings.warn(
            f"{student.path} does not name {shortened(unnamed)}: they stay as they are",
            stacklevel=CALLER,
        )


def _check_tensors(model: nn.Module, replacements: Sequence[Replacement], student: Student) -> None:
    """Raise if tensors of replaced layers are missing, tensors are unknown, or shapes differ."""
    live = identity.tensors(model)
    kept = quantised.held(live)
    if written := [name for name in kept if name in student.tensors]:
        raise ValueError(
            f"{student.path} brings {shortened(written)}, which are quantised in this "
            f"{type(model).__name__}: load the student into the base as it was trained, and "
            "quantise after"
        )
    live = {name: tensor for name, tensor in live.items() if name not in kept}
    required = _required(live, replacements)
    known = {**live, **required}
    missing = sorted(set(required) - set(student.tensors))
    unknown = sorted(set(student.tensors) - set(known))
    if student.base is None:
        missing = _without_kept(missing, student)
    if missing or unknown:
        raise ValueError(
            f"{student.path / WEIGHTS} does not fit this {type(model).__name__}: "
            f"missing {shortened(missing) or 'nothing'}, unknown {shortened(unknown) or 'nothing'}"
        )
    if mismatches := _mismatches(student.tensors, known):
        raise ValueError(
            f"{student.path} does not fit this {type(model).__name__}: {shortened(mismatches)}"
        )
    _check_range(student, known)


def _required(live: dict[str, Tensor], replacements: Sequence[Replacement]) -> dict[str, Tensor]:
    """Return the tensors of the replaced layers and of their operators."""
    prefixes = tuple(f"{replacement.layer.name}." for replacement in replacements)
    required = {name: tensor for name, tensor in live.items() if name.startswith(prefixes)}
    for replacement in replacements:
        required.update(operator_tensors(replacement.layer.name, replacement.operator))
    return required


def _without_kept(missing: list[str], student: Student) -> list[str]:
    """Return the missing tensors of operators, and warn about those that stay the base's."""
    kept = [name for name in missing if f".{KEY}." not in name]
    if kept:
        warnings.warn(
            f"{student.path} does not hold {shortened(kept)}: the base's stay",
            stacklevel=CALLER + 1,
        )
    return [name for name in missing if f".{KEY}." in name]


def _check_range(student: Student, known: dict[str, Tensor]) -> None:
    """Raise where a weight is finite in its file and not in the dtype of this model."""
    for name, tensor in student.tensors.items():
        if not known[name].is_meta and tensor.dtype != (dtype := known[name].dtype):
            try:
                finite(tensor.to(dtype), f"weights of {name} in {dtype}", "load a wider base")
            except NotFinite as error:
                raise ValueError(f"{student.path}: {error}") from None


def _mismatches(tensors: dict[str, Tensor], known: dict[str, Tensor]) -> list[str]:
    mismatches = []
    for name, tensor in tensors.items():
        there, here = tuple(tensor.shape), tuple(known[name].shape)
        if there != here:
            mismatches.append(f"{name} is {there} there, {here} here")
    return mismatches
