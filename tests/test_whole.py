"""A folder of files takes its place whole, or what lay there stays."""

import os

import pytest

from linattn import files
from linattn.files import whole_folder


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_folder_replaces_the_former_whole_and_leaves_nothing_beside(tmp_path):
    place = tmp_path / "a" / "b[1]"
    for number in range(2):
        with whole_folder(place) as draft:
            (draft / f"{number}.txt").write_text("new")
            assert content(place) == {"0.txt": "new"} if number else not place.exists()
        assert content(place) == {f"{number}.txt": "new"}
    assert [path.name for path in place.parent.iterdir()] == ["b[1]"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_lay_there_stays_where_the_new_is_not_finished(tmp_path, error):
    place = tmp_path / "row"
    with whole_folder(place) as draft:
        (draft / "a.txt").write_text("former")

    def interrupted():
        with whole_folder(place) as draft:
            (draft / "a.txt").write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert content(place) == {"a.txt": "former"}
    assert os.listdir(tmp_path) == ["row"]


def test_drafts_of_writers_that_are_gone_are_removed(tmp_path):
    gone = tmp_path / ".row.999999999.draft"
    other = tmp_path / ".other.999999999.draft"
    gone.mkdir()
    other.mkdir()
    with whole_folder(tmp_path / "row"):
        assert not gone.exists()
    assert sorted(os.listdir(tmp_path)) == [".other.999999999.draft", "row"]


class Killed(BaseException):
    """What ends a process at once lets no `finally` put anything back."""


def replaced_until_the_second_rename(place, monkeypatch, put_back):
    """Replace a folder, and end between its two renames."""
    rename = os.rename

    def one(source, target):
        if ".draft" in os.fspath(source):
            raise Killed
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "rename", one)
        if not put_back:
            patch.setattr(files, "_put_back", lambda former, folder: None)
        with pytest.raises(Killed), whole_folder(place) as draft:
            (draft / "a.txt").write_text("new")


@pytest.mark.parametrize("put_back", [True, False], ids=["interrupted", "killed"])
def test_between_the_two_renames_the_former_is_not_lost(tmp_path, monkeypatch, put_back):
    place = tmp_path / "row"
    with whole_folder(place) as draft:
        (draft / "a.txt").write_text("former")
    replaced_until_the_second_rename(place, monkeypatch, put_back)
    assert place.exists() is put_back
    with pytest.raises(Killed), whole_folder(place):
        raise Killed  # what lay there is back before the next writer begins, who fails
    assert content(place) == {"a.txt": "former"}
    assert os.listdir(tmp_path) == ["row"]
