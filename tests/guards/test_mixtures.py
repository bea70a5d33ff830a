"""Mixtures draw each branch by its share, or warn; copies of a base and an event count once, however they are written."""

import copy
import math
import pickle

import pytest
import torch
from torch import distributions as td
from torch import nn
from torch.distributions import Categorical, Gamma, Independent, MixtureSameFamily, Normal, VonMises

import composable_energy as ce
from composable_energy import SamplingWarning
from composable_energy.errors import ContradictionError, ExpressionError
from composable_energy.supports import interval
from tests.factories import network
from tests.refusals import refused

FULL = pytest.mark.full
SAMPLERS = ["chees", "hmc", "mala", "langevin", "underdamped", "tempering", "smc"]
X = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-0.7, 0.1]])


def normal(mean: float, sd: float, axes: int = 1) -> ce.Energy:
    return ce.as_energy(Normal(torch.full((axes,), mean), sd))


def function(mean: float, sd: float) -> ce.Energy:
    return ce.as_energy(lambda x: ((x - mean) / sd).square().sum(1) / 2, event_shape=(1,))


def errors(found: torch.Tensor, share: float) -> float:
    """Returns by how many standard errors of independent draws a share differs from the right one."""
    return abs(found.double().mean().item() - share) / math.sqrt(share * (1 - share) / len(found))


FAR = ce.any_of(normal(-1.0, 1.0), normal(10.0, 0.5), weights=[0.2, 0.8])


@pytest.mark.full
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_sampler_loses_a_branch(sampler):
    points = FAR.sample(2000, sampler=sampler, seed=11)
    left, right = points[points < 5], points[points > 5]
    assert errors((points > 5).squeeze(1), 0.8) < 4.5
    assert abs(left.mean() + 1) < 4.5 / len(left) ** 0.5 and abs(right.mean() - 10) < 2.25 / len(right) ** 0.5


@pytest.mark.slow
def test_starts_in_branches_follow_from_chain_and_seed_alone():
    options = {"sampler": "mala", "steps": 3, "step_size": 0.1}
    whole = FAR.sample(300, seed=5, **options)
    assert torch.equal(whole, FAR.sample(300, seed=5, batch_size=7, **options))
    assert torch.equal(whole[100:], FAR.sample(200, seed=5, first_chain=100, **options))
    assert not torch.equal(whole, FAR.sample(300, seed=6, **options))
    state = torch.get_rng_state()
    FAR.sample(10, seed=5, **options)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixture", "above", "share"),
    [
        (ce.any_of(normal(0.0, 1.0), normal(30.0, 1.0), weights=[0.99, 0.01]), 15.0, 0.01),
        (ce.any_of(normal(-30.0, 1.0), ce.any_of(normal(0.0, 1.0), normal(30.0, 1.0), weights=[0.3, 0.7]), weights=[1, 3]), 15.0, 0.525),
        (ce.any_of(*(ce.as_energy(Gamma(torch.tensor([a]), b)) for a, b in ((2.0, 2.0), (400.0, 10.0))), weights=[0.7, 0.3]), 15.0, 0.3),
        (ce.any_of(*(normal(m, 1.0).relative_to(normal(0.0, 9.0)) for m in (-30.0, 30.0)), weights=[0.2, 0.8]), 0.0, 0.8),
    ],
    ids=["tiny", "nested", "positive", "relative"],
)
def test_each_branch_gets_its_share(mixture, above, share):
    assert errors((mixture.sample(4000, sampler="mala", steps=20, seed=13) > above).squeeze(1), share) < 4.5


