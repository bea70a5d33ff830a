"""Runs that do not go well: chains that diverge are reported, those that have not converged take more steps; and summaries of runs."""

import sys
import warnings

import arviz_stats
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import HalfNormal, Independent, Normal

import composable_energy as ce
from composable_energy import SamplingWarning
from composable_energy.errors import ExtraNotInstalled, OptionError, SamplingDiverged, SamplingInterrupted, ShapeError
from composable_energy.sampling import Checkpoint, Stop
from composable_energy.sampling.noise import Noise
from composable_energy_mcmc import HMC, MALA, Annealed, ChEES, Langevin, Underdamped
from tests.refusals import refused
from tests.sampling_runs import F64, gaussian, kinds, run

NAN, INF = float("nan"), float("inf")
# The mean of its first coordinate is 3; 100 steps are too few.
BANANA = ce.as_energy(lambda x: 5 * (x[:, 0] - 3 * x[:, 1] ** 2) ** 2 + x[:, 1] ** 2 / 2, event_shape=(2,))
SHORT = ChEES(0.1, 0.3)  # trajectories that are too short, and need no pilot chains
APART = ce.as_energy(lambda x: -torch.logaddexp(-(x - 20).square().sum(1) / 2, -(x + 20).square().sum(1) / 2), event_shape=(2,))


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
        self.left, self.rows = calls + 3, rows  # three more compare a point beside others, and beside many and few copies of itself

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
    with pytest.raises(SamplingDiverged, match=r"after 51 steps: take a smaller step, or keep .* by on_divergence='keep'") as error:
        After(51 if size is None else 153).sample((5, 2), sampler=sampler, steps=100, seed=0, batch_size=size)
    assert error.value.step == 51 and error.value.diverged.all()
    assert torch.equal(error.value.samples, After(10**6).sample((5, 2), sampler=sampler, steps=50, seed=0))


def test_the_others_are_where_they_were_too():
    with pytest.raises(SamplingDiverged, match="2 of 5 chains") as error:
        After(51, slice(1, 3)).sample((5, 2), sampler=Langevin(0.2), steps=100, seed=0)
    assert error.value.diverged.tolist() == [False, True, True, False, False]
    before, after = (After(10**6).sample((5, 2), sampler=Langevin(0.2), steps=steps, seed=0) for steps in (50, 51))
    assert torch.equal(error.value.samples[1:3], before[1:3]) and torch.equal(error.value.samples[[0, 3, 4]], after[[0, 3, 4]])


@pytest.mark.full
@pytest.mark.parametrize(("sampler", "size"), [(Langevin(0.2), None), (HMC(0.35, leapfrogs=1), 7)], ids=repr)
def test_chains_that_diverge_are_kept_at_their_last_finite_point(sampler, size):
    n, steps, init = 40, 40, torch.zeros(40, 2)

    def draw(policy, energy=None, steps=steps):
        return (Cliff(3.0) if energy is None else energy).sample(
            (n, 2), sampler=sampler, steps=steps, seed=5, init=init, batch_size=size, on_divergence=policy, trace=1, burn_in=0
        )

    whole, _ = draw("raise", Cliff(radius=1e6))
    kept, kept_trace = draw("keep")
    bad = kept_trace.diverged
    assert 0 < bad.sum() < 35 and kept.shape == (n, 2) and kept.isfinite().all() and Cliff(3.0)(kept).isfinite().all()
    assert torch.equal(kept[~bad], whole[~bad])
    at = int(kept_trace.diverged_at[first := int(bad.nonzero()[0])])
    assert at > 0 and torch.equal(kept[first], draw("raise", Cliff(radius=1e6), steps=at)[1].points[-2][first])
    assert (kept_trace.points[at - 1 :, first] == kept[first]).all()
    assert kept_trace.to_dict()["sample_stats"]["diverging"][first].tolist() == [step >= at for step in range(1, steps + 1)]


