"""Settings as TOML: they survive writing and reading, and words of the command line become values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composable_energy.errors import OptionError
from composable_energy_training.toml import flatten, parse_value, read_toml, to_toml, unflatten


class TestToml:
    DATA = {
        "text": 'quotes " and \\ and\nlines, ü',
        "none": "none",
        "table": {"whole": 3, "small": 1e-10, "yes": True, "list": [1, 0.5, "a"], "inner": {"odd key": -1.0}, "empty": {}},
    }
    PLAIN = st.recursive(
        st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.just("none"),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    )

    @pytest.mark.slow
    @given(st.dictionaries(st.text(), PLAIN, max_size=4))
    def test_plain_data_survives_writing_and_reading(self, data):
        read = read_toml(to_toml(data), "here")
        assert repr(read) == repr(self.in_order_of(read, data))  # also tells 1 from 1.0 and True, and 0.0 from -0.0

    def in_order_of(self, read, data):
        """Returns `data` with its keys in the order of `read`: TOML has values before tables."""
        if isinstance(data, dict):
            assert read.keys() == data.keys()
            return {key: self.in_order_of(read[key], data[key]) for key in read}
        if isinstance(data, list):
            assert len(read) == len(data)
            return [self.in_order_of(*pair) for pair in zip(read, data, strict=True)]
        return data

    @pytest.mark.parametrize(
        "value",
        [[{"a": 1}, {"b": [2.0]}], {}, {"inner": {}}, [{}], "none", ["none"], "\x7f\x00\x1b[0m"],
        ids=[
            "a list of tables",
            "no table",
            "an empty table within",
            "a list of no table",
            "none",
            "a list with none",
            "control characters",
        ],
    )
    def test_values_with_a_form_in_toml_are_unchanged(self, value):
        assert read_toml(to_toml({"value": value}), "here") == {"value": value}

    @pytest.mark.parametrize(
        "value",
        [None, [1, None], {"a": {"b": None}}, object(), "\ud800"],
        ids=["none", "none in a list", "none in a table", "an object", "a lone surrogate"],
    )
    def test_values_without_a_form_in_toml_are_refused(self, value):
        with pytest.raises(OptionError, match="cannot be written as TOML"):
            to_toml({"value": value})

    def test_flatten_and_unflatten_are_inverse(self):
        assert flatten(self.DATA)["table.inner.odd key"] == -1.0
        assert flatten(self.DATA)["table.empty"] == {}
        assert unflatten(flatten(self.DATA)) == self.DATA

    def test_a_key_with_a_dot_is_refused(self):
        with pytest.raises(OptionError, match=r"table\.odd\.key contains a dot"):
            flatten({"table": {"odd.key": 1}})

    @pytest.mark.parametrize(
        ("word", "value"),
        [
            ("3", 3),
            ("3.0", 3.0),
            ("1e-4", 1e-4),
            ("true", True),
            ("none", "none"),
            ('"none"', "none"),
            ("2024-01-31", "2024-01-31"),
            ("1\nother = 2", "1\nother = 2"),
            ("[1, 2]", [1, 2]),
            ("[a, 2]", ["a", 2]),
            ("[]", []),
            ("adam", "adam"),
            ('"7"', "7"),
            ("a=b", "a=b"),
        ],
    )
    def test_words_of_the_command_line_become_values_or_stay_words(self, word, value):
        read = parse_value(word)
        assert read == value
        assert type(read) is type(value)
