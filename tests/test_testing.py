"""Test kit for energies: every energy here passes, and each check detects its defect."""

from typing import Any

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.testing import (
    Check,
    SkipCheck,
    check_energy,
    energy_checks,
    parametrize_with_checks,
)
from composable_energy.testing.checks import assert_close
from composable_energy.testing.invariance import measure_deviations
from tests.factories import LEAVES

POINTS = torch.tensor([[0.3, -1.2], [1.1, 0.4], [-0.7, 0.9], [2.0, 0.1]], dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_every_leaf_conforms(name):
    check_energy(LEAVES[name], POINTS)


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
        return (ce.WeightedBase(LEAVES["distribution"]),)


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
        (Forgetful, {"copy", "pickle"}),
        (Unbalanced, {"evidence"}),
    ],
)
def test_a_broken_energy_is_caught(cls, failing):
    failed = {check.name for check in energy_checks(cls, POINTS) if fails(check)}
    assert failing <= failed
    with pytest.raises(AssertionError, match=rf"checks fail:(\n.*)*  {min(failing)}: "):
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
    with pytest.raises(OptionError, match="names inputs; the checks are shape, rows"):
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


@dataclass(frozen=True)
class Walk(Sampler):
    """Unadjusted Langevin, and places to break it."""

    step_size: float = 0.5
    factor: float = 1.0

    def init(self, energy, x, noise):
        return State(x, *energy_and_gradient(energy, x))

    def step(self, energy, state, noise):
        x = state.x - self.step_size / 2 * state.grad + self.factor * self.step_size**0.5 * self.noise(noise, state.x)
        return State(x, *energy_and_gradient(energy, x)), Info()

    def noise(self, noise, x):
        return noise.normal(x)


class Streaming(Walk):
    def noise(self, noise, x):
        return torch.randn_like(x)


class Seedless(Walk):
    def noise(self, noise, x):
        return replace(noise, seed=0).normal(x)


class Doubling(Walk):
    def step(self, energy, state, noise):
        state, info = super().step(energy, state, noise)
        x = state.x.double()
        return State(x.float().double(), state.energy.float(), state.grad.float()), info


class InPlace(Walk):
    def step(self, energy, state, noise):
        state.x.add_(1e-3)
        return super().step(energy, state, noise)


class Counting(Walk):
    count = 0

    def noise(self, noise, x):
        Counting.count += 1
        return noise.normal(x) + Counting.count


class Coupled(Walk):
    def noise(self, noise, x):
        drawn = noise.normal(x)
        return drawn - drawn.mean(0)


@pytest.mark.parametrize(
    ("sampler", "failing"),
    [
        (Streaming(), "seed"),
        (Seedless(), "seed"),
        (Doubling(), "shape"),
        (Walk(factor=1.1), "moments"),
        (InPlace(), "state"),
        (Counting(), "resume"),
        (Coupled(), "chunks"),
    ],
)
def test_a_broken_sampler_is_caught(sampler, failing):
    (check,) = (c for c in sampler_checks(sampler, steps=20, variance=1 / (1 - 0.5 / 4)) if c.name == failing)
    with pytest.raises(AssertionError):
        check()


def test_a_sampler_conforms():
    check_sampler(Walk(), steps=20, variance=1 / (1 - 0.5 / 4))
    check_sampler(Walk, steps=20, bias=0.2)


def test_a_sampler_by_name_conforms():
    with ce.register("sampler", "walk", Walk):
        check_sampler("walk", steps=20, variance=1 / (1 - 0.5 / 4))


def test_the_known_target_is_what_it_says():
    target = Gaussian(torch.zeros(3, dtype=torch.float64), 2.0)
    x = torch.ones(2, 3, dtype=torch.float64)
    assert target(x).tolist() == [3 / 8, 3 / 8]
    assert target.at(1.0)(x).tolist() == [0.3, 0.3]
    check_energy(target, POINTS.repeat(1, 2)[:, :3])


def test_exact_draws_of_the_banana_are_white():
    target, n = Banana(), 20_000
    x = target.exact(Noise(0, range(n)))
    errors, distance = measure_deviations(target.whitened(x))
    assert max(errors.values()) < 4.5 and distance < 2.47
    errors, distance = measure_deviations(target.whitened(x) * 1.1)
    assert errors["first variance"] > 10 and errors["second variance"] > 10 and errors["correlation"] < 4.5 and distance > 2.47
    assert all(measure_deviations(x * torch.nan)[0][name] == math.inf for name in errors)
    check_energy(target, POINTS.repeat(1, 2)[:, :2])


def test_who_claims_to_be_exact_is_held_to_it():
    """Unadjusted steps tell no acceptance, so they are only if somebody insists."""
    checks = {exact: next(c for c in sampler_checks(Walk(), exact=exact) if c.name == "exact") for exact in (None, False, True)}
    for exact in (None, False):
        with pytest.raises(SkipCheck, match="not exact"):
            checks[exact]()
    with pytest.raises(AssertionError, match=r"SamplingDiverged|standard errors off"):
        checks[True]()


def test_rounding_is_that_of_as_many_terms_as_a_network_adds():
    """The square root of 40,000 terms times epsilon, and 50 epsilon where terms are few or not known."""
    large, small = torch.nn.Linear(200, 200, bias=False), torch.nn.Linear(2, 2)
    expected, epsilon = torch.ones(3), torch.finfo(torch.float32).eps
    assert_close(expected + 200 * epsilon, expected, "the same", network=large)
    for network, terms in ((large, 800), (small, 200), (None, 200)):
        with pytest.raises(AssertionError, match="is rounding"):
            assert_close(expected + terms * epsilon, expected, "the same", network=network)
