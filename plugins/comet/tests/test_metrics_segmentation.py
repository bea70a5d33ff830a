"""Segmentation metrics equal their definitions, by scikit-learn and by sets of pixels; baselines see no objects."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import adjusted_rand_score

import composable_energy as ce
from composable_energy.errors import DtypeError, OptionError, ShapeError
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

    @pytest.mark.parametrize(
        ("change", "error", "told"),
        [
            ({"images": torch.zeros(3, 8, 8)}, ShapeError, r"\(3, 8, 8\).*unsqueeze"),
            ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.int64)}, DtypeError, "torch.int64"),
            ({"images": torch.full((2, 3, 8, 8), torch.nan)}, OptionError, "finite"),
            ({"counts": torch.tensor([3.0, 3.0])}, DtypeError, "torch.float32"),
        ],
    )
    def test_mistakes_are_reported(self, change, error, told):
        with pytest.raises(error, match=told):
            kmeans(**({"images": torch.zeros(2, 3, 8, 8), "counts": 2} | change))


class TestQuadrants:
    def test_they_are_quarters(self):
        labels = quadrants(3, (4, 6))
        assert labels.shape == (3, 4, 6) and labels.dtype == torch.int64
        assert [(labels == quarter).sum().item() for quarter in range(4)] == [18] * 4
        assert labels[1, 1, 2] == 0 and labels[1, 1, 3] == 1 and labels[1, 2, 2] == 2 and labels[1, 2, 3] == 3


class TestTerritory:
    def test_it_is_the_most_frequent_label_and_of_equals_the_least(self):
        predicted = torch.randint(-2, 3, (9, 5, 4), generator=torch.Generator().manual_seed(0))
        labels = territory(predicted)
        assert labels.shape == predicted.shape and (labels == labels[0]).all()
        for row in range(5):
            for column in range(4):
                counts = {name: (predicted[:, row, column] == name).sum().item() for name in range(-2, 3)}
                assert counts[labels[0, row, column].item()] == max(counts.values())
                assert labels[0, row, column] == min(name for name in counts if counts[name] == max(counts.values()))
