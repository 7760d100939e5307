import json
import math
import re
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from linattn import teachers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher")
    tiny.pipeline().save_pretrained(path)
    return path


def test_without_a_card_diffusers_defaults_are_used(folder):
    card = teachers.load(folder).card
    assert card == {"steps": 50, "guidance": 4.0, "side": 32, "labels": list(tiny.LABELS)}


def test_the_card_beside_the_pipeline_is_read(folder):
    (folder / "card.json").write_text('{"steps": 7, "guidance": 1.5, "side": 32, "labels": ["a"]}')
    teacher = teachers.load(folder)
    assert (teacher.card["steps"], teacher.classes, teacher.factor) == (7, 1, 4)
    (folder / "card.json").unlink()


@pytest.mark.parametrize("count", [1, 5])
def test_decoding_does_not_depend_on_the_batch(folder, count):
    teacher = teachers.load(folder)
    latents = torch.randn(count, 4, 8, 8)
    pictures = teacher.decode(latents, batch=2)
    assert pictures.shape == (count, 3, 32, 32)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    torch.testing.assert_close(pictures, teacher.decode(latents, batch=64), atol=1e-5, rtol=0)


def test_encoding_scales_as_decoding_unscales(folder):
    teacher = teachers.load(folder)
    pictures = torch.rand(3, 3, 32, 32)
    latents = teacher.encode(pictures, batch=2)
    expected = teacher.vae.encode(pictures * 2 - 1).latent_dist.mean
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-4)


def test_the_error_for_a_misspelt_folder_names_the_pipelines_beside_it(tmp_path, monkeypatch):
    for name in ("dit-nano", "sd-nano"):
        (tmp_path / "teachers" / name).mkdir(parents=True)
        (tmp_path / "teachers" / name / "model_index.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    here = re.escape(str(tmp_path))
    for wrong in ("./teachers/dit-nan", tmp_path / "teachers" / "dit-nan"):
        message = (
            rf"no pipeline in .*dit-nan, seen from {here}.*are dit-nano, sd-nano: "
            r"did you mean 'dit-nano'\?"
        )
        with pytest.raises(FileNotFoundError, match=message):
            teachers.load(wrong)
    with pytest.raises(
        FileNotFoundError, match=r"no pipeline in teachers, .* in teachers are dit-nano, sd-nano$"
    ):
        teachers.load("teachers")
    with pytest.raises(FileNotFoundError, match=r"no pipeline in a/b/c, .* in a/b are none$"):
        teachers.load("a/b/c")


def test_a_possible_hub_id_is_left_to_the_hub(monkeypatch):
    seen = []

    def fetched(name, **_):
        seen.append(name)
        raise OSError("offline")

    monkeypatch.setattr(teachers.DiffusionPipeline, "from_pretrained", fetched)
    for name in ("facebook/DiT-XL-2-256", "gpt"):
        with pytest.raises(OSError, match="^offline$"):
            teachers.load(name)
    assert seen == ["facebook/DiT-XL-2-256", "gpt"]


def test_loading_prints_nothing(folder, capfd, caplog):
    from diffusers.utils.logging import is_progress_bar_enabled

    shown = is_progress_bar_enabled()
    teachers.load(folder)
    assert "id2label" not in caplog.text
    assert capfd.readouterr().err == ""
    assert is_progress_bar_enabled() == shown


@pytest.fixture
def copied(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copied"))


SETTINGS = ("model_index.json", "transformer/config.json", "scheduler/scheduler_config.json")


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"null", b"3", bytes(range(256))])
@pytest.mark.parametrize("name", [*SETTINGS, "vae/config.json"])
def test_a_broken_file_of_settings_is_named(copied, name, content):
    (copied / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(copied / name))):
        teachers.load(copied)


@pytest.mark.parametrize("name", ["transformer/config.json", "vae/config.json"])
def test_a_pipeline_that_diffusers_cannot_load_is_one_sentence(copied, name):
    (copied / name).unlink()
    with pytest.raises(ValueError, match=f"the pipeline in {re.escape(str(copied))} cannot be"):
        teachers.load(copied)


@pytest.mark.parametrize("content", ["", "[]", "null", '{"steps": ', "3"])
def test_a_broken_card_is_named(copied, content):
    (copied / "card.json").write_text(content)
    with pytest.raises(ValueError, match=r"copied/card\.json"):
        teachers.load(copied)


WRONG = {
    "steps": (0, "4", 1.5, None, True, 10**30, 1001),
    "guidance": ("4", 0, math.nan, math.inf, []),
    "side": (7, 0, "64", None),
    "labels": ("x", [1], 3, {}),
    "text_length": (0, "x"),
    "classes": (0, "x"),
    "gate": (3,),
    "guidence": (3.0,),
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values]
)
def test_a_wrong_entry_of_a_card_is_refused_before_a_draw(copied, key, value):
    with pytest.raises(ValueError, match=rf"card.*{'guidance' if key == 'guidence' else key[:4]}"):
        teachers.load(copied, card={key: value})
    (copied / "card.json").write_text(json.dumps({key: value}))
    with pytest.raises(ValueError, match=r"card.*copied|copied/card\.json"):
        teachers.load(copied)


def test_what_a_card_lacks_is_diffusers_default(copied):
    (copied / "card.json").write_text('{"steps": 7, "facts": {"any": "thing"}}')
    card = teachers.load(copied).card
    assert card == {"steps": 7, "guidance": 4.0, "side": 32, "facts": {"any": "thing"}}


@pytest.mark.parametrize("name", [None, 3, [], b"x", "", "x" * 5000, "a\0b"])
def test_what_names_no_folder_is_one_sentence(name):
    with pytest.raises((ValueError, FileNotFoundError), match="name its folder|must be a path"):
        teachers.load(name)


@pytest.mark.parametrize("option", [{"device": "cdua"}, {"device": []}, {"torch_dtype": "half"}])
def test_a_wrong_option_of_loading_is_one_sentence(copied, option):
    with pytest.raises(ValueError, match="nothing runs on device|torch_dtype is 'half'"):
        teachers.load(copied, **option)


def test_a_weight_that_a_file_lacks_is_named_by_its_folder(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors.pop("proj_out_1.weight")
    save_file(tensors, path)
    with pytest.raises(ValueError, match="the pipeline in .*copy cannot be loaded"):
        teachers.load(tmp_path / "copy")
