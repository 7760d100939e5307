"""Refuse a model whose weights cannot be replaced where they lie."""

from torch import nn

from linattn.names import shortened
from linattn.surgery import identity


def require_reachable(model: nn.Module) -> nn.Module:
    """Return the model, or raise if its weights are offloaded or its projections fused.

    Offloaded weights lie on meta between calls, and an operator built or copied from meta would
    silently hold noise. Fused projections are a copy of the weights that `restore` would not reach.
    """
    modules = dict(model.named_modules())
    hooked = [name for name, module in modules.items() if hasattr(module, "_hf_hook")]
    if hooked and any(tensor.is_meta for tensor in identity.tensors(model).values()):
        raise ValueError(
            f"the weights of this {type(model).__name__} are offloaded (accelerate holds those of "
            f"{shortened(hooked)}): call pipe.remove_all_hooks() before, and "
            "enable_sequential_cpu_offload() again after"
        )
    if fused := [name for name, module in modules.items() if _is_fused(module)]:
        raise ValueError(
            f"the projections of {shortened(fused)} are fused: call unfuse_qkv_projections() before"
        )
    return model


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
