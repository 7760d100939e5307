"""Students of a base whose weights are quantised, by a stand-in, by torchao and by bitsandbytes.

The packages are large, and no dependency: where they are missing the stand-in alone runs. It is a
class of tensors that wraps others, as those of torchao are.
"""

import copy

import compat
import kinds
import pytest
import tiny
import torch
from compat import PAIRS
from torch import nn
from torch.utils import _pytree as pytree

import linattn
from linattn import families, surgery
from linattn.surgery import identity, quantised

aten = torch.ops.aten


class Int8Tensor(torch.Tensor):
    """A matrix as integers and one scale a row; it can be copied and multiplied, nothing else."""

    @staticmethod
    def __new__(cls, integers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, integers.shape, dtype=scale.dtype)

    def __init__(self, integers, scale):
        self.integers, self.scale = integers, scale

    def __tensor_flatten__(self):
        return ["integers", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return Int8Tensor(inner["integers"], inner["scale"])

    def on_all(self, function):
        return Int8Tensor(function(self.integers), function(self.scale))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (aten.detach.default, aten.clone.default, aten.alias.default):
            return args[0].on_all(function)
        if function is aten._to_copy.default:
            assert kwargs["dtype"] in (None, args[0].dtype), "a cast of integers"
            return args[0].on_all(lambda tensor: tensor.to(kwargs["device"], copy=True))
        if function is aten.copy_.default:
            args[0].integers.copy_(args[1].integers)
            args[0].scale.copy_(args[1].scale)
            return args[0]
        if function in (aten.t.default, aten.mm.default, aten.addmm.default):
            return function(*pytree.tree_map_only(cls, dequantised, args))
        raise NotImplementedError(f"Int8Tensor has no {function}")


def dequantised(tensor):
    return tensor.integers * tensor.scale


def by_the_stand_in(model):
    for linear in compat.linears(model).values():
        weight = linear.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / 127
        integers = (weight / scale).round().to(torch.int8)
        linear.weight = nn.Parameter(Int8Tensor(integers, scale), requires_grad=False)
    return model


def by_torchao(model):
    quantization = pytest.importorskip("torchao.quantization")
    names = set(compat.linears(model))
    config = quantization.Int8WeightOnlyConfig()
    quantization.quantize_(model, config, filter_fn=lambda module, name: name in names)
    return model


def by_bitsandbytes(bits):
    def quantise(model):
        layers = pytest.importorskip("bitsandbytes").nn
        for name, linear in compat.linears(model).items():
            size = (linear.in_features, linear.out_features, linear.bias is not None)
            weight = linear.weight.data
            if bits == 4:
                quantised = layers.Linear4bit(*size, compute_dtype=weight.dtype, quant_type="nf4")
                quantised.weight = layers.Params4bit(
                    weight, requires_grad=False, quant_type="nf4", module=quantised
                )
            else:
                quantised = layers.Linear8bitLt(*size, has_fp16_weights=False)
                quantised.weight = layers.Int8Params(
                    weight, requires_grad=False, has_fp16_weights=False
                )
            quantised.bias = linear.bias
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, quantised)
        return model.to("cpu")  # which quantises

    return quantise


LIBRARIES = {
    "stand-in": by_the_stand_in,
    "torchao int8": by_torchao,
    "bitsandbytes int8": by_bitsandbytes(8),
    "bitsandbytes nf4": by_bitsandbytes(4),
}
LIBRARY = pytest.mark.parametrize("quantise", LIBRARIES.values(), ids=LIBRARIES)


def quantised_names(model):
    plain = (torch.Tensor, nn.Parameter)
    return [name for name, tensor in model.named_parameters() if type(tensor) not in plain]


def test_the_digest_of_a_quantised_weight_knows_its_scale():
    integers, scale = torch.ones(2, 3, dtype=torch.int8), torch.ones(2, 1)
    digest = quantised.digest(Int8Tensor(integers, scale))
    assert quantised.digest(Int8Tensor(integers.clone(), scale.clone())) == digest
    assert quantised.digest(Int8Tensor(integers, 2 * scale)) != digest
    assert quantised.digest(Int8Tensor(2 * integers, scale)) != digest


@LIBRARY
@pytest.mark.parametrize(("kind", "operator"), PAIRS)
def test_a_quantised_base_converts_and_its_operators_stay_floats(quantise, kind, operator):
    base = quantise(kinds.model(kind))
    names = quantised_names(base)
    student = compat.student(kind, operator, base)
    assert quantised_names(student) == names
    assert any("to_q" in name for name in names)
    new = dict(surgery.new_parameters(student))
    assert {parameter.dtype for parameter in new.values()} <= {torch.float32}
    later = quantise(compat.student(kind, operator))
    assert torch.equal(compat.run(kind, student), compat.run(kind, later))


