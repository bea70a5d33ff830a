"""Metrics of codes equal their definitions: tables computed by hand, scikit-learn, and all matchings."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from composable_energy.errors import DtypeError, ExtraNotInstalled, OptionError, ShapeError
from composable_energy_comet import metrics

beta_vae, mcc, mig, r2 = metrics.beta_vae_score, metrics.mean_correlation, metrics.mutual_information_gap, metrics.linear_r2

GRID = torch.cartesian_prod(*[torch.arange(4)] * 4)  # 256 rows, 4 factors
seeds = st.integers(0, 2**32 - 1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mixed(seed: int, dimensions: int = 5) -> torch.Tensor:
    """Codes of the grid that tell something of several factors."""
    return GRID.double() @ normal(4, dimensions, seed=seed) + normal(len(GRID), dimensions, seed=seed + 1)


class TestInformation:
    @pytest.mark.parametrize("bins", [2, 5, 20])
    def test_is_that_of_histograms(self, bins):
        codes = mixed(3)
        cells = [np.digitize(column, np.histogram(column, bins)[1][1:-1]) for column in codes.T.numpy()]
        information = np.array([[mutual_info_score(cell, factor) for cell in cells] for factor in GRID.T.numpy()])
        best = np.sort(information, 1)[:, ::-1]
        assert math.isclose(mig(codes, GRID, bins), np.mean((best[:, 0] - best[:, 1]) / math.log(4)), rel_tol=1e-9)

    def test_a_perfect_code_has_1_and_a_doubled_one_0(self):
        codes = GRID.double() * torch.tensor([1.0, -2.0, 0.25, 7.0]) + 3
        assert math.isclose(mig(codes, GRID), 1, rel_tol=1e-12)
        assert abs(mig(torch.cat([codes, codes], 1), GRID)) < 1e-12

    def test_noise_tells_no_more_than_chance(self):
        """20 bins and 4 levels make 2 N I a chi-squared of 57 degrees: I is at most 114 / 2N far beyond 5 standard deviations."""
        assert 0 <= mig(normal(256, 6), GRID) < 114 / (2 * 256) / math.log(4)

    def test_a_constant_dimension_and_a_missing_one_tell_nothing(self):
        code = mixed(0, 1)
        assert mig(code, GRID) == mig(torch.cat([code, torch.full_like(code, 0.1)], 1), GRID) > 0

    @settings(max_examples=30, deadline=None)
    @given(seeds, st.permutations(range(5)), st.permutations(range(4)), st.integers(-8, 8))
    def test_order_scale_and_names_of_levels_do_not_matter(self, seed, order, names, power):
        """Powers of two scale without rounding, so no number changes its bin."""
        codes = mixed(seed)
        changed = codes[:, order] * 2.0**power
        assert math.isclose(mig(changed, torch.tensor(names)[GRID] * 10 - 5), mig(codes, GRID), rel_tol=1e-9, abs_tol=1e-12)

    def test_many_rows_are_drawn_from(self):
        codes, factors = normal(3000, 3), torch.arange(3000)[:, None] % 3
        codes[:, 0] += factors[:, 0]
        some = [mig(codes, factors, points=500, seed=seed) for seed in (0, 0, 1)]
        assert some[0] == some[1] != some[2]
        assert mig(codes, factors) == mig(codes, factors, points=None) == mig(codes, factors, points=3000)
        assert mig(codes.repeat(4, 1), factors.repeat(4, 1)) != mig(codes, factors), "10,000 of 12,000 rows"


class TestPairs:
    def test_true_factors_are_reported_apart(self):
        assert beta_vae(GRID.double(), GRID, pairs=8, train=30, test=30) == 1

    def test_noise_is_chance(self):
        """800 guesses of 1 in 4: five standard errors of a binomial."""
        score = beta_vae(normal(256, 5), GRID, pairs=16)
        assert abs(score - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 800)

    def test_a_constant_code_is_chance_exactly(self):
        assert beta_vae(torch.full((256, 3), 0.1), GRID, pairs=4, train=10, test=10) == 0.25

    @pytest.mark.parametrize("exactly_one", [False, True])
    def test_points_are_those_of_the_definition(self, monkeypatch, exactly_one):
        """Over a grid of four levels, free factors agree in a quarter of the pairs: the mean distance is 5/4, and 5/3 where they differ."""
        seen = {}

        class Recorder:
            def __init__(self, **options):
                pass

            def fit(self, points, shared):
                seen["train"] = points, shared

            def score(self, points, shared):
                seen["test"] = points, shared
                return 0.5

        monkeypatch.setattr(
            "composable_energy_comet.metrics.codes.import_extra", lambda module, extra: type("", (), {"LogisticRegression": Recorder})
        )
        scales = torch.tensor([1.0, -3.0, 0.2, 50.0])
        assert beta_vae(GRID * scales, GRID, pairs=32, train=50, test=20, exactly_one=exactly_one) == 0.5
        deviation = GRID.double()[:, 0].std()
        mean, spread = (5 / 3, math.sqrt(5 / 9)) if exactly_one else (5 / 4, math.sqrt(15 / 16))
        for part, count in (("train", 50), ("test", 20)):
            points, shared = seen[part]
            assert points.shape == (4 * count, 4) and (np.bincount(shared) == count).all()
            own = np.arange(4) == shared[:, None]
            assert np.abs(points[own]).max() == 0 and points[~own].min() > 0
            error = spread / math.sqrt(12 * count * 32)
            assert abs(points[~own].mean() * deviation - mean) < 5 * error
        assert not np.array_equal(seen["train"][0][:20], seen["test"][0][:20])

    def test_one_seed_one_score_and_no_generator_is_touched(self):
        codes, before = mixed(0), (torch.get_rng_state(), np.random.get_state()[1].copy())
        scores = [beta_vae(codes, GRID, pairs=2, train=20, test=50, seed=seed) for seed in (0, 0, 1)]
        assert scores[0] == scores[1] != scores[2]
        assert torch.equal(torch.get_rng_state(), before[0]) and np.array_equal(np.random.get_state()[1], before[1])

    def test_scale_order_and_names_of_levels_do_not_matter(self):
        codes, options = mixed(1), {"pairs": 4, "train": 50, "test": 50}
        score = beta_vae(codes, GRID, **options)
        assert 0.3 < score < 1
        assert beta_vae(codes * 1024 + 512, 7 - GRID, **options) == pytest.approx(score, abs=1 / 200)

    def test_pairs_that_are_not_there_are_reported(self):
        factors = torch.tensor([[0, 0], [0, 1], [1, 0]])
        with pytest.raises(OptionError, match=r"shares only factor 0.*full grid"):
            beta_vae(factors.double(), factors, exactly_one=True, pairs=2, train=2, test=2)

    def test_one_factor_is_none_to_tell_apart(self):
        with pytest.raises(OptionError, match=r"two factors or more.*got 1"):
            beta_vae(mixed(0), GRID[:, :1])


def r2_of_itself(codes, factors):
    return r2(codes, factors, codes, factors)


METRICS = [beta_vae, mcc, mig, r2_of_itself]
EACH = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)
CODES = torch.zeros(256, 2)


@EACH
@pytest.mark.parametrize(
    ("codes", "factors", "error", "told"),
    [
        (CODES[:9], GRID, ShapeError, r"\(9, 2\) and \(256, 4\)"),
        (CODES[:, None], GRID, ShapeError, r"`codes`.*\(256, 1, 2\); write `.flatten\(1\)`"),
        (CODES, GRID[:, 0], ShapeError, r"`factors`.*\(256,\)"),
        (CODES[:1], GRID[:1], ShapeError, r"at least two rows, got \(1, 2\)"),
        (CODES[:, :0], GRID, ShapeError, r"\(256, 0\)"),
        (CODES.log(), GRID, OptionError, r"`codes` must be finite, got \[-inf, -inf\] in row 0"),
        (CODES, torch.cat([GRID, torch.full((256, 1), 3)], 1), OptionError, r"Column 4 of `factors` is 3 in all 256 rows"),
        (CODES > 0, GRID, DtypeError, r"`codes`.*torch.bool"),
        (CODES, GRID.tolist(), DtypeError, "`factors`.*got list"),
    ],
)
def test_mistakes_are_reported_with_both_sides(metric, codes, factors, error, told):
    with pytest.raises(error, match=told):
        metric(codes, factors)


@pytest.mark.parametrize("metric", [beta_vae, mig])
def test_levels_are_whole_numbers(metric):
    with pytest.raises(DtypeError, match=r"whole numbers.*torch.float32.*long"):
        metric(mixed(0), GRID.float())


@pytest.mark.parametrize(
    ("metric", "options", "told"),
    [
        (mig, {"bins": 1}, "bins must be a whole number of at least 2, got 1"),
        (mig, {"bins": 2.5}, "bins must be a whole number of at least 2, got 2.5"),
        (mig, {"points": 1}, "points must be a whole number of at least 2, got 1"),
        (mig, {"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        (beta_vae, {"pairs": 0}, "pairs must be a whole number of at least 1, got 0"),
        (beta_vae, {"train": "many"}, "train must be a whole number of at least 1, got 'many'"),
        (beta_vae, {"test": True}, "test must be a whole number of at least 1, got True"),
    ],
)
def test_options_are_checked(metric, options, told):
    with pytest.raises(OptionError, match=told):
        metric(mixed(0), GRID, **options)


@EACH
def test_arrays_and_gradients_are_taken(metric):
    codes = mixed(4)
    options = {"pairs": 4, "train": 20, "test": 20} if metric is beta_vae else {}
    one, other = metric(codes.requires_grad_(), GRID, **options), metric(codes.detach().numpy(), GRID.numpy(), **options)
    assert np.array_equal(one, other)


@pytest.mark.parametrize(("metric", "module"), [(beta_vae, "sklearn.linear_model"), (mcc, "scipy.optimize")])
def test_a_missing_package_is_reported_with_its_extra(metric, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ExtraNotInstalled, match=rf"{module.split('.')[0]}.*composable-energy\[metrics\]"):
        metric(mixed(0), GRID)


def test_every_public_name_is_there():
    assert sorted(metrics.__all__) == metrics.__all__
    assert all(callable(getattr(metrics, name)) for name in metrics.__all__)
