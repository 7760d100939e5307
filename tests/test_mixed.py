"""Parts by layer and by noise: which operator holds, what it costs, and what is refused."""

import dataclasses

import pytest
import torch
from layers import SHAPE, shaken, tensors

import linattn
from linattn import families
from linattn.attention import create
from linattn.attention.grid import Grid
from linattn.attention.mixed import shifts
from linattn.testing import models

LIT = {"operator": "lit", "options": {"heads": 2, "eps": 0.1}}
DISC = {"operator": "clear", "options": {"radius": 2}}
FEW = {"operator": "mediator", "options": {"count": 4}}
NOISE = [{**LIT, "until": 0.7}, {**DISC, "until": 0.3}]  # softmax below 0.3
LEVELS = (1.0, 0.7, 0.69, 0.3, 0.29, 0.0)
HOLD = ("lit", "lit", "clear", "clear", "softmax", "softmax")
grids = pytest.mark.parametrize("grid", [Grid(1, 1), Grid(5, 3, 3), Grid(7, 9)], ids=str)


def mixed(parts, index=0):
    return create("mixed", dataclasses.replace(SHAPE, index=index), parts=parts)


@grids
def test_each_picture_of_a_batch_gets_the_part_that_holds_at_its_noise(grid):
    operator, noise = shaken(mixed(NOISE)), torch.tensor(LEVELS)
    q, k, v = tensors(grid, batch=len(LEVELS))
    out = operator.mix(q, k, v, grid, noise=noise)
    assert (out - operator.definition(q, k, v, grid, noise=noise)).abs().max() < 1e-9
    by_name = {part.name: part for part in operator.parts}
    for picture, name in enumerate(HOLD):
        alone = (tensor[picture : picture + 1] for tensor in (q, k, v))
        judge = by_name[name].definition(*alone, grid)
        assert (out[picture : picture + 1] - judge).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["delta", "sla", "ttt"])
def test_a_part_that_reads_hidden_states_or_has_no_map_is_its_own_definition(name):
    operator, grid = shaken(mixed([{"operator": name}])), Grid(5, 3, 3)
    q, k, v = tensors(grid)
    x = torch.linspace(-1, 1, grid.tokens * SHAPE.width, dtype=v.dtype).view(grid.tokens, -1)
    x = x.expand(len(v), -1, -1)
    judge = operator.parts[0].definition(q, k, v, grid, x)
    assert (operator.definition(q, k, v, grid, x) - judge).abs().max() < 1e-9
    assert (operator.mix(q, k, v, grid, x) - judge).abs().max() < 1e-9


def test_the_map_of_a_part_that_reads_hidden_states_is_that_of_the_part():
    operator, grid = shaken(mixed([{"operator": "delta"}])), Grid(2, 3, 1)
    q, k, v = tensors(grid)
    x = torch.linspace(-1, 1, len(v) * grid.tokens * SHAPE.width, dtype=v.dtype)
    x = x.view(len(v), grid.tokens, -1)
    judge = operator.parts[0].attention_map(q, k, grid, x)
    assert torch.equal(operator.attention_map(q, k, grid, x), judge)


@grids
@pytest.mark.parametrize("name", ["delta", "ttt"])  # reads the hidden states; has no map
def test_a_part_is_defined_as_its_operator_is(name, grid):
    operator = shaken(mixed([{"operator": name, "until": 0.5}, DISC]))
    q, k, v = tensors(grid, batch=2)
    x, noise = torch.randn(2, grid.tokens, SHAPE.width).to(q), torch.tensor([0.9, 0.1])
    judge = operator.parts[0].definition(q[:1], k[:1], v[:1], grid, x[:1])
    out = operator.definition(q, k, v, grid, x, noise)
    assert torch.equal(out[:1], judge)
    assert (operator.mix(q, k, v, grid, x, noise) - out).abs().max() < 1e-9


