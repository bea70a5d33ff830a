"""Summaries of runs, and their export to ArviZ."""

import sys

import arviz_stats
import numpy as np
import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ExtraNotInstalled, OptionError, ShapeError
from composable_energy_mcmc import HMC, MALA, ChEES, Langevin, Underdamped
from tests.sampling_runs import F64, gaussian, kinds, run


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
        trace = run(hole, (40, 2), Langevin(0.1), 60, on_divergence="keep", trace=1)
        energy = trace.summary().rows[0]
        fine = trace.energies[:, ~trace.diverged]
        assert energy.mean == pytest.approx(fine.mean().item(), rel=1e-5) and np.isfinite(energy.r_hat)
        cliff = ce.as_energy(lambda x: torch.where(x[:, 0] < 9, torch.nan, x[:, 0]))
        gone = run(cliff, (4, 1), Langevin(0.1), 50, init=torch.full((4, 1), 9.3), on_divergence="keep")
        assert gone.summary().rows == [] and kinds(gone) == {"diverged", "unchecked"}

    @pytest.mark.slow
    def test_of_many_coordinates_it_shows_the_worst(self):
        """One coordinate of 3,072 has two modes; it is found, and the table stays short."""

        def energy(x):
            return (x.square().flatten(1).sum(1) - x[:, 1, 7, 9].square()) / 2 + (x[:, 1, 7, 9].abs() - 4).square() * 2

        trace = run(ce.as_energy(energy), (8, 3, 32, 32), HMC(0.2, leapfrogs=8), 40, trace=1)
        summary = trace.summary()
        assert [row.name for row in summary.rows][:2] == ["energy", "x[1, 7, 9]"] and len(summary.rows) == 9
        assert all(row.r_hat <= summary.rows[1].r_hat for row in summary.rows[2:])
        assert "8 worst of 3072" in str(summary) and len(str(summary).splitlines()) < 40

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

    def test_names_that_do_not_fit(self):
        trace = run(gaussian(1.0, 1.0), (5, 2), MALA(1.0), 6, trace=1)
        assert trace.to_arviz()["posterior"]["x"].dims == ("chain", "draw", "x_dim_0")
        for given in ({"dims": ("a", "b")}, {"dims": ("chain",)}, {"coords": {"a": [1]}}, {"dims": ["a"], "coords": {"a": [1, 2, 3]}}):
            with pytest.raises(ShapeError, match=r"points of shape \(2,\)"):
                trace.to_arviz(**given)

    def test_without_arviz_the_error_says_how_to_get_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "xarray", None)
        with pytest.raises(ExtraNotInstalled, match=r"needs xarray.*pip install 'composable-energy\[diagnostics\]'") as caught:
            run(gaussian(1.0), (5, 1), MALA(1.0), 6).to_arviz()
        assert isinstance(caught.value, ImportError)
