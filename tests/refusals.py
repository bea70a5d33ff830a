"""Calls that are refused, and tables of them."""

from collections.abc import Callable
from typing import Any

import pytest


def refused(error: type[BaseException], message: str | None, call: Callable[..., object], *given: Any, **options: Any) -> None:
    """Makes a call that raises an error with these words in its message."""
    with pytest.raises(error, match=message):
        call(*given, **options)


def refusals(
    *rows: tuple[Any, ...],
    call: Callable[..., object] = lambda *given: given[-1](*given[:-1]),
    error: type[BaseException] | None = None,
    fixture: str = "",
) -> Callable[..., None]:
    """Returns a test of each row: the arguments of `call`, by default a function alone, the error that it raises, and words of the message.
    Rows leave the error out if `error` is that of all. A fixture is the first argument."""
    cases = [(row[:-1], error, row[-1]) if error else (row[:-2], *row[-2:]) for row in rows]

    @pytest.mark.parametrize(("given", "error", "message"), cases)
    def test(request: pytest.FixtureRequest, given: tuple[Any, ...], error: type[BaseException], message: str | None) -> None:
        first = [request.getfixturevalue(fixture)] if fixture else []
        with pytest.raises(error, match=message):
            call(*first, *given)

    return test