def test_parts_of_which_one_has_no_map_have_none():
    operator, (q, k, _) = mixed([{"operator": "ttt", "until": 0.5}, DISC]), tensors(Grid(2, 3))
    with pytest.raises(ValueError, match="ttt has no attention map"):
        operator.require_map()
    with pytest.raises(ValueError, match="ttt has no attention map"):
        operator.attention_map(q, k, Grid(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("options", "answer"), [({"hidden": 8}, True), ({"hidden": 0}, False)])
def test_what_shifts_the_inputs_is_known_in_any_precision(dtype, options, answer):
    operator = shaken(create("linfusion", SHAPE, **options)).to(dtype)
    assert shifts(operator) is answer


@pytest.mark.parametrize(("level", "name"), [*zip(LEVELS, HOLD, strict=True)])
def test_the_cost_is_that_of_the_part_that_holds(level, name):
    operator, grid = mixed(NOISE), Grid(5, 7, 2)
    judges = {part["operator"]: part["options"] for part in NOISE}
    judge = create(name, SHAPE, **judges.get(name, {}))
    assert operator.macs(grid, level) == judge.macs(grid)
    assert operator.density(grid, level) == judge.density(grid)


@pytest.mark.parametrize(
    ("index", "names"), [(0, ["clear"]), (1, ["mediator"]), (2, ["clear"]), (3, ["softmax"])]
)
def test_a_layer_has_the_parts_that_name_it_and_softmax_else(index, names):
    operator = mixed([{**DISC, "layers": [0, 2]}, {**FEW, "layers": [1]}], index)
    assert [part.name for part in operator.parts] == names
    assert not operator.schedule


def test_a_pinned_part_holds_whatever_the_noise():
    operator, grid = shaken(mixed(NOISE)), Grid(4, 5)
    inputs = tensors(grid, batch=1)
    with operator.pin(part=1):
        out = operator.mix(*inputs, grid, noise=torch.tensor([1.0]))
    assert torch.equal(out, operator.parts[1].mix(*inputs, grid))
    with pytest.raises(ValueError, match=r"can be pinned 'radius'.*valid are part"):
        operator.pinned = {"radius": 2}


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ("clear", "parts is a list like .*, not 'clear'"),
        ([["clear"]], "parts is a list like"),
        ([{"operater": "clear"}], r"unknown key of mixed.parts\[0\] 'operater'.*'operator'"),
        ([{}], r"unknown operator of mixed.parts\[0\] None: valid are softmax"),
        ([DISC, {"operator": "cleer"}], r"parts\[1\] 'cleer': did you mean 'clear'"),
        ([{"operator": "mixed"}], "operator of .* 'mixed'"),
        ([{**DISC, "options": {"raduis": 2}}], r"parts\[0\]: clear 'raduis'.*'radius'"),
        ([{**DISC, "options": {"radius": 0}}], "radius is a number above 0, not 0"),
        ([{**DISC, "options": [2]}], "options are .*; write a mapping"),
        ([{**DISC, "options": {"schedule": []}}], "'schedule'"),
        ([{**DISC, "layers": []}], r"layers are \[\]; write 'all' or a list of numbers"),
        ([{**DISC, "layers": [-1]}], r"layers are \[-1\]"),
        ([{**DISC, "layers": [True]}], r"layers are \[True\]"),
        ([{**DISC, "until": 2}], r"until is a noise level in \[0, 1\], not 2"),
        ([DISC, LIT], "from noise to picture; until 0.0 follows 0.0"),
        ([{"operator": "linfusion", "until": 0.5}, DISC], "changes what the projections see"),
        (
            [{"operator": "lit", "options": {"heads": 8}, "until": 0.5}, DISC],
            "heads of lit are 2 wide, no multiple of the teacher's 4",
        ),
    ],
)
def test_what_is_wrong_with_a_part_is_named(parts, says):
    with pytest.raises(ValueError, match=says):
        mixed(parts)


def test_a_schedule_beside_the_parts_is_refused():
    with pytest.raises(ValueError, match="what follows the noise here are parts"):
        create("mixed", SHAPE, schedule=[{"until": 0.5, "parts": []}])


def test_a_part_for_a_layer_that_is_not_converted_is_refused_and_nothing_changes():
    model = models.model("dit")
    with pytest.raises(ValueError, match="a part names layer 7, and the chosen layers are 0, 1"):
        linattn.linearize(model, "mixed", parts=[{**DISC, "layers": [0, 7]}])
    assert all(layer.operator is None for layer in families.layers(model))


def test_without_parts_a_model_is_its_teacher(tmp_path):
    model = models.model("dit").double()
    inputs = models.in_double(models.inputs("dit"))
    before = models.run(model, **inputs)
    linattn.linearize(model, "mixed")
    assert torch.allclose(models.run(model, **inputs), before, rtol=0, atol=1e-9)


def test_a_folder_brings_the_parts_of_every_layer_back(tmp_path):
    model, parts = (
        models.model("dit"),
        [{**LIT, "layers": [0], "until": 0.5}, {**FEW, "layers": [1]}],
    )
    linattn.linearize(model, "mixed", parts=parts)
    rows = linattn.describe(model)
    linattn.save(model, tmp_path)
    linattn.restore(model)
    linattn.load(model, tmp_path)
    assert linattn.describe(model) == rows
    assert [len(row["options"]["parts"]) for row in rows] == [1, 1]


def test_a_backend_is_that_of_every_part_with_kernels():
    parts = [{**LIT, "layers": [1], "until": 0.7}, {**DISC, "layers": [1], "until": 0.3}]
    model = linattn.linearize(models.model("dit"), "mixed", parts=parts, backend="reference")
    first, second = (layer.operator for layer in families.layers(model))
    assert [part.backend for part in first.parts] == [None]  # softmax has no kernels
    assert [part.backend for part in second.parts] == ["reference", "reference", None]
    assert [row["backend"] for row in linattn.describe(model)] == ["torch", "reference"]


def test_a_backend_of_softmax_alone_is_refused():
    with pytest.raises(ValueError, match="mixed has no kernels to choose among"):
        linattn.linearize(models.model("dit"), "mixed", backend="torch")
