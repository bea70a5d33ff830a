"""What is wrong with the draws of a call is a warning of the call and of its trace, with advice; right draws have none."""

import re
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, StudentT

import composable_energy as ce
from composable_energy import SamplingWarning
from composable_energy.sampling import Trace
from composable_energy_mcmc import HMC, MALA, Annealed, ChEES, Descent, Langevin, Underdamped
from tests.sampling_runs import F64, gaussian, kinds, run

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")


def schools(x: torch.Tensor) -> torch.Tensor:
    """The energy of eight schools, centered: x is the mean, the logarithm of the scale, and the effects; chains stay in its neck."""
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sd = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    mean, log_scale, effects = x[:, :1], x[:, 1], x[:, 2:]
    prior = (mean[:, 0] / 5).square() / 2 + torch.log1p((log_scale.exp() / 5).square()) - log_scale + 8 * log_scale
    return prior + ((effects - mean).square().sum(1) * (-2 * log_scale).exp() + ((y - effects) / sd).square().sum(1)) / 2


def warned(energy: ce.Energy, shape: object, **options: object) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        energy.sample(shape, **options)
    return [some.message.kind for some in found if isinstance(some.message, SamplingWarning)]


SLOW = ce.as_energy(Independent(Normal(torch.zeros(2), torch.tensor([1.0, 0.1])), 1))
ROUND = ce.as_energy(Independent(Normal(torch.zeros(3), 1.0), 1))
HEAVY = ce.as_energy(Independent(StudentT(torch.full((2,), 5.0)), 1))


@pytest.mark.full
@pytest.mark.parametrize(("chains", "trace"), [(64, False), (16, 1)])
def test_posteriors_whose_chains_do_not_agree_warn(chains, trace):
    assert {"r_hat", "stuck", "drift"} & set(warned(ce.as_energy(schools, event_shape=(10,)), chains, seed=7, steps=100, trace=trace))


@pytest.mark.slow
def test_steps_that_are_too_short_warn_from_the_r_hat_of_the_trace_on():
    """Each chain forgets its start in about 30 steps: R-hat is 1.3, below the 1.7 at which the start would still matter."""
    start = torch.randn(64, 2, generator=torch.Generator().manual_seed(7)) * torch.tensor([1.0, 0.1])
    assert "r_hat" in warned(SLOW, (64, 2), sampler="mala", step_size=0.03, steps=400, init=start, seed=7)


@pytest.mark.slow
def test_few_draws_that_a_trace_keeps_warn_and_final_points_of_langevin_do_not():
    start = torch.randn(8, 3, generator=torch.Generator().manual_seed(7))
    assert set(warned(ROUND, (8, 3), sampler="langevin", step_size=0.05, steps=400, init=start, seed=7, trace=1)) & {"ess", "r_hat"}
    assert warned(ROUND, (8, 3), sampler="langevin", step_size=0.1, steps=400, init=start, seed=7) == []


@pytest.mark.full
def test_a_single_chain_is_judged_by_its_parts():
    start = torch.zeros(1, 2)
    assert "r_hat" in warned(SLOW, (1, 2), sampler="mala", step_size=2e-3, steps=800, init=start, seed=7)
    _, trace = SLOW.sample((1, 2), sampler="mala", step_size=2e-3, steps=800, init=start, seed=7, trace=1)
    assert {"r_hat", "ess"} <= {warning.kind for warning in trace.warnings()}
    assert warned(ROUND, (1, 3), sampler="chees", steps=800, seed=7, trace=1) == []


@pytest.mark.full
@pytest.mark.parametrize(("chains", "steps"), [(1, 800), (64, 100)])
def test_right_runs_seldom_warn(chains, steps):
    """None of 15 runs, where the rate is below 1 %; the sampler is tuned once. A rate of 10 % shows with a probability of 79 %."""
    sampler = HEAVY.sample((chains, 2), sampler=ChEES(), steps=1, seed=100, trace=True)[1].sampler
    found = [warned(HEAVY, (chains, 2), sampler=sampler, steps=steps, seed=seed) for seed in range(100, 115)]
    assert not any(found), found


