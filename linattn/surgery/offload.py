"""Bring offloaded weights back while they are read or replaced, and offload them again after.

- Sequential offload (accelerate's hooks) keeps weights on meta between calls, where an operator
  that is built or copied would silently hold noise.
- Group offload (diffusers' hooks) lists the tensors of each group when it is switched on: an
  operator that comes later is in no group and would stay on the CPU while its layer computes on the
  GPU.
- Model offload moves a model whole and needs nothing.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, SequentialHook, remove_hook_from_module
from diffusers.hooks.group_offloading import (
    _get_top_level_group_offload_hook,
    _maybe_remove_and_reapply_group_offloading,
)
from torch import nn


@contextmanager
def at_hand(model: nn.Module) -> Generator[None, None, None]:
    """Hold the model's weights in its own tensors meanwhile, and list those of groups anew after.

    Parameters that were offloaded one by one are other objects afterwards, as with accelerate.
    """
    sequential = next(_offloading_hooks(model), None)
    if sequential is not None:
        remove_hook_from_module(model, recurse=True)
    try:
        yield
    finally:
        if sequential is not None:
            device, buffers = sequential.execution_device, sequential.offload_buffers
            cpu_offload(model, device, offload_buffers=buffers)
        _maybe_remove_and_reapply_group_offloading(model)


def is_sequential(model: nn.Module) -> bool:
    """Say whether weights are offloaded one by one."""
    return next(_offloading_hooks(model), None) is not None


def groups_on_disk(model: nn.Module) -> str | None:
    """Return the folder in which group offload keeps the weights, if they are not in memory."""
    hook = _get_top_level_group_offload_hook(model)
    return None if hook is None else hook.config.offload_to_disk_path


def _offloading_hooks(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        for hook in _hooks(getattr(module, "_hf_hook", None)):
            if isinstance(hook, AlignDevicesHook) and hook.offload:
                yield hook


def _hooks(hook: Any) -> tuple[Any, ...]:
    """Return the hooks of which accelerate made one."""
    if isinstance(hook, SequentialHook):
        return tuple(hook.hooks)
    return () if hook is None else (hook,)
