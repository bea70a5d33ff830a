"""Named checks, and functions that run them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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
        after: Checks that must hold for this one to mean something. If one fails, this one is skipped, so that a cause is reported once.
    """

    name: str
    function: Callable[[], None]
    after: tuple[Check, ...] = ()

    def __call__(self) -> None:
        """Runs the check.

        Raises:
            AssertionError: The check fails, or raises any other error.
            SkipCheck: The check does not apply, or another one fails that must hold first.
        """
        for check in self.after:
            if check.failure is not None:
                raise SkipCheck(f"the check `{check.name}` fails") from check.failure
        try:
            self.function()
        except (AssertionError, SkipCheck):
            raise
        except Exception as error:
            raise AssertionError(f"raised {type(error).__name__}: {error}") from error

    @cached_property
    def failure(self) -> AssertionError | None:
        """The failure of one run of the check; None if it holds or does not apply."""
        try:
            self()
        except AssertionError as error:
            return error
        except SkipCheck:
            return None
        return None

    def __str__(self) -> str:
        return self.name


def named_checks(functions: Mapping[str, Callable[[], None]], first: Sequence[str] = (), **after: Sequence[str]) -> list[Check]:
    """Returns checks with their order.

    Args:
        functions: The functions of the checks, by name.
        first: The names of those that must hold before all others; each also comes after those before it in this list.
        **after: Further names that must hold before a check.
    """
    made: dict[str, Check] = {}
    for name in dict.fromkeys((*first, *functions)):
        before = first[: first.index(name)] if name in first else first
        made[name] = Check(name, functions[name], tuple(made[other] for other in (*before, *after.get(name, ()))))
    return list(made.values())


def run_checks(checks: Iterable[Check], expected_failures: Mapping[str, str] | None = None) -> None:
    """Runs all checks and reports all failures at once.

    Args:
        checks: The checks.
        expected_failures: The names of checks that are known to fail, with the reasons. One that passes is reported as a failure.

    Raises:
        AssertionError: A check fails, or one that was expected to fail passes.
        OptionError: A name in `expected_failures` is unknown.
    """
    checks, expected = check_expected_failures(checks, expected_failures)
    failures, skipped = [], 0
    for check in checks:
        try:
            check()
        except SkipCheck as reason:
            skipped += isinstance(reason.__cause__, AssertionError)
        except AssertionError as error:
            if check.name not in expected:
                failures.append((check.name, error))
        else:
            if check.name in expected:
                failures.append((check.name, AssertionError(f"holds now; take it off expected_failures ({expected[check.name]})")))
    if failures:
        lines = "\n".join(f"  {name}: {error}" for name, error in failures)
        rest = f"\n{skipped} others were not run, because they need those that fail." if skipped else ""
        raise AssertionError(f"{len(failures)} of {len(checks)} checks fail:\n{lines}{rest}") from failures[0][1]


def check_expected_failures(checks: Iterable[Check], expected_failures: Mapping[str, str] | None) -> tuple[list[Check], Mapping[str, str]]:
    """Returns the checks and the expected failures. An expected failure skips no other check.

    Raises:
        OptionError: A name is unknown.
    """
    checks, expected = list(checks), expected_failures or {}
    names = [check.name for check in checks]
    unknown = expected.keys() - set(names)
    if unknown:
        raise OptionError(f"expected_failures names {', '.join(sorted(unknown))}; the checks are {', '.join(names)}.")
    return [replace(check, after=tuple(other for other in check.after if other.name not in expected)) for check in checks], expected


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
