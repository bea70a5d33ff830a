"""Types of settings: read from signatures, and checked with the words of plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from composable_energy.errors import OptionError
from composable_energy_training.setting_types import check_setting, get_parameters

if TYPE_CHECKING:
    from torch import Tensor


def known(size: int, *rest: int, labels: str | None = None, start=3.0, **options: Any) -> None: ...
def unknown(x: Tensor, size: int = 3) -> None: ...


def test_parameters_have_types_and_defaults():
    found = get_parameters(known, without={"start"})
    assert {name: parameter.annotation for name, parameter in found.items()} == {"size": int, "labels": str | None}
    assert found["labels"].default is None and found["size"].default is found["size"].empty
    assert get_parameters(known)["start"].annotation is Any


def test_an_annotation_that_only_type_checkers_know_is_any():
    assert {name: parameter.annotation for name, parameter in get_parameters(unknown).items()} == {"x": Any, "size": Any}


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, float, 3.0),
        (3, float | int, 3),
        ("none", int | None, None),
        ("none", str, "none"),
        ("none", Any, None),
        (Path("a") / "b", str | Path, str(Path("a") / "b")),
        ([1, 2], tuple[float, float], [1, 2]),
        ([[1, 0.5]], Sequence[tuple[int, float]], [[1, 0.5]]),
        ("adam", float | Literal["adam"] | None, "adam"),
    ],
)
def test_values_become_plain_data(value, annotation, expected):
    result = check_setting("table.key", value, annotation)
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "words"),
    [
        (True, int, "a whole number"),
        (1, bool, "true or false"),
        ("a", Sequence[str], "a list in brackets"),
        ([1], tuple[int, int], "a list of 2 in brackets"),
        ([0.5], list[int], "a list in brackets"),
        ("b", Literal["a"] | Callable[[], int] | None, "'a' or none"),
    ],
)
def test_other_values_are_reported_with_the_type_in_words(value, annotation, words):
    with pytest.raises(OptionError, match=f"table.key takes {words}, got"):
        check_setting("table.key", value, annotation)
