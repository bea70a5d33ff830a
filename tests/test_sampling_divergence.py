"""Chains that diverge stop at their last finite point and are reported, with the term that is not finite."""

import pytest
import torch
from torch import Tensor
from torch.distributions import HalfNormal, Independent, Normal

import composable_energy as ce
from composable_energy import SamplingWarning
from composable_energy.errors import SamplingDiverged
from composable_energy.sampling.noise import Noise
from composable_energy_mcmc import HMC, MALA, Annealed, Langevin

NAN, INF = float("nan"), float("inf")


class Cliff(ce.Energy):
    """A bowl whose energy is not finite outside a radius."""

    def __init__(self, radius: float = 2.0, beyond: float = -INF) -> None:
        super().__init__()
        self.radius, self.beyond = radius, beyond

    def forward(self, x: Tensor) -> Tensor:
        inside = x.square().sum(1)
        return torch.where(inside < self.radius**2, inside / 2, self.beyond)


class After(ce.Energy):
    """A bowl whose energy is minus infinity from some call on; `rows` says for which points."""

    def __init__(self, calls: int, rows: slice = slice(None)) -> None:
        super().__init__()
        self.left, self.rows = calls + 2, rows  # two more compare a point beside others and beside copies of itself

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        energy = x.square().sum(1) / 2
        if self.left < 0:
            energy[self.rows] = -INF
        return energy


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "value"), [(MALA(0.2), NAN), (HMC(), INF), (Annealed(levels=3), -INF)], ids=repr)
def test_an_energy_that_is_never_finite_is_reported_at_the_start(sampler, value):
    energy = ce.as_energy(lambda x: x.square().sum(1) * 0 + value)
    for policy in ("raise", "keep"):
        with pytest.raises(SamplingDiverged, match=r"5 of 5 .* at the start: the energy of .*, or give points in `init`") as error:
            energy.sample((5, 2), sampler=sampler, seed=0, on_divergence=policy)
        samples = error.value.samples
        assert error.value.step == 0 and error.value.diverged.all() and samples.shape == (5, 2) and samples.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "size"), [(Langevin(0.2), 2), (HMC(0.35, leapfrogs=1), None)], ids=repr)
def test_an_energy_that_breaks_after_50_steps_is_reported_and_nothing_is_lost(sampler, size):
    chunks = 1 if size is None else 3
    with pytest.raises(SamplingDiverged, match=r"after 51 steps: take a smaller step, or keep .* by on_divergence='keep'") as error:
        After(51 * chunks).sample((5, 2), sampler=sampler, steps=100, seed=0, batch_size=size)
    assert error.value.step == 51 and error.value.diverged.all()
    whole = After(10**6).sample((5, 2), sampler=sampler, steps=50, seed=0)
    assert torch.equal(error.value.samples, whole)


def test_the_others_are_where_they_were_too():
    with pytest.raises(SamplingDiverged, match="2 of 5 chains") as error:
        After(51, slice(1, 3)).sample((5, 2), sampler=Langevin(0.2), steps=100, seed=0)
    assert error.value.diverged.tolist() == [False, True, True, False, False]
    before, after = (After(10**6).sample((5, 2), sampler=Langevin(0.2), steps=steps, seed=0) for steps in (50, 51))
    assert torch.equal(error.value.samples[1:3], before[1:3])
    assert torch.equal(error.value.samples[[0, 3, 4]], after[[0, 3, 4]])


@pytest.mark.full
@pytest.mark.parametrize(("sampler", "size"), [(Langevin(0.2), None), (HMC(0.35, leapfrogs=1), 7)], ids=repr)
def test_chains_that_diverge_are_kept_at_their_last_finite_point(sampler, size):
    n, steps = 40, 40
    init = torch.zeros(n, 2)

    def draw(policy, energy=None, steps=steps):
        return (Cliff(3.0) if energy is None else energy).sample(
            (n, 2), sampler=sampler, steps=steps, seed=5, init=init, batch_size=size, on_divergence=policy, trace=1, burn_in=0
        )

    whole, _ = draw("raise", Cliff(radius=1e6))
    kept, kept_trace = draw("keep")
    bad = kept_trace.diverged
    assert 0 < bad.sum() < 35
    assert kept.shape == (n, 2) and kept.isfinite().all() and Cliff(3.0)(kept).isfinite().all()
    assert torch.equal(kept[~bad], whole[~bad])
    first = int(bad.nonzero()[0])
    at = int(kept_trace.diverged_at[first])
    assert at > 0 and torch.equal(kept[first], draw("raise", Cliff(radius=1e6), steps=at)[1].points[-2][first])
    assert (kept_trace.points[at - 1 :, first] == kept[first]).all()
    assert kept_trace.to_dict()["sample_stats"]["diverging"][first].tolist() == [step >= at for step in range(1, steps + 1)]