@pytest.mark.full
def test_a_trace_does_not_blame_chance_for_r_hat():
    """Eight chains of a Gaussian, worth over 400 draws; a rate of 10 % shows with a probability of 72 %."""
    sampler, found = ROUND.sample((8, 3), sampler="chees", seed=100, trace=True, steps=1)[1].sampler, []
    for seed in range(100, 112):
        _, trace = ROUND.sample((8, 3), sampler=sampler, seed=seed, trace=1, steps=150)
        found += [warning.kind for warning in trace.warnings() if warning.kind == "r_hat"]
    assert not found


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

    def test_chains_that_never_moved_among_others(self):
        narrow = ce.as_energy(Independent(Normal(torch.full((2,), 9.0, dtype=F64), 1e-4), 1))
        start = torch.zeros(10, 2, dtype=F64)
        start[[3, 7]] = 9.0
        with pytest.warns(SamplingWarning, match=r"stuck: 2 \(chains 3, 7\) of 10 chains did not move in the last 30 steps"):
            _, trace = (BOWL | narrow).sample((10, 2), sampler=MALA(1.0), init=start, steps=60, seed=0, trace=True)
        assert "2 (chains 3, 7) of 10 chains accept less than 5%" in text(trace, "stuck")

    @pytest.mark.slow
    def test_chains_that_differ_by_their_conditions_are_not_compared(self):
        centred = ce.as_energy(lambda x, y: (x - y[:, None]).square().sum(1) / 2).given(y=torch.arange(64.0) * 10)
        start = torch.arange(64.0)[:, None].expand(64, 2) * 10
        _, trace = centred.sample((64, 2), sampler=MALA(1.0), steps=200, init=start, seed=0, trace=1)
        assert kinds(trace) == {"unchecked"} and "Chains have conditions and densities" in str(trace.summary())

    @pytest.mark.full
    def test_the_sampler_that_an_energy_recommends_is_not_judged(self):
        energy = modes(8.0)
        energy.recommended = ce.Recommendation("hmc", {"step_size": 0.5, "leapfrogs": 4})
        energy.sample((64, 2), seed=0)
        with pytest.warns(SamplingWarning, match="do not agree"):
            energy.sample((64, 2), seed=0, steps=100)


@pytest.mark.full
def test_chains_that_do_not_arrive_start_at_pilots():
    """Most start points lie on a plateau, which chains do not leave."""

    def plateau(x):
        bowl = x.square().sum(1) / 2
        return torch.where(bowl < 40, bowl, 40 + 0.001 * (bowl - 40).clamp(min=1e-9).sqrt())

    init = torch.cat([torch.randn(30, 2, generator=torch.Generator().manual_seed(0)), torch.full((98, 2), 300.0)])
    _, trace = ce.as_energy(plateau, event_shape=(2,)).sample(128, seed=0, init=init, trace=1)
    assert trace.relocated == 98 and not trace.warnings() and "98 chains did not get from `init` to the density" in str(trace.summary())
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


@pytest.mark.slow
@pytest.mark.parametrize(("apart", "least", "most"), [(0.0, 0.99, 1.1), (20.0, 5.0, 1e3)])
def test_a_bar_shows_r_hat_and_effective_draws_and_changes_no_draw(apart, least, most, capfd):
    energy = ce.as_energy(lambda x: (x[:, 0].abs() - apart).square() / 2 + x[:, 1:].square().sum(1) / 2, event_shape=(2,))
    start = torch.cat([torch.linspace(-apart - 1, apart + 1, 32)[:, None], torch.zeros(32, 1)], 1)
    options = {"sampler": "hmc", "step_size": 0.3, "leapfrogs": 5, "steps": 256, "seed": 0, "init": start}
    pause = ce.sampling.Stop(lambda step, state, info: time.sleep(0.6 if step == 1 else 0))
    watched = energy.sample(32, observers=[pause, ce.sampling.Progress()], **options)
    r_hat, draws = re.findall(r"R-hat ([\d.]+), ([\d,]+) effective draws", capfd.readouterr().err)[-1]
    assert least < float(r_hat) < most and (int(draws.replace(",", "")) > 200) is (apart == 0)
    assert torch.equal(watched, energy.sample(32, **options))


