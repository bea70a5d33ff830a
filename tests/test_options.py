"""Checks of options return the value, or raise an error with the option, its range and the value."""

import math

import numpy as np
import pytest

from composable_energy.errors import OptionError
from composable_energy.options import check_choice, check_flag, check_integer, check_number
from composable_energy.suggestions import listed, nearest


def test_values_in_range_are_returned():
    assert check_integer("steps", np.int64(3)) == 3
    assert check_integer("burn_in", 0, least=0) == 0
    assert check_number("rate", 1, above=0) == 1.0
    assert check_number("rate", np.float64(0.5), above=0, below=1) == 0.5
    assert check_number("decay", 0, least=0, below=1) == 0.0
    assert check_flag("progress", False) is False
    assert check_choice("mode", "power", ("power", "level")) == "power"


@pytest.mark.parametrize("value", [True, 1.0, "3", None, 0, -1])
def test_what_is_no_integer_of_the_range_is_refused(value):
    with pytest.raises(OptionError, match=r"steps must be a whole number of at least 1, got"):
        check_integer("steps", value)


@pytest.mark.parametrize("value", [True, "1", None, math.nan, math.inf, 0, -1, 10**400, -(10**400)])
def test_what_is_no_positive_number_is_refused(value):
    with pytest.raises(OptionError, match="rate must be a positive number, got"):
        check_number("rate", value, above=0)


def test_the_message_says_the_range():
    with pytest.raises(OptionError, match="share must be a number between 0 and 1, got 1"):
        check_number("share", 1, above=0, below=1)
    with pytest.raises(OptionError, match="decay must be a number from 0 to below 1, got 1"):
        check_number("decay", 1, least=0, below=1)
    with pytest.raises(OptionError, match=r"least must be a number of at least 0\.5, got 0"):
        check_number("least", 0, least=0.5)
    with pytest.raises(OptionError, match="shift must be a number, got 'x'"):
        check_number("shift", "x")
    with pytest.raises(OptionError, match="progress must be True or False, got 'no'"):
        check_flag("progress", "no")
    with pytest.raises(OptionError, match=r"mode must be one of 'power', 'level', got 'powr'\. Did you mean 'power'\?"):
        check_choice("mode", "powr", ("power", "level"))


def test_the_nearest_names_come_first_and_then_all():
    known = ["rate", "decay"]
    assert nearest("raet", known) + listed(known) == " Did you mean 'rate'? Known: rate, decay."
    assert nearest("x", known) == "" and listed([]) == " None is installed."
    assert listed(map(str, range(30))).endswith("18, 19, ....")
