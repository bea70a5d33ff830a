"""Named checks, functions that run them, and the energies with known densities that they use."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from composable_energy.energies.energy import Energy
from composable_energy.errors import ExtraNotInstalled, OptionError
from composable_energy.sampling.noise import Noise

T = TypeVar("T")


class SkipCheck(Exception):  # noqa: N818  (not an error: the check does not apply)
    """A check does not apply; the message is the reason."""


def build_subject(source: Any, kind: type[T], find: Callable[[str], Any], advice: str = "") -> T:
    """Returns what is checked: an instance as it is, a plug-in by its name, or the result of a function without arguments.

    It must have the class `kind`, else the error ends with the advice; `find` returns the plug-in of a name.

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
        """Runs the check; any other error than `SkipCheck` is a failure."""
        try:
            self.function()
        except (AssertionError, SkipCheck):
            raise
        except Exception as error:
            raise AssertionError(f"raised {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return self.name


def named_checks(functions: Sequence[Callable[..., None]], *subject: Any, run: Callable[..., None] | None = None) -> list[Check]:
    """Returns checks, which are functions of a subject; a later one may assume that those before it hold. Each function gives its name to a
    check, without an underscore at its start. `run(function, *subject)` calls it, if it is given."""
    first = () if run is None else (run,)
    return [Check(function.__name__.lstrip("_"), partial(*first, function, *subject)) for function in functions]


def run_checks(checks: Sequence[Check], expected_failures: Mapping[str, str] | None = None) -> None:
    """Runs checks up to the first that fails, whose consequences the later ones might report.

    Raises:
        AssertionError: A check fails, or one of `expected_failures`, names with reasons, passes.
        OptionError: A name in `expected_failures` is unknown.
    """
    expected = _check_names(checks, expected_failures)
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


def parametrize_with_checks(checks: Sequence[Check], *, expected_failures: Mapping[str, str] | None = None) -> Callable[[Any], Any]:
    """Returns a decorator for one test of pytest per check: the test function gets the argument `check` and calls it.

    Args:
        checks: The checks, such as `energy_checks(...)`.
        expected_failures: The names of checks that are known to fail, with the reasons; one that passes fails the test.

    Raises:
        OptionError: A name in `expected_failures` is unknown.
    """
    import pytest

    expected = _check_names(checks, expected_failures)

    def run(check: Check) -> None:
        try:
            check()
        except SkipCheck as reason:
            pytest.skip(str(reason))

    def parameter(check: Check) -> Any:
        known = [pytest.mark.xfail(raises=AssertionError, reason=expected[check.name], strict=True)] if check.name in expected else []
        return pytest.param(Check(check.name, partial(run, check)), id=check.name, marks=known)

    return pytest.mark.parametrize("check", [parameter(check) for check in checks])


def _check_names(checks: Sequence[Check], expected_failures: Mapping[str, str] | None) -> Mapping[str, str]:
    if unknown := (expected := expected_failures or {}).keys() - {check.name for check in checks}:
        raise OptionError(f"expected_failures names {', '.join(sorted(unknown))}; the checks are {', '.join(map(str, checks))}.")
    return expected


def assert_close(a: Tensor, b: Tensor, what: str, *, factor: float = 1.0, network: nn.Module | None = None) -> None:
    r"""Asserts that two tensors agree to the rounding of their dtype.

    The order of the terms of a sum depends on the processor and on the size of the batch. With $n$ terms it changes the sum by about
    $\sqrt n\, \epsilon$ of its magnitude. A network adds at least as many terms as it has parameters.

    Args:
        a: The actual values.
        b: The expected values, with the same shape.
        what: Their name, for the message.
        factor: The tolerance in units of $50 \epsilon$.
        network: The network that computed them, if it was evaluated in different batches or ways.
    """
    assert a.shape == b.shape, f"{what}: shape {tuple(a.shape)}, expected {tuple(b.shape)}"
    terms = 0 if network is None else sum(parameter.numel() for parameter in network.parameters())
    tolerance = max(factor * 50, terms**0.5) * torch.finfo(a.dtype).eps
    scale = 1 + b.detach().abs().nan_to_num(posinf=0.0).amax().item() if b.numel() else 1.0
    same = (a == b) | ((a - b).abs() <= tolerance * scale)
    assert bool(same.all()), f"{what}: off by up to {(a - b).abs()[~same].max().item():.3g} where {tolerance * scale:.3g} is rounding"


class Gaussian(Energy):
    r"""A Gaussian with noise of level $\sigma$: $E(x, \sigma) = \lVert x - \mu \rVert^2 / 2 (s^2 + \sigma^2)$.

    Args:
        mean: $\mu$, with the shape of one point.
        scale: $s$.
    """

    mean: Tensor

    def __init__(self, mean: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.scale = scale
        self.event_shape = mean.shape

    def forward(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        return (x - self.mean).flatten(1).square().sum(1) / (2 * (self.scale**2 + torch.as_tensor(sigma).to(x).square()))


class Banana(Energy):
    r"""A curved density with large gradients in its tails: $x_1 \sim N(0, 1)$, $x_2 \mid x_1 \sim N(x_1^2, 1/4)$."""

    def __init__(self) -> None:
        super().__init__()
        self.event_shape = (2,)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.whitened(x).T
        return (first.square() + second.square()) / 2

    def exact(self, noise: Noise, dtype: torch.dtype = torch.float64) -> Tensor:
        """Returns independent exact draws, with shape $(B, 2)$, one for each chain of the noise."""
        first, second = noise.normal(torch.zeros(len(noise.chains), 2, dtype=dtype)).T
        return torch.stack([first, first.square() + second / 2], 1)

    def whitened(self, x: Tensor) -> Tensor:
        """Returns $x_1$ and $2 (x_2 - x_1^2)$, with shape $(B, 2)$; of exact draws they are standard normal."""
        return torch.stack([x[:, 0], 2 * (x[:, 1] - x[:, 0].square())], 1)