def test_chains_that_cannot_start_are_kept_at_their_start():
    start = ce.as_energy(lambda x: torch.where(x > 0, x, torch.inf).sum(1))  # no support is known, so half of all starts are outside
    with pytest.raises(SamplingDiverged, match="at the start"):
        start.sample((50, 1), sampler=HMC(0.3), steps=3, seed=0)
    x, trace = start.sample((50, 1), sampler=HMC(0.3), steps=3, seed=0, on_divergence="keep", trace=True)
    assert 10 < trace.diverged.sum() < 40 and (trace.diverged_at[trace.diverged] == 0).all()
    assert torch.equal(x[:, 0] <= 0, trace.diverged)
    assert torch.equal(x[trace.diverged], Noise(0, range(50)).child("start").normal(x)[trace.diverged])


def test_a_call_ends_early_when_all_chains_diverged():
    steps, options = [], {"sampler": Langevin(0.2), "steps": 100, "seed": 0, "on_divergence": "keep", "trace": True}
    x, trace = After(51).sample((5, 2), observers=[ce.sampling.Stop(lambda step, *_: steps.append(step))], **options)
    assert torch.equal(x, After(10**6).sample((5, 2), sampler=Langevin(0.2), steps=50, seed=0))
    assert trace.steps == 51 and steps[-1] == 50 and len(trace.energies) == 51


def test_half_precision_is_checked_too():
    dtype = torch.float16
    big = ce.as_energy(lambda x: x.float().square().sum(1) / 2)
    x = big.sample((4, 1000), sampler=Langevin(0.1), steps=3, seed=0, dtype=dtype, init=torch.full((4, 1000), 30.0, dtype=dtype))
    assert x.isfinite().all() and x.dtype == dtype
    with pytest.raises(SamplingDiverged):
        After(2).sample((4, 2), sampler=Langevin(0.1), steps=5, seed=0, dtype=dtype)


def test_the_pilot_of_a_tuned_sampler_survives_losses():
    with pytest.warns(SamplingWarning, match=r"diverged: \d+ of 50 chains .* stay at their last finite point"):  # no trace says which
        x = Cliff(3.0).sample((50, 2), sampler=HMC(tuning_steps=30), steps=5, seed=0, init=torch.zeros(50, 2), on_divergence="keep")
    assert x.isfinite().all()


NORMAL = ce.as_energy(Independent(Normal(torch.zeros(2), 1.0), 1), name="normal")
STEP = {"sampler": "langevin", "step_size": 0.1, "steps": 5, "seed": 0}


class Kink(torch.autograd.Function):
    """0 with a gradient that is NaN."""

    @staticmethod
    def forward(ctx, x):
        return x.sum(1) * 0

    @staticmethod
    def backward(ctx, *grads):
        return torch.full((len(grads[0]), 2), torch.nan)


def left_is(value, name):
    return ce.as_energy(lambda x: torch.where(x[:, 0] < 0, value, x[:, 0] * 0), name=name)


def message(energy, **call):
    with pytest.raises(SamplingDiverged) as caught:
        energy.sample((40, 2), **{**STEP, **call})
    return str(caught.value), caught.value


@pytest.mark.parametrize(("value", "kind"), [(torch.nan, "NaN"), (torch.inf, "infinite"), (-torch.inf, "infinite")])
def test_the_term_and_its_energy_are_named(value, kind):
    text, error = message(NORMAL & left_is(value, "wall"))
    count = int(error.diverged.sum())
    assert 5 < count < 35 and torch.equal(error.samples[:, 0] < 0, error.diverged)
    assert f"{count} of 40 chains" in text and f"the energy of wall is {kind} at {count} of {count}" in text


@pytest.mark.parametrize(
    ("energy", "init", "told"),
    [
        (NORMAL & ce.as_energy(Kink.apply, name="kink"), None, "the gradient of kink is NaN at 40 of 40"),
        (2 * left_is(torch.nan, "wall") & NORMAL, None, "the energy of wall is NaN"),
        (ce.any_of(NORMAL, left_is(torch.nan, "wall"), weights=[1, 1]), None, "the energy of wall is NaN"),
        (NORMAL & left_is(torch.inf, "wall"), None, "give points in `init`"),
        (NORMAL & left_is(torch.inf, "wall"), -torch.ones(40, 2), "give other points in `init`"),
        (NORMAL, torch.full((40, 2), torch.nan), "the start points are not finite themselves"),
        (  # in coordinates of a support: draws of a half normal are positive, and the other term is NaN below 1
            ce.as_energy(Independent(HalfNormal(torch.ones(2)), 1))
            & ce.as_energy(lambda x: torch.where(x[:, 0] < 1, torch.nan, x[:, 0] * 0), name="low"),
            None,
            "the energy of low is NaN at",
        ),
    ],
)
def test_what_is_not_finite_is_named_and_where_it_is(energy, init, told):
    assert told in message(energy, init=init)[0]
    if init is not None and init.isnan().all():  # tuning has no chain to measure
        assert told in message(energy, init=init, sampler="chees", step_size=None)[0]
