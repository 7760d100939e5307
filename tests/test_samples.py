"""Self-generated data survives a kill, is drawn only once, and refuses what does not fit."""

import json
import math
import os

import kinds
import pytest
import tiny
import torch
from safetensors.torch import load_file

from linattn import digests, samples, sampling, sealed
from linattn.distillation.config import DistillConfig
from linattn.distillation.distill import distill
from linattn.samples import Samples
from linattn.teachers import Teacher

OPTIONS = {"shard": 4, "steps": 1, "guidance": 1.0}


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline()


@pytest.fixture
def written(pipe, tmp_path):
    samples.write(pipe, tmp_path, 10, seed=3, **OPTIONS)
    return tmp_path


@pytest.fixture
def drawn(monkeypatch):
    """First numbers of the shards that are drawn from here on."""
    seen, draw = [], sampling.draw_latents
    monkeypatch.setattr(
        sampling, "draw_latents", lambda *a, **k: seen.append(k["start"]) or draw(*a, **k)
    )
    return seen


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_samples_hold_what_the_sampler_draws(pipe, written):
    data = Samples(written)
    latents, labels = data.batch(range(10))
    again = sampling.draw_latents(pipe, labels, steps=1, guidance=1.0, seed=3)
    torch.testing.assert_close(latents, again, rtol=1e-3, atol=1e-3)  # stored in half precision
    assert (len(data), data.shape) == (10, (4, 8, 8))
    assert latents.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_latents_are_stored_in_float16_and_labels_in_int64(written):
    held = load_file(written / "shard-00002.safetensors")
    assert held["latents"].shape == (2, 4, 8, 8)
    assert held["latents"].dtype == torch.float16
    assert held["labels"].dtype == torch.int64
    assert len(list(written.iterdir())) == 4  # three shards, one manifest, no drafts


def test_writing_again_draws_nothing_and_changes_no_byte(pipe, written, drawn):
    before = files(written)
    samples.write(pipe, written, 10, seed=3, **OPTIONS)
    assert drawn == []
    assert files(written) == before


