"""Keep quantised weights as they are: they are neither drawn afresh nor written nor read.

torchao, bitsandbytes, quanto and GGUF each hold a weight in a class of tensors of their own. Such a
base converts where the operator keeps its projections, and the operator itself stays a float. A
student's folder leaves out the quantised weights, because its base has them, bit for bit.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from linattn import digests
from linattn.names import shortened

PLAIN = (Tensor, nn.Parameter)
OTHERS = (FakeTensor, DTensor)  # classes of tensors that are not about precision


def is_quantised(tensor: Tensor) -> bool:
    return type(tensor) not in PLAIN and not isinstance(tensor, OTHERS)


def class_name(tensor: Tensor) -> str:
    """Name the class of a quantised tensor, under which its digest is kept."""
    return type(tensor).__name__


def digest(tensor: Tensor) -> str:
    """Digest a quantised tensor; one that wraps others has no bits of its own."""
    if not is_traceable_wrapper_subclass(tensor):
        return digests.of_tensor(tensor.detach())
    names, _ = tensor.__tensor_flatten__()
    return digests.of_text("\n".join(digests.of_tensor(getattr(tensor, name)) for name in names))


def names(tensors: Mapping[str, Tensor]) -> list[str]:
    return [name for name, tensor in tensors.items() if is_quantised(tensor)]


def held(tensors: Mapping[str, Tensor]) -> set[str]:
    """Name the quantised tensors and what their libraries store beside them, as scales.

    bitsandbytes stores `weight.absmax` and others of 4 bits, and `SCB` and `weight_format` of 8.
    """
    weights = tuple(names(tensors))
    scales = {f"{weight.removesuffix('weight')}SCB" for weight in weights}
    return {name for name in tensors if name in scales or (weights and name.startswith(weights))}


def refuse_since(tensors: Mapping[str, Tensor], recorded: Mapping[str, Iterable[str]]) -> None:
    """Raise if weights were quantised after `linearize`.

    `recorded` has the kinds under which each tensor of the base was digested.
    """
    later = [
        name for name in names(tensors) if class_name(tensors[name]) not in recorded.get(name, ())
    ]
    if later:
        raise ValueError(
            f"{len(later)} weights were quantised after linearize, among them "
            f"{shortened(later)}, and what was kept of them is not: quantise the base before "
            "linearize; or save the student before it is quantised, and load the base again to go "
            "back"
        )