class TestFormulas:
    """Two heads that contradict each other where the base is: together they are improbable at all its points."""

    def heads(self) -> tuple[ce.Energy, ce.Energy]:
        base = gaussian(0.2, 0.2)
        return tuple(ce.ClassifierEnergy(lambda x, s=s: s * 20 * x[:, :1] - 10, 1, base, name=f"side {s}") for s in (1, -1))

    @pytest.mark.full
    def test_a_formula_that_no_draw_shows(self):
        left, right = self.heads()
        for energy in (left & right, 2 * (left & right), 2 * left & right, (left & right) & gaussian(9.0, 9.0)):
            with pytest.warns(SamplingWarning, match="formula: At the draws the classifiers give the formula a mean probability"):
                x, trace = energy.sample((64, 2), sampler=MALA(), steps=60, seed=0, trace=True)
            expected = (-(left & right).evidence(x)).exp().mean().item()
            assert trace.formula_probability == pytest.approx(expected) and expected < 0.01
            assert "formula" in kinds(trace) and "P(formula)" in trace.summary().facts

    @pytest.mark.full
    def test_formulas_that_hold_and_branches_of_mixtures_do_not_warn(self):
        left, right = self.heads()
        _, trace = (~left & ~right).sample((64, 2), sampler=MALA(), steps=60, seed=0, trace=True)
        assert trace.formula_probability > 0.9 and "formula" not in kinds(trace)
        assert BOWL.sample((64, 2), sampler=MALA(), steps=60, seed=0, trace=True)[1].formula_probability is None

    @pytest.mark.parametrize("function", [lambda x: x.softmax(1), lambda x: x[:, :1].sigmoid()])
    def test_a_classifier_that_gives_probabilities_warns(self, function):
        for network in (function, lambda x: x):
            _, trace = ce.ClassifierEnergy(network, 1, BOWL).sample((64, 2), sampler=MALA(0.1), steps=5, seed=0, trace=True)
            assert ("probabilities" in kinds(trace)) is (network is function)


class Copier(torch.nn.Module):
    """A decoder of two numbers that keeps the first one, and of the second one a share; or whose `encode` is something else."""

    event_shape = (2, 1)

    def __init__(self, share: float, error: type[Exception] | None = None) -> None:
        super().__init__()
        self.share, self.error = share, error

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return (z * torch.tensor([1.0, self.share]))[..., None]

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        if self.error is not None:
            raise self.error("not of points")
        return x[..., 0]