def test_chains_that_cannot_start_are_kept_at_their_start():
    start = ce.as_energy(lambda x: torch.where(x > 0, x, torch.inf).sum(1))  # no support is known, so half of all starts are outside
    refused(SamplingDiverged, "at the start", start.sample, (50, 1), sampler=HMC(0.3), steps=3, seed=0)
    x, trace = start.sample((50, 1), sampler=HMC(0.3), steps=3, seed=0, on_divergence="keep", trace=True)
    assert 10 < trace.diverged.sum() < 40 and (trace.diverged_at[trace.diverged] == 0).all() and torch.equal(x[:, 0] <= 0, trace.diverged)
    assert torch.equal(x[trace.diverged], Noise(0, range(50)).child("start").normal(x)[trace.diverged])


def test_a_call_ends_early_when_all_chains_diverged():
    steps, options = [], {"sampler": Langevin(0.2), "steps": 100, "seed": 0, "on_divergence": "keep", "trace": True}
    x, trace = After(51).sample((5, 2), observers=[ce.sampling.Stop(lambda step, *_: steps.append(step))], **options)
    assert torch.equal(x, After(10**6).sample((5, 2), sampler=Langevin(0.2), steps=50, seed=0))
    assert trace.steps == 51 and steps[-1] == 50 and len(trace.energies) == 51


def test_half_precision_is_checked_too():
    dtype, big = torch.float16, ce.as_energy(lambda x: x.float().square().sum(1) / 2)
    x = big.sample((4, 1000), sampler=Langevin(0.1), steps=3, seed=0, dtype=dtype, init=torch.full((4, 1000), 30.0, dtype=dtype))
    assert x.isfinite().all() and x.dtype == dtype
    refused(SamplingDiverged, None, After(2).sample, (4, 2), sampler=Langevin(0.1), steps=5, seed=0, dtype=dtype)


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


@pytest.mark.full
def test_steps_are_doubled_until_the_chains_agree():
    """The points are those of a call with as many steps, and right. For a seed in six 100 steps do, for which one depends on rounding."""
    points, trace = next(call for seed in (1, 2, 3) if (call := BANANA.sample(64, seed=seed, trace=True))[1].steps > 100)
    assert trace.steps in (200, 400, 800) and torch.equal(points, BANANA.sample(64, seed=trace.seed, steps=trace.steps))
    assert abs(points[:, 0].mean() - 3) < 4 * 18**0.5 / 64**0.5


def test_steps_are_doubled_until_the_points_of_a_trace_are_enough():
    """Eight chains of 500 steps, each worth a few draws of the wide coordinate."""
    wide = ce.as_energy(torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.tensor([1.0, 8.0])), 1))
    _, trace = wide.sample(8, sampler="mala", seed=0, trace=1)
    assert trace.points is not None and trace.steps > 500 and len(trace.points) == trace.steps


@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
def test_an_interrupted_call_says_how_many_steps_are_left():
    def stop(step, state, info):
        if step == 150:
            raise KeyboardInterrupt

    with pytest.raises(SamplingInterrupted, match=r"after 150 of 200 steps.*steps=50\)") as caught:
        BANANA.sample(64, sampler=SHORT, seed=1, observers=[Stop(stop)])
    assert torch.equal(BANANA.sample(64, resume=caught.value.trace, steps=50), BANANA.sample(64, sampler=SHORT, seed=1, steps=200))


def test_chains_in_modes_that_are_apart_are_given_up_early():
    with pytest.warns(SamplingWarning, match="R-hat"):
        assert APART.sample(64, seed=0, trace=True)[1].steps == 200


