"""A student is offloaded as its teacher is, before or after it is made."""

import accelerate
import compat
import kinds
import pytest
import torch
from compat import PAIRS
from diffusers.hooks import group_offloading

import linattn
from linattn import families

CPU = torch.device("cpu")
IN_GROUPS = [(kind, operator) for kind, operator in PAIRS if kind != "dit"]  # diffusers refuses DiT
LEVELS = {
    "leaf_level": {},
    "block_level": {"num_blocks_per_group": 1},
}


def grouped(model, level="leaf_level", **kwargs):
    model.enable_group_offload(CPU, CPU, level, **LEVELS[level], **kwargs)
    return model


def sequential(model):
    return accelerate.cpu_offload(model, CPU, offload_buffers=True)


def groups(model):
    """List the groups of a model that diffusers offloads."""
    hooks = [
        hook
        for module in model.modules()
        if hasattr(module, "_diffusers_hook")
        for hook in module._diffusers_hook.hooks.values()
        if isinstance(hook, group_offloading.GroupOffloadingHook)
    ]
    return {id(hook.group): hook.group for hook in hooks}.values()


def tensors(group):
    """List the tensors of a group."""
    listed = [*group.parameters, *group.buffers]
    for module in group.modules:
        listed += [*module.parameters(), *module.buffers()]
    return listed


def in_no_group(model):
    """Name the parameters that no group brings to the device."""
    listed = {id(tensor) for group in groups(model) for tensor in tensors(group)}
    return [name for name, tensor in model.named_parameters() if id(tensor) not in listed]


@pytest.fixture
def elsewhere(monkeypatch):
    """Stand for a device: the floats of a group that is not on it hold NaN."""
    kept = {}

    @torch.no_grad()
    def offload(group):
        for tensor in tensors(group):
            if tensor.is_floating_point() and id(tensor) not in kept:
                kept[id(tensor)] = tensor.data.clone()
                tensor.data.fill_(torch.nan)

    @torch.no_grad()
    def onload(group):
        for tensor in tensors(group):
            if id(tensor) in kept:
                tensor.data.copy_(kept.pop(id(tensor)))

    monkeypatch.setattr(group_offloading.ModuleGroup, "offload_", offload)
    monkeypatch.setattr(group_offloading.ModuleGroup, "onload_", onload)
    return kept


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("kind", "operator"), IN_GROUPS)
def test_groups_bring_an_operator_when_its_layer_computes(kind, operator, level, elsewhere):
    model = compat.student(kind, operator)
    wanted = compat.run(kind, model)
    grouped(model, level)
    assert elsewhere, "nothing is offloaded"
    assert torch.equal(compat.run(kind, model), wanted)
    assert elsewhere, "nothing is offloaded again"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("kind", "operator"), IN_GROUPS)
def test_operators_join_the_groups_of_a_base_that_is_offloaded(kind, operator, level):
    """They were in no group: on the CPU beside projections on the GPU."""
    wanted = compat.run(kind, compat.student(kind, operator))
    model = compat.student(kind, operator, grouped(kinds.model(kind), level))
    assert not in_no_group(model)
    assert torch.equal(compat.run(kind, model), wanted)
    linattn.restore(model)
    assert not in_no_group(model)
    assert torch.equal(compat.run(kind, model), compat.run(kind, kinds.model(kind)))


def test_diffusers_offers_no_groups_for_dit_converted_or_not():
    for model in (kinds.model("dit"), compat.student("dit", "lit")):
        with pytest.raises(ValueError, match="does not support group offloading"):
            grouped(model)


def test_a_student_is_saved_and_loaded_while_its_base_is_in_groups(tmp_path):
    model = grouped(compat.student("flux", "mediator"))
    wanted = compat.run("flux", model)
    linattn.save(model, tmp_path)
    again = linattn.load(grouped(kinds.model("flux")), tmp_path)
    assert not in_no_group(again)
    assert torch.equal(compat.run("flux", again), wanted)


