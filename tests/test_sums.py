"""Committed weights are held to their list, and so is a user's folder that has one."""

import shutil
import subprocess

import pytest

from linattn import project, sums, teachers
from linattn.world import judge

DATA = project.ROOT / "data"


@pytest.fixture
def data(tmp_path):
    for name in ("judge", "teachers/dit-nano"):
        shutil.copytree(DATA / name, tmp_path / name)
    sums.write(tmp_path / "judge", tmp_path)
    sums.write(tmp_path / "teachers" / "dit-nano", tmp_path)
    return tmp_path


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)


def test_the_committed_files_are_those_of_the_list():
    listed = sums.read(DATA / sums.NAME)
    found = {
        path.relative_to(DATA).as_posix()
        for name in ("judge", "teachers")
        for path in (DATA / name).rglob("*")
        if path.is_file() and path.suffix != ".md"
    }
    assert set(listed) == found
    for name in ("judge", "teachers"):
        sums.check(DATA / name)


def test_a_judge_whose_exponents_are_others_is_refused(data):
    judge.load(data / "judge")
    damage(data / "judge" / "judge.safetensors")
    with pytest.raises(ValueError, match="judge.safetensors is damaged: .* fetch it again"):
        judge.load(data / "judge")


@pytest.mark.parametrize("name", ["card.json", "transformer/config.json", "model_index.json"])
def test_a_teachers_damaged_file_is_named(data, name):
    folder = data / "teachers" / "dit-nano"
    damage(folder / name)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        teachers.load(folder)


def test_a_missing_file_is_named(data):
    (data / "judge" / "card.json").unlink()
    with pytest.raises(ValueError, match=r"card\.json is missing, and .*SHA256SUMS names it"):
        sums.check(data / "judge")


def test_a_folder_without_a_list_is_not_held_to_one(data):
    (data / sums.NAME).unlink()
    damage(data / "judge" / "card.json")
    sums.check(data / "judge")


@pytest.mark.parametrize("content", ["<html>", "abc  judge/card.json", "\n\n"])
def test_a_list_that_is_none_is_named(data, content):
    (data / sums.NAME).write_text(content)
    with pytest.raises(ValueError, match="SHA256SUMS is damaged: .*no line of sha256sum's"):
        sums.check(data / "judge")


def test_the_list_is_one_that_sha256sum_reads(data):
    command = ["sha256sum", "-c", "--quiet", sums.NAME]
    if shutil.which(command[0]) is None:
        pytest.skip("no sha256sum here")
    assert subprocess.run(command, cwd=data).returncode == 0
    damage(data / "judge" / "card.json")
    assert subprocess.run(command, cwd=data, capture_output=True).returncode == 1


def test_a_folder_that_is_listed_anew_loses_its_old_lines(data):
    (data / "judge" / "card.json").rename(data / "judge" / "new.json")
    sums.write(data / "judge", data)
    names = set(sums.read(data / sums.NAME))
    assert "judge/new.json" in names
    assert "judge/card.json" not in names
    assert "teachers/dit-nano/card.json" in names
    sums.check(data / "judge")