def test_a_mode_that_chains_miss_or_hardly_leave_is_seen():
    """Its share is .1; `tempering` crosses the barrier, and a mode whose share is 1e-6 does not count."""

    def mixed(share: float) -> ce.Energy:
        means, shares = torch.tensor([[0.0, 0.0], [12.0, 0.0]]), torch.tensor([1 - share, share])
        density = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(shares), Independent(Normal(means, 1.0), 1))
        return ce.as_energy(lambda x: -density.log_prob(x), event_shape=(2,))

    raising = ce.as_energy(lambda x: x.square().sum(1) / [2][int((x.abs() > 12).any())], event_shape=(2,))  # far from all chains
    with pytest.warns(SamplingWarning, match="mode: None of 500 chains are in a mode of the density at 12, "):
        mixed(0.1).sample(500, seed=0)
    start = torch.zeros(500, 2).index_fill(0, torch.tensor([115, 391]), 12.0)
    with pytest.warns(SamplingWarning, match="mode: 2 of 500 chains are in a mode of the density at 12, "):
        mixed(0.1).sample(500, sampler=HMC(0.5), init=start, steps=100, seed=0)
    for energy, options in ((mixed(0.1), {"sampler": "tempering"}), (mixed(1e-6), {}), (raising, {"sampler": HMC(0.5), "steps": 100})):
        energy.sample(500, seed=0, **options)  # warnings are errors


def test_a_coordinate_that_rounding_holds_has_an_infinite_r_hat():
    """One of 1e8 moves by steps of 8 in float32, if at all."""
    wide, start = ce.as_energy(lambda x: (x / torch.tensor([1e9, 1.0])).square().sum(1)), torch.linspace(1e8, 2e8, 50)[:, None].repeat(1, 2)
    with pytest.warns(SamplingWarning, match="R-hat is inf for coordinate 0 over"):
        wide.sample((50, 2), sampler=HMC(0.5), init=start * torch.tensor([1.0, 0.0]), steps=100, seed=0)


