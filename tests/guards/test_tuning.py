"""The tuned trajectory reaches along every direction, and each option that is given leaves the others to be tuned."""

import pytest
import torch

import composable_energy as ce

F64 = torch.float64


def gaussian(precision: torch.Tensor, mean: torch.Tensor) -> ce.Energy:
    matrix, center = precision.float(), mean.float()
    return ce.as_energy(lambda x: ((x - center) @ matrix * (x - center)).sum(1) / 2, event_shape=(len(mean),))


def crossed_effects(rows: int, columns: int) -> tuple[ce.Energy, torch.Tensor, torch.Tensor]:
    """The energy $|x|^2 / 2 + .1 \\sum_{ij} (m + a_i - q_j - .5)^2$ of x = (m, a, q), its mean and its standard deviations."""
    cells, size = torch.arange(rows * columns), 1 + rows + columns
    design = torch.zeros(rows * columns, size, dtype=F64)
    design[:, 0] = 1
    design[cells, 1 + cells // columns] = 1
    design[cells, 1 + rows + cells % columns] = -1
    covariance = torch.linalg.inv(torch.eye(size, dtype=F64) + 0.2 * design.T @ design)

    def energy(x: torch.Tensor) -> torch.Tensor:
        row, column = x[:, :1] + x[:, 1 : 1 + rows] - 0.5, x[:, 1 + rows :]
        squares = columns * row.square().sum(1) + rows * column.square().sum(1) - 2 * row.sum(1) * column.sum(1)
        return x.square().sum(1) / 2 + 0.1 * squares

    return ce.as_energy(energy, event_shape=(size,)), 0.1 * covariance @ design.sum(0), covariance.diagonal().sqrt()


def difference_of_sums(size: int = 300) -> torch.Tensor:
    signs = torch.where(torch.arange(size) % 2 == 0, 1.0, -1.0).to(F64)
    return torch.eye(size, dtype=F64) + 25 / size * torch.outer(signs, signs)


def hierarchy(groups: int = 20, each: int = 15) -> torch.Tensor:
    """Coordinates with a common part, and a part of their group, both smaller than their own."""
    return torch.eye(groups * each, dtype=F64) + 0.09 + 0.09 * torch.block_diag(*[torch.ones(each, each, dtype=F64)] * groups)


@pytest.mark.full
@pytest.mark.parametrize("covariance", [difference_of_sums(), hierarchy()], ids=["difference of sums", "hierarchy"])
def test_a_slow_direction_that_no_coordinate_shows_counts(covariance):
    """The means of chains vary along it as those of dozens of independent draws do: by less than a tenth of the variance."""
    energy = gaussian(torch.linalg.inv(covariance), torch.zeros(len(covariance)))
    _, trace = energy.sample(64, seed=5, trace=1)
    variances, axes = torch.linalg.eigh(covariance)
    slowest = trace.points.double() @ axes[:, -1]
    assert slowest.mean(0).var() < 0.1 * variances[-1]
    assert slowest.square().mean() == pytest.approx(variances[-1].item(), rel=0.15)
    assert trace.warnings() == []


@pytest.mark.full
def test_crossed_effects_of_many_levels_have_the_means_of_the_closed_form():
    energy, mean, sd = crossed_effects(400, 100)
    _, trace = energy.sample(64, seed=5, trace=1, steps=200)
    found = trace.points.double().mean((0, 1))
    assert ((found - mean) / sd).abs().max() < 0.1
    assert found[1:401].std() < 0.02 * sd[1]  # the truth is equal


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"step_size": 0.1}, {"trajectory": 2.0, "metric": "dense"}])
def test_one_option_alone_leaves_the_others_to_be_tuned(options):
    sd = torch.tensor([0.2, 1.0, 2.0], dtype=F64)
    x, trace = gaussian((1 / sd.square()).diag(), torch.ones(3)).sample(500, sampler="chees", seed=5, trace=True, **options)
    tuned = trace.sampler
    assert all(getattr(tuned, name) == value for name, value in options.items() if name != "metric")
    assert tuned.step_size is not None and tuned.trajectory is not None
    assert {"step_size", "trajectory"} - options.keys() <= set(trace.tuned)
    assert ((x.double().mean(0) - 1).abs() < 4.5 * sd / 500**0.5).all()
    assert ((x.double().std(0) / sd - 1).abs() < 4.5 / 1000**0.5).all()