@pytest.mark.full
def test_branches_on_a_circle_and_branches_that_are_mixtures():
    circle = ce.any_of(*(ce.as_energy(VonMises(torch.tensor([m]), 50.0)) for m in (0.0, 3.0)), weights=[0.7, 0.3])
    assert errors((circle.sample(4000, sampler="mala", steps=20, seed=13).abs() > 1.5).squeeze(1), 0.3) < 4.5
    parts = Independent(Normal(torch.tensor([[-50.0], [50.0]]), 1.0), 1)
    mixture = ce.as_energy(MixtureSameFamily(Categorical(torch.tensor([0.5, 0.5])), parts)) | normal(0.0, 1.0)
    points = mixture.sample(4000, sampler="mala", seed=13).squeeze(1)
    assert errors(points < -20, 0.25) < 4.5 and errors(points > 20, 0.25) < 4.5


@pytest.mark.slow
def test_start_points_that_leave_out_a_branch_warn():
    with pytest.warns(SamplingWarning, match=r"branch: The points do not have the shares .* for 0\.\d+"):
        FAR.sample(200, sampler="mala", steps=50, init=torch.zeros(200, 1), seed=1)
    with pytest.warns(SamplingWarning, match="branch"):
        ce.any_of(FAR, normal(40.0, 1.0), weights=[0.5, 0.5]).sample(200, sampler="mala", steps=50, init=torch.full((200, 1), 10.0), seed=1)
    with pytest.warns(SamplingWarning, match="No point of 200 is in branch 1"):
        chosen = ce.any_of(function(0.0, 1.0), function(3000.0, 1.0), weights=[1, 1])  # where no proposal is
        chosen.sample(200, sampler="mala", steps=50, seed=1)


@pytest.mark.slow
def test_overlapping_branches_do_not_warn():
    mixture = ce.any_of(normal(0.0, 1.0), normal(0.5, 2.0), weights=[0.3, 0.7])
    for seed in range(4):  # warnings are errors
        points = mixture.sample(300, sampler="hmc", step_size=0.8, steps=20, init=torch.zeros(300, 1), seed=seed)
    assert points.shape == (300, 1)


EVENT = ce.ClassifierEnergy(lambda x: torch.cat([x - 9.0, 0 * x], 1), 0, FAR, labels=2)


@pytest.mark.full
def test_a_resumed_call_and_its_trace_judge_chains_as_the_first_call_does():
    _, trace = FAR.sample(200, steps=100, sampler="hmc", step_size=0.5, seed=13, trace=1)
    points, resumed = FAR.sample(200, steps=100, resume=trace, trace=1)  # no chain leaves its branch, and warnings are errors
    assert errors((points > 5).squeeze(1), 0.8) < 4.5
    assert not {"r_hat", "branch"} & {warning.kind for warning in [*trace.warnings(), *resumed.warnings()]}


@pytest.mark.full
def test_a_term_that_fails_at_some_points_keeps_the_branches():
    def fails(x):
        if (x > 11.5).any():
            raise RuntimeError("not here")
        return 0 * x.sum(1)

    with pytest.warns(SamplingWarning, match="errors"):
        points = (FAR & fails).sample(2000, sampler="mala", step_size=0.3, steps=20, seed=13)
    assert errors((points > 5).squeeze(1), 0.8) < 4.5 and points.max() < 11.5


def holes(*centres: float) -> ce.Energy:
    """Returns a function that is high around points of a line, between which it leaves modes."""
    middles = torch.tensor(centres)
    return ce.as_energy(lambda x: 20 * (-2 * (x - middles).square()).exp().sum(1), event_shape=(1,))


TWO_PLACES = ce.as_energy(lambda x: 2 * ((x.square().sum(1) + 0.1).sqrt() - 3).square() + 0.3 * x.sum(1), event_shape=(1,))
OUTSIDE = ce.negate(ce.as_energy(lambda x: x.square().sum(1) / 2, event_shape=(1,)), mode="level", level=2.0)


