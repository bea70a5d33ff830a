"""Warnings of runs: each problem is reported, and good runs have none."""

import pickle
import sys
import warnings

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

import composable_energy as ce
from composable_energy import SamplingWarning
from composable_energy.sampling import Trace
from composable_energy_mcmc import HMC, MALA, Annealed, ChEES, Descent, Langevin, Tempering, Underdamped
from tests.diagnosed_runs import F64, gaussian, kinds, run


def text(trace: Trace, kind: str) -> str:
    (found,) = [str(warning) for warning in trace.warnings() if warning.kind == kind]
    return found


GOOD = {"trace": 1, "burn_in": 50}


def good(seed: int = 0, **options) -> Trace:
    return run(gaussian(0.5, 1.0), (8, 2), HMC(0.7, leapfrogs=4), 450, **GOOD, seed=seed, **options)


class TestWarnings:
    @pytest.mark.slow
    def test_a_good_run_has_none(self):
        trace = good()
        assert trace.warnings() == [] and str(trace.summary()).endswith("No warnings.")

    @pytest.mark.slow
    def test_chains_that_diverge(self):
        hole = ce.as_energy(lambda x: torch.where(x[:, 0] > 2, torch.nan, x.square().sum(1) / 2))
        trace = run(hole, (40, 2), Langevin(0.1), 60, on_divergence="keep")
        bad = int(trace.diverged.sum())
        assert f"{bad} of 40 chains" in text(trace, "diverged") and "stay at their last finite point" in text(trace, "diverged")
        assert "`step_size` than 0.1" in text(trace, "diverged") and f"{bad} of them diverged" in str(trace.summary())

    @pytest.mark.slow
    @pytest.mark.parametrize(("step_size", "what"), [(6.0, "a smaller `step_size` than 6"), (0.001, "a larger `step_size` than 0.001")])
    def test_acceptance_far_from_its_goal(self, step_size, what):
        trace = run(gaussian(1.0, 1.0), (16, 2), MALA(step_size), 100)
        message = text(trace, "acceptance")
        assert what in message and f"{trace.acceptance[50:].mean():.2g}, its goal 0.57" in message
        assert "acceptance" not in kinds(run(gaussian(1.0, 1.0), (16, 2), MALA(), 100))

    def test_single_chains_that_are_stuck(self):
        """Chains 3 and 7 start in a mode a thousand times as narrow as the step."""
        mode = ce.as_energy(Independent(Normal(torch.full((2,), 9.0, dtype=F64), 1e-3), 1))
        start = torch.zeros(10, 2, dtype=F64)
        start[[3, 7]] = 9.0
        message = text(run(gaussian(1.0, 1.0) | mode, (10, 2), MALA(1.0), 60, init=start), "stuck")
        assert "2 (chains 3, 7) of 10 chains accept less than 5%" in message

    @pytest.mark.slow
    @pytest.mark.parametrize("chains", [1, 50])
    def test_energies_that_still_fall(self, chains):
        far = torch.full((chains, 2), 20.0, dtype=F64)
        trace = run(gaussian(1.0, 1.0), (chains, 2), Langevin(0.005), 400, init=far)
        message = text(trace, "drift")
        early, late = trace.energies[200:300].double().mean(), trace.energies[300:].double().mean()
        assert "still falls" in message and (chains < 50 or f"from {early:.4g} to {late:.4g}" in message)
        assert "drift" not in kinds(run(gaussian(1.0, 1.0), (chains, 2), Langevin(0.5), 400, init=far))

    @pytest.mark.slow
    def test_chains_that_do_not_agree(self):
        modes = ce.as_energy(lambda x: (x[:, 0].abs() - 5).square() * 2 + x[:, 1].square() / 2)
        trace = run(modes, (8, 2), HMC(0.4, leapfrogs=4), 400, **GOOD)
        message = text(trace, "r_hat")
        assert "for x[0]" in message and "start in all modes (`init=`)" in message and "ess" in kinds(trace)

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
        given = run(gaussian(1e-9, 1e-9), (16, 2), MALA(1.0), 40, init=torch.zeros(16, 2, dtype=F64))
        assert given.tuned == () and "leave it out" in text(given, "constant") and "take a longer `burn_in`" in text(given, "constant")
        tuned = run(gaussian(1.0, 1.0), (16, 2), MALA(tuning_steps=20), 30)
        assert tuned.tuned == ("step_size",)
        tuned.acceptance.fill_(0.1)
        advice = text(tuned, "acceptance")
        assert "leave it out" not in advice and "was tuned on pilot chains" in advice and "`tuning_steps`" in advice and "`init=`" in advice
        resumed = gaussian(1.0, 1.0).sample((16, 2), resume=tuned, steps=30, trace=True)[1]
        assert resumed.tuned == ("step_size",)
        chees, hmc = (run(gaussian(1.0, 1.0), (2, 2), sampler, 10, trace=1) for sampler in (ChEES(0.5, 1.5), HMC(0.5)))
        assert "chees" not in text(chees, "ess") and "`chees`" in text(hmc, "ess")
        trace = run(gaussian(1.0, 1.0), (2, 2), Tempering(levels=2, mean=0.0, scale=2.0), 10, trace=1)
        trace.points[:, 0] += 100
        assert "`tempering`" not in text(trace, "r_hat") and "`chees`" in text(trace, "ess")

    @pytest.mark.slow
    def test_what_was_not_checked_is_said(self, monkeypatch):
        assert "There are 2 draws" in text(run(gaussian(1.0), (8, 1), MALA(1.0), 4), "unchecked")
        monkeypatch.setitem(sys.modules, "arviz_stats", None)
        assert text(good(), "unchecked").endswith("pip install 'composable-energy[diagnostics]'.")
        assert np.isnan(good().summary().rows[0].r_hat) and abs(good().summary().rows[1].mean) < 0.1

    def test_they_are_warnings_that_can_be_given_and_kept(self):
        (found,) = [warning for warning in run(gaussian(1.0), (8, 1), MALA(9.0), 60).warnings() if warning.kind == "acceptance"]
        with pytest.warns(SamplingWarning, match="its goal"):
            warnings.warn(found, stacklevel=1)
        assert str(pickle.loads(pickle.dumps(found))) == str(found) and found.seen in str(found) and found.advice in str(found)

    def test_nothing_is_said_of_chains_that_settle_on_nothing(self):
        for sampler, steps in ((Annealed(levels=20), 20), (Descent(), 50), (Langevin(0.1, temperature=0.0), 50)):
            trace = run(gaussian(0.5, 1.0), (8, 2), sampler, steps, trace=1)
            assert trace.warnings() == []
            energy, *rest = trace.summary().rows
            assert energy.mean == pytest.approx(trace.energies[-1].mean().item()) and np.isnan(energy.r_hat) and len(rest) == 2
