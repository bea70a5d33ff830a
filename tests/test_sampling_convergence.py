"""Warnings that `sample` emits by itself: about chains that stand still, drift or do not agree, and about improbable formulas."""

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import composable_energy as ce
from composable_energy import SamplingWarning
from composable_energy_mcmc import HMC, MALA, Annealed, Descent, Langevin
from tests.diagnosed_runs import F64, gaussian, kinds

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

BOWL = gaussian(1.0, 1.0)


def modes(distance: float) -> ce.Energy:
    means = torch.tensor([[-distance, 0.0], [distance, 0.0]], dtype=F64)
    mixture = MixtureSameFamily(Categorical(torch.ones(2, dtype=F64)), Independent(Normal(means, 1.0), 1))
    return ce.as_energy(lambda x: -mixture.log_prob(x), event_shape=(2,))  # whose modes no structure shows


class TestConvergence:
    @pytest.mark.full
    @pytest.mark.parametrize(
        ("energy", "options", "kind"),
        [
            (gaussian(1e-6, 1e-6), {"sampler": MALA(1.0), "init": torch.zeros(64, 2, dtype=F64), "steps": 100}, "constant"),
            (modes(8.0), {"sampler": HMC(0.5, leapfrogs=4), "steps": 100}, "r_hat"),
            (BOWL, {"sampler": Langevin(0.005), "init": torch.full((64, 2), 20.0, dtype=F64), "steps": 200}, "drift"),
            (BOWL, {"sampler": Langevin(2.0), "steps": 100}, "bias"),
        ],
    )
    def test_wrong_runs_warn_without_a_trace(self, energy, options, kind):
        with pytest.warns(SamplingWarning) as found:
            energy.sample((64, 2), seed=0, **options)
        assert [str(some.message).partition(":")[0] for some in found] == [kind]
        assert found[0].filename == __file__  # the line that sampled
        _, trace = energy.sample((64, 2), seed=0, trace=True, **options)
        assert kind in kinds(trace)

    def test_a_chain_that_never_moved_among_others(self):
        narrow = ce.as_energy(Independent(Normal(torch.full((2,), 9.0, dtype=F64), 1e-4), 1))
        start = torch.zeros(10, 2, dtype=F64)
        start[[3, 7]] = 9.0
        with pytest.warns(SamplingWarning, match=r"stuck: 2 \(chains 3, 7\) of 10 chains did not move in the last 30 steps"):
            (BOWL | narrow).sample((10, 2), sampler=MALA(1.0), init=start, steps=60, seed=0)

    @pytest.mark.slow
    @pytest.mark.parametrize("options", [{"batch_size": 20, "on_divergence": "keep"}, {"steps": 30}, {"trace": 1}])
    def test_right_runs_do_not(self, options):
        BOWL.sample((64, 2), **{"sampler": MALA(1.0), "steps": 120, "seed": 0, **options})

    @pytest.mark.slow
    def test_chains_that_settle_on_nothing_or_differ_by_their_conditions_are_not_compared(self):
        for sampler, steps in ((Annealed(levels=100), 100), (Descent(), 100)):
            modes(8.0).sample((64, 2), sampler=sampler, steps=steps, seed=0)
        centred = ce.as_energy(lambda x, y: (x - y[:, None]).square().sum(1) / 2).given(y=torch.arange(64.0) * 10)
        start = torch.arange(64.0)[:, None].expand(64, 2) * 10
        _, trace = centred.sample((64, 2), sampler=MALA(1.0), steps=200, init=start, seed=0, trace=1)
        assert kinds(trace) == {"unchecked"} and "Chains have conditions and densities" in str(trace.summary())

    @pytest.mark.slow
    def test_the_sampler_that_an_energy_recommends_is_not_judged(self):
        energy = modes(8.0)
        energy.recommended = ce.Recommendation("hmc", {"step_size": 0.5, "leapfrogs": 4})
        energy.sample((64, 2), seed=0)
        with pytest.warns(SamplingWarning, match="do not agree"):
            energy.sample((64, 2), seed=0, steps=100)


