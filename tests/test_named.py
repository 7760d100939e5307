"""Names of params.yaml, read without anything of what they name."""

import subprocess
import sys

import pytest

from linattn import named, params, project

PROFILES = ("tiny", "nano", "full", "paper", "real", "rehearse")


@pytest.mark.parametrize("profile", PROFILES)
def test_names_are_those_of_the_whole_file(profile):
    settings = params.load(profile)
    for key, names in (("students", settings.students), ("teachers", settings.teachers)):
        for name in names:
            named.require(key, name, profile)
        with pytest.raises(ValueError, match=f"unknown {key[:-1]} 'nobody': .*valid are") as error:
            named.require(key, "nobody", profile)
        assert str(error.value).endswith(", ".join(names))


def test_the_profile_is_that_of_the_whole_file():
    assert named.profile() == params.load().profile


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "params.yaml is"),
        ("", "params.yaml is"),
        ("profile: [", "params.yaml"),
        ("profile: nano", "unknown profile 'nano'"),
        ("profile: nano\nprofiles: {nano: 3}", "is 3; it must be a mapping"),
        ("profile: 3\nprofiles: {nano: {}}", "unknown profile ''"),
        ("profile: nano\nprofiles: {nano: {}}\nstudents: x", "unknown student 'lit'"),
    ],
)
def test_a_file_of_another_form_is_one_sentence(tmp_path, monkeypatch, content, says):
    (tmp_path / "params.yaml").write_text(content)
    monkeypatch.setattr(project, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=says):
        named.require("students", "lit")


def test_who_starts_a_stage_imports_neither_torch_nor_diffusers():
    code = (
        "import sys, linattn.notebooks as n\n"
        "assert n.main(['distill', '--student', 'claer']) == 1\n"
        "print([name for name in ('torch', 'diffusers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
