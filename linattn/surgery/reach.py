"""Refuse a model whose weights cannot be replaced where they lie."""

from typing import Any

from torch import nn

from linattn.names import shortened
from linattn.surgery import identity, offload


def require_reachable(model: nn.Module) -> nn.Module:
    """Return the model, or raise if its weights are elsewhere, rounded, split or fused.

    Weights that a device_map offloads lie on meta, and those of groups on disk are empty, between
    calls: an operator built or copied there would silently hold noise. Fused projections are a copy
    of the weights that `restore` would not reach.
    """
    _refuse_elsewhere(model)
    _refuse_rounded(model)
    if getattr(model, "_parallel_config", None) is not None:
        raise ValueError(
            f"enable_parallelism has split this {type(model).__name__} among GPUs, and an operator "
            "reads the whole grid: load the model without parallel_config, and give each GPU "
            "pictures of its own"
        )
    modules = dict(model.named_modules())
    if fused := [name for name, module in modules.items() if _is_fused(module)]:
        raise ValueError(
            f"the projections of {shortened(fused)} are fused: call unfuse_qkv_projections() before"
        )
    return model


def _refuse_elsewhere(model: Any) -> None:
    """Raise if weights are not in the memory that the model's own tensors name."""
    on_meta = any(tensor.is_meta for tensor in identity.tensors(model).values())
    if on_meta and getattr(model, "hf_device_map", None) is not None:
        raise ValueError(
            f"the weights of this {type(model).__name__} are offloaded by its device_map: load it "
            "without device_map, and call enable_sequential_cpu_offload() on the pipeline"
        )
    if folder := offload.groups_on_disk(model):
        raise ValueError(
            f"the weights of this {type(model).__name__} are offloaded to {folder}: linearize and "
            "save before enable_group_offload(offload_to_disk_path=...), or offload to memory"
        )


def _refuse_rounded(model: nn.Module) -> None:
    """Raise if the weights are stored in 8 bits and cast for every call."""
    floats = [tensor for tensor in identity.tensors(model).values() if tensor.is_floating_point()]
    if dtypes := {str(tensor.dtype) for tensor in floats if tensor.dtype.itemsize < 2}:
        raise ValueError(
            f"weights of this {type(model).__name__} are stored in {shortened(sorted(dtypes))}, "
            "which rounds them: linearize and save before enable_layerwise_casting, or load the "
            "base again"
        )


def _is_fused(module: nn.Module) -> bool:
    """Say whether the projections of an attention are fused.

    diffusers' older attention keeps its flag when it is unfused, so for that class the processor
    decides.
    """
    if not getattr(module, "fused_projections", False):
        return False
    if hasattr(module, "unfuse_projections"):
        return True
    return type(module.processor).__name__.startswith("Fused")