@LIBRARY
def test_an_operator_has_the_floats_of_its_layer(quantise):
    """The quantised weights of bitsandbytes are integers, and fell back to float32."""
    model = quantise(kinds.model("flux").bfloat16())
    linattn.linearize(model, "lit")
    assert {parameter.dtype for _, parameter in surgery.new_parameters(model)} == {torch.bfloat16}


@LIBRARY
@pytest.mark.parametrize("kind", ["unet", "flux"])
def test_restore_of_a_quantised_base_is_bit_for_bit(quantise, kind):
    base = quantise(kinds.model(kind))
    wanted = compat.run(kind, base)
    student = compat.student(kind, "lit", base)
    compat.student(kind, "mediator", student)  # from the originals again
    assert not torch.equal(compat.run(kind, student), wanted)
    assert torch.equal(compat.run(kind, linattn.restore(student)), wanted)


@LIBRARY
@pytest.mark.parametrize("operator", compat.OPERATORS)
def test_a_student_of_a_quantised_base_is_saved_and_loaded(quantise, operator, tmp_path):
    student = compat.student("flux", operator, quantise(kinds.model("flux")))
    linattn.save(student, tmp_path)
    again = linattn.load(quantise(kinds.model("flux")), tmp_path)
    assert torch.equal(compat.run("flux", again), compat.run("flux", student))
    other = quantise(kinds.model("flux", seed=1))
    with pytest.raises(ValueError, match="the weights"):
        linattn.load(other, tmp_path)
    with pytest.raises(ValueError, match=r"weights|missing"):
        linattn.load(kinds.model("flux"), tmp_path)


@LIBRARY
def test_a_student_is_quantised_after_it_was_made_and_saved_before(quantise, tmp_path):
    student = compat.student("flux", "linfusion")
    wanted = compat.run("flux", student)
    quantise(student)
    out = compat.run("flux", student)
    assert not torch.equal(out, wanted)
    assert torch.nn.functional.cosine_similarity(out.flatten(), wanted.flatten(), dim=0) > 0.9
    assert torch.equal(compat.run("flux", copy.deepcopy(student)), out)
    calls = [
        linattn.restore,
        lambda student: linattn.save(student, tmp_path / "student"),
        lambda student: linattn.linearize(student, "clear"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="were quantised after linearize.*quantise the base"):
            call(student)
    assert not (tmp_path / "student").exists()
    assert set(compat.operators(student).values()) == {"linfusion"}


@LIBRARY
def test_the_folder_of_a_float_student_is_not_read_into_a_quantised_base(quantise, tmp_path):
    """Int8 of bitsandbytes has the shape of the floats, and took them as integers."""
    linattn.save(compat.student("flux", "lit"), tmp_path)
    base = quantise(kinds.model("flux"))
    with (
        pytest.raises(ValueError, match=r"are quantised in this .*quantise after"),
        pytest.warns(UserWarning, match="the weights|config"),
    ):
        linattn.load(base, tmp_path, strict=False)
    assert not compat.operators(base)


@LIBRARY
def test_a_policy_that_draws_quantised_projections_is_refused(quantise):
    base = quantise(kinds.model("flux"))
    with pytest.raises(ValueError, match=r"initialise='v' draws to_q.weight.*initialise='all'"):
        linattn.linearize(base, "lit", initialise="v")
    assert not compat.operators(base)
    projections = [layer.attn for layer in families.layers(base)]
    for attn in projections:
        attn.to_q, attn.to_k = nn.Linear(32, 32), nn.Linear(32, 32)
    linattn.linearize(base, "lit", initialise="v")  # what stays may be quantised


@LIBRARY
def test_the_operators_of_a_quantised_base_learn(quantise):
    student = compat.student("flux", "lit", quantise(kinds.model("flux")))
    kinds.run(student, **kinds.inputs("flux")).square().mean().backward()
    new = surgery.new_parameters(student)
    assert new
    assert all(parameter.grad.isfinite().all() for _, parameter in new)
    assert any(parameter.grad.any() for _, parameter in new)


def test_what_a_library_stores_beside_a_weight_belongs_to_the_base():
    model = by_the_stand_in(tiny.model())
    name = next(name for name in compat.linears(model) if name.endswith("to_q"))
    beside = {f"{name}.{key}": torch.ones(1) for key in ("weight.absmax", "weight_format", "SCB")}
    live = identity.tensors(model)
    held = quantised.held(live | beside)
    assert beside.keys() <= held
    assert {f"{name}.weight"} < held
    assert f"{name}.bias" not in held
    assert quantised.held(beside) == set()  # of a base that is not quantised


@pytest.mark.parametrize("bits", [4, 8])
def test_a_base_of_other_scales_is_another_base(bits):
    model = by_bitsandbytes(bits)(tiny.model())
    before = identity.all_digests(identity.tensors(model))
    linear = next(iter(compat.linears(model).values()))
    scale = linear.weight.quant_state.absmax if bits == 4 else linear.weight.SCB
    scale.add_(1)
    assert len(identity.changed(identity.tensors(model), before)) == 1
