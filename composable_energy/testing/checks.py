"""Named checks, and functions that run them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from composable_energy.errors import ExtraNotInstalled, OptionError

T = TypeVar("T")


class SkipCheck(Exception):  # noqa: N818  (not an error: the check does not apply)
    """A check does not apply; the message is the reason."""


def build_subject(source: Any, kind: type[T], find: Callable[[str], Any], advice: str = "") -> T:
    """Returns what is checked: an instance as it is, a plug-in by its name, or the result of a function without arguments.

    Args:
        source: The instance, the name or the function.
        kind: The class that it must have.
        find: Returns the plug-in of a name.
        advice: What to do about another class.

    Raises:
        AssertionError: Building it raises, or it is of another class.
        ExtraNotInstalled: It needs an extra that is not installed.
    """
    try:
        found = source if isinstance(source, kind) else find(source) if isinstance(source, str) else source()
    except ExtraNotInstalled:
        raise
    except Exception as error:
        raise AssertionError(f"building it raised {type(error).__name__}: {error}") from error
    assert isinstance(found, kind), f"a {type(found).__name__} is no {kind.__name__}" + (f"; {advice}" if advice else "")
    return found


@dataclass(frozen=True)
class Check:
    """A named check; call it to run it.

    Args:
        name: The name, for `expected_failures`.
        function: A function that raises `AssertionError` if the check fails, and `SkipCheck` if it does not apply.
    """

    name: str
    function: Callable[[], None]

    def __call__(self) -> None:
        """Runs the check.

        Raises:
            AssertionError: The check fails, or raises any other error.
            SkipCheck: The check does not apply.
        """
        try:
            self.function()
        except (AssertionError, SkipCheck):
            raise
        except Exception as error:
            raise AssertionError(f"raised {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return self.name


def named_checks(table: Mapping[str, Callable[..., None]], *subject: Any) -> list[Check]:
    """Returns the checks of a table, which are functions of the subject; a later one may assume that those before it hold.

    Args:
        table: The functions, by the names of the checks.
        *subject: The arguments of each.
    """
    return [Check(name, partial(function, *subject)) for name, function in table.items()]


def run_checks(checks: Iterable[Check], expected_failures: Mapping[str, str] | None = None) -> None:
    """Runs checks up to the first that fails, whose consequences the later ones might report.

    Args:
        checks: The checks.
        expected_failures: The names of checks that are known to fail, with the reasons. One that passes is reported as a failure.

    Raises:
        AssertionError: A check fails, or one that was expected to fail passes.
        OptionError: A name in `expected_failures` is unknown.
    """
    checks, expected = check_expected_failures(checks, expected_failures)
    for number, check in enumerate(checks, 1):
        try:
            check()
        except SkipCheck:
            continue
        except AssertionError as error:
            if check.name not in expected:
                raise AssertionError(f"Check {number} of {len(checks)} fails, later ones were not run:\n  {check.name}: {error}") from error
        else:
            if check.name in expected:
                raise AssertionError(f"{check.name}: holds now; take it off expected_failures ({expected[check.name]})")


def check_expected_failures(checks: Iterable[Check], expected_failures: Mapping[str, str] | None) -> tuple[list[Check], Mapping[str, str]]:
    """Returns the checks and the expected failures.

    Raises:
        OptionError: A name is unknown.
    """
    checks, expected = list(checks), expected_failures or {}
    unknown = expected.keys() - {check.name for check in checks}
    if unknown:
        raise OptionError(f"expected_failures names {', '.join(sorted(unknown))}; the checks are {', '.join(map(str, checks))}.")
    return checks, expected


def assert_close(a: Tensor, b: Tensor, what: str, *, factor: float = 1.0, network: nn.Module | None = None) -> None:
    r"""Asserts that two tensors agree to the rounding of their dtype.

    The order of the terms of a sum depends on the processor and on the size of the batch. With $n$ terms it changes the sum by about
    $\sqrt n\, \epsilon$ of its magnitude. A network adds at least as many terms as it has parameters.

    Args:
        a: The actual values.
        b: The expected values, with the same shape.
        what: The name of the values, for the message.
        factor: The tolerance in units of $50 \epsilon$.
        network: The network that computed them, if it was evaluated in batches of different sizes or in different ways.
    """
    import torch

    assert a.shape == b.shape, f"{what}: shape {tuple(a.shape)}, expected {tuple(b.shape)}"
    terms = 0 if network is None else sum(parameter.numel() for parameter in network.parameters())
    tolerance = max(factor * 50, terms**0.5) * torch.finfo(a.dtype).eps
    scale = 1 + b.detach().abs().nan_to_num(posinf=0.0).amax().item() if b.numel() else 1.0
    same = (a == b) | ((a - b).abs() <= tolerance * scale)
    assert bool(same.all()), f"{what}: off by up to {(a - b).abs()[~same].max().item():.3g} where {tolerance * scale:.3g} is rounding"
