"""Summaries of runs, and their export to ArviZ."""

import sys

import arviz_stats
import numpy as np
import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ExtraNotInstalled, OptionError, ShapeError
from composable_energy.sampling import Trace
from composable_energy_mcmc import HMC, MALA, Annealed, ChEES, Descent, Langevin, Tempering, Underdamped

F64 = torch.float64


def gaussian(*sd: float) -> ce.Energy:
    return ce.as_energy(Independent(Normal(torch.zeros(len(sd), dtype=F64), torch.tensor(sd, dtype=F64)), 1))


def run(energy: ce.Energy, shape, sampler, steps: int, **options) -> Trace:
    return energy.sample(shape, sampler=sampler, steps=steps, **{"seed": 0, "trace": True, **options})[1]


def kinds(trace: Trace, burn_in: int | None = None) -> set[str]:
    return {warning.kind for warning in trace.warnings(burn_in)}


def text(trace: Trace, kind: str) -> str:
    (found,) = [str(warning) for warning in trace.warnings() if warning.kind == kind]
    return found


GOOD = {"trace": 1, "burn_in": 50}


def good(seed: int = 0, **options) -> Trace:
    return run(gaussian(0.5, 1.0), (8, 2), HMC(0.7, leapfrogs=4), 450, **GOOD, seed=seed, **options)


