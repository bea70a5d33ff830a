"""`log_z` and `calibrate`, of mixtures and of negations by level: right within the reported error, or an error that says why."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Gamma, Independent, MultivariateNormal, Normal, Uniform

import composable_energy as ce
from composable_energy import errors
from composable_energy_mcmc import LogZ
from tests.refusals import refusals, refused


def gaussian(width: float, *shape: int, **options) -> ce.Energy:
    options |= {"name": f"width {width}", "event_shape": shape or (2,)}
    return ce.as_energy(lambda x: (x / width).square().reshape(len(x), -1).sum(1) / 2, **options)


def normaliser(width: float, axes: int = 2) -> float:
    return axes * (math.log(2 * math.pi) / 2 + math.log(width))


def close(found: LogZ, truth: float, deviations: float = 4.0) -> None:
    assert abs(found.value - truth) < deviations * found.standard_error + 1e-6, f"{found}, not {truth:.3f}"
    assert found.standard_error < 0.1


class TestValue:
    @pytest.mark.full
    def test_a_mixture_from_a_wide_base_and_back_from_draws(self):
        means = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0]], dtype=torch.float64)
        shares = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
        energy = ce.as_energy(lambda x: -torch.logsumexp(shares.log() - (x[:, None] - means).square().sum(2) / 0.18, 1))
        wide = Normal(torch.zeros(2, dtype=torch.float64), 3.0)
        draws = means[torch.multinomial(shares, 1024, True)] + 0.3 * torch.randn(1024, 2, dtype=torch.float64)
        truth = math.log(2 * math.pi * 0.09)
        one, both = ce.log_z(energy, base=wide, seed=0), ce.log_z(energy, base=wide, draws=draws, seed=0)
        close(one, truth)
        close(both, truth)
        assert both.standard_error < one.standard_error and one.upper is None and both.upper is not None and both.draws == 1024
        assert both.lower == one.value  # the same forward paths
        close(ce.log_z(energy, draws=draws, seed=0), truth)

    @pytest.mark.full
    def test_a_bounded_support(self):
        law = Gamma(torch.full((2,), 3.0), 1.0)
        wide = Normal(law.mean, 1.5 * law.stddev)
        close(ce.log_z(law, base=wide, seed=0), 0.0)
        close(ce.log_z(law, base=wide, draws=law.sample((500,)), seed=0), 0.0)
        close(ce.log_z(ce.as_energy(Gamma(3.0, 1.0), variables="rate"), draws={"rate": law.sample((500,))[:, 0]}, seed=0), 0.0)

    @pytest.mark.full
    def test_relative_energies_count_their_base(self):
        base = gaussian(2.0)
        concept = ce.as_energy(lambda x: base(x) + (x[:, 0] - 1).square() / 2, event_shape=(2,)).relative_to(base)
        precision = 0.25 + 1.0  # of the first axis; both energies are quadratic
        close(ce.log_z(concept & base, seed=0), math.log(2 * math.pi) - math.log(precision) / 2 + math.log(2) + (1 / precision - 1) / 2)

    @pytest.mark.slow
    def test_latents_are_what_is_integrated_over(self):
        decoder = torch.nn.Linear(2, 5)
        energy = gaussian(0.7, decoder=decoder)
        before = torch.get_rng_state()
        close(ce.log_z(energy, seed=0), normaliser(0.7))
        assert torch.equal(torch.get_rng_state(), before)
        assert all(parameter.requires_grad for parameter in decoder.parameters()) and decoder.training

    @pytest.mark.slow
    def test_a_seed_is_a_number_whatever_the_batch_size(self):
        draws = torch.randn(60, 2)
        options: dict[str, Any] = {"particles": 64, "levels": 6, "draws": draws, "seed": 3}
        one = ce.log_z(gaussian(1.0), **options)
        assert ce.log_z(gaussian(1.0), **options) == one and ce.log_z(gaussian(1.0), **options, batch_size=50) == one
        assert ce.log_z(gaussian(1.0), **{**options, "seed": 4}).value != one.value

    @pytest.mark.slow
    def test_a_heavy_tail_warns_unless_paths_lead_back(self):
        """Without draws it is .17 too low, of an error of .05: too few of the paths come to the ends of the valley."""
        valley = ce.as_energy(lambda x: (x[:, 0] - 1).square() + 100 * (x[:, 1] - x[:, 0].square()).square(), event_shape=(2,))
        with pytest.warns(errors.SamplingWarning, match="tail: .*draws"):
            ce.log_z(valley, seed=2)
        x, y = torch.randn(2, 2000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.5**0.5], [0.005**0.5]])
        close(ce.log_z(valley, draws=torch.stack([x + 1, (x + 1).square() + y], 1), seed=2), math.log(math.pi / 10))


WIDE = Normal(torch.zeros(2), 1.0)
HOLE = ce.as_energy(lambda x: torch.where(x[:, 0] > 1, torch.nan, x.square().sum(1)), event_shape=(2,))
STEEP = ce.as_energy(lambda x: (x - 1).square().sum(1) * 5)
ROWS = ce.as_energy(lambda x, y: y * x.square().sum(1)).given(y=torch.ones(9))

test_options = refusals(
    ({"base": Uniform(torch.zeros(2), 1.0)}, errors.OptionError, "got Uniform"),
    ({"base": Normal(torch.zeros(3), 1.0)}, errors.ShapeError, r"got \(3,\) and \(2,\)"),
    ({"base": Normal(torch.zeros(2), 1.0), "event_shape": (3,)}, errors.ShapeError, r"got \(3,\) and \(2,\)"),
    ({"event_shape": 2}, errors.ShapeError, r"event_shape is the shape of one point, such as \(2,\), got 2"),
    ({"draws": torch.randn(100, 3)}, errors.ShapeError, r"got \(3,\) and \(2,\)"),
    ({"draws": torch.randn(5, 2)}, errors.OptionError, "at least"),
    ({"draws": torch.full((100, 2), torch.nan)}, errors.OptionError, "not finite"),
    ({"draws": torch.ones(50, 2)}, errors.OptionError, "all the same in a coordinate"),
    ({"base": 1.0}, errors.OptionError, "base is a Normal or one MultivariateNormal of torch.distributions, got float"),
    ({"draws": torch.ones(100, 2, dtype=torch.int64)}, errors.DtypeError, "floating"),
    ({"draws": torch.randn(100, 2), "init": torch.randn(100, 2)}, errors.OptionError, "pilot run"),
    ({"particles": 3}, errors.OptionError, "particles"),
    ({"leapfrog": 3}, errors.OptionError, "leapfrogs"),
    ({"sampler": "langevin", "step_size": 0.1}, errors.OptionError, "never rejects"),
    ({"sampler": "annealed"}, errors.OptionError, "step_size"),
    call=lambda options: ce.log_z(gaussian(1.0), **options),
)


test_what_has_no_normaliser = refusals(
    (STEEP, {"base": Normal(torch.zeros(32), 1.0), "levels": 3}, errors.CalibrationError, r"less than 5%.*levels=12"),
    (~gaussian(1.0), {}, errors.UngroundedError, None),
    (Uniform(torch.full((2,), 90.0), 91.0), {"base": WIDE}, errors.CalibrationError, "no pilot point at level 0 has a density"),
    (HOLE, {}, errors.SamplingDiverged, None),
    (HOLE, {"base": WIDE}, errors.SamplingDiverged, None),
    (lambda x: x.square().sum(1), {}, errors.ShapeError, "event_shape"),
    (ROWS, {"event_shape": (2,)}, errors.ExpressionError, "one value for all"),
    (Uniform(torch.zeros(2), 1.0), {"draws": 2 * torch.rand(100, 2), "base": WIDE}, errors.OptionError, "density 0"),
    call=lambda energy, options: ce.log_z(energy, seed=0, **options),
)


QUICK: dict[str, Any] = {"seed": 0, "particles": 256}


@pytest.mark.full
class TestCalibrate:
    def test_the_shares_are_those_of_the_weights(self):
        mixture = ce.calibrate(ce.any_of(gaussian(0.5), gaussian(2.0), weights=[0.7, 0.3]), seed=0)
        count = 20_000  # exact draws of the mixture of densities
        share = mixture.explain(torch.randn(count, 2) * torch.where(torch.arange(count) < 0.7 * count, 0.5, 2.0)[:, None]).terms[0].share
        assert share is not None and abs(share.mean().item() - 0.7) < 0.01
        drawn, trace = mixture.sample(8192, sampler="hmc", steps=100, seed=0, trace=True)
        assert abs(trace.branch_shares[0].item() - 0.7) < 0.02
        share = mixture.explain(drawn).terms[0].share
        assert share is not None
        torch.testing.assert_close(trace.branch_shares, torch.stack([share.mean(), 1 - share.mean()]))

    def test_a_shared_base_is_part_of_each_density(self):
        base = gaussian(2.0)
        A, B = (ce.as_energy(lambda x, s=s: base(x) + (x / s).square().sum(1) / 2).relative_to(base) for s in (0.5, 1.0))
        mixture = ce.calibrate(A | B, **QUICK)
        assert isinstance(mixture, ce.Disjunction) and [b.energy for b in mixture.bases] == [base]
        assert mixture.log_z == pytest.approx([normaliser((0.25 + 1 / s**2) ** -0.5) for s in (0.5, 1.0)], abs=0.05)

    def test_every_mixture_in_a_tree_and_nothing_else(self):
        A, B, C = gaussian(0.5), gaussian(1.0), gaussian(2.0)
        weight = torch.nn.Parameter(torch.tensor(2.0))
        scaled, alone, sharp = ce.calibrate((weight * (A | B)) & C & (ce.any_of(A | B, C, weights=[1, 3])).sharpened(2.0), **QUICK).terms
        inner, outer = scaled.terms[0], sharp.terms[0]
        assert isinstance(scaled, ce.algebra.Weighted) and isinstance(inner, ce.Disjunction) and isinstance(outer, ce.Disjunction)
        assert alone is C and scaled.weight is weight and inner.terms[0] is A
        assert getattr(outer.terms[0], "log_z") == inner.log_z  # noqa: B009
        assert inner.log_z == pytest.approx([normaliser(0.5), normaliser(1.0)], abs=0.1)
        assert outer.weights == (1.0, 3.0) and outer.log_z == pytest.approx([math.log(2), normaliser(2.0)], abs=0.1)
        assert ce.calibrate(A & C).terms == (A, C)

    def test_events_are_exact_already(self):
        base = gaussian(1.0)
        logits = lambda x: torch.cat([x, -x[:, :1]], 1)
        a, b, c = (ce.ClassifierEnergy(logits, k, base, labels=3, name="abc"[k]) for k in range(3))
        events = a | b
        assert ce.calibrate(events) is events
        mixed = ce.calibrate(events | gaussian(2.0), **QUICK)
        assert isinstance(mixed, ce.Disjunction) and len(mixed.terms) == 2
        either = ce.log_z(c, seed=0).value  # all of the base, less this
        assert mixed.log_z == pytest.approx([math.log(math.exp(normaliser(1.0)) - math.exp(either)), normaliser(2.0)], abs=0.1)
        torch.testing.assert_close(mixed.terms[0](torch.ones(2, 2)), events(torch.ones(2, 2)))


F64 = torch.float64
CENTRE = torch.tensor([2.0, 0.0], dtype=F64)
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=F64)


def density(mean: Tensor = CENTRE) -> ce.Energy:
    return ce.as_energy(MultivariateNormal(mean, torch.eye(2, dtype=F64)), name="gaussian")


def ring(x: Tensor) -> Tensor:
    return 8 * (x.norm(dim=1) - 2).square()


RING = ce.as_energy(ring, name="ring", event_shape=(2,))


class Shifted(ce.Energy):
    """A Gaussian with a learnable constant and centre; `~` of it needs a sampler, and it recommends a quick one."""

    event_shape: Any = (2,)

    def __init__(self, constant: float = 0.0) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.tensor(constant, dtype=F64))
        self.mean = nn.Parameter(CENTRE.clone())
        self.recommended = ce.Recommendation("hmc", {"step_size": 0.5, "leapfrogs": 2})

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean).square().sum(1) / 2 + self.constant


def test_the_level_of_a_gaussian_is_its_quantile():
    """E - E(mean) of a Gaussian on the plane is exponential, so that the quantile is -log(1 - q)."""
    least = density()(CENTRE[None]).item()
    for q in (0.5, 0.95):
        negation = ce.negate(density(), mode="level", quantile=q)
        assert isinstance(negation, ce.Negation) and negation.level is not None and negation.level_error is not None
        assert abs(negation.level - least + math.log(1 - q)) < 4 * negation.level_error
        assert negation.level_error == pytest.approx(math.sqrt(q / (1 - q) / 65_536), rel=0.2)


@pytest.mark.slow
def test_the_level_of_an_energy_comes_from_its_default_sampler():
    energy = Shifted()
    energy.recommended = None
    negation = ce.calibrate(~energy, dtype=F64)
    assert isinstance(negation, ce.Negation) and negation.level is not None and negation.level_error is not None
    assert abs(negation.level + math.log(0.05)) < 4 * negation.level_error < 0.4
    torch.testing.assert_close(negation(X), nn.functional.softplus((negation.level - energy(X)) / 0.1))


def test_quantile_and_temperature_are_options():
    border = ce.negate(RING, mode="level", level=1.0, temperature=2.0)
    torch.testing.assert_close(border(X), nn.functional.softplus((1.0 - RING(X)) / 2.0))
    assert border.equals(ce.negate(RING, level=1.0, temperature=2.0))
    for wrong in ({"quantile": 1.0}, {"quantile": 0.0}, {"temperature": 0.0}, {"level": math.nan}):
        refused(errors.OptionError, None, ce.negate, RING, **wrong)
    refused(errors.OptionError, "options of the mode 'level', and the mode is 'power'", ce.negate, RING, mode="power", quantile=0.5)


def test_a_flat_density_is_excluded_too():
    box = ce.as_energy(Independent(Uniform(torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)), 1), name="box")
    passes = (-(~box)(torch.tensor([[0.5, 0.5], [1.5, 1.5]], dtype=F64))).exp()
    assert passes[0] < 0.101 and passes[1] == 1


def test_the_complement_of_a_product_is_that_of_its_own_draws():
    """De Morgan's law does not hold for it: the draws of a product need not be where those of its factors are."""
    product, at_zero = density(CENTRE) & density(-CENTRE), torch.zeros(1, 2, dtype=F64)
    negation = ce.negate(product, level=product(at_zero).item() + 3)
    assert isinstance(~product, ce.Negation) and (~product).config()["mode"] == "level"
    assert negation(at_zero) > 10 > (~density(CENTRE) | ~density(-CENTRE))(at_zero)


