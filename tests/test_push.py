"""A student is pushed to a stand-in of the hub on this machine, and `load` takes it back."""

import json
import os
import shutil
import subprocess
import sys

import hub
import pytest
import tiny
import torch
import yaml

import linattn
from linattn import project
from linattn.surgery import card

CARD, WEIGHTS, README = "linattn.json", "linattn.safetensors", "README.md"
STUDENT = project.ROOT / "reports" / "students" / "clear-pool"
RESULT = project.ROOT / "reports" / "results" / "clear-pool.json"
RUN = project.ROOT / "reports" / "runs" / "clear-pool.run.json"
PUBLISHED = ((RESULT.parent, ""), (RUN.parent, ".run"))


@pytest.fixture
def endpoint(monkeypatch):
    """The stand-in, in the place of huggingface.co for this process."""
    from huggingface_hub import constants

    server = hub.Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    """A tiny student's folder, with files beside it that are nobody's business."""
    pipe = tiny.pipeline()
    pipe.transformer.register_to_config(_name_or_path="somebody/dit-tiny")
    linattn.linearize(pipe, "clear", radius=3, pool=2)
    with torch.no_grad():
        for name, parameter in pipe.transformer.named_parameters():
            if "attn1" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    linattn.save(pipe, tmp_path / "student")
    (tmp_path / "student" / "training.json").write_text("{}")
    (tmp_path / "student" / "notes").mkdir()
    (tmp_path / "student" / "other.safetensors").write_bytes(b"x")
    return tmp_path / "student"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


# The round trip
# ---------------------------------------------------------------------------------------------

ROUND_TRIP = """
import socket, sys
import torch, tiny, linattn

allowed = socket.socket.connect
def connect(self, address):
    assert not isinstance(address, tuple) or address[0] == "127.0.0.1", address
    return allowed(self, address)
socket.socket.connect = connect

folder, repo = sys.argv[1:]
address = linattn.push(folder, repo, private=True, token="hf_secret", message="a first one")
local, fresh = (linattn.load(tiny.pipeline(), source) for source in (folder, repo))
a, b = (tiny.run(pipe.transformer) for pipe in (local, fresh))
plain = tiny.run(tiny.model())
print(address, torch.equal(a, b), torch.equal(a, plain))
"""


def test_a_pushed_student_comes_back_bit_for_bit(folder, tmp_path):
    """In a process that knows the endpoint by HF_ENDPOINT alone, and reaches no other machine."""
    server, before = hub.Hub(), contents(folder)
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "PYTHONPATH": f"{project.ROOT / 'tests'}{os.pathsep}{project.python_path()}",
    }
    done = subprocess.run(
        [sys.executable, "-c", ROUND_TRIP, str(folder), "ada/dit-clear"],
        env=environment,
        capture_output=True,
        text=True,
    )
    server.shutdown()
    assert done.returncode == 0, done.stderr[-2000:]
    address = f"{server.address}/ada/dit-clear/commit/{server.sha()}"
    assert done.stdout.split() == [address, "True", "False"]
    assert server.repos["ada/dit-clear"]["visibility"] == "private"
    assert server.commits == [{"summary": "a first one", "paths": [README, CARD, WEIGHTS]}]
    assert {name: server.files[name] for name in (CARD, WEIGHTS)} == {
        name: before[name] for name in (CARD, WEIGHTS)
    }
    assert contents(folder) == before


def test_a_second_push_to_a_repository_is_a_second_commit(folder, endpoint):
    first, second = (linattn.push(folder, "ada/dit-clear") for _ in range(2))
    assert first != second
    assert (
        endpoint.requests.count(("POST", "/api/repos/create")) == 2
    )  # answered 409 the second time
    assert len(endpoint.commits) == 2
    assert "visibility" not in endpoint.repos["ada/dit-clear"]


# The model card
# ---------------------------------------------------------------------------------------------


def card_of(endpoint, *arguments, **options):
    linattn.push(*arguments, **options)
    return endpoint.files[README].decode()


def test_the_card_says_what_the_folder_says_and_invents_nothing(folder, endpoint):
    text = card_of(endpoint, folder, "ada/dit-clear", license="apache-2.0")
    assert front_matter(text) == {
        "base_model": "somebody/dit-tiny",
        "license": "apache-2.0",
        "library_name": "linattn",
        "tags": ["linattn", "diffusers", "clear"],
    }
    base = json.loads((folder / CARD).read_text())["base"]
    assert base["weights"]["float32"] in text
    assert base["config_digest"] in text
    assert "`clear(radius=3, pool=2, weight='one', proportional=False, trained=None)`" in text
    assert "https://arxiv.org/abs/2412.16112" in text
    assert "transformer_blocks.0.attn1, transformer_blocks.1.attn1" in text
    assert 'from_pretrained("somebody/dit-tiny")\nlinattn.load(pipe, "ada/dit-clear")\n' in text
    assert "Licence of the base: apache-2.0." in text
    for heading in ("## Error", "## Cost", "## Training", "## Machine", "None.", "nan"):
        assert heading not in text