SHORT = {"sampler": "hmc", "step_size": 0.3, "steps": 20}
TUNED, MALA = {"sampler": "hmc"}, {"sampler": "mala"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("expression", "border", "options"),
    [
        pytest.param(normal(-1.0, 1.0) ^ normal(10.0, 0.5), 5, SHORT, id="xor", marks=FULL),
        pytest.param(2 * FAR & normal(0.0, 20.0), 5, SHORT, id="power and", marks=FULL),
        pytest.param(FAR / 2, 5, SHORT, id="temperature", marks=FULL),
        pytest.param(FAR.on(torch.distributions.constraints.greater_than(-1.5)), 5, SHORT, id="on", marks=FULL),
        pytest.param(FAR & (lambda x: 0.3 * x.squeeze(1).abs()), 5, SHORT, id="function", marks=FULL),
        pytest.param(~EVENT, 5, SHORT, id="not event", marks=FULL),
        pytest.param(normal(0.5, 3.0) & ~normal(0.0, 1.0), 0.45, TUNED, id="negation"),
        pytest.param(TWO_PLACES & OUTSIDE, 0.45, MALA, id="negation of functions", marks=FULL),
        pytest.param(ce.any_of(TWO_PLACES, normal(9.0, 0.5), weights=[0.5, 0.5]) & OUTSIDE, 0.45, MALA, id="mixture", marks=FULL),
        pytest.param(holes(0.3, 0.6).on(interval(-1.5, 2.0)), 0.45, TUNED, id="bounded support", marks=FULL),
    ],
)
def test_branches_and_parts_that_an_expression_divides_keep_their_shares(expression, border, options):
    """The right share is by quadrature."""
    grid = torch.linspace(-25, 25, 500_001)[:, None]
    density = torch.softmax(-expression(grid).double(), 0)
    points = expression.sample((2000, 1), seed=13, **options)  # warnings are errors
    assert errors((points > border).squeeze(1), density[grid[:, 0] > border].sum().item()) < 4.5


@pytest.mark.full
def test_a_branch_that_no_point_can_satisfy_does_not_warn():
    event = ce.ClassifierEnergy(torch.nn.Linear(1, 1), 1, ce.as_energy(lambda x: x.square().sum(1), event_shape=(1,)), name="event")
    mixture = ce.any_of(function(0.0, 1.0), event & ~event, function(1.0, 2.0), weights=[1, 1, 1])
    points = mixture.sample(200, sampler="mala", steps=50, seed=1)  # warnings are errors
    assert points.shape == (200, 1)


@pytest.mark.full
def test_calibrate_estimates_log_z_where_it_is_not_known():
    log_z = math.log(2 * math.sqrt(2 * math.pi))
    assert ce.calibrate(normal(0.0, 0.5) | function(1.0, 2.0), seed=0).log_z == pytest.approx([0.0, log_z], abs=0.1)
    either, x = normal(0.0, 0.5) ^ normal(1.0, 2.0), torch.linspace(-4, 4, 9)[:, None]
    torch.testing.assert_close(ce.calibrate(either, seed=0)(x), either(x))


@pytest.mark.full
def test_narrow_and_wide_branches_keep_their_spread():
    points = ce.any_of(normal(-5.0, 0.1, 10), normal(5.0, 2.0, 10), weights=[0.6, 0.4]).sample(2000, seed=13)
    narrow = (points < -4).all(1)
    assert errors(narrow, 0.6) < 4.5
    assert points[narrow].std() == pytest.approx(0.1, rel=0.05) and points[~narrow].std() == pytest.approx(2.0, rel=0.05)


def left(x):
    return (x + 1).square().sum(1)


def right(x):
    return (x - 1).square().sum(1)


def pair(base, other):
    """Two relative energies over a base and its copy, and a function of the sum of their energies minus one base."""
    a, b = (ce.as_energy(f, event_shape=(2,)).relative_to(over) for f, over in ((left, base), (right, other)))
    return a, b


def first(energy):
    return next(energy.parameters())


def step(energy):
    optimizer = torch.optim.SGD(energy.parameters(), 0.1)
    energy(X).sum().backward()
    optimizer.step()