def test_copies_twins_and_files_keep_the_level(tmp_path):
    negation = ~density()
    untouched, values = copy.deepcopy(negation), negation(X)
    assert negation.equals(untouched) and copy.deepcopy(negation).equals(negation)
    for again in (copy.deepcopy(negation), pickle.loads(pickle.dumps(negation)), negation.rebuild(density())):
        assert torch.equal(again(X), values)
    (density() & negation).save(tmp_path / "not")
    loaded = ce.load(tmp_path / "not")
    assert torch.equal(loaded.terms[1](X), values) and loaded.terms[1].level == negation.level
    assert copy.deepcopy(negation).float()(X.float()).dtype == torch.float32


@pytest.mark.slow
def test_neither_evaluation_nor_sampling_writes_a_level_and_calibration_shares_the_weights():
    energy = RING & ~(inner := Shifted())
    for evaluate in (energy, energy.explain, energy.with_gradient):
        refused(errors.CalibrationError, r"composable_energy\.calibrate", evaluate, X)
    drawn = energy.sample((10, 2), steps=2, seed=0, dtype=F64)
    assert energy.terms[1].level is None
    known = ce.calibrate(energy)
    assert known.terms[1].level is not None and energy.terms[1].level is None
    assert torch.equal(known.sample((10, 2), steps=2, seed=0, dtype=F64), drawn)
    assert known.terms[1].terms[0] is inner and known.terms[0] is RING and ce.calibrate(known) is known


