"""Baselines see no objects: k-means sees colors, quadrants see nothing, territories see only frequent labels."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import composable_energy as ce
from composable_energy.errors import DtypeError, ExtraNotInstalled, OptionError, ShapeError
from composable_energy_comet import metrics

ari, kmeans, quadrants, territory = (
    metrics.adjusted_rand_index,
    metrics.kmeans_labels,
    metrics.quadrant_labels,
    metrics.territory_labels,
)


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

    def test_bytes_and_numbers_are_cut_alike(self, scenes):
        assert (ari(kmeans(scenes.images, 3), kmeans(torch.as_tensor(scenes.images) / 255, 3)) == 1).all()

    @pytest.mark.filterwarnings("error")
    def test_fewer_colors_than_segments(self):
        images = torch.zeros(2, 3, 4, 4)
        images[1, :, :2] = 0.5
        labels = kmeans(images, 5)
        assert (labels[0] == 0).all() and len(labels[1].unique()) == 2
        assert (kmeans(torch.rand(1, 3, 4, 4), 1) == 0).all()

    def test_no_generator_is_touched(self, scenes):
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        kmeans(scenes.images[:1], 3, starts=1)
        assert torch.equal(torch.get_rng_state(), before[0]) and np.array_equal(np.random.get_state()[1], before[1])

    @pytest.mark.parametrize(
        ("change", "error", "told"),
        [
            ({"images": torch.zeros(3, 8, 8)}, ShapeError, r"\(3, 8, 8\).*unsqueeze"),
            ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.int64)}, DtypeError, "torch.int64"),
            ({"images": torch.full((2, 3, 8, 8), torch.nan)}, OptionError, "finite"),
            ({"counts": [3]}, ShapeError, "got 1 for 2"),
            ({"counts": torch.tensor([3.0, 3.0])}, DtypeError, "torch.float32"),
            ({"counts": 0}, OptionError, "counts must be a whole number of at least 1, got 0"),
            ({"counts": "3"}, OptionError, "whole number of at least 1, got '3'"),
            ({"starts": 0}, OptionError, "starts must be a whole number of at least 1, got 0"),
            ({"seed": -1}, OptionError, "seed must be a whole number of at least 0, got -1"),
        ],
    )
    def test_mistakes_are_reported(self, change, error, told):
        with pytest.raises(error, match=told):
            kmeans(**({"images": torch.zeros(2, 3, 8, 8), "counts": 2} | change))

    def test_a_missing_package_is_reported_with_its_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
        with pytest.raises(ExtraNotInstalled, match=r"sklearn.*composable-energy\[metrics\]"):
            kmeans(torch.zeros(1, 3, 8, 8), 2)


class TestQuadrants:
    def test_they_are_quarters(self):
        labels = quadrants(3, (4, 6))
        assert labels.shape == (3, 4, 6) and labels.dtype == torch.int64
        assert [(labels == quarter).sum().item() for quarter in range(4)] == [18] * 4
        assert labels[1, 1, 2] == 0 and labels[1, 1, 3] == 1 and labels[1, 2, 2] == 2 and labels[1, 2, 3] == 3

    def test_odd_sides_are_cut_in_the_middle_to_a_pixel(self):
        assert [(quadrants(1, 5) == quarter).sum().item() for quarter in range(4)] == [4, 6, 6, 9]

    def test_four_objects_in_four_corners_look_found(self):
        """The trap: no picture was looked at."""
        truth = torch.zeros(1, 8, 8, dtype=torch.int64)
        for label, (row, column) in enumerate([(1, 1), (1, 5), (5, 1), (5, 5)], 1):
            truth[0, row : row + 2, column : column + 2] = label
        assert ari(truth, quadrants(1, 8), foreground=True).item() == 1
        assert ari(truth, quadrants(1, 8)).item() < 0.2

    @pytest.mark.parametrize(("n", "size"), [(0, 4), (2, 0), (2, (4, 4, 4)), (2, 2.5)])
    def test_mistakes_are_reported(self, n, size):
        with pytest.raises(OptionError, match=r"0|2\.5|\(4, 4, 4\)"):
            quadrants(n, size)


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

    def test_components_that_own_places_lose_nothing(self):
        predicted = quadrants(5, 6)
        assert torch.equal(territory(predicted), predicted)

    def test_mistakes_are_reported(self):
        with pytest.raises(ShapeError, match=r"\(0, 4, 4\)"):
            territory(torch.zeros(0, 4, 4, dtype=torch.int64))
        with pytest.raises(DtypeError, match=r"`predicted`.*torch.float32"):
            territory(torch.zeros(2, 4, 4))


@pytest.mark.slow
def test_metrics_load_nothing_until_they_are_used():
    code = (
        "import sys, composable_energy; from composable_energy_comet import metrics;"
        "import torch; before = {*sys.modules}; metrics.quadrant_labels(1, 4);"
        "print({name.split('.')[0] for name in {*sys.modules} - before} & {'scipy', 'sklearn', 'joblib', 'pandas', 'matplotlib'})"
    )
    path = ":".join(part for part in sys.path if part)
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