def test_groups_on_disk_are_refused_because_nothing_is_in_memory(tmp_path):
    model = compat.student("flux", "lit")
    wanted = compat.run("flux", model)
    grouped(model, offload_to_disk_path=str(tmp_path / "groups"))
    assert torch.equal(compat.run("flux", model), wanted)
    calls = [
        linattn.restore,
        lambda model: linattn.save(model, tmp_path / "student"),
        lambda model: linattn.load(model, tmp_path / "student"),
        lambda model: linattn.linearize(model, "clear"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"offloaded to .*before enable_group_offload"):
            call(model)
    assert not (tmp_path / "student").exists()
    assert torch.equal(compat.run("flux", model), wanted)


@pytest.mark.parametrize(("kind", "operator"), PAIRS)
def test_sequential_offload_before_and_after(kind, operator, tmp_path):
    """Its weights lie on meta between calls, where operators were built and silently drew NaN."""
    student = compat.student(kind, operator)
    wanted = compat.run(kind, student)
    linattn.save(student, tmp_path / "student")
    sequential(student)
    assert torch.equal(compat.run(kind, student), wanted)
    linattn.save(student, tmp_path / "offloaded")
    again = linattn.load(sequential(kinds.model(kind)), tmp_path / "offloaded")
    assert torch.equal(compat.run(kind, again), wanted)
    linattn.restore(again)
    assert torch.equal(compat.run(kind, again), compat.run(kind, kinds.model(kind)))
    assert all(parameter.is_meta for parameter in again.parameters())


@pytest.mark.parametrize("operator", compat.OPERATORS)
def test_a_base_that_is_offloaded_one_by_one_converts_as_it_would_have_been(operator):
    plain, offloaded = kinds.model("flux"), sequential(kinds.model("flux"))
    for model in (plain, offloaded):
        torch.manual_seed(0)
        linattn.linearize(model, operator, **compat.OPERATORS[operator])
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    assert torch.equal(compat.run("flux", offloaded), compat.run("flux", plain))


@pytest.mark.parametrize("buffers", [True, False])
def test_buffers_are_offloaded_after_a_conversion_as_before(buffers):
    model = accelerate.cpu_offload(kinds.model("sd35"), CPU, offload_buffers=buffers)
    before = {name: buffer.is_meta for name, buffer in model.named_buffers()}
    assert set(before.values()) == {buffers}
    linattn.linearize(model, "linfusion")
    after = {name: buffer.is_meta for name, buffer in model.named_buffers()}
    assert before.items() <= after.items()


def test_a_conversion_that_fails_leaves_weights_offloaded_and_whole():
    model = sequential(kinds.model("flux"))
    wanted = compat.run("flux", model)
    with pytest.raises(ValueError, match="radius"):
        linattn.linearize(model, "clear", radius=-1)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(compat.run("flux", model), wanted)


def test_data_cannot_run_a_model_that_is_offloaded_one_by_one():
    model = sequential(kinds.model("flux"))
    with pytest.raises(ValueError, match="linearize before enable_sequential_cpu_offload"):
        linattn.linearize(model, "lit", data=lambda model: None)
    assert not compat.operators(model)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("kind", "operator"), PAIRS)
def test_model_offload_before_and_after(kind, operator, when):
    wanted = compat.run(kind, compat.student(kind, operator))
    model = kinds.model(kind) if when == "before" else compat.student(kind, operator)
    _, hook = accelerate.cpu_offload_with_hook(model, CPU)
    model = compat.student(kind, operator, model) if when == "before" else model
    assert torch.equal(compat.run(kind, model), wanted)
    hook.offload()
    assert torch.equal(compat.run(kind, model), wanted)


def test_weights_that_a_device_map_offloads_are_refused(tmp_path):
    model = kinds.model("flux")
    devices = {name: "cpu" for name, _ in model.named_children()}
    devices["transformer_blocks"] = "disk"
    accelerate.dispatch_model(model, devices, main_device="cpu", offload_dir=tmp_path)
    with pytest.raises(ValueError, match="offloaded by its device_map: load it without"):
        linattn.linearize(model, "lit")
    assert not compat.operators(model)


@pytest.mark.parametrize("when", ["before", "after"])
def test_weights_stored_in_8_bits_by_a_cast_are_refused(when, tmp_path):
    """Between calls they are rounded: a student's folder would hold them so, and `restore` too."""
    model = kinds.model("flux").bfloat16()
    if when == "after":
        linattn.linearize(model, "lit")
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    calls = {
        "before": [lambda: linattn.linearize(model, "lit")],
        "after": [lambda: linattn.restore(model), lambda: linattn.save(model, tmp_path / "new")],
    }
    for call in calls[when]:
        with pytest.raises(ValueError, match=r"float8_e4m3fn.*before enable_layerwise_casting"):
            call()
    assert bool(compat.operators(model)) == (when == "after")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("kind", "operator"), PAIRS)
def test_a_student_draws_with_weights_stored_in_8_bits(kind, operator):
    """It is the student of rounded weights; what lies on an operator itself is not rounded."""
    model = compat.student(kind, operator).bfloat16()
    inputs = in_bfloat16(kinds.inputs(kind))
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    stored = {parameter.dtype for parameter in model.parameters()}
    assert torch.float8_e4m3fn in stored
    with torch.no_grad():
        out = kinds.run(model, **inputs)
        rounded = compat.student(kind, operator).bfloat16()
        for name, parameter in rounded.named_parameters():
            parameter.copy_(model.get_parameter(name))
        assert torch.equal(out, kinds.run(rounded, **inputs))
    assert len(compat.operators(model)) == len(families.layers(model))


def in_bfloat16(value):
    if isinstance(value, dict):
        return {name: in_bfloat16(inner) for name, inner in value.items()}
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.bfloat16() if is_float else value
