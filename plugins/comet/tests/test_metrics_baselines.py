"""Baselines see no objects: k-means sees colors, quadrants see nothing, territories see only frequent labels."""

import numpy as np
import pytest
import torch

import composable_energy as ce
from composable_energy.errors import DtypeError, OptionError, ShapeError
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

    @pytest.mark.parametrize(
        ("change", "error", "told"),
        [
            ({"images": torch.zeros(3, 8, 8)}, ShapeError, r"\(3, 8, 8\).*unsqueeze"),
            ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.int64)}, DtypeError, "torch.int64"),
            ({"images": torch.full((2, 3, 8, 8), torch.nan)}, OptionError, "finite"),
            ({"counts": [3]}, ShapeError, "got 1 for 2"),
            ({"counts": torch.tensor([3.0, 3.0])}, DtypeError, "torch.float32"),
            ({"starts": 0}, OptionError, "starts must be a whole number of at least 1, got 0"),
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

    def test_mistakes_are_reported(self):
        with pytest.raises(ShapeError, match=r"\(0, 4, 4\)"):
            territory(torch.zeros(0, 4, 4, dtype=torch.int64))
        with pytest.raises(DtypeError, match=r"`predicted`.*torch.float32"):
            territory(torch.zeros(2, 4, 4))
