"""The mean correlation coefficient and linear R2 equal their definitions: all matchings, and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.linear_model import LinearRegression

from composable_energy.errors import OptionError, ShapeError
from composable_energy_comet import metrics

beta_vae, mcc, mig, r2 = metrics.beta_vae_score, metrics.mean_correlation, metrics.mutual_information_gap, metrics.linear_r2

GRID = torch.cartesian_prod(*[torch.arange(4)] * 4)  # 256 rows, 4 factors
seeds = st.integers(0, 2**32 - 1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mixed(seed: int, dimensions: int = 5) -> torch.Tensor:
    """Codes of the grid that tell something of several factors."""
    return GRID.double() @ normal(4, dimensions, seed=seed) + normal(len(GRID), dimensions, seed=seed + 1)


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

    def test_the_kind_is_one_of_two(self):
        with pytest.raises(OptionError, match="kind must be one of 'pearson', 'spearman', got 'kendall'"):
            mcc(mixed(0), GRID, "kendall")


class TestRegression:
    def test_is_that_of_scikit_learn(self):
        codes, factors = mixed(5), GRID.double() + normal(256, 4, seed=9)
        model = LinearRegression().fit(codes[:150].numpy(), factors[:150].numpy())
        left = factors[150:].numpy() - model.predict(codes[150:].numpy())
        expected = 1 - (left**2).sum(0) / ((factors[150:] - factors[150:].mean(0)) ** 2).sum(0).numpy()
        np.testing.assert_allclose(r2(codes[:150], factors[:150], codes[150:], factors[150:]).numpy(), expected, rtol=1e-9)

    def test_a_linear_code_tells_all_and_noise_nothing(self):
        """What D columns of noise explain of N rows has a variance of D / N; on M new rows it adds -D / N, give or take its product
        with the factor, 2 sqrt(D / N M), and its own spread sqrt(2 D) / N."""
        n, m, d, factors = 400, 300, 10, normal(700, 3, seed=1)
        exact = factors @ normal(3, d, seed=2) + 5
        torch.testing.assert_close(r2(exact[:n], factors[:n], exact[n:], factors[n:]), torch.ones(3, dtype=torch.float64))
        noise = normal(700, d, seed=3)
        tolerance = 5 * math.hypot(2 * math.sqrt(d / (n * m)), math.sqrt(2 * d) / n)
        assert (r2(noise[:n], factors[:n], noise[n:], factors[n:]) + d / n).abs().max() < tolerance

    def test_columns_that_are_constant_or_sums_of_others_do_no_harm(self):
        """The last column is constant where the map is learnt, and moves where it is judged."""
        codes, factors = mixed(2), GRID.double()
        more = torch.cat([codes, codes[:, :1], codes.sum(1, keepdim=True), torch.full((256, 1), 0.1), torch.zeros(256, 1)], 1)
        more[200:, -1] = 1e3
        alone, among = (r2(rows[:200:2], factors[:200:2], rows[1::2], factors[1::2]) for rows in (codes, more))
        torch.testing.assert_close(among, alone, rtol=1e-9, atol=1e-9)

    @settings(max_examples=20, deadline=None)
    @given(seeds)
    def test_rotations_scales_and_offsets_do_not_matter(self, seed):
        codes = mixed(seed)
        turned = codes @ torch.linalg.qr(normal(5, 5, seed=seed + 2))[0] * torch.tensor([1e-3, 1, 50, 1, 1e3]) + 7
        halves = [(rows[::2], GRID[::2], rows[1::2], GRID[1::2]) for rows in (codes, turned)]
        factors = [(a, b[:, :3], c, d[:, :3]) for a, b, c, d in halves]  # the last alternates with the halves
        torch.testing.assert_close(r2(*factors[0]), r2(*factors[1]), rtol=1e-8, atol=1e-8)

    @pytest.mark.parametrize("name", ["codes", "factors"])
    def test_columns_must_be_the_same(self, name):
        tables = {"train_codes": mixed(0), "train_factors": GRID, "test_codes": mixed(0), "test_factors": GRID}
        tables[f"test_{name}"] = tables[f"test_{name}"][:, 1:]
        with pytest.raises(ShapeError, match=rf"`train_{name}` and `test_{name}`.*\(256, [45]\) and \(256, [34]\)"):
            r2(**tables)
