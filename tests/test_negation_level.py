"""Negation by level: the complement of where the draws of a density are."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Uniform

import composable_energy as ce
from composable_energy.errors import CalibrationError, ExpressionError, OptionError

F64 = torch.float64
CENTRE = torch.tensor([2.0, 0.0], dtype=F64)
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=F64)


def gaussian(mean: Tensor = CENTRE) -> ce.Energy:
    return ce.as_energy(MultivariateNormal(mean, torch.eye(2, dtype=F64)), name="gaussian")


def ring(x: Tensor) -> Tensor:
    return 8 * (x.norm(dim=1) - 2).square()


RING = ce.as_energy(ring, name="ring", event_shape=(2,))


class Shifted(ce.Energy):
    """A Gaussian with a learnable constant and centre; `~` of it needs a sampler."""

    def __init__(self, constant: float = 0.0) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.tensor(constant, dtype=F64))
        self.mean = nn.Parameter(CENTRE.clone())
        self.event_shape = torch.Size([2])

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean).square().sum(1) / 2 + self.constant


def level_of(energy: ce.Energy) -> ce.Negation:
    negation = ce.calibrate(~energy, dtype=F64)
    assert isinstance(negation, ce.Negation)
    return negation


def test_the_level_of_a_gaussian_is_its_quantile():
    """E - E(mean) of a Gaussian on the plane is exponential, so that the quantile is -log(1 - q)."""
    least = gaussian()(CENTRE[None]).item()
    for q in (0.5, 0.95):
        negation = ce.negate(gaussian(), mode="level", quantile=q)
        assert isinstance(negation, ce.Negation) and negation.level is not None and negation.level_error is not None
        assert abs(negation.level - least + math.log(1 - q)) < 4 * negation.level_error
        assert negation.level_error == pytest.approx(math.sqrt(q / (1 - q) / 65_536), rel=0.2)


@pytest.mark.slow
def test_the_level_of_an_energy_comes_from_its_default_sampler():
    negation = level_of(Shifted())
    assert negation.level is not None and negation.level_error is not None
    assert abs(negation.level + math.log(0.05)) < 4 * negation.level_error < 0.4
    expected = nn.functional.softplus((negation.level - Shifted()(X)) / 0.1)
    torch.testing.assert_close(negation(X), expected)


def test_quantile_and_temperature_are_options():
    border = ce.negate(RING, mode="level", level=1.0, temperature=2.0)
    torch.testing.assert_close(border(X), nn.functional.softplus((1.0 - RING(X)) / 2.0))
    assert border.equals(ce.negate(RING, level=1.0, temperature=2.0))
    for wrong in ({"quantile": 1.0}, {"quantile": 0.0}, {"temperature": 0.0}, {"level": math.nan}):
        with pytest.raises(OptionError):
            ce.negate(RING, **wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(OptionError, match="options of the mode 'level', and the mode is 'power'"):
        ce.negate(RING, mode="power", quantile=0.5)


@pytest.mark.slow
def test_not_keeps_out_of_where_the_other_density_lives():
    """Draws of `ring & ~gaussian` against quadrature of the formula."""
    energy, n = RING & ~gaussian(), 4000
    axis = torch.linspace(-5, 5, 501, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    weight = torch.softmax(-energy(grid), 0)
    inside = (grid - CENTRE).square().sum(1) <= -2 * math.log(0.05)
    truth = weight[inside].sum().item()
    points = energy.sample((n, 2), seed=0, dtype=F64)
    share = ((points - CENTRE).square().sum(1) <= -2 * math.log(0.05)).double().mean().item()
    assert truth < 0.05
    assert abs(share - truth) < 4 * math.sqrt(truth / n)


def test_a_flat_density_is_excluded_too():
    box = ce.as_energy(Independent(Uniform(torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)), 1), name="box")
    inside, outside = torch.full((1, 2), 0.5, dtype=F64), torch.full((1, 2), 1.5, dtype=F64)
    passes = (-(~box)(torch.cat([inside, outside]))).exp()
    assert passes[0] < 0.101 and passes[1] == 1


def test_the_complement_of_a_product_is_that_of_its_own_draws():
    """De Morgan's law does not hold for it: the draws of a product need not be where those of its factors are."""
    product = gaussian(CENTRE) & gaussian(-CENTRE)
    negation = ce.negate(product, level=product(torch.zeros(1, 2, dtype=F64)).item() + 3)
    assert isinstance(~product, ce.Negation) and (~product).config()["mode"] == "level"
    at_zero = torch.zeros(1, 2, dtype=F64)
    assert negation(at_zero) > 10
    assert (~gaussian(CENTRE) | ~gaussian(-CENTRE))(at_zero) < 10


