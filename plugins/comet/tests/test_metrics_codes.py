"""Metrics of codes equal their definitions: tables computed by hand, scikit-learn, and all matchings."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.linear_model import LinearRegression
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


class TestPairs:
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

        monkeypatch.setattr("sklearn.linear_model.LogisticRegression", Recorder)
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

    def test_pairs_that_are_not_there_are_reported(self):
        factors = torch.tensor([[0, 0], [0, 1], [1, 0]])
        with pytest.raises(OptionError, match=r"shares only factor 0.*full grid"):
            beta_vae(factors.double(), factors, exactly_one=True, pairs=2, train=2, test=2)


def best_matching(strength: np.ndarray) -> float:
    """The definition, over all matchings; columns of zeros stand for dimensions that are not there."""
    dimensions, factors = strength.shape
    strength = np.vstack([strength, np.zeros((factors, factors))])
    orders = itertools.permutations(range(dimensions + factors), factors)
    return max(strength[list(order), range(factors)].sum() for order in orders) / factors


class TestCorrelation:
    @settings(max_examples=30, deadline=None)
    @given(seeds, st.integers(1, 5), st.integers(1, 4), st.sampled_from(["pearson", "spearman"]), st.booleans())
    def test_is_the_best_of_all_matchings(self, seed, dimensions, factors, kind, ties):
        codes, values = normal(12, dimensions, seed=seed), normal(12, factors, seed=seed + 1)
        codes[:, 0] += values[:, -1]
        if ties:
            codes, values = codes.round(), (values * 2).round()
            values[0], values[1] = 9, -9
            codes[:2, :] = torch.tensor([[8.0], [-7.0]])
        both = np.hstack([codes.numpy(), values.numpy()])
        whole = np.corrcoef(both.T) if kind == "pearson" else np.array([[spearmanr(a, b)[0] for b in both.T] for a in both.T])
        expected = best_matching(np.abs(whole[:dimensions, dimensions:]))
        assert math.isclose(mcc(codes, values, kind), expected, rel_tol=1e-9)


class TestRegression:
    def test_is_that_of_scikit_learn(self):
        codes, factors = mixed(5), GRID.double() + normal(256, 4, seed=9)
        model = LinearRegression().fit(codes[:150].numpy(), factors[:150].numpy())
        left = factors[150:].numpy() - model.predict(codes[150:].numpy())
        expected = 1 - (left**2).sum(0) / ((factors[150:] - factors[150:].mean(0)) ** 2).sum(0).numpy()
        np.testing.assert_allclose(r2(codes[:150], factors[:150], codes[150:], factors[150:]).numpy(), expected, rtol=1e-9)


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
        (CODES.log(), GRID, OptionError, r"`codes` must be finite, got \[-inf, -inf\] in row 0"),
        (CODES, torch.cat([GRID, torch.full((256, 1), 3)], 1), OptionError, r"Column 4 of `factors` is 3 in all 256 rows"),
        (CODES > 0, GRID, DtypeError, r"`codes`.*torch.bool"),
        (CODES, GRID.tolist(), DtypeError, "`factors`.*got list"),
    ],
)
def test_mistakes_are_reported_with_both_sides(metric, codes, factors, error, told):
    with pytest.raises(error, match=told):
        metric(codes, factors)


@pytest.mark.parametrize(("metric", "module"), [(beta_vae, "sklearn.linear_model"), (mcc, "scipy.optimize")])
def test_a_missing_package_is_reported_with_its_extra(metric, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ExtraNotInstalled, match=rf"{module.split('.')[0]}.*composable-energy\[metrics\]"):
        metric(mixed(0), GRID)