def test_two_folders_of_one_recipe_hold_the_same_bytes(pipe, written, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    samples.write(pipe, other, 10, seed=3, **OPTIONS)
    assert files(other) == files(written)


def test_an_interrupted_run_continues(pipe, written, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("killed")
    draw = sampling.draw_latents

    def killed(*args, **kwargs):
        if kwargs["start"] == 8:
            raise KeyboardInterrupt
        return draw(*args, **kwargs)

    monkeypatch.setattr(sampling, "draw_latents", killed)
    with pytest.raises(KeyboardInterrupt):
        samples.write(pipe, folder, 10, seed=3, **OPTIONS)
    with pytest.raises(FileNotFoundError, match="not finished"):
        Samples(folder)
    for index in (2, 3):
        left = folder / f".shard-0000{index}.safetensors.{2**22 + 1}.draft"  # no process is this
        left.mkdir()
        (left / "file").write_bytes(b"half a fi")
    seen = []
    monkeypatch.setattr(
        sampling, "draw_latents", lambda *a, **k: seen.append(k["start"]) or draw(*a, **k)
    )
    samples.write(pipe, folder, 10, seed=3, **OPTIONS)
    assert seen == [8]
    assert files(folder) == files(written)


def test_more_pictures_only_add(pipe, written, drawn):
    before = Samples(written).batch(range(10))
    samples.write(pipe, written, 14, seed=3, **OPTIONS)
    assert drawn == [8, 12]  # the shard that was not full, and the new one
    after = Samples(written).batch(range(10))
    assert torch.equal(after[1], before[1])
    torch.testing.assert_close(after[0], before[0], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_fewer_pictures_are_read_and_none_is_removed(pipe, written, drawn, count):
    before = files(written)
    fewer = samples.write(pipe, written, count, seed=3, **OPTIONS)
    assert drawn == []
    assert len(fewer) == count
    assert files(written) == before
    with pytest.raises(IndexError):
        fewer.batch([count])


def test_a_shard_that_was_damaged_before_the_manifest_is_drawn_again(pipe, written, drawn):
    before = files(written)
    (written / "manifest.json").unlink()
    path = written / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="shard-00001.safetensors is damaged"):
        samples.write(pipe, written, 10, seed=3, **OPTIONS)
    assert drawn == [4]
    assert files(written) == before


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 4}, "seed"),
        ({"steps": 2}, "steps"),
        ({"guidance": 2.0}, "guidance"),
        ({"sampler": "ddpm"}, "sampler"),
        ({"shard": 5}, "batch 4 .now 5., shard"),
        ({"batch": 3}, "batch"),
        ({"size": 16}, "shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_settings_are_refused_by_name(pipe, written, change, name):
    before = files(written)
    with pytest.raises(ValueError, match=rf"with {name} .*now.*delete .*another folder"):
        samples.write(pipe, written, 10, **{"seed": 3, **OPTIONS, **change})
    assert files(written) == before


def test_another_reader_or_text_length_is_another_recipe(tmp_path):
    made = Teacher(
        kinds.pipeline("flux"), {"steps": 1, "guidance": 1.0, "side": 32, "text_length": 16}, "flux"
    )
    longer = Teacher(made.pipe, {**made.card, "text_length": 24}, "flux")
    samples.write(made, tmp_path, 2, shard=2)
    with pytest.raises(ValueError, match=r"text_length 16 \(now 24\)"):
        samples.write(longer, tmp_path, 2, shard=2)
    with torch.no_grad():
        next(made.pipe.text_encoder_2.parameters()).add_(1)
    with pytest.raises(ValueError, match="readers"):
        samples.write(made, tmp_path, 2, shard=2)


@pytest.fixture(scope="module")
def reader():
    return Teacher(kinds.pipeline("unet"), {"steps": 1, "guidance": 1.0, "side": 32}, "unet")


def test_the_recipe_without_the_callers_captions_has_these_keys(pipe, reader):
    """dvc.lock holds the digests of files that hold it."""
    both = {
        "format",
        "teacher",
        "scheduler",
        "seed",
        "guidance",
        "steps",
        "sampler",
        "shape",
        "shard",
    }
    assert samples.describe(pipe, 0, batch=16).keys() == both | {"classes"}
    recipe = samples.describe(reader, 0, batch=16)
    assert recipe.keys() == both | {"captions", "readers", "text_length"}
    assert recipe["captions"] == "linattn.world"


CALLERS = ("an otter", "two otters, one on a raft", "a raft")


def test_the_callers_captions_are_drawn_and_stored_in_turn(reader, tmp_path):
    drawn = samples.write(reader, tmp_path, 5, seed=2, shard=2, captions=CALLERS)
    latents, captions = drawn.batch(range(5))
    assert captions == [*CALLERS, *CALLERS[:2]]
    again = sampling.draw_latents(reader, captions, seed=2)
    torch.testing.assert_close(latents, again, rtol=1e-3, atol=1e-3)  # stored in half precision
    worlds = sampling.draw_latents(
        reader, samples.prompts_of(reader.conditions, range(5), 2), seed=2
    )
    assert (latents - worlds).abs().max() > 1e-2


def test_other_captions_are_another_recipe(reader, tmp_path, drawn):
    samples.write(reader, tmp_path, 4, shard=2, captions=CALLERS)
    before = files(tmp_path)
    for other in (None, CALLERS[:2], CALLERS[::-1], ("an otter\ntwo otters", *CALLERS[2:])):
        with pytest.raises(ValueError, match=r"captions '3 of \w+' \(now .*another folder"):
            samples.write(reader, tmp_path, 4, shard=2, captions=other)
    assert files(tmp_path) == before
    samples.write(reader, tmp_path, 6, shard=2, captions=list(CALLERS))
    assert drawn == [0, 2, 4]


def test_wrong_captions_are_refused_before_anything_is_drawn(pipe, reader, tmp_path, drawn):
    with pytest.raises(
        ValueError, match=r"captions for DiTTransformer2DModel.*its 4 classes.*leave captions out"
    ):
        samples.write(pipe, tmp_path, 2, captions=CALLERS)
    for wrong, message in (
        ([], "no captions"),
        ("an otter", "list of texts"),
        ([1, 2], "list of texts"),
    ):
        with pytest.raises(ValueError, match=message):
            samples.write(reader, tmp_path, 2, captions=wrong)
    assert drawn == []
    assert files(tmp_path) == {}


def test_a_student_learns_from_the_callers_captions(reader, tmp_path, monkeypatch):
    data = samples.write(reader, tmp_path, 5, shard=4, captions=CALLERS)
    seen, read = set(), reader.pipe.encode_prompt
    monkeypatch.setattr(
        reader.pipe, "encode_prompt", lambda texts, *more: seen.update(texts) or read(texts, *more)
    )
    config = DistillConfig("softmax", layerwise_steps=2, steps=2, batch=4, label_drop=0.0)
    result = distill(config, reader, data)
    assert {"", *CALLERS} >= seen >= set(CALLERS)
    assert all(math.isfinite(row["loss"]) for row in result.history)
    world = samples.write(reader, tmp_path / "world", 5, shard=4)
    assert config.recipe(reader, data)["samples"] != config.recipe(reader, world)["samples"]


def test_another_teacher_is_refused_even_without_a_manifest(written):
    (written / "manifest.json").unlink()
    with pytest.raises(ValueError, match="drawn with teacher"):
        samples.write(tiny.pipeline(seed=1), written, 10, seed=3, **OPTIONS)


def flip(path):
    """Damage one byte of a file's numbers, which the format itself does not notice."""
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:50])], ids=["bit", "cut"]
)
def test_a_damaged_shard_is_named_and_only_it_is_drawn_again(pipe, written, drawn, damage):
    before = files(written)
    path = written / "shard-00001.safetensors"
    damage(path)
    data = Samples(written)
    data.batch([0, 9])  # the others can still be read
    with pytest.raises(
        ValueError, match=r"shard-00001.safetensors is damaged; write the samples again"
    ):
        data.batch([5])
    with pytest.warns(UserWarning, match="shard-00001"):
        samples.write(pipe, written, 10, seed=3, **OPTIONS)
    assert drawn == [4]
    assert files(written) == before


