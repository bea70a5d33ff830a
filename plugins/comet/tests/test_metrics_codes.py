"""Metrics of codes and of segments equal their definitions: tables by hand, scikit-learn, all matchings, and sets of pixels."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import LinearRegression
from sklearn.metrics import adjusted_rand_score, mutual_info_score

import composable_energy as ce
from composable_energy.errors import DtypeError, ExtraNotInstalled, OptionError, ShapeError
from composable_energy_comet import metrics
from tests.refusals import refusals, refused

beta_vae, mcc, mig, r2 = metrics.beta_vae_score, metrics.mean_correlation, metrics.mutual_information_gap, metrics.linear_r2

GRID = torch.cartesian_prod(*[torch.arange(4)] * 4)  # 256 rows, 4 factors
seeds = st.integers(0, 2**32 - 1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mixed(seed: int, dimensions: int = 5) -> torch.Tensor:
    """Codes of the grid that tell something of several factors."""
    return GRID.double() @ normal(4, dimensions, seed=seed) + normal(len(GRID), dimensions, seed=seed + 1)


@pytest.mark.parametrize("bins", [2, 5, 20])
def test_the_information_is_that_of_histograms(bins):
    codes = mixed(3)
    cells = [np.digitize(column, np.histogram(column, bins)[1][1:-1]) for column in codes.T.numpy()]
    best = np.sort(np.array([[mutual_info_score(cell, factor) for cell in cells] for factor in GRID.T.numpy()]), 1)[:, ::-1]
    assert math.isclose(mig(codes, GRID, bins), np.mean((best[:, 0] - best[:, 1]) / math.log(4)), rel_tol=1e-9)


class TestPairs:
    def test_points_are_those_of_the_definition(self, monkeypatch):
        """Over a grid of four levels, free factors agree in a quarter of the pairs: the mean distance is 5/4."""
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
        assert beta_vae(GRID * torch.tensor([1.0, -3.0, 0.2, 50.0]), GRID, pairs=32, train=50, test=20) == 0.5
        deviation = GRID.double()[:, 0].std()
        mean, spread = 5 / 4, math.sqrt(15 / 16)
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


def best_matching(strength: np.ndarray) -> float:
    """The definition, over all matchings; columns of zeros stand for dimensions that are not there."""
    dimensions, factors = strength.shape
    strength = np.vstack([strength, np.zeros((factors, factors))])
    orders = itertools.permutations(range(dimensions + factors), factors)
    return max(strength[list(order), range(factors)].sum() for order in orders) / factors


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_the_correlation_is_the_best_of_all_matchings(seed, dimensions, factors, ties):
    codes, values = normal(12, dimensions, seed=seed), normal(12, factors, seed=seed + 1)
    codes[:, 0] += values[:, -1]
    if ties:
        codes, values = codes.round(), (values * 2).round()
        values[0], values[1] = 9, -9
        codes[:2, :] = torch.tensor([[8.0], [-7.0]])
    both = np.hstack([codes.numpy(), values.numpy()])
    assert math.isclose(mcc(codes, values), best_matching(np.abs(np.corrcoef(both.T)[:dimensions, dimensions:])), rel_tol=1e-9)


def test_the_regression_is_that_of_scikit_learn():
    codes, factors = mixed(5), GRID.double() + normal(256, 4, seed=9)
    model = LinearRegression().fit(codes[:150].numpy(), factors[:150].numpy())
    left = factors[150:].numpy() - model.predict(codes[150:].numpy())
    expected = 1 - (left**2).sum(0) / ((factors[150:] - factors[150:].mean(0)) ** 2).sum(0).numpy()
    np.testing.assert_allclose(r2(codes[:150], factors[:150], codes[150:], factors[150:]).numpy(), expected, rtol=1e-9)


METRICS = [beta_vae, mcc, mig, lambda codes, factors: r2(codes, factors, codes, factors)]
CODES = torch.zeros(256, 2)
MISTAKES = [
    (CODES[:9], GRID, ShapeError, r"\(9, 2\) and \(256, 4\)"),
    (CODES[:, None], GRID, ShapeError, r"`codes`.*\(256, 1, 2\); write `.flatten\(1\)`"),
    (CODES.log(), GRID, OptionError, r"`codes` must be finite, got \[-inf, -inf\] in row 0"),
    (CODES, torch.cat([GRID, torch.full((256, 1), 3)], 1), OptionError, r"Column 4 of `factors` is 3 in all 256 rows"),
    (CODES > 0, GRID, DtypeError, r"`codes`.*torch.bool"),
    (CODES, GRID.tolist(), DtypeError, "`factors`.*got list"),
]
test_mistakes_are_reported_with_both_sides = refusals(*((a, b, metric, *told) for metric in METRICS for a, b, *told in MISTAKES))


@pytest.mark.parametrize(("metric", "module"), [(beta_vae, "sklearn.linear_model"), (mcc, "scipy.optimize")])
def test_a_missing_package_is_reported_with_its_extra(metric, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    refused(ExtraNotInstalled, rf"{module.split('.')[0]}.*composable-energy\[metrics\]", metric, mixed(0), GRID)


OF_SEGMENTS = [metrics.adjusted_rand_index, metrics.mean_segmentation_covering]
ari, covering = OF_SEGMENTS

shapes = st.tuples(st.integers(0, 4), st.integers(1, 24))
maps = shapes.flatmap(lambda shape: st.tuples(*[arrays(np.int64, shape, elements=st.integers(0, 4))] * 2))


def pixel_sets(labels: np.ndarray) -> dict[int, set[int]]:
    return {int(name): set(np.flatnonzero(labels == name)) for name in np.unique(labels)}


def covering_of_sets(truth: np.ndarray, predicted: np.ndarray, foreground: bool) -> float:
    """The definition, over sets of pixels."""
    judged = [pixels for name, pixels in pixel_sets(truth).items() if name > 0 or not foreground]
    best = [max(len(one & other) / len(one | other) for other in pixel_sets(predicted).values()) for one in judged]
    return sum(best) / len(best) if best else math.nan


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(maps, st.booleans())
def test_the_index_is_that_of_scikit_learn(pair, foreground):
    """Both are exact but for roundings of a few numbers below 1,000."""
    truth, predicted = pair
    for one, true, found in zip(ari(*pair, foreground=foreground).tolist(), truth, predicted, strict=True):
        judged = true > 0 if foreground else np.full(true.shape, True)
        if judged.any():
            assert math.isclose(one, adjusted_rand_score(true[judged], found[judged]), rel_tol=1e-12, abs_tol=1e-12)
        else:
            assert math.isnan(one)


@settings(max_examples=100, deadline=None)
@given(maps, st.booleans())
def test_the_covering_is_that_of_sets_of_pixels(pair, foreground):
    expected = [covering_of_sets(*row, foreground) for row in zip(*pair, strict=True)]
    np.testing.assert_allclose(covering(*pair, foreground=foreground).numpy(), expected, rtol=1e-12)


@pytest.mark.slow
def test_no_digit_is_lost_in_large_pictures():
    """Pairs of a million pixels do not fit float32, nor their products int64."""
    labels = torch.arange(1024 * 1024).reshape(1, 1024, 1024)
    halves = labels // (512 * 1024)
    assert ari(halves, halves + 3).item() == 1 and ari(labels, labels.flip(1)).item() == 1
    other = halves.clone()
    other[0, 0, 0] = 1
    n, half = 1024 * 1024, 512 * 1024
    pairs = [k * (k - 1) // 2 for k in (half, half - 1, half + 1, n)]
    r, s, both = 2 * pairs[0], pairs[1] + pairs[2], pairs[1] + pairs[0]
    assert math.isclose(ari(halves, other).item(), (both * pairs[3] - r * s) / ((r + s) * pairs[3] / 2 - r * s), rel_tol=1e-12)


@pytest.mark.parametrize("metric", OF_SEGMENTS, ids=lambda metric: metric.__name__)
def test_no_picture_has_no_score(metric):
    assert metric(torch.zeros(0, 4, 4, dtype=torch.int64), torch.zeros(0, 4, 4, dtype=torch.int64)).shape == (0,)
    assert metric(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.int64)).isnan().all()


INTS = torch.zeros(2, 4, 4, dtype=torch.int64)
UNLIKE = [
    (INTS, INTS[:1], ShapeError, r"\(2, 4, 4\) and \(1, 4, 4\)"),
    (INTS, INTS.flatten(1), ShapeError, r"\(2, 4, 4\) and \(2, 16\)"),
    (INTS[:, None], INTS[:, None], ShapeError, r"`truth`.*\(2, 1, 4, 4\); write `.squeeze\(1\)`"),
    (INTS, INTS.float(), DtypeError, r"`predicted`.*torch.float32.*argmax"),
    (INTS > 0, INTS, DtypeError, r"`truth`.*torch.bool.*long"),
    (INTS.tolist(), INTS, DtypeError, "got list"),
]
test_mistakes_in_segments_are_reported_with_both_sides = refusals(*((a, b, name, *told) for name in OF_SEGMENTS for a, b, *told in UNLIKE))

kmeans, quadrants, territory = metrics.kmeans_labels, metrics.quadrant_labels, metrics.territory_labels


@pytest.fixture(scope="module")
def scenes():
    return ce.get("world", "colored-sprites").draw(6, seed=0, masks=True)


class TestColors:
    @pytest.mark.slow
    def test_segments_of_one_color_each_are_found(self):
        generator = torch.Generator().manual_seed(0)
        truth = torch.randint(3, (4, 8, 8), generator=generator)
        colors = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.9, 1.0]])
        images = colors[truth].permute(0, 3, 1, 2) + 0.05 * torch.rand(4, 3, 8, 8, generator=generator)
        assert (ari(truth, kmeans(images, 3)) == 1).all()

    def test_a_picture_is_cut_alone(self, scenes):
        counts = scenes.labels["present"].sum(1) + 1
        labels = kmeans(scenes.images, counts, seed=3)
        assert labels.dtype == torch.int64 and labels.shape == (6, 32, 32)
        assert torch.equal(kmeans(scenes.images[:2], counts[:2], seed=3), labels[:2])
        colors = [len(np.unique(image.reshape(3, -1), axis=1).T) for image in scenes.images]
        assert [len(one.unique()) for one in labels] == np.minimum(counts, colors).tolist()
        assert torch.equal(kmeans(torch.as_tensor(scenes.images), counts.tolist(), seed=3), labels)


test_mistakes_are_reported = refusals(
    ({"images": torch.zeros(3, 8, 8)}, ShapeError, r"\(3, 8, 8\).*unsqueeze"),
    ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.int64)}, DtypeError, "torch.int64"),
    ({"images": torch.full((2, 3, 8, 8), torch.nan)}, OptionError, "finite"),
    ({"counts": torch.tensor([3.0, 3.0])}, DtypeError, "torch.float32"),
    call=lambda change: kmeans(**({"images": torch.zeros(2, 3, 8, 8), "counts": 2} | change)),
)


def test_quadrants_are_quarters():
    labels = quadrants(3, 6)
    assert labels.shape == (3, 6, 6) and labels.dtype == torch.int64
    assert [(labels == quarter).sum().item() for quarter in range(4)] == [27] * 4
    assert labels[1, 2, 2] == 0 and labels[1, 2, 3] == 1 and labels[1, 3, 2] == 2 and labels[1, 3, 3] == 3


def test_a_territory_is_of_the_most_frequent_label_and_of_equals_of_the_least():
    predicted = torch.randint(-2, 3, (9, 5, 4), generator=torch.Generator().manual_seed(0))
    labels = territory(predicted)
    assert labels.shape == predicted.shape and (labels == labels[0]).all()
    for row in range(5):
        for column in range(4):
            counts = {name: (predicted[:, row, column] == name).sum().item() for name in range(-2, 3)}
            assert labels[0, row, column] == min(name for name in counts if counts[name] == max(counts.values()))