class TestDecodedFormulas:
    """What classifiers say of latent points counts if the decoded points show it."""

    def expression(self, decoder: Copier) -> ce.Energy:
        base = ce.as_energy(Independent(Normal(torch.zeros(2), 1.0), 1), decoder=decoder)
        first, second = (ce.ClassifierEnergy(lambda z, k=k: 20 * z[:, k : k + 1] - 10, 1, base, name=name) for k, name in enumerate("ab"))
        return first & ~second

    @pytest.mark.parametrize("weight", [1, 2])
    def test_what_the_decoder_loses_is_reported_with_its_term(self, weight):
        energy = weight * self.expression(Copier(-1.0))
        with pytest.warns(SamplingWarning, match=r"decoded: Decoded points lose the formula.*Most is lost of b: "):
            _, trace = energy.sample(64, sampler=MALA(), steps=200, seed=0, trace=True)
        assert trace.formula_probability > 0.9 and trace.decoded_probability < 0.8
        z = energy.latents.sample(64, sampler=MALA(), steps=200, seed=0)
        expected = (-self.expression(Copier(-1.0)).evidence(z * torch.tensor([1.0, -1.0]))).exp().mean().item()
        assert trace.decoded_probability == pytest.approx(expected)

    @pytest.mark.parametrize("decoder", [Copier(1.0), Copier(-1.0, TypeError), Copier(-1.0, RuntimeError)])
    def test_what_is_shown_or_cannot_be_read_is_not(self, decoder):
        _, trace = self.expression(decoder).sample(64, sampler=MALA(), steps=200, seed=0, trace=True)
        assert "decoded" not in kinds(trace)
        assert trace.decoded_probability == (None if decoder.error else pytest.approx(trace.formula_probability))

    def test_draws_are_kept_where_a_network_raises_at_the_codes_of_decoded_points(self):
        def logits(z: torch.Tensor) -> torch.Tensor:
            if (z[:, 1] == 7).all():
                raise ValueError("no such points")
            return 20 * z[:, :1] - 10

        class Constant(Copier):
            def encode(self, x: torch.Tensor) -> torch.Tensor:
                return torch.full_like(x[..., 0], 7.0)

        base = ce.as_energy(Independent(Normal(torch.zeros(2), 1.0), 1), decoder=Constant(1.0))
        x, trace = ce.ClassifierEnergy(logits, 1, base).sample(64, sampler=MALA(), steps=50, seed=0, trace=True)
        assert x.shape == (64, 2, 1) and trace.decoded_probability is None

    @pytest.mark.parametrize("together", [True, False])
    def test_a_formula_is_said_to_be_rare_where_terms_that_are_frequent_hardly_meet(self, together):
        """Codes are standard normal: 31 % are above 0.5, 69 % below 0.5054, 0.19 % between. Posteriors of noisy codes are closed forms."""

        def logits(z: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            ends = torch.tensor([-torch.inf, 0.5, 0.5054, torch.inf], dtype=torch.float64)
            below = torch.special.ndtr((ends - z[:, :1] / (1 + sigma[:, None] ** 2)) * (1 + sigma[:, None] ** -2).sqrt())
            return below.diff().clamp(min=1e-30).log().to(z)

        base = ce.as_energy(lambda z, sigma: z.square().sum(1) / (2 * (1 + sigma**2)), event_shape=(2,), decoder=Copier(1.0))
        left, between, right = (
            ce.ClassifierEnergy(logits, which, base, labels=3, name=name)
            for name, which in (("left", [0, 1]), ("between", 1), ("right", [1, 2]))
        )
        _, trace = (left & right if together else between).sample(64, sampler="annealed", sigma_min=0.05, sigma_max=4.0, seed=0, trace=True)
        assert ("rare" in kinds(trace)) is together
        assert not together or "About 0.002 of what the base draws fulfils the formula, by its classifiers; 0.2 by" in text(trace, "rare")


def text(trace: Trace, kind: str) -> str:
    (found,) = [str(warning) for warning in trace.warnings() if warning.kind == kind]
    return found


class TestWarnings:
    @pytest.mark.slow
    def test_a_good_run_has_none_unless_it_could_not_be_checked(self, monkeypatch):
        trace = run(gaussian(0.5, 1.0), (8, 2), HMC(0.7, leapfrogs=4), 450, trace=1, burn_in=50)
        assert trace.warnings() == [] and str(trace.summary()).endswith("No warnings.")
        assert "There are 2 draws" in text(run(gaussian(1.0), (8, 1), MALA(1.0), 4), "unchecked")
        monkeypatch.setitem(sys.modules, "arviz_stats", None)
        assert text(trace, "unchecked").endswith("pip install 'composable-energy[diagnostics]'.")
        assert np.isnan(trace.summary().rows[0].r_hat) and abs(trace.summary().rows[1].mean) < 0.1

    @pytest.mark.slow
    @pytest.mark.parametrize(("step_size", "what"), [(6.0, "a smaller `step_size` than 6"), (0.001, "a larger `step_size` than 0.001")])
    def test_acceptance_far_from_its_goal(self, step_size, what):
        trace = run(gaussian(1.0, 1.0), (16, 2), MALA(step_size), 100)
        message = text(trace, "acceptance")
        assert what in message and f"{trace.acceptance[50:].mean():.2g}, its goal 0.57" in message
        assert "acceptance" not in kinds(run(gaussian(1.0, 1.0), (16, 2), MALA(), 100))

    def test_too_few_effective_draws(self):
        trace = run(gaussian(0.5, 1.0), (8, 2), HMC(0.7, leapfrogs=4), 40, trace=1)
        assert "320 draws" in text(trace, "ess") and "fewer than 400" in text(trace, "ess")
        assert "fewer than 100" in text(run(gaussian(1.0, 1.0), (1, 2), HMC(0.7, leapfrogs=4), 60, trace=1), "ess")

    @pytest.mark.slow
    def test_langevin_steps_that_are_too_long(self):
        """The excess of the variance is known in closed form: here 25 % and 1.6 %, 13 % on average."""
        wide, short = run(gaussian(0.5, 2.0), (4000, 2), Langevin(0.2), 300), run(gaussian(0.5, 2.0), (4000, 2), Langevin(0.02), 300)
        assert "too large by 13%" in text(wide, "bias") and "bias" not in kinds(short)
        state, expected = wide.state, sum(0.2 / (4 * s**2 - 0.2) for s in (0.5, 2.0)) / 2
        excess = wide.sampler.bias(state)
        assert abs(excess.mean() - expected) < 4 * excess.std() / 4000**0.5
        assert Langevin(0.2, clamp=(0, 1)).bias(state) is None and HMC(0.2).traits.bias is None

    @pytest.mark.parametrize("options", [{"trace": 1}, {"trace": True}])
    def test_chains_that_never_move_have_a_warning_of_their_own(self, options):
        """All begin at one point, so that R-hat is 0 / 0."""
        narrow, start = gaussian(1e-9, 1e-9), torch.zeros(8, 2, dtype=F64)
        trace = run(narrow, (8, 2), MALA(1.0), 40, init=start, **options)
        assert [warning.kind for warning in trace.warnings()] == ["constant"] and np.isnan(trace.summary().rows[0].r_hat)
        what = "point" if trace.points is not None else "energy"
        assert f"All 8 chains keep one {what} each" in text(trace, "constant") and "not defined" in str(trace.summary())
        assert "leave it out so that it is tuned" in text(trace, "constant")

    def test_chains_that_never_move_without_a_rejection(self):
        flat = ce.as_energy(lambda x: x[:, 0].clamp(min=0))
        start = torch.tensor([[-1.0], [-2.0], [3.0]], dtype=F64)
        trace = run(flat, (3, 1), Underdamped(0.01, temperature=0.0), 60, init=start, trace=1)
        assert "2 (chains 0, 1) of 3 chains keep one point each" in text(trace, "constant")
        assert "Check the energy and its gradient" in text(trace, "constant")
        moving = run(ce.as_energy(lambda x: 0 * x.sum(1)), (4, 1), Langevin(0.1), 60)
        assert "keep one energy each" in text(moving, "constant") and "keep points with `trace=1`" in text(moving, "constant")
        assert "constant" not in kinds(run(ce.as_energy(lambda x: 0 * x.sum(1)), (4, 1), Langevin(0.1), 60, trace=1))

    @pytest.mark.slow
    def test_advice_depends_on_what_was_done(self):
        """The advice never suggests what was done already: a tuned step, or the sampler in use."""
        tuned = run(gaussian(1.0, 1.0), (16, 2), MALA(tuning_steps=20), 30)
        tuned.acceptance.fill_(0.1)
        advice = text(tuned, "acceptance")
        assert "leave it out" not in advice and "was tuned on pilot chains" in advice and "`tuning_steps`" in advice and "`init=`" in advice
        assert gaussian(1.0, 1.0).sample((16, 2), resume=tuned, steps=30, trace=True)[1].tuned == tuned.tuned == ("step_size",)
        chees, hmc = (run(gaussian(1.0, 1.0), (2, 2), sampler, 10, trace=1) for sampler in (ChEES(0.5, 1.5), HMC(0.5)))
        assert "chees" not in text(chees, "ess") and "`chees`" in text(hmc, "ess")

    def test_nothing_is_said_of_chains_that_settle_on_nothing(self):
        for sampler, steps in ((Annealed(levels=20), 20), (Descent(), 50), (Langevin(0.1, temperature=0.0), 50)):
            _, trace = modes(8.0).sample((8, 2), sampler=sampler, steps=steps, seed=0, trace=1)
            assert trace.warnings() == []
            energy, *rest = trace.summary().rows
            assert energy.mean == pytest.approx(trace.energies[-1].mean().item()) and np.isnan(energy.r_hat) and len(rest) == 2
