"""A wrong name is refused with the nearest valid one."""

import pytest

from linattn.names import hint, known, nearest, similar

VALID = ("clear", "linfusion", "lit")


def test_a_valid_name_is_returned():
    assert known("lit", VALID, "operator") == "lit"


def test_a_misspelt_name_is_refused_with_the_nearest():
    message = r"unknown operator 'claer': did you mean 'clear'\? valid are clear, linfusion, lit"
    with pytest.raises(ValueError, match=message):
        known("claer", VALID, "operator")


def test_without_a_similar_name_only_the_valid_ones_are_listed():
    error = nearest("operator", "zzz", VALID)
    assert str(error) == "unknown operator 'zzz': valid are clear, linfusion, lit"


def test_without_any_valid_name_the_error_says_none():
    assert str(nearest("student", "a", [])) == "unknown student 'a': valid are none"


def test_values_that_are_no_text_are_refused_too():
    assert "unknown operator 3" in str(nearest("operator", 3, VALID))


def test_the_question_is_empty_where_nothing_is_similar():
    assert hint("linfussion", VALID) == "did you mean 'linfusion'?"
    assert hint("zzz", VALID) == ""


def test_a_higher_bar_accepts_only_closer_names():
    assert similar("layer", ["layers"], least=0.75) == "layers"
    assert similar("lr", ["layers"], least=0.75) is None