def test_the_card_has_the_numbers_of_result_and_run(endpoint):
    text = card_of(endpoint, STUDENT, "ada/dit-clear", results=RESULT, run=RUN)
    result, run = (project.read_json(path) for path in (RESULT, RUN))
    assert front_matter(text) == {
        "library_name": "linattn",
        "tags": ["linattn", "diffusers", "clear"],
    }
    for section in ("undistilled", "quality"):
        error = {name: 100 * result[section]["error"][name] for name in ("value", "low", "high")}
        assert f"{error['value']:.2f} ({error['low']:.2f} to {error['high']:.2f})" in text
    assert text.count("\n| 0.") == len(result["by_noise"]["noise"])
    assert f"{result['cost']['core_macs'] / 1e6:,.1f} million" in text
    assert "- Seeds: 0.\n- Profile: nano.\n" in text
    assert "150 steps, 50 of them layerwise" in text
    assert f"torch {run['facts']['versions']['torch']}" in text
    assert "AMD EPYC, 2 cores, 23.5 GB of memory, no GPU" in text
    assert run["facts"]["commit"] in text
    assert "your folder of this base" in text  # dit-nano is no hub id


def test_what_a_result_lacks_is_left_out(endpoint):
    result = {"operator": "clear", "options": {"radius": 3, "pool": 4}, "seeds": [0, 1]}
    result["quality"] = {"error": {"value": 0.05, "low": None, "high": None}}
    text = card_of(endpoint, STUDENT, "ada/dit-clear", results=result)
    assert "| noise | after |\n|---|---|\n| all | 5.00 |" in text
    assert "- Seeds: 0, 1; errors are means over them.\n" in text
    for words in ("before |", "Profile", "## Cost", "## Machine", "PSNR"):
        assert words not in text


@pytest.mark.parametrize("name", sorted(path.name for path in STUDENT.parent.iterdir()))
def test_every_published_result_and_run_belong_to_their_student(endpoint, name):
    results, run = (folder / f"{name}{ending}.json" for folder, ending in PUBLISHED)
    text = card_of(endpoint, STUDENT.parent / name, f"ada/{name}", results=results, run=run)
    assert "## Error\n" in text
    assert "## Machine\n" in text


# Refusals
# ---------------------------------------------------------------------------------------------

