"""A student trains as its teacher does: with checkpointed gradients, and with a LoRA by peft."""

import compat
import kinds
import peft
import pytest
import torch
from compat import PAIRS
from torch import nn

import linattn
from linattn import families, surgery

RATE = 0.5
TARGETS = ["to_q", "to_v"]
# the families whose models diffusers gives `add_adapter`; to the others peft gives it
ADAPTED = [(kind, operator) for kind, operator in PAIRS if kind not in ("dit", "pixart")]


def gradients(kind, model):
    model.zero_grad()
    torch.manual_seed(0)  # DiT drops labels in training
    kinds.run(model, **kinds.inputs(kind)).square().mean().backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize(("kind", "operator"), PAIRS)
def test_checkpointed_gradients_are_equal(kind, operator):
    model = compat.student(kind, operator).train()
    wanted = gradients(kind, model)
    model.enable_gradient_checkpointing()
    calls = []
    families.layers(model)[0].attn.to_q.register_forward_hook(lambda *args: calls.append(args))
    checkpointed = gradients(kind, model)
    assert len(calls) == 2, "the layer is not computed again in the backward"
    assert set(checkpointed) == set(wanted)
    assert all(torch.equal(checkpointed[name], wanted[name]) for name in wanted)
    assert {name for name, _ in surgery.new_parameters(model)} <= set(wanted)


def config(targets=TARGETS):
    return peft.LoraConfig(r=2, target_modules=targets, init_lora_weights="gaussian")


def with_lora(kind, model, targets=TARGETS):
    torch.manual_seed(1)
    if hasattr(model, "add_adapter"):
        model.add_adapter(config(targets))
    else:
        peft.inject_adapter_in_model(config(targets), model)
    return model


def trained(kind, model):
    """Take one step of what can learn, and return the names of it."""
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(learning.values(), RATE)
    kinds.run(model, **kinds.inputs(kind)).square().mean().backward()
    optimizer.step()
    return set(learning)


@pytest.mark.parametrize(("kind", "operator"), PAIRS)
def test_a_lora_trains_on_a_student_and_nothing_else_does(kind, operator):
    model = compat.student(kind, operator)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = compat.run(kind, model)
    with_lora(kind, model)
    assert torch.equal(compat.run(kind, model), wanted)
    learning = trained(kind, model)
    assert learning
    assert all(".lora_" in name for name in learning)
    assert not torch.equal(compat.run(kind, model), wanted)
    after = {name.replace(".base_layer.", "."): t for name, t in model.state_dict().items()}
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(("kind", "operator"), ADAPTED)
def test_a_lora_of_a_student_is_saved_and_loaded_by_diffusers(kind, operator, tmp_path):
    model = with_lora(kind, compat.student(kind, operator))
    trained(kind, model)
    wanted = compat.run(kind, model)
    model.save_lora_adapter(tmp_path)
    again = compat.student(kind, operator)
    plain = compat.run(kind, again)
    name = "pytorch_lora_weights.safetensors"
    again.load_lora_adapter(tmp_path, prefix=None, weight_name=name)
    assert torch.equal(compat.run(kind, again), wanted)
    again.disable_adapters()
    assert torch.equal(compat.run(kind, again), plain)


@pytest.mark.parametrize(("kind", "operator"), PAIRS)
def test_conversion_and_restoration_with_a_lora_active(kind, operator):
    after = with_lora(kind, compat.student(kind, operator))
    before = compat.student(kind, operator, with_lora(kind, kinds.model(kind)))
    trained(kind, after)
    lora = {name: t for name, t in after.state_dict().items() if ".lora_" in name}
    before.load_state_dict(lora, strict=False)
    assert torch.equal(compat.run(kind, before), compat.run(kind, after))
    teacher = with_lora(kind, kinds.model(kind))
    teacher.load_state_dict(lora, strict=False)
    assert torch.equal(compat.run(kind, linattn.restore(after)), compat.run(kind, teacher))


def test_a_student_is_saved_without_a_lora_that_lies_on_its_operators(tmp_path):
    """Its folder had names of peft, and `load` missed the operators' own."""
    model = compat.student("flux", "linfusion")
    wanted = compat.run("flux", model)
    with_lora("flux", model, ["query.0", "to_q"])
    assert any(f".{families.KEY}." in name for name in trained("flux", model))
    linattn.save(model, tmp_path)
    again = linattn.load(kinds.model("flux"), tmp_path)
    assert torch.equal(compat.run("flux", again), wanted)


def test_a_lora_of_every_linear_reaches_the_operators_too():
    model = compat.student("flux", "linfusion")
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    with_lora("flux", model, names)
    learning = trained("flux", model)
    assert sum(name.endswith(".lora_A.default.weight") for name in learning) == len(names)
