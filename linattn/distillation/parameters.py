"""Choose the parameters of a student that learn."""

from torch import Tensor, nn

from linattn import families, surgery
from linattn.distillation.optimizers import Named


def select(student: nn.Module, trains: str) -> Named:
    """List the parameters that `trains` names, or raise ValueError if there are none."""
    if trains == "all":
        return [(name, p) for name, p in student.named_parameters() if p.is_floating_point()]
    parameters_of = surgery.new_parameters if trains == "new" else surgery.attention_parameters
    selected = list(parameters_of(student))
    if not selected:
        raise ValueError(
            f"trains is {trains!r}, but the student has no such parameters; train 'attention' or "
            "'all'"
        )
    return selected


def inside_attention(student: nn.Module, selected: Named) -> Named:
    """Keep the selected parameters that lie inside replaced layers."""
    inside = {id(parameter) for _, parameter in surgery.attention_parameters(student)}
    return [(name, parameter) for name, parameter in selected if id(parameter) in inside]


def require(student: nn.Module, learning: Named) -> None:
    """Let exactly these parameters of the student receive gradients."""
    student.requires_grad_(False)
    for _, parameter in learning:
        parameter.requires_grad_(True)


def muon_matrices(student: nn.Module) -> set[str]:
    """Name the 2-D weights that Muon trains: linear layers inside attentions and feed-forwards."""
    names = set()
    for name, module in student.named_modules():
        inside_block = ".attn" in f".{name}." or ".ff." in f".{name}."
        if isinstance(module, nn.Linear) and inside_block:
            names.add(f"{name}.weight")
    return names


def linears(student: nn.Module) -> list[Tensor]:
    """List the weights of the Linears that the operators added, but for those that start at 0.

    A Linear starts at 0 so that the student starts at its teacher, which a penalty would undo.
    """
    operators = [layer.operator for layer in families.layers(student) if layer.operator is not None]
    added = [module for operator in operators for module in operator.modules()]
    weights = [module.weight for module in added if isinstance(module, nn.Linear)]
    return [weight for weight in weights if weight.any()]


def count(parameters: Named) -> int:
    """Count the numbers in the parameters."""
    return sum(parameter.numel() for _, parameter in parameters)
