"""Named checks, and functions that run them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from composable_energy.errors import OptionError

__all__ = ["Check", "SkipCheck", "assert_close", "check_expected_failures", "run_checks"]


class SkipCheck(Exception):  # noqa: N818  (not an error: the check does not apply)
    """A check does not apply; the message is the reason."""


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


def run_checks(checks: Iterable[Check], expected_failures: Mapping[str, str] | None = None) -> None:
    """Runs all checks and reports all failures at once.

    Args:
        checks: The checks.
        expected_failures: The names of checks that are known to fail, with the reasons. One that passes is reported as a failure.

    Raises:
        AssertionError: A check fails, or one that was expected to fail passes.
        OptionError: A name in `expected_failures` is unknown.
    """
    checks = list(checks)
    expected = check_expected_failures(checks, expected_failures)
    failures = []
    for check in checks:
        try:
            check()
        except SkipCheck:
            continue
        except AssertionError as error:
            if check.name not in expected:
                failures.append((check.name, error))
        else:
            if check.name in expected:
                failures.append((check.name, AssertionError(f"holds now; take it off expected_failures ({expected[check.name]})")))
    if failures:
        lines = "\n".join(f"  {name}: {error}" for name, error in failures)
        raise AssertionError(f"{len(failures)} of {len(checks)} checks fail:\n{lines}") from failures[0][1]


def check_expected_failures(checks: Iterable[Check], expected_failures: Mapping[str, str] | None) -> Mapping[str, str]:
    """Returns the expected failures.

    Raises:
        OptionError: A name is unknown.
    """
    expected = expected_failures or {}
    names = [check.name for check in checks]
    unknown = expected.keys() - set(names)
    if unknown:
        raise OptionError(f"expected_failures names {', '.join(sorted(unknown))}; the checks are {', '.join(names)}.")
    return expected


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
