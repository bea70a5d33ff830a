"""Segmentation metrics equal their definitions: computed by hand, by scikit-learn and by sets of pixels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import adjusted_rand_score

from composable_energy.errors import DtypeError, ShapeError
from composable_energy_comet import metrics

METRICS = [metrics.adjusted_rand_index, metrics.mean_segmentation_covering]
ari, covering = METRICS
EACH = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)

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


def test_a_foreground_of_no_pixel_is_not_judged_and_of_one_is_met():
    truth, predicted = torch.tensor([[0, 0, 0], [0, 3, 0]]), torch.tensor([[0, 1, 2], [0, 1, 2]])
    for metric in METRICS:
        scores = metric(truth, predicted, foreground=True)
        assert scores[0].isnan() and scores[1] == 1


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
    exact = (both * pairs[3] - r * s) / ((r + s) * pairs[3] / 2 - r * s)
    assert math.isclose(ari(halves, other).item(), exact, rel_tol=1e-12)


@EACH
def test_no_picture_has_no_score(metric):
    assert metric(torch.zeros(0, 4, 4, dtype=torch.int64), torch.zeros(0, 4, 4, dtype=torch.int64)).shape == (0,)
    assert metric(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.int64)).isnan().all()


INTS = torch.zeros(2, 4, 4, dtype=torch.int64)


@EACH
@pytest.mark.parametrize(
    ("truth", "predicted", "error", "told"),
    [
        (INTS, INTS[:1], ShapeError, r"\(2, 4, 4\) and \(1, 4, 4\)"),
        (INTS, INTS.flatten(1), ShapeError, r"\(2, 4, 4\) and \(2, 16\)"),
        (INTS[:, None], INTS[:, None], ShapeError, r"`truth`.*\(2, 1, 4, 4\); write `.squeeze\(1\)`"),
        (INTS, INTS.float(), DtypeError, r"`predicted`.*torch.float32.*argmax"),
        (INTS > 0, INTS, DtypeError, r"`truth`.*torch.bool.*long"),
        (INTS.tolist(), INTS, DtypeError, "got list"),
    ],
)
def test_mistakes_are_reported_with_both_sides(metric, truth, predicted, error, told):
    with pytest.raises(error, match=told):
        metric(truth, predicted)
