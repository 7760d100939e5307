"""A pipeline that is not whole is refused in a sentence, before hours of other stages."""

import json
import shutil

import kinds
import pytest
import tiny

from linattn import params, source


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A pipeline whose model lies in shards."""
    folder = tmp_path_factory.mktemp("models") / "saved"
    pipe = kinds.pipeline("pixart")
    pipe.save_pretrained(folder)
    weights(folder, "transformer").unlink()
    pipe.transformer.save_pretrained(folder / "transformer", max_shard_size="40KB")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "mine")


def check(folder, **entry):
    return source.check("mine", params.Teacher(source=str(folder), **entry))


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def weights(folder, part="vae"):
    (file,) = (folder / part).glob("*.safetensors")
    return file


def test_a_whole_pipeline_is_taken_in_shards_too(folder):
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    assert check(folder) == folder


def without_a_shard(folder):
    min((folder / "transformer").glob("*-00002-of-*")).unlink()


def without_tokenizer(folder):
    shutil.rmtree(folder / "tokenizer")


def without_vocabulary(folder):
    (folder / "tokenizer" / "tokenizer.json").unlink()


def without_vae(folder):
    shutil.rmtree(folder / "vae")


def with_a_vae_of_none(folder):
    changed(folder / "model_index.json", vae=[None, None])


def without_weights(folder):
    weights(folder).unlink()


def with_a_variant_alone(folder):
    weights(folder).rename(folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")


def cut(folder):
    content = weights(folder).read_bytes()
    weights(folder).write_bytes(content[: len(content) // 2])


def with_a_pointer_of_git(folder):
    weights(folder).write_text("version https://git-lfs.github.com/spec/v1\nsize 335\n")


def with_a_list_for_its_index(folder):
    (folder / "model_index.json").write_text("[]")


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (without_a_shard, "transformer lacks diffusion_pytorch_model-00002-of-.*save the pipeline"),
        (without_tokenizer, "tokenizer is missing: .*holds no file"),
        (without_vocabulary, "tokenizer has no vocabulary: .*holds tokenizer_config.json"),
        (without_vae, "vae is missing"),
        (with_a_vae_of_none, "has no VAE"),
        (without_weights, "vae has no weights"),
        (with_a_variant_alone, "vae has diffusion_pytorch_model.fp16.safetensors and no .*variant"),
        (cut, "is damaged or no weights at all .*fetch it again"),
        (with_a_pointer_of_git, "is damaged or no weights at all .*git lfs pull"),
        (with_a_list_for_its_index, r"model_index.json is damaged: it holds \[\]; copy or save"),
    ],
)
def test_a_part_that_is_not_whole_is_named(folder, broken, sentence):
    broken(folder)
    with pytest.raises(ValueError, match=sentence) as error:
        check(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "entry"),
    [
        ("pipeline.py", {"_class_name": ["pipeline", "Mine"]}),
        ("transformer/mine.py", {"transformer": ["mine", "Mine"]}),
    ],
)
def test_code_that_a_pipeline_brings_is_refused_and_not_run(folder, tmp_path, file, entry):
    (folder / file).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    changed(folder / "model_index.json", **entry)
    with pytest.raises(ValueError, match=f"code of its own, .*{file}, which is not run"):
        check(folder)
    assert not (tmp_path / "ran").exists()


def test_a_teacher_of_classes_takes_no_prompts_and_a_folder_no_revision(folder, tmp_path):
    tiny.pipeline().save_pretrained(tmp_path / "classes")
    with pytest.raises(ValueError, match=r"my.txt for .*classes, which reads no file of them"):
        check(tmp_path / "classes", prompts="my.txt")
    with pytest.raises(ValueError, match="is a folder, which has no revision main"):
        check(folder, revision="main")