def test_a_shard_that_is_cut_while_it_is_open_is_an_error_and_ends_no_process(written):
    opened = samples.Samples(written)
    expected, _ = opened.batch([0, 1])
    path = written / opened.shards[0]["file"]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    assert torch.equal(opened.batch([0])[0], expected[:1])
    with pytest.raises(sealed.Damaged, match=r"shard-.*was cut .*; write the samples"):
        opened.batch(range(opened.shards[0]["count"]))


def test_two_damaged_shards_are_both_drawn_again(pipe, written, drawn):
    for index in (0, 2):
        flip(written / f"shard-0000{index}.safetensors")
    with pytest.warns(UserWarning, match="damaged"):
        samples.write(pipe, written, 10, seed=3, **OPTIONS)
    assert drawn == [0, 8]


def test_a_missing_shard_is_named(written):
    (written / "shard-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-00002.*only that shard"):
        Samples(written)


def test_a_damaged_manifest_is_named(pipe, written, drawn):
    (written / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json is damaged .*; delete it"):
        Samples(written)
    (written / "manifest.json").unlink()
    samples.write(pipe, written, 10, seed=3, **OPTIONS)
    assert drawn == []


def test_a_manifest_that_miscounts_is_refused(written):
    manifest = json.loads((written / "manifest.json").read_text())
    (written / "manifest.json").write_text(json.dumps({**manifest, "count": 11}))
    with pytest.raises(ValueError, match="promises 11 pictures, its shards hold 10"):
        Samples(written)


def test_batches_keep_the_order_of_indices_and_may_repeat(written):
    data = Samples(written, keep=1)
    every, labels = data.batch(range(10))
    order = torch.tensor([9, 0, 5, 0, 8])
    latents, prompts = data.batch(order)
    assert torch.equal(latents, every[order])
    assert torch.equal(prompts, labels[order])


@pytest.mark.parametrize("wrong", [[10], [-1], [0, 3, 11]])
def test_indices_outside_are_refused(written, wrong):
    with pytest.raises(IndexError, match=r"0\.\.9"):
        Samples(written).batch(wrong)


@pytest.mark.parametrize(
    "wrong", [[], [[1]], [0.5], [True]], ids=["none", "nested", "fraction", "mask"]
)
def test_indices_that_are_no_whole_numbers_are_refused(written, wrong):
    with pytest.raises(ValueError, match="whole numbers"):
        Samples(written).batch(wrong)


def test_labels_are_balanced_and_depend_on_the_picture_alone():
    labels = samples.balanced_labels(range(24), seed=0, classes=6)
    assert [sorted(block.tolist()) for block in labels.split(6)] == [list(range(6))] * 4
    assert not torch.equal(labels[:6], labels[6:12])
    assert torch.equal(samples.balanced_labels(range(9, 15), 0, 6), labels[9:15])
    assert not torch.equal(samples.balanced_labels(range(24), 1, 6), labels)


def test_one_picture_can_be_written_and_none_is_refused(pipe, tmp_path):
    data = samples.write(pipe, tmp_path, 1, **OPTIONS)
    assert data.batch([0])[0].shape == (1, 4, 8, 8)
    with pytest.raises(ValueError, match="at least 1"):
        samples.write(pipe, tmp_path, 0)


def test_progress_is_called_after_every_shard(pipe, tmp_path):
    seen = []
    samples.write(pipe, tmp_path, 6, progress=lambda *progress: seen.append(progress), **OPTIONS)
    assert seen == [(4, 6), (6, 6)]


def test_single_rows_are_read_and_a_checksum_once(written, monkeypatch):
    hashed, of_file = [], digests.of_file
    monkeypatch.setattr(digests, "of_file", lambda path: hashed.append(path.name) or of_file(path))
    data = Samples(written, keep=1)
    whole = load_file(written / "shard-00001.safetensors")["latents"]
    for number in (5, 1, 6, 2):  # with one open shard, every row opens another
        latents, _ = data.batch([number])
        if number >= 4:
            assert torch.equal(latents[0], whole[number - 4].float())
    assert sorted(hashed) == ["shard-00000.safetensors", "shard-00001.safetensors"]


def changed(**changes):
    return lambda manifest: {**manifest, **changes}


def with_shard(**changes):
    """Return a change of the manifest's first shard."""
    return lambda manifest: {
        **manifest,
        "shards": [{**manifest["shards"][0], **changes}, *manifest["shards"][1:]],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: [], "it is "),
        (lambda manifest: {**manifest, "shards": manifest["shards"][::-1]}, "shards.0..file"),
        (lambda manifest: {"count": 10, "shards": manifest["shards"]}, "lacks recipe"),
        (changed(count="10"), "it.count is '10'"),
        (changed(count=-10), "it.count is -10"),
        (changed(count=True), "it.count is True"),
        (changed(shards=[]), "it.shards"),
        (changed(shards=[3]), "it.shards"),
        (changed(recipe=[]), "it.recipe"),
        (changed(recipe={}), "recipe.shape is None"),
        (changed(recipe={"shape": [4, 8, 8], "shard": "4"}), "recipe.shard is '4'"),
        (with_shard(count="4"), "count is '4'"),
        (with_shard(count=3), "count is 3"),
        (with_shard(sha256=None), "sha256 is None"),
        (with_shard(sha256="no"), "sha256 is 'no'"),
        (with_shard(file="../../x"), r"file is '../../x'; it must be shard-00000.safetensors"),
        (with_shard(file=3), "file is 3"),
    ],
)
def test_a_manifest_of_another_form_is_named(pipe, written, change, message):
    path = written / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    for read in (Samples, lambda folder: samples.write(pipe, folder, 10, seed=3, **OPTIONS)):
        with pytest.raises(ValueError, match=rf"manifest.json is damaged .*{message}.*delete it"):
            read(written)