CHANGES = {
    "data.copy_": lambda energy: first(energy).data.copy_(torch.ones(4, 2)),
    "numpy": lambda energy: first(energy).detach().numpy().__iadd__(1.0),
    "optimizer": step,
    "a buffer": lambda energy: energy.register_buffer("shift", torch.ones(1)),
    "another layer": lambda energy: next(iter(energy.children())).append(nn.Identity()),
    "load_state_dict": lambda energy: energy.load_state_dict({name: value + 1 for name, value in energy.state_dict().items()}),
}


@pytest.mark.full
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_copy_that_was_changed_in_any_way_is_not_counted_with_its_original(change):
    base = ce.as_energy(network(width=4), event_shape=(2,))
    other = copy.deepcopy(base)
    a, b = pair(base, other)
    both = a & b
    torch.testing.assert_close(both(X), left(X) + right(X) - base(X))
    kept = pickle.loads(pickle.dumps(both)), copy.deepcopy(both)
    change(other)
    for stale in (both, 2 * both, copy.deepcopy(both), pickle.loads(pickle.dumps(both)), copy.deepcopy(both).double()):
        refused(ExpressionError, "counts two copies of one", stale, X.double() if first(stale).dtype == torch.float64 else X)
    refused(ExpressionError, "counts two copies of one", both.sample, (4, 2), sampler="langevin", step_size=0.01, steps=1, seed=0)
    torch.testing.assert_close((a & b)(X), left(X) + right(X))  # two bases, each once, and evidence without them
    for same in kept:
        torch.testing.assert_close(same(X), kept[0](X))


def test_copies_that_are_changed_alike_and_one_object_stay_one_base():
    base = ce.as_energy(network(width=4), event_shape=(2,))
    other = copy.deepcopy(base)
    both, shared = (lambda a, b: a & b)(*pair(base, other)), (lambda a, b: a & b)(*pair(base, base))
    for energy in (base, other):
        first(energy).data.copy_(torch.ones(4, 2))
    for energy in (both, shared):
        torch.testing.assert_close(energy(X), left(X) + right(X) - base(X))
    base.to(torch.float64)  # converted, and the same up to rounding
    torch.testing.assert_close((shared(X.double())), left(X.double()) + right(X.double()) - base(X.double()))


def test_copies_of_networks_of_events_buffers_and_distributions_are_compared_too():
    base = ce.as_energy(td.Normal(torch.zeros(2), 1.0))
    red = ce.ClassifierEnergy(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval(), 0, base, labels=3)
    other = copy.deepcopy(red)
    both = red & other
    torch.testing.assert_close(both(X), red(X))
    other.logits[1].running_mean.data.fill_(1.0)
    refused(ExpressionError, "counts two copies of one", both, X)
    moved = copy.deepcopy(base)
    both = (lambda a, b: a & b)(*pair(base, moved))
    both(X)
    moved.distribution.loc.numpy()[:] = 1.0
    refused(ExpressionError, "counts two copies of one", both, X)


BASE = ce.as_energy(td.Normal(torch.zeros(2), 1.0))
RED = ce.ClassifierEnergy(nn.Linear(2, 3), 0, BASE, labels=3)
ONES = {"1 * A": lambda a: 1 * a, "2 * (A / 2)": lambda a: 2 * (a / 2), "twice": lambda a: (1 * a).sharpened(1) / 1}


@pytest.mark.parametrize("weigh", ONES.values(), ids=ONES)
def test_an_event_with_a_weight_of_one_is_the_event(weigh):
    for term in (weigh(RED), copy.deepcopy(weigh(RED)), pickle.loads(pickle.dumps(weigh(RED)))):
        for same in (term & RED, RED & term, term | RED, ~~term, weigh(term)):
            torch.testing.assert_close(same(X), RED(X))
        torch.testing.assert_close((~term)(X), (~RED)(X))
        torch.testing.assert_close((term | ~RED).evidence(X), torch.zeros(3), atol=1e-6, rtol=0)
        refused(ContradictionError, None, term & ~RED, X)
        refused(ContradictionError, None, term ^ RED, X)
