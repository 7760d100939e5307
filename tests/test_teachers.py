import re

import pytest
import tiny
import torch

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