class TestWarnings:
    def test_a_good_run_has_none(self):
        trace = good()
        assert trace.warnings() == [] and str(trace.summary()).endswith("No warnings.")

    def test_runs_from_the_density_seldom_drift(self):
        """The threshold is four standard errors: of 40 good runs none is far out by chance, at any number of chains."""
        start = torch.randn(64, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
        for chains in (1, 3, 10, 64):
            for seed in range(10):
                assert "drift" not in kinds(run(gaussian(1.0, 1.0), (chains, 2), MALA(1.0), 240, seed=seed, init=start[:chains]))

    def test_chains_that_diverge(self):
        hole = ce.as_energy(lambda x: torch.where(x[:, 0] > 2, torch.nan, x.square().sum(1) / 2))
        trace = run(hole, (40, 2), Langevin(0.1), 60, on_divergence="drop")
        bad = int(trace.diverged.sum())
        assert f"{bad} of 40 chains" in text(trace, "diverged") and "dropped" in text(trace, "diverged")
        assert "`step_size` than 0.1" in text(trace, "diverged") and f"{bad} of them diverged" in str(trace.summary())
        assert "restarted" in text(run(hole, (40, 2), Langevin(0.1), 60, on_divergence="restart"), "diverged")

    @pytest.mark.parametrize(("step_size", "what"), [(6.0, "a smaller `step_size` than 6"), (0.001, "a larger `step_size` than 0.001")])
    def test_acceptance_far_from_its_goal(self, step_size, what):
        trace = run(gaussian(1.0, 1.0), (16, 2), MALA(step_size), 100)
        told = text(trace, "acceptance")
        assert what in told and f"{trace.acceptance[50:].mean():.2g}, its goal 0.57" in told
        assert "acceptance" not in kinds(run(gaussian(1.0, 1.0), (16, 2), MALA(), 100))

    def test_single_chains_that_are_stuck(self):
        """Chains 3 and 7 start in a mode a thousand times as narrow as the step."""
        mode = ce.as_energy(Independent(Normal(torch.full((2,), 9.0, dtype=F64), 1e-3), 1))
        start = torch.randn(10, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
        start[[3, 7]] = 9.0
        told = text(run(gaussian(1.0, 1.0) | mode, (10, 2), MALA(1.0), 100, init=start), "stuck")
        assert "2 (chains 3, 7) of 10 chains accept less than 5%" in told
        assert "stuck" not in kinds(run(gaussian(1.0, 1.0), (10, 2), MALA(1.0), 100))
        assert "stuck" not in kinds(run(gaussian(1e-4, 1e-4), (10, 2), MALA(1.0), 100))  # all of them: that is the acceptance

    @pytest.mark.parametrize("chains", [1, 6, 50])
    def test_energies_that_still_fall(self, chains):
        far = torch.full((chains, 2), 20.0, dtype=F64)
        trace = run(gaussian(1.0, 1.0), (chains, 2), Langevin(0.005), 400, init=far)
        told = text(trace, "drift")
        early, late = trace.energies[200:300].double().mean(), trace.energies[300:].double().mean()
        assert "still falls" in told and (chains < 50 or f"from {early:.4g} to {late:.4g}" in told)
        assert "drift" not in kinds(run(gaussian(1.0, 1.0), (chains, 2), Langevin(0.5), 400, init=far))

    def test_chains_that_do_not_agree(self):
        modes = ce.as_energy(lambda x: (x[:, 0].abs() - 5).square() * 2 + x[:, 1].square() / 2)
        trace = run(modes, (8, 2), HMC(0.4, leapfrogs=4), 400, **GOOD)
        told = text(trace, "r_hat")
        assert "for x[0]" in told and "start in all modes (`init=`)" in told and "ess" in kinds(trace)

    def test_too_few_effective_draws(self):
        trace = run(gaussian(0.5, 1.0), (8, 2), HMC(0.7, leapfrogs=4), 40, trace=1)
        assert "320 draws" in text(trace, "ess") and "fewer than 400" in text(trace, "ess")
        assert "fewer than 100" in text(run(gaussian(1.0, 1.0), (1, 2), HMC(0.7, leapfrogs=4), 60, trace=1), "ess")

    def test_langevin_steps_that_are_too_long(self):
        """The excess of the variance is known in closed form: here 25 % and 1.6 %, 13 % on average."""
        wide, short = run(gaussian(0.5, 2.0), (4000, 2), Langevin(0.2), 300), run(gaussian(0.5, 2.0), (4000, 2), Langevin(0.02), 300)
        assert "too large by 13%" in text(wide, "bias") and "bias" not in kinds(short)
        (_, _, state), expected = wide.states[0], sum(0.2 / (4 * s**2 - 0.2) for s in (0.5, 2.0)) / 2
        excess = wide.sampler.bias(state)
        assert abs(excess.mean() - expected) < 4 * excess.std() / 4000**0.5
        assert Langevin(0.2, clamp=(0, 1)).bias(state) is None and HMC(0.2).bias(state) is None

    @pytest.mark.parametrize("options", [{"trace": 1}, {"trace": True}])
    def test_chains_that_never_move_have_a_warning_of_their_own(self, options):
        """All begin at one point, so that R-hat is 0 / 0."""
        narrow, start = gaussian(1e-9, 1e-9), torch.zeros(8, 2, dtype=F64)
        trace = run(narrow, (8, 2), MALA(1.0), 40, init=start, **options)
        assert trace.warnings()[1].kind == "constant" and np.isnan(trace.summary().rows[0].r_hat)
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

    def test_advice_depends_on_what_was_done(self):
        """Who has a tuned step is not told to have it tuned, nor who took a sampler to take it."""
        given = run(gaussian(1e-9, 1e-9), (16, 2), MALA(1.0), 40, init=torch.zeros(16, 2, dtype=F64))
        assert given.tuned == () and "leave it out" in text(given, "acceptance")
        tuned = run(gaussian(1.0, 1.0), (16, 2), MALA(tuning_steps=20), 30)
        assert tuned.tuned == ("step_size",)
        tuned.acceptance.zero_()
        advice = text(tuned, "acceptance")
        assert "leave it out" not in advice and "was tuned on pilot chains" in advice and "`tuning_steps`" in advice and "`init=`" in advice
        resumed = gaussian(1.0, 1.0).sample((16, 2), resume=tuned, steps=30, trace=True)[1]
        assert resumed.tuned == ("step_size",)
        chees, hmc = (run(gaussian(1.0, 1.0), (2, 2), sampler, 10, trace=1) for sampler in (ChEES(0.5, 1.5), HMC(0.5)))
        assert "chees" not in text(chees, "ess") and "`chees`" in text(hmc, "ess")
        trace = run(gaussian(1.0, 1.0), (2, 2), Tempering(levels=2, mean=0.0, scale=2.0), 10, trace=1)
        trace.points[:, 0] += 100
        assert "`tempering`" not in text(trace, "r_hat") and "`chees`" in text(trace, "ess")

    def test_branches_that_nobody_visits(self):
        other = ce.as_energy(Independent(Normal(torch.full((2,), 30.0, dtype=F64), 1.0), 1))
        trace = run(gaussian(1.0, 1.0) | other, (30, 2), MALA(1.0), 60)
        assert "No point of 30 is in branch 1 of the 2" in text(trace, "branch") and "branch shares" in str(trace.summary())
        near = ce.as_energy(Independent(Normal(torch.full((2,), 1.0, dtype=F64), 1.0), 1))
        assert "branch" not in kinds(run(gaussian(1.0, 1.0) | near, (30, 2), MALA(1.0), 60))

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
                own = [getattr(rows[place], statistic) for place in places]
                np.testing.assert_allclose(own, data[name].values.reshape(-1), rtol=1e-9)
        points = trace.points.flatten(0, 1)
        for axis in range(3):
            row = rows[f"x[{axis}]"]
            assert row.mean == pytest.approx(points[:, axis].mean().item()) and row.sd == pytest.approx(points[:, axis].std().item())

    def test_facts_describe_the_run(self):
        trace = run(gaussian(1.0, 1.0), (8, 2), ChEES(0.5, 1.5), 30, best_of=2)
        facts = trace.summary().facts
        assert (
            facts["chains"] == "16"
            and facts["draws"] == "15 of each chain: the later half of the steps"
            and facts["best of"].startswith("2")
        )
        assert trace.seconds > 0 and facts["steps"] == f"30, seed 0, {trace.seconds:.3g} s"
        assert facts["gradients"].startswith(f"{sum(trace.scalars['leapfrogs']) + 1:.0f} of each chain")
        assert facts["leapfrogs"].startswith("1 to 3") and "goal 0.75" in facts["acceptance"]
        trace = run(gaussian(1.0), (8, 1), Langevin(0.1), 30, burn_in=20)
        assert trace.summary().facts["draws"] == "10 of each chain: the steps after 20"
        rest = gaussian(1.0).sample((8, 1), resume=trace, steps=8, trace=True, burn_in=20)[1]
        assert rest.summary().facts["draws"] == "8 of each chain: the steps after 30" and "unchecked" not in kinds(rest)

    @pytest.mark.parametrize("sampler", [Langevin(0.1), MALA(0.1), Underdamped(0.1), HMC(0.1, leapfrogs=3), ChEES(0.5, 1.5)])
    def test_gradients_are_counted_rightly(self, sampler):
        counts = []

        class Counted(ce.Energy):
            def forward(self, x):
                counts.append(len(x) * x.requires_grad)
                return x.square().sum(1) / 2

        energy = Counted()
        trace = run(energy, (5, 2), sampler, 7)
        assert trace.summary().facts["gradients"].split()[0] == str(sum(counts) // 5)

    @pytest.mark.slow
    def test_a_burn_in_afterwards(self):
        trace = run(
            gaussian(0.5, 1.0), (8, 2), HMC(0.5, leapfrogs=6, acceptance=0.9), 600, init=torch.full((8, 2), 1e3, dtype=F64), trace=1
        )
        assert abs(trace.summary().rows[1].sd) > 10 and abs(trace.summary(200).rows[1].sd - 0.5) < 0.05
        assert kinds(trace, burn_in=200) == set()
        assert trace.summary(200).facts["draws"].startswith("400 of each chain")
        for wrong in (trace, run(gaussian(1.0), (8, 1), MALA(1.0), 20)):
            with pytest.raises(OptionError, match="burn_in=600 leaves nothing"):
                wrong.summary(600)

    def test_chains_that_diverged_are_left_out(self):
        hole = ce.as_energy(lambda x: torch.where(x[:, 0] > 2, torch.nan, x.square().sum(1) / 2))
        for policy in ("drop", "keep"):
            trace = run(hole, (40, 2), Langevin(0.1), 60, on_divergence=policy, trace=1)
            energy = trace.summary().rows[0]
            fine = trace.energies[:, ~trace.diverged]
            assert energy.mean == pytest.approx(fine.mean().item(), rel=1e-5) and np.isfinite(energy.r_hat)
        cliff = ce.as_energy(lambda x: torch.where(x[:, 0] < 9, torch.nan, x[:, 0]))
        gone = run(cliff, (4, 1), Langevin(0.1), 50, init=torch.full((4, 1), 9.3), on_divergence="keep")
        assert gone.summary().rows == [] and kinds(gone) == {"diverged", "unchecked"}

    def test_of_many_coordinates_it_shows_the_worst(self):
        """One coordinate of 3,072 has two modes; it is found, and the table stays short."""

        def energy(x):
            return (x.square().flatten(1).sum(1) - x[:, 1, 7, 9].square()) / 2 + (x[:, 1, 7, 9].abs() - 4).square() * 2

        trace = run(ce.as_energy(energy), (8, 3, 32, 32), HMC(0.2, leapfrogs=8), 40, trace=1)
        summary = trace.summary()
        assert [row.name for row in summary.rows][:2] == ["energy", "x[1, 7, 9]"] and len(summary.rows) == 9
        assert [row.name for row in summary.quantiles] == ["x, 5%", "x, 50%", "x, 95%"]
        assert summary.quantiles[0].r_hat < summary.quantiles[1].r_hat < summary.quantiles[2].r_hat < summary.rows[1].r_hat
        assert "8 worst of 3072; quantiles over 56 of them" in str(summary) and len(str(summary).splitlines()) < 40

    def test_coordinates_that_never_move(self):
        trace = run(gaussian(1.0, 1.0), (8, 2), MALA(1.0), 40, trace=1)
        trace.points[..., 1] = 1.0
        still = trace.summary().rows[2]
        assert still.mean == 1 and still.sd == 0 and np.isnan(still.r_hat) and "x[1]" in str(trace.summary())
        assert "for x[1]" not in str(trace.summary())

    def test_points_that_are_single_numbers_and_low_precision(self):
        line = ce.as_energy(lambda x: x.float().square() / 2)
        trace = run(line, (8,), Langevin(0.5), 40, trace=1, init=torch.zeros(8, dtype=torch.bfloat16))
        assert [row.name for row in trace.summary().rows] == ["energy", "x"] and trace.to_arviz()["posterior"]["x"].shape == (8, 40)

    def test_a_notebook_gets_a_table(self):
        page = run(gaussian(1.0, 1.0), (8, 2), MALA(1.0), 40, trace=1).summary()._repr_html_()
        assert page.count("<tr>") == page.count("</tr>") > 6 and "<td>x[0]</td>" in page and "<li>ess:" in page

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
        tree = trace.to_arviz()
        assert [*tree.children] == ["sample_stats"] and tree["sample_stats"]["lp"].shape == (5, 6)
        _, rest = gaussian(1.0).sample((5, 1), resume=trace, steps=2, trace=True)
        assert rest.to_arviz()["sample_stats"]["draw"].values.tolist() == [7, 8]

    def test_axes_are_numbered_by_default(self):
        assert run(gaussian(1.0, 1.0), (5, 2), MALA(1.0), 6, trace=1).to_arviz()["posterior"]["x"].dims == ("chain", "draw", "x_dim_0")

    @pytest.mark.parametrize(
        "given",
        [{"dims": ()}, {"dims": ("a", "b")}, {"dims": ("chain",)}, {"coords": {"a": [1]}}, {"dims": ["a"], "coords": {"a": [1, 2, 3]}}],
    )
    def test_names_that_do_not_fit(self, given):
        trace = run(gaussian(1.0, 1.0), (5, 2), MALA(1.0), 6, trace=1)
        with pytest.raises(ShapeError, match=r"points of shape \(2,\)"):
            trace.to_arviz(**given)

    def test_without_arviz_the_error_says_how_to_get_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "xarray", None)
        with pytest.raises(ExtraNotInstalled, match=r"needs xarray.*pip install 'composable-energy\[diagnostics\]'") as caught:
            run(gaussian(1.0), (5, 1), MALA(1.0), 6).to_arviz()
        assert isinstance(caught.value, ImportError)