class TestStarts:
    """Most start points lie on a plateau, which chains do not leave."""

    init = torch.cat([torch.randn(30, 2, generator=torch.Generator().manual_seed(0)), torch.full((98, 2), 300.0)])

    @staticmethod
    def sample(**options):
        def energy(x):
            bowl = x.square().sum(1) / 2
            return torch.where(bowl < 40, bowl, 40 + 0.001 * (bowl - 40).clamp(min=1e-9).sqrt())

        return ce.as_energy(energy, event_shape=(2,)).sample(128, seed=0, init=TestStarts.init, trace=1, **options)

    @pytest.mark.slow
    def test_chains_that_do_not_arrive_start_at_pilots(self):
        _, trace = self.sample()
        assert trace.relocated == 98 and not trace.warnings()
        assert "98 chains did not get from `init` to the density" in str(trace.summary())
        assert abs(trace.points.square().mean().item() - 1) < 0.05


@pytest.mark.slow
def test_a_function_and_a_bar_hear_of_the_tuning_and_of_each_step(capfd):
    heard = []
    watched = BOWL.sample((4, 2), steps=3, seed=0, observers=[ce.sampling.Progress(lambda *what: heard.append(what))])
    tuning = [what for what in heard if what[0] == "tuning"]
    assert tuning == [("tuning", i + 1, None) for i in range(len(tuning))] and len(tuning) > 100
    assert heard[len(tuning) :] == [("sampling", i, 3) for i in range(4)]
    assert watched.equal(BOWL.sample((4, 2), steps=3, seed=0, observers=[ce.sampling.Progress()]))
    assert "tuning chees" in capfd.readouterr().err


class TestThresholds:
    def test_short_chains_of_many_are_judged_by_all_draws_together(self):
        start = torch.randn(64, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
        many = BOWL.sample((64, 2), sampler=MALA(1.0), steps=150, init=start, seed=0, trace=1)[1]
        worst = max(row.r_hat for row in many.summary().rows)
        assert 1.01 < worst < 1.1 and kinds(many) == set()
        few = BOWL.sample((4, 2), sampler=MALA(1.0), steps=150, init=start[:4], seed=0, trace=1)[1]
        assert "r_hat" in kinds(few) or "ess" in kinds(few)


class TestFormulas:
    """Two heads that contradict each other where the base is: together they are improbable at all its points."""

    def heads(self) -> tuple[ce.Energy, ce.Energy]:
        base = gaussian(0.2, 0.2)
        return tuple(ce.ClassifierEnergy(lambda x, s=s: s * 20 * x[:, :1] - 10, 1, base, name=f"side {s}") for s in (1, -1))

    @pytest.mark.full
    def test_a_formula_that_no_draw_shows(self):
        left, right = self.heads()
        for energy in (left & right, 2 * (left & right), (left & right) & gaussian(9.0, 9.0)):
            with pytest.warns(SamplingWarning, match="formula: At the draws the classifiers give the formula a mean probability"):
                x, trace = energy.sample((64, 2), sampler=MALA(), steps=60, seed=0, trace=True)
            expected = (-(left & right).evidence(x)).exp().mean().item()
            assert trace.formula_probability == pytest.approx(expected) and expected < 0.01
            assert "formula" in kinds(trace) and "P(formula)" in trace.summary().facts

    @pytest.mark.slow
    def test_formulas_that_hold_and_branches_of_mixtures_do_not_warn(self):
        left, right = self.heads()
        _, trace = (~left & ~right).sample((64, 2), sampler=MALA(), steps=60, seed=0, trace=True)
        assert trace.formula_probability > 0.9 and "formula" not in kinds(trace)
        assert BOWL.sample((64, 2), sampler=MALA(), steps=60, seed=0, trace=True)[1].formula_probability is None
