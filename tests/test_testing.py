"""Test kit for energies: every energy here passes, and each check detects its defect."""

from typing import Any

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.testing import Check, SkipCheck, check_energy, energy_checks, parametrize_with_checks
from composable_energy.testing.checks import assert_close
from tests.factories import LEAVES

POINTS = torch.tensor([[0.3, -1.2], [1.1, 0.4], [-0.7, 0.9], [2.0, 0.1]], dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LEAVES))
def test_every_leaf_conforms(name):
    check_energy(LEAVES[name], POINTS)


@pytest.mark.slow
@pytest.mark.parametrize("expression", [lambda a, b: a & ~b, lambda a, b: a | b, lambda a, b: (0.5 * a).sharpened(2.0) >> b])
def test_every_expression_conforms(expression):
    check_energy(expression(LEAVES["event"], LEAVES["red"]), POINTS)
    check_energy(expression(LEAVES["event"], LEAVES["tilt"]), POINTS)


class Broken(ce.Energy):
    """A bowl with something wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.wrong(x.square().sum(1) / 2, x)

    def wrong(self, energies: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return energies


class Scalar(Broken):
    def wrong(self, energies, x):
        return energies.sum()


class Infinite(Broken):
    def wrong(self, energies, x):
        return energies / 0


class Normalised(Broken):
    def wrong(self, energies, x):
        return energies - energies.mean()


class Ordered(Broken):
    def wrong(self, energies, x):
        return energies + torch.arange(len(x)).to(x)


class Detached(Broken):
    def wrong(self, energies, x):
        return energies + x.detach()[:, 0] ** 3


class Turned(Broken):
    def with_gradient(self, x):
        energies, gradient = super().with_gradient(x)
        return energies, -gradient


class Leaking(Broken):
    """A score that depends on the other points."""

    has_value = False

    def with_gradient(self, x):
        return x.new_zeros(len(x)), x.detach() - x.detach().mean(0)


class Stubborn(Broken):
    def wrong(self, energies, x):
        return energies.double()


class Mutating(Broken):
    def wrong(self, energies, x):
        x.detach().mul_(2)
        return energies


class Random(Broken):
    def wrong(self, energies, x):
        return energies + torch.rand(1, dtype=x.dtype)


class Shared(Broken):
    def __deepcopy__(self, memo: Any):
        return self


class Forgetful(Broken):
    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.offset = offset

    def __setstate__(self, state: Any):
        super().__setstate__({**state, "offset": 1.0})

    def wrong(self, energies, x):
        return energies + self.offset


class Unbalanced(Broken):
    @property
    def bases(self):
        return (ce.energies.WeightedBase(LEAVES["distribution"]),)


@pytest.mark.parametrize(
    ("cls", "failing"),
    [
        (Scalar, {"shape"}),
        (Infinite, {"shape"}),
        (Normalised, {"rows"}),
        (Ordered, {"rows"}),
        (Detached, {"gradient"}),
        (Turned, {"gradient"}),
        (Leaking, {"rows"}),
        (Stubborn, {"dtypes"}),
        (Mutating, {"input"}),
        (Random, {"randomness"}),
        (Shared, {"copy"}),
        (Forgetful, {"copy"}),
        (Unbalanced, {"evidence"}),
    ],
)
def test_a_broken_energy_is_caught(cls, failing):
    failed = {check.name for check in energy_checks(cls, POINTS) if fails(check)}
    assert failing <= failed
    with pytest.raises(AssertionError, match=rf"later ones were not run:\n  {min(failing)}: "):
        check_energy(cls(), POINTS)


def test_a_bowl_of_the_same_class_conforms():
    check_energy(Broken(), POINTS)


def test_an_energy_without_value_conforms_by_its_gradient():
    check_energy(ce.ScoreEnergy(lambda x: 3 - x), POINTS)


def fails(check: Check) -> bool:
    try:
        check()
    except AssertionError:
        return True
    except SkipCheck:
        return False
    return False


def test_lambdas_are_excused_from_pickling_and_saving():
    checks = {check.name: check for check in energy_checks(ce.as_energy(lambda x: x.square().sum(1)), POINTS)}
    for name in ("pickle", "save"):
        with pytest.raises(SkipCheck):
            checks[name]()


def test_misuse_is_an_error():
    with pytest.raises(AssertionError, match="sigma must be bound"):
        check_energy(LEAVES["noisy"].terms[0], POINTS)
    with pytest.raises(AssertionError, match="three points"):
        check_energy(LEAVES["ring"], POINTS[:1].expand(5, 2))
    with pytest.raises(AssertionError, match="Tensor is no Energy"):
        check_energy(lambda: POINTS, POINTS)  # pyright: ignore[reportArgumentType]


def test_expected_failures_are_strict():
    check_energy(
        Random(),
        POINTS,
        expected_failures=dict.fromkeys(("rows", "randomness", "copy", "dtypes", "gradient"), "it is random")
        | dict.fromkeys(("pickle", "evidence", "algebra"), "it is random"),
    )
    with pytest.raises(AssertionError, match=r"input: holds now; take it off expected_failures \(once\)"):
        check_energy(Broken(), POINTS, expected_failures={"input": "once"})
    with pytest.raises(OptionError, match="names inputs; the checks are build, shape"):
        check_energy(Broken(), POINTS, expected_failures={"inputs": "once"})


@parametrize_with_checks(energy_checks(LEAVES["red"], POINTS))
def test_checks_in_pytest(check):
    if check.name == "save":  # its network is no plug-in's
        with pytest.raises(pytest.skip.Exception, match="cannot be saved"):
            check()
    else:
        check()


def test_expected_failures_in_pytest():
    mark = parametrize_with_checks(energy_checks(Mutating, POINTS), expected_failures={"input": "it is what it is for"})
    parameters: dict[str, Any] = {parameter.id: parameter for parameter in mark.args[1]}  # pyright: ignore[reportFunctionMemberAccess]
    assert [name for name, parameter in parameters.items() if parameter.marks] == ["input"]
    assert parameters["input"].marks[0].kwargs["strict"]
    with pytest.raises(AssertionError, match="changed in place"):
        parameters["input"].values[0]()
    with pytest.raises(OptionError):
        parametrize_with_checks([], expected_failures={"input": "there is none"})


def test_rounding_is_that_of_as_many_terms_as_a_network_adds():
    """The square root of 40,000 terms times epsilon, and 50 epsilon where terms are few or not known."""
    large, small = torch.nn.Linear(200, 200, bias=False), torch.nn.Linear(2, 2)
    expected, epsilon = torch.ones(3), torch.finfo(torch.float32).eps
    assert_close(expected + 200 * epsilon, expected, "the same", network=large)
    for network, terms in ((large, 800), (small, 200), (None, 200)):
        with pytest.raises(AssertionError, match="is rounding"):
            assert_close(expected + terms * epsilon, expected, "the same", network=network)