def test_calls_whose_chains_others_continue_keep_the_number_of_steps(tmp_path):
    """As those with a checkpoint, a trace to resume, or a part of the chains, which would not know the others; and those with starts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)
        with pytest.warns(SamplingWarning, match="R-hat"):
            first = BANANA.sample(64, sampler=SHORT, seed=1, steps=100, trace=True)[1]
        assert BANANA.sample(64, sampler=SHORT, seed=1, trace=True)[1].steps > 100
        checkpoint = {"observers": [Checkpoint(tmp_path / "chains")]}
        calls = ({"sampler": SHORT, "seed": 1, **keeps} for keeps in (checkpoint, {"first_chain": 64}, {"init": torch.zeros(64, 2)}))
        assert [BANANA.sample(64, trace=True, **call)[1].steps for call in (*calls, {"resume": first})] == [100, 100, 100, 200]


class TestSummary:
    def test_the_figures_are_those_of_arviz(self):
        pytest.importorskip("arviz_base")  # not on Python 3.10, where ArviZ has only the functions for arrays
        trace = run(gaussian(0.5, 1.0, 2.0), (6, 3), MALA(0.5), 300, trace=2, burn_in=100)
        tree, rows = trace.to_arviz(), {row.name: row for row in trace.summary().rows}
        assert [*rows] == ["energy", "x[0]", "x[1]", "x[2]"]
        for group, name, places in (("posterior", "x", ["x[0]", "x[1]", "x[2]"]), ("sample_stats", "lp", ["energy"])):
            found = {
                "mcse": arviz_stats.mcse(tree, group=group, var_names=name),
                "ess_bulk": arviz_stats.ess(tree, group=group, var_names=name),
                "ess_tail": arviz_stats.ess(tree, group=group, var_names=name, method="tail", prob=(0.05, 0.95)),
                "r_hat": arviz_stats.rhat(tree, group=group, var_names=name),
            }
            for statistic, data in found.items():
                np.testing.assert_allclose([getattr(rows[place], statistic) for place in places], data[name].values.reshape(-1), rtol=1e-9)
        for axis, x in enumerate(trace.points.flatten(0, 1).T):
            row = rows[f"x[{axis}]"]
            assert row.mean == pytest.approx(x.mean().item()) and row.sd == pytest.approx(x.std().item())

    def test_facts_describe_the_run(self):
        trace = run(gaussian(1.0, 1.0), (8, 2), ChEES(0.5, 1.5), 30)
        facts = trace.summary().facts
        assert facts["chains"] == "8" and facts["draws"] == "15 of each chain: the later half of the steps"
        assert trace.seconds > 0 and facts["steps"] == f"30, seed 0, {trace.seconds:.3g} s"
        assert facts["gradients"].startswith(f"{sum(trace.scalars['leapfrogs']) + 1:.0f} of each chain")
        assert facts["leapfrogs"].startswith("1 to 3") and "goal 0.75" in facts["acceptance"]
        trace = run(gaussian(1.0), (8, 1), Langevin(0.1), 30, burn_in=20)
        assert trace.summary().facts["draws"] == "10 of each chain: the steps after 20"
        rest = gaussian(1.0).sample((8, 1), resume=trace, steps=8, trace=True, burn_in=20)[1]
        assert rest.summary().facts["draws"] == "8 of each chain: the steps after 30" and "unchecked" not in kinds(rest)

    @pytest.mark.parametrize("sampler", [Underdamped(0.1), HMC(0.1, leapfrogs=3), ChEES(0.5, 1.5)])
    def test_gradients_are_counted_rightly(self, sampler):
        counts = []
        energy = ce.as_energy(lambda x: counts.append(len(x) * x.requires_grad) or x.square().sum(1) / 2)
        assert run(energy, (5, 2), sampler, 7, init=torch.zeros(5, 2)).summary().facts["gradients"].split()[0] == str(sum(counts) // 5)

    @pytest.mark.slow
    def test_a_burn_in_afterwards(self):
        sampler, start = HMC(0.5, leapfrogs=6, acceptance=0.9), torch.full((8, 2), 1e3, dtype=F64)
        trace = run(gaussian(0.5, 1.0), (8, 2), sampler, 600, init=start, trace=1)
        assert abs(trace.summary().rows[1].sd) > 10 and abs(trace.summary(200).rows[1].sd - 0.5) < 0.05
        assert kinds(trace, burn_in=200) == set() and trace.summary(200).facts["draws"].startswith("400 of each chain")
        for wrong in (trace, run(gaussian(1.0), (8, 1), MALA(1.0), 20)):
            refused(OptionError, "burn_in=600 leaves nothing", wrong.summary, 600)
            refused(OptionError, "burn_in must be a whole number of at least 0", wrong.summary, -1)

    def test_chains_that_diverged_are_left_out(self):
        hole = ce.as_energy(lambda x: torch.where(x[:, 0] > 2, torch.nan, x.square().sum(1) / 2))
        trace = run(hole, (40, 2), Langevin(0.1), 60, on_divergence="keep", trace=1)
        energy, fine = trace.summary().rows[0], trace.energies[:, ~trace.diverged]
        assert energy.mean == pytest.approx(fine.mean().item(), rel=1e-5) and np.isfinite(energy.r_hat)
        cliff = ce.as_energy(lambda x: torch.where(x[:, 0] < 9, torch.nan, x[:, 0]))
        gone = run(cliff, (4, 1), Langevin(0.1), 50, init=torch.full((4, 1), 9.3), on_divergence="keep")
        assert gone.summary().rows == [] and kinds(gone) == {"diverged", "unchecked"}

    @pytest.mark.slow
    def test_of_many_coordinates_it_shows_the_worst(self):
        """One coordinate of 3,072 has two modes; it is found, and the table stays short."""
        energy = lambda x: (x.square().flatten(1).sum(1) - x[:, 1, 7, 9].square()) / 2 + (x[:, 1, 7, 9].abs() - 4).square() * 2
        summary = run(ce.as_energy(energy), (8, 3, 32, 32), HMC(0.2, leapfrogs=8), 40, trace=1).summary()
        assert [row.name for row in summary.rows][:2] == ["energy", "x[1, 7, 9]"] and len(summary.rows) == 9
        assert all(row.r_hat <= summary.rows[1].r_hat for row in summary.rows[2:])
        assert "8 worst of 3072" in str(summary) and len(str(summary).splitlines()) < 40
        assert kinds(run(ce.as_energy(energy), (2, 3, 32, 32), HMC(0.2, leapfrogs=8), 1, trace=1)) >= {"unchecked"}  # of a single draw

    def test_very_many_chains_cost_no_more(self):
        trace = run(gaussian(1.0), (2000, 1), Langevin(0.1), 20, trace=1)
        assert trace.summary().facts["R-hat, ESS"] == "of 512 chains, at even distances"


class TestArviZ:
    def test_axes_have_names_and_places(self):
        bowl = ce.as_energy(lambda x: x.square().flatten(1).sum(1) / 2)
        trace = run(bowl, (5, 3, 2), HMC(0.3, leapfrogs=4), 9, trace=2, burn_in=3, first_chain=10)
        tree = trace.to_arviz("z", dims=("channel", "row"), coords={"channel": ["red", "green", "blue"]})
        z, stats = tree["posterior"]["z"], tree["sample_stats"]
        assert z.dims == ("chain", "draw", "channel", "row") and z.shape == (5, 3, 3, 2)
        assert z["chain"].values.tolist() == [10, 11, 12, 13, 14] and z["draw"].values.tolist() == trace.point_steps == [5, 7, 9]
        assert z["channel"].values.tolist() == ["red", "green", "blue"] and z["row"].values.tolist() == [0, 1]
        np.testing.assert_array_equal(z.sel(chain=12, draw=7, channel="blue").values, trace.points[1, 2, 2])
        assert {*stats.data_vars} == {"lp", "diverging", "acceptance_rate", "step_size", "n_steps"}
        assert all(stats[name].dims == ("chain", "draw") for name in stats.data_vars)
        np.testing.assert_array_equal(stats["lp"].sel(draw=9).values, -trace.energies[8])
        assert stats["n_steps"][0].values.tolist() == trace.scalars["leapfrogs"][4::2] and float(stats["step_size"][0, 0]) == 0.3
        assert tree.attrs["seed"] == 0 and "HMC" in tree["posterior"].attrs["sampler"]

    def test_without_points_there_are_all_steps(self):
        trace = run(gaussian(1.0), (5, 1), Langevin(0.1), 6)
        assert [*(tree := trace.to_arviz()).children] == ["sample_stats"] and tree["sample_stats"]["lp"].shape == (5, 6)
        _, rest = gaussian(1.0).sample((5, 1), resume=trace, steps=2, trace=True)
        assert rest.to_arviz()["sample_stats"]["draw"].values.tolist() == [7, 8]

    def test_names_that_do_not_fit(self):
        trace = run(gaussian(1.0, 1.0), (5, 2), MALA(1.0), 6, trace=1)
        assert trace.to_arviz()["posterior"]["x"].dims == ("chain", "draw", "x_dim_0")
        for given in ({"dims": ("a", "b")}, {"dims": ("chain",)}, {"coords": {"a": [1]}}, {"dims": ["a"], "coords": {"a": [1, 2, 3]}}):
            refused(ShapeError, r"points of shape \(2,\)", trace.to_arviz, **given)

    def test_without_arviz_the_error_says_how_to_get_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "xarray", None)
        with pytest.raises(ExtraNotInstalled, match=r"needs xarray.*pip install 'composable-energy\[diagnostics\]'") as caught:
            run(gaussian(1.0), (5, 1), MALA(1.0), 6).to_arviz()
        assert isinstance(caught.value, ImportError)