NAMES = ["student", "a/b/c", "ada/", "", "ada/my student", "ada/x--y", "ada/x.git", "-a/b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_repository_is_refused(folder, endpoint, name):
    with pytest.raises(ValueError, match=r"no repository of the Hugging Face hub .*'user/name'"):
        linattn.push(folder, name)
    assert not endpoint.requests


def no_card(folder):
    (folder / CARD).unlink()


def no_folder(folder):
    shutil.rmtree(folder)


def other_weights(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


def write(folder, content):
    """Write a card as it would have been written so."""
    content["digest"] = card._digest(content)
    (folder / CARD).write_text(json.dumps(content))


def other_layer(folder):
    content = json.loads((folder / CARD).read_text())
    content["layers"][1]["name"] = "transformer_blocks.7.attn1"
    write(folder, content)


def no_layer(folder):
    content = json.loads((folder / CARD).read_text())
    write(folder, {**content, "layers": []})


DAMAGE = {
    no_card: r"holds no student: linattn\.json is missing \(linattn\.save writes it\)",
    no_folder: r"holds no student: linattn\.json is missing",
    other_weights: r"linattn\.safetensors is damaged: not the file that linattn\.json",
    other_layer: r"transformer_blocks\.7\.attn1, of which linattn\.safetensors has no weights",
    no_layer: r"replaces no layer",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_student_is_refused_before_anything_is_sent(folder, endpoint, damage):
    damage(folder)
    with pytest.raises(ValueError, match=DAMAGE[damage]):
        linattn.push(folder, "ada/dit-clear")
    assert not endpoint.requests


OTHERS = {
    "operator": (
        {"operator": "lit", "options": {"kernel": 5}},
        r"results are of lit\(kernel=5\), and .*student has clear\(radius=3, pool=2, .*pass this",
    ),
    "options": (
        {"operator": "clear", "options": {"radius": 4}},
        r"results are of clear\(radius=4\), and .* has clear\(radius=3, pool=2",
    ),
    "defaults": ({"operator": "clear", "options": {"radius": 3}}, r"of clear\(radius=3\), and"),
    "an unknown option": (
        {"operator": "clear", "options": {"radius": 3, "pool": 2, "rim": 1}},
        r"of clear\(radius=3, pool=2, rim=1\), and",
    ),
    "base": (
        {"operator": "clear", "options": {"radius": 3, "pool": 2}, "folder": "flux-nano"},
        r"results are of a student of 'flux-nano', and .* is one of 'dit-tiny'",
    ),
    "no operator": ({"quality": {}}, r"results name no operator"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_results_of_another_student_are_refused(folder, endpoint, tmp_path, other):
    result, message = OTHERS[other]
    (tmp_path / "result.json").write_text(json.dumps(result))
    for source in (result, tmp_path / "result.json", str(tmp_path / "result.json")):
        with pytest.raises(ValueError, match=message):
            linattn.push(folder, "ada/dit-clear", results=source)
    assert not endpoint.requests


def test_a_run_of_another_student_or_no_file_is_refused(folder, endpoint, tmp_path):
    run = {"backend": {"blocks.0.attn": "torch: the tensors are on the CPU"}}
    with pytest.raises(ValueError, match=r"with blocks\.0\.attn, and .* and 1 more; pass this"):
        linattn.push(folder, "ada/dit-clear", run=run)
    with pytest.raises(ValueError, match=r"there is no file .*missing\.json"):
        linattn.push(folder, "ada/dit-clear", results=tmp_path / "missing.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"holds a list"):
        linattn.push(folder, "ada/dit-clear", results=tmp_path / "list.json")
    assert not endpoint.requests


def test_a_mixed_student_is_of_no_single_operators_result(tmp_path, endpoint):
    pipe = linattn.linearize(tiny.pipeline(), "clear", layers=[0], radius=3)
    linattn.linearize(pipe, "lit", layers=[1])
    linattn.save(pipe, tmp_path / "mixed")
    result = {"operator": "clear", "options": {"radius": 3}}
    with pytest.raises(ValueError, match=r"lit\(.* in transformer_blocks\.1\.attn1; pass"):
        linattn.push(tmp_path / "mixed", "ada/mixed", results=result)
    text = card_of(endpoint, tmp_path / "mixed", "ada/mixed")
    assert front_matter(text)["tags"] == ["linattn", "diffusers", "clear", "lit"]
    assert text.count("- Operator: ") == 2


# An upload that fails
# ---------------------------------------------------------------------------------------------

STEPS = ["/api/repos/create", "/api/validate-yaml", "/preupload/main", "/batch", "/commit/main"]


@pytest.mark.parametrize("step", STEPS)
def test_the_hubs_refusal_is_kept_with_its_address(folder, endpoint, step):
    endpoint.refuse, before = {step: 403}, contents(folder)
    message = (
        rf"'ada/dit-clear' was not pushed: {endpoint.address}\S*{step} answered 403 "
        rf"\({hub.REFUSED}\); log in by `hf auth login` .*; {folder} is as it was"
    )
    with pytest.raises(ConnectionError, match=message):
        linattn.push(folder, "ada/dit-clear", token="hf_secret")
    assert contents(folder) == before
    assert not endpoint.commits


def test_a_refused_transfer_of_the_weights_names_no_signature(folder, endpoint):
    oid = json.loads((folder / CARD).read_text())["weights"]["sha256"]
    endpoint.refuse = {oid: 403}
    with pytest.raises(ConnectionError, match=rf"/lfs/{oid} answered 403 \({hub.REFUSED}\)"):
        linattn.push(folder, "ada/dit-clear")
    assert not endpoint.commits


def test_an_endpoint_that_does_not_answer_is_named(folder, endpoint, monkeypatch):
    from huggingface_hub import constants

    endpoint.shutdown()
    endpoint.server_close()
    before = contents(folder)
    with pytest.raises(ConnectionError, match=rf"{constants.ENDPOINT} did not take it \(Connect"):
        linattn.push(folder, "ada/dit-clear")
    assert contents(folder) == before


def test_the_card_says_how_near_the_pictures_are(endpoint):
    result = project.read_json(RESULT)
    psnr, sizes = result["quality"]["psnr"], result["pictures"]
    text = card_of(endpoint, STUDENT, "ada/dit-clear", results=RESULT, run=RUN)
    assert f"PSNR {psnr['value']:.1f} ({psnr['low']:.1f} to {psnr['high']:.1f})" in text
    assert f"({sizes['pictures']} pictures, {sizes['steps']} steps" in text