@pytest.mark.slow
def test_levels_inside_of_levels_and_of_bases_are_filled():
    nested = ce.calibrate(RING & ~(density() & ~Shifted()))
    assert all(part.level is not None for part in nested.modules() if isinstance(part, ce.Negation))
    mixture = ce.calibrate(RING & ~ce.any_of(Shifted(), density(), weights=[1, 3]), seed=0)
    assert mixture(X).isfinite().all() and mixture.terms[1].terms[0].log_z is not None
    event = ce.ClassifierEnergy(lambda x: x, 0, RING & ~Shifted())
    assert event.sample((4, 2), steps=2, seed=0, dtype=F64).isfinite().all() and ce.calibrate(event)(X).isfinite().all()


@pytest.mark.slow
def test_an_energy_that_was_trained_is_calibrated_again():
    known = ce.calibrate(~(energy := Shifted()))
    values = known(X)
    with torch.no_grad():
        energy.constant += 50.0
    again = ce.calibrate(~energy)
    torch.testing.assert_close(again(X), values, rtol=1e-4, atol=1e-4)
    assert again.level == pytest.approx(known.level + 50, abs=0.01)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.floats(-3, 3), st.floats(0.05, 2.0))
def test_it_is_bounded_below_and_needs_no_finite_energy(level, temperature):
    walls = ce.as_energy(lambda x: torch.where(x[:, 0] > 0, x.square().sum(1), torch.inf), name="walls")
    energies, gradient = ce.negate(walls, level=level, temperature=temperature).with_gradient(X)
    assert (energies >= 0).all() and gradient.isfinite().all() and not energies[X[:, 0] <= 0].any()


def test_what_cannot_be_sampled_is_refused_with_the_other_modes():
    labelled = ce.as_energy(lambda x, y: (x - y[:, None]).square().sum(1), name="labelled", event_shape=(2,))
    rows = labelled.given(y=torch.arange(6.0, dtype=F64))
    for energy, reason in ((density() - RING, "UngroundedError"), (rows, "it has 6 rows of y")):
        refused(errors.CalibrationError, rf"cannot be sampled \({reason}.*'power'.*'contrast'.*'complement'", ce.calibrate, ~energy)
    with pytest.raises(errors.ExpressionError, match=r"depends on y, which is not bound.*'power'.*'contrast'.*'complement'"):
        (~labelled)(X, y=torch.ones(6, dtype=F64))