def test_a_recipe_names_every_batch_but_nanos(pipe):
    recipes = {
        batch: samples.describe(pipe, 0, steps=1, shard=32, batch=batch) for batch in (8, 16, 64)
    }
    assert [recipe.get("batch") for recipe in recipes.values()] == [8, None, 32]


def test_pictures_of_two_batches_are_not_mixed(pipe, tmp_path):
    options = {**OPTIONS, "shard": 16}
    samples.write(pipe, tmp_path, 20, **options, batch=16)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"with batch 16 \(now 5\)"):
        samples.write(pipe, tmp_path, 30, **options, batch=5)
    assert files(tmp_path) == before


@pytest.mark.parametrize("option", [{"keep": 0}, {"most": "4"}, {"most": 0}])
def test_samples_are_not_opened_with_bad_numbers(written, option):
    with pytest.raises(ValueError, match="is .*; it must be"):
        Samples(written, **option)


@pytest.mark.parametrize("indices", ["4", None, [None], ["a"], [[0]], [0.5], [True], []])
def test_what_is_no_list_of_numbers_reads_no_samples(written, indices):
    with pytest.raises(ValueError, match="pass whole numbers"):
        Samples(written).batch(indices)


@pytest.mark.parametrize("folder", [None, 5, b"x", "", "a\0b"])
def test_a_folder_that_is_no_path_is_named(pipe, folder):
    for call in (Samples, lambda path: samples.write(pipe, path, 4, **OPTIONS)):
        with pytest.raises(ValueError, match="folder is .*; it must be a path"):
            call(folder)


@pytest.mark.parametrize("name", ["/proc/x", "file", "link", "x" * 300])
def test_a_place_that_takes_no_samples_is_named_before_a_draw(pipe, tmp_path, drawn, name):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match="samples cannot be written in .*: name another"):
        samples.write(pipe, tmp_path / name, 4, **OPTIONS)
    assert drawn == []


def test_an_edited_recipe_of_a_manifest_is_named_where_it_is_read(written):
    path = written / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))
    with pytest.raises(ValueError, match=r"shard-00000.* was drawn with seed 3 \(now 4\)"):
        Samples(written).first(1)


def test_a_pipe_in_place_of_a_manifest_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(ValueError, match="it is no file"):
        Samples(tmp_path)


def test_half_a_character_is_named(reader, tmp_path):
    with pytest.raises(ValueError, match="holds half a character"):
        samples.write(reader, tmp_path, 2, captions=["\ud800"], **OPTIONS)


def test_progress_that_is_no_function_is_named_before_a_draw(pipe, tmp_path, drawn):
    with pytest.raises(ValueError, match="progress is 5 .*must be a function"):
        samples.write(pipe, tmp_path, 2, progress=5, **OPTIONS)
    assert drawn == []
