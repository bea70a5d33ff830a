"""Samplers of discrete and mixed points against all states, in closed form or enumerated, and the energies that know their neighbours."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import distributions as td
from torch.distributions import constraints

import composable_energy as ce
import composable_energy_training as cet
from composable_energy import testing
from composable_energy.errors import OptionError, SamplingDiverged, ShapeError
from composable_energy.supports import coordinates_of
from composable_energy_discrete import (
    Annealing,
    BoltzmannMachine,
    DiscreteTempering,
    Gibbs,
    Ising,
    MaskedTokens,
    Mixed,
    Potts,
    PseudoLikelihood,
)
from composable_energy_mcmc import Tempering
from tests.refusals import refused

SAMPLERS = {"enumeration": 1, "gibbs": 20, "gibbs-with-gradients": 150, "discrete-langevin": 150}  # how many steps each needs
PAIRS = [(name, DiscreteTempering(6)) for name in ("or", "ising and distribution", "potts", "counts and function", "masked tokens")]
CHAINS = 2000


def bernoulli(*shares: float) -> ce.Energy:
    return ce.as_energy(td.Bernoulli(torch.tensor(shares)))


def table(x: torch.Tensor) -> torch.Tensor:
    """An energy of three numbers without structure, which prefers an odd sum."""
    return 1.5 * torch.cos(math.pi * x.sum(1)) + x[:, 0] * x[:, 2] - 0.5 * x[:, 1]


class Pairs(torch.nn.Module):
    """Predicts one of two tokens from the other, with numbers 5, 2, 7 in place of 0, 1, 2, by a table of logits; 4 is the mask."""

    logits = torch.tensor([[1.0, 0.0, -1.0], [0.5, 1.0, 0.0], [0.0, -0.5, 1.5]])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        assert ((ids == 4).sum(1) == 1).all(), "one token is masked"
        place = torch.tensor([-1, -1, 1, -1, -1, 0, -1, 2, -1])[ids]
        found = ids.new_full((len(ids), 2, 8), 100, dtype=torch.float32)  # tokens of no point are likely
        return found.index_copy(2, torch.tensor([5, 2, 7]), torch.stack([self.logits.T[place[:, 1]], self.logits[place[:, 0]]], 1))


TOKENS = MaskedTokens(Pairs(), length=2, tokens=(5, 2, 7), mask=4)
A, B = bernoulli(0.2, 0.7, 0.5), bernoulli(0.9, 0.9, 0.1)
FUNCTION = ce.as_energy(table, event_shape=(3,), support=constraints.boolean)
COUNTS = ce.as_energy(td.Poisson(torch.tensor([1.0, 2.0]))).on(constraints.integer_interval(0, 6))
CATEGORIES = ce.as_energy(td.Categorical(torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])))
ROWS = ce.as_energy(td.OneHotCategorical(torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])))
EXPRESSIONS = {
    "distribution": A,
    "function": FUNCTION,
    "or": A | B,
    "and not": A & ~B,
    "and function": 2 * A & FUNCTION,
    "ising": Ising((2, 3), 0.4, 0.2),
    "ising and distribution": 2 * Ising(3, 0.2) & A,
    "potts": Potts((2, 2), 3, 0.7, torch.tensor([0.3, 0.0, -0.2])),
    "machine": BoltzmannMachine(3, 2),
    "joint machine": BoltzmannMachine(3, 2).joint(),
    "ratio": A - 0.5 * B - Ising(3, 0.2),
    "counts": COUNTS,
    "counts and function": COUNTS & ce.as_energy(lambda x: (x[:, 0] - x[:, 1]).square(), event_shape=(2,)),
    "categories": CATEGORIES,
    "one-hot rows": ROWS,
    "masked tokens": TOKENS,
}


def states_of(energy: ce.Energy) -> torch.Tensor:
    """Returns all states of a small energy."""
    event = energy.event_shape or torch.Size()
    if energy is COUNTS or "Poisson" in str(energy):
        return torch.tensor(list(itertools.product(range(7), repeat=2))).float()
    if energy is CATEGORIES:
        return torch.tensor(list(itertools.product(range(3), repeat=2))).float()
    if energy in (ROWS, TOKENS) or isinstance(energy, Potts):
        index = torch.tensor(list(itertools.product(range(3), repeat=event[:-1].numel())))
        return torch.nn.functional.one_hot(index, 3).float().reshape(-1, *event)
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=event.numel()))).reshape(-1, *event)


@pytest.mark.parametrize(("name", "sampler"), [*itertools.product(EXPRESSIONS, SAMPLERS), ("ising", "discrete-smc"), *PAIRS])
@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")  # of chains this short
def test_draws_have_the_probabilities_of_all_states(name, sampler):
    energy = EXPRESSIONS[name]
    states = states_of(energy)
    expected = torch.softmax(-energy(states).double(), 0)
    drawn = energy.sample(CHAINS, sampler=sampler, seed=0, steps=SAMPLERS.get(sampler) if isinstance(sampler, str) else 20)
    same = (drawn.flatten(1)[:, None] == states.flatten(1)).all(2)
    assert same.any(1).all(), "a draw is no state"
    errors = (same.double().mean(0) - expected).abs() / (expected * (1 - expected) / CHAINS).sqrt().clamp_min(2 / CHAINS)
    assert errors.max() < (4 if len(states) < 20 else 4.8)  # of hundreds of states


COLD, FAR = Ising((4, 4), 0.7, 0.02), bernoulli(*[0.02] * 6) | bernoulli(*[0.98] * 6)


@pytest.mark.slow
@pytest.mark.parametrize("energy", [COLD, FAR], ids=["cold lattice", "far branches"])
@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
def test_tempering_finds_the_shares_of_modes_that_single_changes_do_not_join(energy, tmp_path):
    """All chains start in one mode, where Gibbs sampling leaves nearly all of them. A call that broke off goes on to the same bits."""
    states = states_of(energy)
    chances, call = torch.softmax(-energy(states).double(), 0), {"init": torch.zeros(CHAINS, *states.shape[1:]), "seed": 0}
    x, trace = energy.sample(CHAINS, sampler="tempering", steps=60, trace=True, **call)
    assert isinstance(trace.sampler, DiscreteTempering)
    for value in (lambda x: (x.flatten(1).mean(1) > 0.5).double(), lambda x: energy(x).double()):
        mean = chances @ value(states)
        assert (value(x).mean() - mean).abs() < 4 * ((chances @ (value(states) - mean).square()) / CHAINS).sqrt()
    assert energy.sample(CHAINS, sampler="gibbs", steps=60, **call).mean() < 0.3 * x.mean()
    call |= {"sampler": trace.sampler, "steps": 5}
    watching = [ce.sampling.Stop(lambda step, state, info: 1 / (3 - step)), ce.sampling.Checkpoint(tmp_path / "c", every=0)]
    refused(ZeroDivisionError, None, energy.sample, CHAINS, observers=watching, **call)
    assert torch.equal(energy.sample(CHAINS, observers=watching[1:], **call), energy.sample(CHAINS, batch_size=700, **call))


@pytest.mark.slow
def test_tempering_of_mixed_points_sums_labels_out():
    """A label and a number with two wells for each: all chains start in one of four modes."""

    def wells(z, x):
        return -torch.logsumexp(torch.cat([math.log(0.4) - (x - 12 * z - 5).square(), math.log(0.6) - (x - 12 * z + 5).square()], 1), 1)

    joint = bernoulli(0.3).over("z") & ce.as_energy(wells, variables={"z": (1,), "x": (1,)})
    start = {"z": torch.zeros(CHAINS, 1), "x": torch.full((CHAINS, 1), -5.0)}
    drawn, trace = joint.sample(CHAINS, sampler="tempering", levels=5, leapfrogs=4, steps=60, trace=True, init=start, seed=0)
    assert isinstance(trace.sampler, Mixed) and not trace.warnings()
    for label, place, share in ((0, -5, 0.42), (0, 5, 0.28), (1, 7, 0.18), (1, 17, 0.12)):
        found = ((drawn["z"] == label) & ((drawn["x"] - place).abs() < 4)).double().mean().item()
        assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / CHAINS)
    many = bernoulli(*[0.5] * 7).over("z") & ce.as_energy(td.Normal(0.0, 1.0)).over("x")
    refused(OptionError, r"e\^4.9 combinations .*most=...", many.sample, 2, sampler="tempering")
    refused(OptionError, "takes `levels` alone", FUNCTION.sample, 2, sampler="tempering", leapfrogs=3)
    refused(OptionError, "numbers that rise from 0 to 1", DiscreteTempering, (0.0, 0.5))


def test_masked_tokens_add_the_conditional_distributions_of_a_network():
    x = states_of(TOKENS)
    log = Pairs.logits[x[:, 0].argmax(1), x[:, 1].argmax(1)]
    given = [log - (x[:, site] @ (Pairs.logits if site == 0 else Pairs.logits.T)).logsumexp(1) for site in (1, 0)]
    points = x.clone().requires_grad_()
    torch.testing.assert_close(TOKENS(points), -given[0] - given[1])
    (slopes,) = torch.autograd.grad(TOKENS(points).sum(), points)
    torch.testing.assert_close(slopes[:, 0].exp().reciprocal().sum(1), torch.ones(9))
    refused(OptionError, "none of them the mask", MaskedTokens, Pairs(), length=2, tokens=5, mask=4)
    refused(RuntimeError, None, MaskedTokens, Pairs(), length=2, tokens=2**63, mask=4)  # at once, as a file may say so
    refused(ShapeError, r"\(9, 2, more than 8\)", MaskedTokens(Pairs(), length=2, tokens=(5, 2, 8), mask=4), x)


@pytest.mark.parametrize(
    "energy",
    [Ising((3, 4), 0.3, 0.1), Ising((2, 3), 0.3, periodic=False), Potts((2, 3), 3, 0.4), Ising((4, 1, 2)), BoltzmannMachine(3, 2).joint()],
)
def test_differences_and_couplings_are_those_of_the_energy(energy):
    x = energy.sample(3, sampler="gibbs", steps=2, seed=1)
    found: Any = coordinates_of(energy.support, energy.event_shape or (), x.dtype, x.device)
    sites = found.sites
    index, count = sites.index(x), len(sites.counts)
    for site in range(count):
        moved = index[None].repeat(sites.allowed.shape[1], 1, 1)
        moved[:, :, site] = torch.arange(len(moved))[:, None]
        energies = energy(sites.place(x.repeat(len(moved), *[1] * (x.ndim - 1)), moved.flatten(0, 1))).view(len(moved), 3).T
        torch.testing.assert_close(energy.differences(x)[:, site], energies[:, 1:] - energies[:, :1], rtol=0, atol=1e-5)
    coupled = torch.eye(count, dtype=torch.bool)
    for one, other in energy.couplings().T.tolist():
        coupled[one, other] = coupled[other, one] = True
    for site in range(count):  # its value changes the differences of those that it is coupled to alone
        moved = index.clone()
        moved[:, site] = (moved[:, site] + 1) % sites.counts[site]
        changed = (energy.differences(sites.place(x, moved)) - energy.differences(x)).abs().amax((0, 2)) > 1e-5
        assert not (changed & ~coupled[site]).any() and changed.any()
    if isinstance(energy, Ising):
        (weights, bias), (one, other) = energy.quadratic(), energy.couplings()
        weight = torch.zeros(count, count).index_put((one, other), weights, accumulate=True)
        torch.testing.assert_close(energy.differences(x)[..., 0], -bias - index.float() @ (weight + weight.T), rtol=0, atol=1e-5)


def test_the_sampler_suits_the_points():
    long = ce.as_energy(lambda x: x.sum(1) * 0.1, event_shape=(40,), support=constraints.boolean)
    mixed = bernoulli(0.5).over("z") & ce.as_energy(td.Normal(0.0, 1.0)).over("x")
    kinds = ce.samplers.Enumeration, Gibbs, ce.samplers.DiscreteLangevin, Mixed
    for energy, kind in zip((A, Ising((5, 5), 0.2), long, mixed), kinds, strict=True):
        assert isinstance(energy.sample(4, seed=0, steps=None if energy is A else 1, trace=True)[1].sampler, kind)
    refused(OptionError, "chees draws continuous points, and those of Bernoulli are discrete", A.sample, 2, sampler="chees")
    refused(OptionError, "gibbs .* of Normal are continuous: use 'chees'", ce.as_energy(td.Normal(0.0, 1.0)).sample, 2, sampler="gibbs")
    refused(OptionError, r"have no end: give one, .*integer_interval\(0, 100\)", ce.as_energy(td.Poisson(3.0)).sample, 2)
    refused(OptionError, "1 of 2 given points are not inside", A.sample, 2, init=torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.5, 1.0]]))
    refused(OptionError, "parts without gradients", CATEGORIES.sample, 2, sampler="discrete-langevin", corrected=False)
    for given in ({"field": torch.ones(3)}, {"coupling": torch.ones(3)}, {"coupling": math.nan}, {"field": torch.tensor(1j)}):
        refused(ce.errors.ComposableEnergyError, "must", Potts, (2, 2), states=2, **given)
    refused(OptionError, "at most 8 are enumerated", Ising(4).sample, 2, sampler="enumeration", most=8)
    counts = ce.as_energy(lambda x: x[:, 0], event_shape=(1,), support=COUNT).on(ce.positive)  # many starts have density 0
    assert (counts.sample(CHAINS, seed=0) == 1).double().mean() == pytest.approx(1 - math.exp(-1), abs=0.05)


def test_chains_that_no_change_of_one_number_moves_warn_if_other_states_are_likely():
    """Numbers with an even sum, alone and beside another. Chains of a density with one state, of each row of conditions, are right."""
    even = ce.as_energy(lambda x: torch.where(x.sum(1) % 2 == 0, 50 * x[:, 0], torch.inf), event_shape=(20,), support=constraints.boolean)
    with pytest.warns(ce.SamplingWarning, match="constant: All 16 chains did not move in the last 20 steps.*`tempering`; or write"):
        even.sample(16, sampler="gibbs", steps=40, init=torch.zeros(16, 20), seed=0)
    both, z = even.over("z") & ce.as_energy(td.Normal(0.0, 1.0)).over("x"), torch.outer(torch.arange(16) % 2, torch.arange(20) < 2)
    with pytest.warns(ce.SamplingWarning, match="constant: All 16 chains"):
        _, trace = both.sample(16, steps=40, init={"z": z.float(), "x": torch.zeros(16)}, seed=0, trace=True)
    assert trace.sampler.inner.step_size > 0.1  # though the energies of pilot chains are 0 and 50
    near = ce.as_energy(lambda x, y: 99 * (x - y).abs().sum(1) + y.sum(1), event_shape=(20,), support=constraints.boolean)
    rows = torch.arange(60).view(3, 20) % 7 % 2
    assert torch.equal(near.given(y=rows).sample(3, sampler="gibbs", steps=40, seed=0), rows.float())


@pytest.mark.parametrize("most", [64, 0])
@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
def test_labels_and_means_of_a_mixture_are_drawn_together(most):
    """Numbers x given labels z are normal around 3 z, and given x labels are Bernoulli: both are known."""
    joint = bernoulli(0.3).over("z") & ce.as_energy(lambda z, x: (x - 3 * z).square().sum(1) / 2, variables={"z": (1,), "x": (1,)})
    drawn = joint.sample(CHAINS, seed=0, sampler=Mixed(most=most), steps=40)
    share, error = drawn["z"].mean().item(), math.sqrt(0.3 * 0.7 / CHAINS)
    assert set(drawn["z"].unique().tolist()) == {0.0, 1.0} and abs(share - 0.3) < 4 * error
    for label in (0.0, 1.0):
        x = drawn["x"][drawn["z"] == label]
        assert abs(x.mean() - 3 * label) < 4 / math.sqrt(len(x)) and abs(x.var() - 1) < 4 * math.sqrt(2 / len(x))


def test_counts_beside_a_rate_have_the_distribution_of_a_conjugate_pair():
    rate = ce.as_energy(td.Gamma(3.0, 2.0)).over("rate")
    counts = ce.as_energy(lambda n, rate: rate - n * rate.log() + torch.lgamma(n + 1), variables={"n": COUNT, "rate": ce.positive})
    n, expected = (rate & counts).sample(2000, seed=0, steps=30)["n"], td.NegativeBinomial(3.0, torch.tensor(1 / 3))
    for value in range(4):
        share = expected.log_prob(torch.tensor(float(value))).exp().item()
        assert abs((n == value).double().mean() - share) < 4 * math.sqrt(share / 2000)


COUNT = constraints.integer_interval(0, 24)  # beyond which a count has a probability of 1e-9


def test_annealing_colours_a_graph():
    """Three colours of a ring of odd length with chords: a draw of an energy of broken edges, which is 0 where none is."""
    edges = torch.tensor([(i, (i + 1) % 15) for i in range(15)] + [(i, (i + 6) % 15) for i in range(0, 15, 3)]).T
    count = lambda x: (x[:, edges[0]] * x[:, edges[1]]).sum((1, 2))
    broken = ce.as_energy(count, event_shape=(15, 3), support=constraints.one_hot)
    best = broken.sample(8, sampler=Annealing(sweeps=60), seed=0)
    assert broken(best).min() == 0 and (best.sum(2) == 1).all()


def test_the_machine_is_the_sum_of_the_joint_one():
    machine = BoltzmannMachine(3, 4)
    torch.nn.init.normal_(machine.weight, generator=torch.Generator().manual_seed(0))
    v, h = states_of(A), torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
    joint = machine.joint()(torch.cat([v.repeat_interleave(16, 0), h.repeat(8, 1)], 1)).view(8, 16)
    torch.testing.assert_close(machine(v), -torch.logsumexp(-joint, 1))


@pytest.mark.full
@pytest.mark.parametrize("sampler", ["gibbs", "discrete-langevin", "gibbs-with-gradients", DiscreteTempering(4)], ids=str)
def test_compiled_steps_draw_the_same(sampler):
    energy = Ising((4, 4), 0.3, 0.1)  # batches of it compile one step, and not eight
    plain, compiled = (energy.sample(32, sampler=sampler, steps=20, seed=0, batch_size=16, compile=compiles) for compiles in (False, True))
    assert torch.equal(plain, compiled)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_each_energy_conforms(name):
    energy = EXPRESSIONS[name]
    if name == "joint machine":
        energy = energy.machine
    x = states_of(energy)[::2][:6]
    testing.check_energy(energy, x, expected_failures={"save": "functions are not saved"} if "function" in name else None)


TEMPERED = [DiscreteTempering(4), Mixed(inner=Tempering(levels=4, leapfrogs=3, mean=0.0, scale=3.0), most=100)]  # only all levels are exact


@pytest.mark.parametrize("sampler", [*SAMPLERS, Gibbs(2), "discrete", "mixed", "discrete-smc", Annealing(sweeps=8), *TEMPERED], ids=str)
def test_each_sampler_conforms(sampler):
    """`discrete-annealing` ends in states of low energy, so that its moments are not those of the density."""
    failures = {"moments": "it minimizes"} if isinstance(sampler, Annealing) else None
    exact = sampler not in TEMPERED and (isinstance(sampler, Gibbs) or sampler in ("gibbs", "enumeration", "discrete") or None)
    testing.check_sampler(sampler, steps=None if failures or sampler == "discrete-smc" else 20, exact=exact, expected_failures=failures)


@pytest.mark.parametrize("sampler", ["gibbs", "enumeration", "tempering"])
@pytest.mark.parametrize("broken", [torch.nan, -torch.inf])
def test_an_energy_that_is_broken_at_some_states_is_reported(sampler, broken):
    energy = ce.as_energy(lambda x: torch.where(x[:, 0, 1] > 0, broken, x.sum((1, 2))), event_shape=(2, 3), support=constraints.one_hot)
    refused(SamplingDiverged, "energy", energy.sample, 9, sampler=sampler, init=torch.eye(3)[:1].expand(9, 2, 3), seed=0)


def test_an_energy_with_an_attribute_of_that_name_is_no_distribution():
    """Its sites interact by a term that its distribution does not know."""

    class Coupled(ce.Energy):
        def __init__(self):
            super().__init__()
            self.distribution, self.event_shape, self.support = td.Bernoulli(torch.tensor([0.5, 0.5])), (2,), constraints.boolean

        def forward(self, x):
            return -self.distribution.log_prob(x).sum(1) + 4 * (x[:, 0] - x[:, 1]).square()

    drawn = Coupled().sample(CHAINS, sampler="gibbs", steps=20, seed=0)
    expected = 1 / (1 + math.exp(-4))
    assert abs((drawn[:, 0] == drawn[:, 1]).double().mean() - expected) < 4 * math.sqrt(expected * (1 - expected) / CHAINS)


@pytest.mark.parametrize("options", [{}, {"sites": 1}, {"squared": True}], ids=str)
def test_pseudo_likelihood_finds_the_shares_of_data(options):
    x = torch.bernoulli(torch.tensor([0.2, 0.7, 0.5]).expand(4000, 3), generator=torch.Generator().manual_seed(0))
    slope = torch.nn.Linear(3, 1, bias=False)
    model = ce.as_energy(torch.nn.Sequential(slope, torch.nn.Flatten(0)), event_shape=(3,), support=constraints.boolean)
    adam = cet.Optimizer(rate=0.05, betas=(0.9, 0.99), decay=0.7)
    cet.Trainer(model, PseudoLikelihood(**options), x, steps=300, batch_size=512, optimizer=adam).fit()
    torch.testing.assert_close((-slope.weight[0]).sigmoid(), x.mean(0), atol=0.03, rtol=0)
    refused(OptionError, "are not discrete", cet.Trainer(cet.MLPEnergy(3), PseudoLikelihood(), x, steps=1).fit)
    refused(OptionError, "are not boolean", cet.Trainer(model, PseudoLikelihood(), x / 2, steps=1).fit)


@pytest.mark.parametrize("energy", [Ising(20, 0.6), FUNCTION, COUNTS], ids=str)
def test_the_sum_over_all_states_is_known_or_estimated(energy):
    found = ce.log_z(energy, seed=0)
    ring = math.log((2 * math.cosh(0.6)) ** 20 + (2 * math.sinh(0.6)) ** 20)
    expected = ring if isinstance(energy, Ising) else torch.logsumexp(-energy(states_of(energy)), 0).item()
    assert abs(found.value - expected) < 4 * found.standard_error + 1e-5
    refused(OptionError, "takes particles, moves, seed and dtype alone", ce.log_z, energy, levels=8)


def test_energies_of_a_class_are_infinite_outside_of_its_support():
    mixture = ce.any_of(Ising(2, 0.3), td.Categorical(torch.ones(2, 4)), weights=[1, 1])
    assert float(ce.log_z(mixture)) == pytest.approx(math.log(4 * math.cosh(0.3) + 1))
    assert ce.sampling.twin(Ising(2))(-torch.ones(1, 2)).isinf()  # spins


def test_labels_are_summed_out_of_an_integral():
    labels = bernoulli(0.2, 0.7).over("z")
    found = ce.log_z(labels & ce.as_energy(lambda z, x: x * (1 + z.sum(1)), variables={"z": (2,), "x": ce.positive}), seed=0)
    expected = 0.8 * 0.3 + (0.8 * 0.7 + 0.2 * 0.3) / 2 + 0.2 * 0.7 / 3  # of P(z) over the rate of x
    assert abs(found.value - math.log(expected)) < 4 * found.standard_error < 0.05
    refused(OptionError, "at most 64 .*given", ce.log_z, bernoulli(*[0.5] * 7).over("z") & ce.as_energy(td.Normal(0.0, 1.0)).over("x"))


def test_models_are_there_by_name():
    models = [ce.load("ising-lattice", shape=(2, 3)), ce.load("potts-lattice", shape=4, states=3)]
    for energy in (*models, ce.load("boltzmann-machine", visible=3, hidden=2)):
        assert energy.sample(2, seed=0).shape[0] == 2
