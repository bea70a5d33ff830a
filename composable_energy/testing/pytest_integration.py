"""pytest integration of the checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any

from composable_energy.testing.checks import Check, SkipCheck, check_expected_failures


def parametrize_with_checks(checks: Iterable[Check], *, expected_failures: Mapping[str, str] | None = None) -> Callable[[Any], Any]:
    """Returns a decorator for one test per check: the test function gets the argument `check` and calls it.

    Args:
        checks: The checks, such as `energy_checks(...)`.
        expected_failures: The names of checks that are known to fail, with the reasons; one that passes fails the test.

    Raises:
        OptionError: A name in `expected_failures` is unknown.
    """
    import pytest

    checks, expected = check_expected_failures(checks, expected_failures)

    def skip_in_pytest(check: Check) -> Check:
        @wraps(check.function)
        def function() -> None:
            try:
                check()
            except SkipCheck as reason:
                pytest.skip(str(reason))

        return Check(check.name, function)

    def marks(check: Check) -> list[Any]:
        if check.name not in expected:
            return []
        return [pytest.mark.xfail(raises=AssertionError, reason=expected[check.name], strict=True)]

    return pytest.mark.parametrize("check", [pytest.param(skip_in_pytest(check), id=check.name, marks=marks(check)) for check in checks])
