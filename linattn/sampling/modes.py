"""Training and evaluation mode of modules."""

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Generator[None, None, None]:
    """Put the model in eval mode meanwhile, and every submodule back into its own mode afterwards.

    A DiT in training mode would drop labels at random.

    Args:
        model: the model, whose submodules may be in different modes.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