def test_copies_twins_and_files_keep_the_level(tmp_path):
    negation = ~gaussian()
    untouched = copy.deepcopy(negation)
    values = negation(X)
    assert negation.equals(untouched) and copy.deepcopy(negation).equals(negation)
    for again in (copy.deepcopy(negation), pickle.loads(pickle.dumps(negation)), negation.rebuild(gaussian())):
        assert torch.equal(again(X), values)
    (RING.__class__, gaussian() & negation)[1].save(tmp_path / "not")
    loaded = ce.load(tmp_path / "not")
    assert torch.equal(loaded.terms[1](X), values) and loaded.terms[1].level == negation.level
    assert copy.deepcopy(negation).float()(X.float()).dtype == torch.float32


@pytest.mark.slow
def test_neither_evaluation_nor_sampling_writes_a_level_and_calibration_shares_the_weights():
    inner = Shifted()
    energy = RING & ~inner
    for evaluate in (energy, energy.explain, energy.with_gradient):
        with pytest.raises(CalibrationError, match=r"composable_energy\.calibrate"):
            evaluate(X)
    drawn = energy.sample((10, 2), steps=2, seed=0, dtype=F64)
    assert energy.terms[1].level is None
    known = ce.calibrate(energy)
    assert known.terms[1].level is not None and energy.terms[1].level is None
    assert torch.equal(known.sample((10, 2), steps=2, seed=0, dtype=F64), drawn)
    assert known.terms[1].terms[0] is inner and known.terms[0] is RING
    assert ce.calibrate(known) is known


@pytest.mark.slow
def test_levels_inside_of_levels_and_of_bases_are_filled():
    nested = ce.calibrate(RING & ~(gaussian() & ~Shifted()))
    assert all(part.level is not None for part in nested.modules() if isinstance(part, ce.Negation))
    event = ce.ClassifierEnergy(lambda x: x, 0, RING & ~Shifted())
    assert event.sample((4, 2), steps=2, seed=0, dtype=F64).isfinite().all()
    assert ce.calibrate(event)(X).isfinite().all()


@pytest.mark.slow
def test_an_energy_that_was_trained_is_calibrated_again():
    energy = Shifted()
    known, values = ce.calibrate(~energy), ce.calibrate(~energy)(X)
    with torch.no_grad():
        energy.constant += 50.0
    torch.testing.assert_close(ce.calibrate(~energy)(X), values, rtol=1e-4, atol=1e-4)
    assert ce.calibrate(~energy).level == pytest.approx(known.level + 50, abs=0.01)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.floats(-3, 3), st.floats(0.05, 2.0))
def test_it_is_bounded_below_and_needs_no_finite_energy(level, temperature):
    walls = ce.as_energy(lambda x: torch.where(x[:, 0] > 0, x.square().sum(1), torch.inf), name="walls")
    energies, gradient = ce.negate(walls, level=level, temperature=temperature).with_gradient(X)
    assert (energies >= 0).all() and gradient.isfinite().all()
    assert not energies[X[:, 0] <= 0].any()


def test_what_cannot_be_sampled_is_refused_with_the_other_modes():
    labelled = ce.as_energy(lambda x, y: (x - y[:, None]).square().sum(1), name="labelled", event_shape=(2,))
    rows = labelled.given(y=torch.arange(6.0, dtype=F64))
    for energy, reason in ((gaussian() - RING, "UngroundedError"), (rows, "it has 6 rows of y")):
        with pytest.raises(CalibrationError, match=rf"cannot be sampled \({reason}.*'power'.*'contrast'.*'complement'"):
            ce.calibrate(~energy)
    with pytest.raises(ExpressionError, match=r"depends on y, which is not bound.*'power'.*'contrast'.*'complement'"):
        (~labelled)(X, y=torch.ones(6, dtype=F64))


@pytest.mark.full
def test_a_bound_condition_has_a_level():
    labelled = ce.as_energy(lambda x, y: (x - y[:, None]).square().sum(1) / 2, name="labelled", event_shape=(2,))
    for energy in (~labelled.given(y=1.0), (~labelled).given(y=1.0)):
        known = ce.calibrate(energy, dtype=F64)
        assert abs(known(torch.ones(1, 2, dtype=F64)).item() - 10 * 2.996) < 4
        assert not known(torch.full((1, 2), 9.0, dtype=F64)).round(decimals=6).any()
