"""Errors as sentences that a terminal shows and does not obey."""

import pytest

from ft_focalsam.base.errors import nearest, told_in_one_sentence, unknown


@pytest.mark.parametrize("kind", [ValueError, OSError])
def test_a_script_ends_with_one_printable_sentence(kind):
    with pytest.raises(SystemExit) as end, told_in_one_sentence():
        raise kind("The folder 'a\x1b[2J\u202eb' is\n  empty; give another one.")
    assert end.value.code == r"Error: The folder 'a\x1b[2J\u202eb' is empty; give another one."


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), told_in_one_sentence():
        1 / 0  # noqa: B018


def test_unknown_names_come_with_the_nearest_known_one():
    assert unknown("loss", "focl", ["focal", "ldam"]) == (
        "loss is 'focl'; did you mean 'focal'? Choose one of focal, ldam."
    )
    assert unknown("loss", "zzz", ["focal", "ldam"]) == "loss is 'zzz'; choose one of focal, ldam."
    assert nearest("zzz", ["focal"]) == []
