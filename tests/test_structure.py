"""The structure of nodes: a table of all classes and properties, wrapped energies, and classes of third parties."""

import inspect
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, constraints

import composable_energy as ce
from composable_energy import algebra
from composable_energy.algebra import Node, complement, to_common_space, value_of
from composable_energy.errors import ComposableEnergyError, UngroundedError
from composable_energy.registry import names
from composable_energy.sampling import Info, Sampler, State


class Decoder(nn.Module):
    event_shape = (3,)

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z, z[:, :1]], 1)


NORMAL = ce.as_energy(Normal(torch.zeros(2), 1.0), name="normal")
NOISY = ce.as_energy(lambda x, sigma: (x.square() / (1 + sigma[:, None] ** 2)).sum(1) / 2, name="noisy", event_shape=(2,))
MODES = ce.as_energy(
    lambda x, sigma: -torch.logsumexp(-torch.stack([(x - c).square().sum(1) / (1 + sigma**2) for c in (-2, 2)]), 0),
    name="modes",
    event_shape=(2,),
)
PLAIN = ce.as_energy(lambda x: (x - 0.5).square().sum(1), name="plain", event_shape=(2,))
PICTURE = ce.as_energy(lambda x: x.square().sum(1), name="picture", event_shape=(3,))
SCORE = ce.ScoreEnergy(lambda x, sigma: -x / (1 + sigma[:, None] ** 2), name="score", event_shape=(2,))
WALL = ce.inside(constraints.interval(0, 1), (2,))
EVENT = ce.ClassifierEnergy(lambda x: x, 1, NORMAL, labels=2, name="event")

# What a property is where a row does not say otherwise: the default of `Node`, for terms of two numbers.
YES = dict.fromkeys(("grounded", "has_value", "evidence_has_value", "sums"), True)
NO = dict.fromkeys(("needs_log_densities", "unsatisfiable", "formula"), False)
NONE = dict.fromkeys(("decoded_shape", "decoder", "support", "log_normalizer"))
DEFAULTS = {**YES, **NO, **NONE, "conditions": set(), "required_conditions": set(), "event_shape": (2,), "bases": 0}
SIGMA = {"conditions": {"sigma"}, "required_conditions": {"sigma"}}
SILENT = {"has_value": False, "evidence_has_value": False}
SEEN = {"conditions": {"sigma"}, "event_shape": None, "decoded_shape": (3,), "decoder": Decoder}
FALLING = algebra.Weighted(PLAIN, -1.0)
ROWS = [
    (algebra.Conjunction(NOISY, WALL), {**SIGMA, "support": "interval"}),
    (algebra.Conjunction(EVENT, EVENT), {"bases": 1, "formula": True}),
    (algebra.Disjunction(NOISY, NORMAL), {**SIGMA, "sums": False}),
    (algebra.Disjunction(SCORE, NOISY), {**SIGMA, **SILENT, "sums": False, "needs_log_densities": True}),
    (algebra.Disjunction(NORMAL, NORMAL, weights=[1, 3]), {"sums": False, "log_normalizer": 1.386}),
    (algebra.Negation(NORMAL), {"grounded": False, "sums": False}),
    (algebra.Negation(EVENT), {"bases": 1, "formula": True, "sums": False}),
    (algebra.Weighted(NOISY, 2.0), SIGMA),
    (algebra.Weighted(NOISY, -2.0), {**SIGMA, "grounded": False}),
    (algebra.Weighted(EVENT, 2.0, of_evidence=True), {"bases": 1}),
    (algebra.Difference(NOISY, NORMAL), {**SIGMA, "grounded": False}),
    (algebra.Relative(NOISY, NORMAL), {**SIGMA, "bases": 1}),
    (algebra.Relative(NORMAL, NOISY), {**SIGMA, "bases": 1, "log_normalizer": 0.0}),
    (algebra.Conditioned(NOISY, {"sigma": 1.0}), {}),
    (algebra.Conditioned(SCORE, {"sigma": 1.0}), SILENT),
    (algebra.Factor(NOISY, {"x": (2,)}, ["x"]), SIGMA),
    (algebra.Factor(NORMAL, {"x": (2,), "y": ()}, ["x"]), {"event_shape": (3,)}),
    (algebra.Factor(NORMAL, {"x": (2,)}, ["x"]), {"log_normalizer": 0.0}),
    (algebra.PulledBack(PICTURE, Decoder()), SEEN),
    (algebra.Decoded(NORMAL, Decoder()), {"decoded_shape": (3,), "decoder": Decoder, "log_normalizer": 0.0}),
    (algebra.Restricted(NOISY, constraints.positive), {**SIGMA, "support": "positive"}),
    (algebra.Restricted(FALLING, constraints.positive), {"grounded": False, "support": "positive"}),
    (algebra.Restricted(FALLING, constraints.interval(0, 1)), {"support": "interval"}),
    (algebra.Conjunction(NORMAL, FALLING), {}),
    (algebra.Disjunction(NORMAL, FALLING), {"grounded": False, "sums": False}),
]


@pytest.mark.parametrize(("energy", "row"), ROWS, ids=lambda part: str(part) if isinstance(part, ce.Energy) else "row")
def test_each_class_has_the_properties_of_its_row(energy, row):
    found = {name: getattr(energy, name) for name in DEFAULTS}
    found["bases"], found["formula"] = len(found["bases"]), found["formula"] is not None
    found["decoder"] = None if found["decoder"] is None else type(found["decoder"])
    found["support"] = None if found["support"] is None else "positive" if found["support"] is constraints.positive else "interval"
    found["log_normalizer"] = None if found["log_normalizer"] is None else round(found["log_normalizer"].value, 3)
    assert found == {**DEFAULTS, **row}


