"""A file of tensors says when it is not what was written, and appears whole or not at all."""

import contextlib
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from linattn import files, sealed

TENSORS = {
    "whole numbers": torch.arange(7, dtype=torch.uint8),
    "half": torch.linspace(-1, 1, 12, dtype=torch.bfloat16).view(3, 4),
    "turned": torch.arange(6.0).view(2, 3).T,
    "none": torch.zeros(0, 4),
    "one": torch.tensor(2.5, dtype=torch.float64),
}
NOTE = {"recipe": {"steps": 4, "text": "ä, 人"}, "first": 0}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "deep" / "tensors.safetensors"
    sealed.save(TENSORS, path, NOTE)
    return path


def test_tensors_and_metadata_come_back(file):
    assert sealed.check(file) == NOTE
    back = sealed.load(file)
    assert back.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(back[name], tensor)
        assert back[name].dtype == tensor.dtype


def test_numpy_reads_the_same_values(tmp_path):
    sealed.save({"a": torch.arange(5)}, tmp_path / "f")
    assert np.array_equal(sealed.load(tmp_path / "f", framework="np")["a"], np.arange(5))


def test_the_same_tensors_are_the_same_bytes(file, tmp_path):
    sealed.save(dict(reversed(TENSORS.items())), tmp_path / "again", NOTE)
    assert file.read_bytes() == (tmp_path / "again").read_bytes()


def test_any_flipped_bit_is_found(file):
    good = file.read_bytes()
    bits = random.Random(0).sample(range(8 * len(good)), 400)
    for bit in bits:
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        with pytest.raises(sealed.Damaged, match="tensors.safetensors is damaged .*draw it"):
            sealed.load(file, "draw it again")


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "longer", "no digest"])
def test_a_file_that_is_not_what_was_written_is_named(file, damage):
    good = file.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    zeros = good[:header] + bytes(len(good) - header)  # what a power cut leaves
    contents = {"cut": good[:-3], "empty": b"", "zeros": zeros, "longer": good + b"\0"}
    if damage == "no digest":
        save_file({"a": torch.zeros(2)}, file)
    else:
        file.write_bytes(contents[damage])
    with pytest.raises(sealed.Damaged, match="is damaged"):
        sealed.check(file)


def test_a_file_that_is_not_there_is_no_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        sealed.load(tmp_path / "nothing")


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077], ids=oct)
def test_a_file_is_readable_as_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        sealed.save({"a": torch.zeros(2)}, tmp_path / "tensors")
        files.write_json(tmp_path / "values", [1])
    finally:
        os.umask(before)
    for name in ("tensors", "values"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask


KILLED = """
import os, pathlib, signal, sys
from linattn import files
with files.whole(pathlib.Path(sys.argv[1])) as draft:
    draft.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_former_file_and_its_draft_is_swept(tmp_path):
    path = tmp_path / "file"
    path.write_text("former")
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert path.read_text() == "former"
    (draft,) = set(tmp_path.iterdir()) - {path}
    assert draft.name.endswith(".draft")
    files.write_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_writing_leaves_the_former_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    files.write_text(path, "former")
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, float("nan"))
    with contextlib.suppress(OSError), files.whole(path) as draft:
        draft.write_text("half")
        raise OSError("full")
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("writer", ["9" * 30, "²", "-1", "x", ""])
def test_a_draft_whose_writer_can_be_no_process_is_swept(tmp_path, writer):
    (tmp_path / f".file.{writer}.draft").mkdir()
    files.write_text(tmp_path / "file", "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["file", "a[1].json"])
def test_a_draft_of_this_processs_number_is_in_nobodys_way(tmp_path, name):
    (tmp_path / f".{name}.{os.getpid()}.draft").write_text("of a process before a restart")
    files.write_text(tmp_path / name, "mine")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("value", [None, 5, b"x", ["a"], "", "a\0b"])
def test_what_can_be_no_path_is_named(value):
    with pytest.raises(ValueError, match="folder is .*; it must be a path"):
        files.path_of(value, "folder")


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(sealed.Damaged, match="it is no file"):
        sealed.check(tmp_path / "pipe")


def test_the_draft_of_another_living_process_stays(tmp_path):
    other = tmp_path / f".file.{os.getppid()}.draft"
    other.mkdir()
    files.write_text(tmp_path / "file", "mine")
    assert other.is_dir()