def test_the_table_has_all_classes():
    nodes = {cls for _, cls in inspect.getmembers(algebra, inspect.isclass) if issubclass(cls, Node) and not inspect.isabstract(cls)}
    assert nodes == {type(energy) for energy, _ in ROWS}


@dataclass(frozen=True)
class Probe(Sampler):
    """Notes the energy that a sampler gets, which is wrapped."""

    seen: ClassVar[list[ce.Energy]] = []

    def init(self, energy, x, noise):
        self.seen.append(energy)
        return State(x, torch.zeros(len(x)), torch.zeros_like(x))

    def step(self, energy, state, noise):
        return state, Info()


def test_a_wrapped_energy_keeps_what_it_is():
    rows = ce.as_energy(lambda x, y: (x - y[:, None]).square().sum(1), event_shape=(2,)).given(y=torch.arange(4.0))
    falling = (-1.0 * rows).on(constraints.positive)
    for energy, grounded in ((-1.0 * PLAIN, False), (PLAIN, True), (falling, False)):
        Probe.seen.clear()
        energy.sample((4, 2), sampler=Probe(), steps=1, seed=0, batch_size=2, allow_improper=True)
        assert Probe.seen
        for wrapped in Probe.seen:
            assert wrapped.grounded == grounded == energy.grounded
            assert wrapped.has_value and wrapped.evidence_has_value and not wrapped.needs_log_densities and not wrapped.unsatisfiable
    with pytest.raises(UngroundedError):
        (-1.0 * PLAIN).sample((4, 2), seed=0)


@pytest.mark.parametrize("leaf", [NORMAL, SCORE, MODES & PLAIN], ids=str)
def test_a_part_that_occurs_at_each_of_many_levels_is_visited_once(leaf):
    """There are 4^40 paths through this expression; a walk over them would not end."""
    energy = leaf
    for _ in range(40):
        energy = (energy & energy) | (energy & energy)
    assert (energy.grounded, energy.support) == (True, None)
    assert (energy.evidence_has_value, energy.needs_log_densities) == (leaf is not SCORE, leaf is SCORE)
    assert energy.shares == "known"  # both branches are equal
    falling = ce.as_energy(lambda x: -x.square().sum(1), event_shape=(2,))
    assert not ((-1.0 * falling) | energy - leaf).grounded
    sums = leaf
    for _ in range(40):
        sums = sums & sums
    assert (sums | leaf).shares == ("known" if leaf is SCORE else "unknown")


class SoftMin(Node):
    """A soft minimum, with the formula of `|`."""

    @property
    def grounded(self) -> bool:
        return all(term.grounded for term in self.terms)

    def forward_evidence(self, x, **conditions):
        return -torch.logsumexp(-torch.stack([value_of(term, x, conditions) for term in self.terms]), 0)


def soft_min(*terms):
    return SoftMin(*to_common_space([ce.as_energy(term) for term in terms]))


UNTUNED = {
    **{name: {"step_size": 0.1} for name in ("langevin", "underdamped", "mala")},
    "hmc": {"step_size": 0.2, "leapfrogs": 2},
    "chees": {"step_size": 0.2, "trajectory": 0.5},
    "tempering": {"levels": 3, "mean": 0.0, "scale": 3.0},
    "smc": {"levels": 4, "mean": 0.0, "scale": 3.0},
}


@pytest.mark.filterwarnings("ignore")  # so few steps do not converge
@pytest.mark.parametrize("sampler", names("sampler"))
def test_an_operator_of_a_third_party_is_right_under_every_sampler(sampler):
    """Chains of a soft minimum and of `|`, the same formula, make the same steps, or are refused alike."""
    terms = (MODES & PLAIN, NOISY)
    own, ours = soft_min(*terms), ce.any_of(*terms, weights=[1.0, 1.0])
    if "sigma" not in ce.get("sampler", sampler).traits.binds:
        own, ours = own.at(0.3), ours.at(0.3)
    own_start = ce.get("sampler", sampler).traits.check_init is not None
    options = UNTUNED.get(sampler, {}) if own_start else {"init": 2 * torch.randn(16, 2), **UNTUNED.get(sampler, {})}
    found = []
    for energy in (own, ours):
        try:
            found.append(energy.sample((16, 2), sampler=sampler, steps=4, seed=0, **options))
        except ComposableEnergyError as error:
            found.append(type(error))
    if sampler in ("inner-descent", "lace", "trajectories"):  # they take other energies
        assert found[0] is found[1] and issubclass(found[0], ComposableEnergyError)
    else:
        torch.testing.assert_close(*found)


class Ball(ce.Energy):
    """A plain density, with a complement of its own."""

    def forward(self, x):
        return x.square().sum(1) / 2


class Outside(Node):
    r"""The complement $-\log(1 - e^{-E})$ of an energy that is 0 at its minimum."""

    @property
    def grounded(self) -> bool:
        return False

    def forward_evidence(self, x, **conditions):
        return -torch.log1p(-(-value_of(self.terms[0], x, conditions)).exp())


def test_a_third_party_gives_its_density_another_complement():
    complement.register(Ball)(Outside)
    complement.register(Outside)(lambda outside: outside.terms[0])
    ball, x = Ball(), torch.randn(5, 2)
    assert type(~ball) is Outside and ~~ball is ball
    for energy in (~(ball | NORMAL), (ball ^ NORMAL).terms[1]):  # De Morgan's laws use it
        assert any(type(term) is Outside for term in energy.modules())
    torch.testing.assert_close((NORMAL & ~ball)(x), NORMAL(x) - (1 - (-ball(x)).exp()).log())
    (NORMAL & ~ball).sample((4, 2), sampler="mala", steps=3, step_size=0.1, seed=0)
