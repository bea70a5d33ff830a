"""Energies of latent points, and of distributions of torch of every class: decoders, values, gradients, supports, draws, refusals."""

import copy
import inspect
import math
import pickle
import warnings

import pytest
import torch
from torch import distributions as td
from torch import nn
from torch.distributions import Normal, Uniform
from torch.nn.functional import logsigmoid

import composable_energy as ce
from composable_energy.errors import DtypeError, ExpressionError, LiftError, OptionError, ShapeError
from composable_energy.supports import is_full
from composable_energy.testing import energy_checks
from tests.factories import DTYPE, points, quadratic, t
from tests.refusals import refusals, refused

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
Z = points()
DRAW = {"sampler": "langevin", "step_size": 0.1, "steps": 2, "seed": 0}


class Doubler(nn.Module):
    """A decoder to three numbers, and back."""

    def forward(self, z):
        return torch.cat([2 * z, z.sum(1, keepdim=True)], 1)

    def encode(self, x):
        return x[:, :2] / 2


DECODER = Doubler()
SEEN = ce.as_energy(lambda x: x.square().sum(1), name="seen", event_shape=(3,))
PRIOR = ce.as_energy(Normal(torch.zeros(2), 1.0), name="bowl")


def latent(decoder):
    return ce.as_energy(quadratic, decoder=decoder, event_shape=(2,), name="latent")


@pytest.mark.parametrize("kind", ["absolute", "relative", "score", "support"])
def test_an_energy_with_a_decoder_has_the_values_gradients_and_structure_of_its_energy(kind):
    E = {
        "absolute": PRIOR,
        "relative": ce.ClassifierEnergy(lambda z: z, 1, PRIOR),
        "score": ce.ScoreEnergy(lambda z: -z, event_shape=(2,)),
        "support": ce.as_energy(Uniform(-3 * torch.ones(2), 3 * torch.ones(2))),
    }[kind]
    D, z = ce.as_energy(E, decoder=nn.Linear(2, 7)), Z.float()
    assert D.event_shape == (2,) and D.has_value == E.has_value and len(D.bases) == len(E.bases) and D.grounded
    for found, expected in zip(D.with_gradient(z), E.with_gradient(z), strict=True):
        torch.testing.assert_close(found, expected)
    assert D.sample(3, **DRAW).shape == (3, 7)


def test_it_counts_once_and_can_be_copied_and_compared():
    D = ce.as_energy(PRIOR, decoder=nn.Linear(2, 3))
    A, B = (ce.ClassifierEnergy(lambda z, i=i: z[:, i], 1, D) for i in range(2))
    torch.testing.assert_close((A & B)(Z), PRIOR(Z) - logsigmoid(Z).sum(1))
    for other in (copy.deepcopy(D), pickle.loads(pickle.dumps(D)), D.rebuild()):
        assert D.equals(other)
    assert not D.equals(ce.as_energy(PRIOR, decoder=nn.Linear(2, 3))) and str(D) == "bowl.shown_by(Linear)"


def test_an_energy_of_seen_points_is_pulled_back_to_the_latents():
    decoded = DECODER(Z)
    for tree in (latent(DECODER) & SEEN, SEEN & latent(DECODER)):
        assert tree.decoder is DECODER
        torch.testing.assert_close(tree(Z), quadratic(Z) + SEEN(decoded))
    torch.testing.assert_close(SEEN.pull_back(DECODER)(Z), SEEN(decoded))
    torch.testing.assert_close(SEEN.pull_back(DECODER).at(0.5)(Z), SEEN(DECODER(Z / 1.25)))
    torch.testing.assert_close(SEEN.pull_back(DECODER, damping=20).at(0.5)(Z), SEEN(DECODER(Z / 1.25)) / 6)
    noisy = ce.as_energy(lambda x, sigma: x.square().sum(1) / sigma, name="noisy", event_shape=(3,))
    refused(ExpressionError, r"noisy depends on sigma.*bind it first, with `\.at\(sigma\)`", lambda: noisy & latent(DECODER))
    torch.testing.assert_close(noisy.at(2.0).pull_back(DECODER)(Z), SEEN(decoded) / 2)


def test_pulled_back_energies_work_under_autocast_of_their_processor():
    """The decoder then gives bfloat16 points, which the float32 weights of the energy take."""
    torch.manual_seed(0)
    energy, z = ce.as_energy(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), event_shape=(3,)).pull_back(nn.Linear(2, 3)), torch.ones(4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        low = energy(z)
    torch.testing.assert_close(low.float(), energy(z), rtol=0.05, atol=0.05)


def test_a_prior_is_not_pulled_back_by_accident():
    for tree in (PRIOR & SEEN.pull_back(DECODER), SEEN.pull_back(DECODER) & PRIOR):
        torch.testing.assert_close(tree(Z), PRIOR(Z) + SEEN(DECODER(Z)))
        assert tree.decoder is DECODER and tree.event_shape == (2,)
    refused(ExpressionError, "For decoded points write", lambda: ce.as_energy(lambda x: x.sum(1)) & SEEN.pull_back(DECODER))
    decoder = torch.nn.Linear(2, 2, dtype=torch.float64)  # whose latent points may have any shape, as far as it says
    seen = ce.as_energy(Normal(torch.ones(2), 1.0))
    for join in (lambda a, b: a & b, lambda a, b: b & a, lambda a, b: a | b):
        refused(ExpressionError, "For decoded points write", join, PRIOR, seen.pull_back(decoder))
    known = ce.as_energy(Normal(torch.zeros(2), 1.0), decoder=decoder)
    torch.testing.assert_close((known & seen.pull_back(decoder))(Z), PRIOR(Z) + seen(decoder(Z)))


def test_explain_encodes_what_people_see():
    tree = latent(DECODER) & SEEN
    explanation = tree.explain(DECODER(Z))
    torch.testing.assert_close(explanation.energy, tree(Z))
    assert [part.expression for part in explanation.terms] == ["latent", "seen.pull_back(Doubler)"]
    torch.testing.assert_close(explanation.terms[1].energy, SEEN(DECODER(Z)))


class Linears(nn.Module):
    """A decoder with weights, to three numbers, and back."""

    def __init__(self):
        super().__init__()
        self.out, self.back = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, z):
        return self.out(z)

    def encode(self, x):
        return self.back(x)


test_what_a_decoder_cannot_do_is_an_error = refusals(
    (lambda: SEEN.pull_back(DECODER, damping=-1), OptionError, "damping must be a number of at least 0"),
    (lambda: latent(DECODER) | latent(Doubler()), ExpressionError, "Doubler and Doubler"),
    (lambda: latent(DECODER).pull_back(DECODER), ExpressionError, "is already an energy of latent points"),
    (lambda: latent(DECODER).shown_by(DECODER), ExpressionError, "already an energy of latent points, of the decoder Doubler"),
    (lambda: ce.as_energy(PRIOR, decoder=DECODER, name="x"), OptionError, "a `decoder` alone"),
    (lambda: PRIOR.shown_by(lambda z: z), OptionError, "decoder must be a Module"),
    (lambda: ce.as_energy(quadratic, decoder="x"), OptionError, "decoder must be a Module"),
    (lambda: latent(nn.Linear(2, 4)).explain(torch.zeros(2, 4)), ExpressionError, "has no `encode`"),
    (
        lambda: latent(Linears()).explain(torch.zeros(2, 5)),
        ShapeError,
        r"latent points of shape \(B, 2\) or points .* can encode; .* shape \(2, 5\) failed",
    ),
    (lambda: latent(Linears()).explain(torch.zeros(2, 3).long()), DtypeError, "floating dtype, got torch.int64: write"),
    (lambda: latent(Linears()).explain(torch.zeros(2, 3).double()), DtypeError, "torch.float32 weights, the points are torch.float64"),
    (lambda: latent(Linears()).explain([[0.0, 0.0, 0.0]]), DtypeError, "takes a tensor of points, got list"),
    (lambda: latent(Linears()).explain(torch.ones(2, 3).to_sparse()), DtypeError, r"got torch.sparse_coo; .*`.to_dense\(\)`"),
    (lambda: latent(Linears()).sample(2, dtype=torch.float64), DtypeError, "Linears has torch.float32 weights, .* torch.float64"),
)


class Checked(td.Normal):
    """A class that the library does not know; it checks its points."""

    support = td.constraints.greater_than(-1.0)


COMPOSED = td.ComposeTransform([td.AffineTransform(t(1.0, 0.0), t(2.0, 3.0)), td.SigmoidTransform()])
CONTINUOUS = {
    td.Beta: td.Beta(t(2.0, 0.7), t(1.5, 3.0)),
    td.Cauchy: td.Cauchy(t(0.0), t(1.0)),
    td.Chi2: td.Chi2(t(3.0, 4.0)),
    td.ContinuousBernoulli: td.ContinuousBernoulli(t(0.3, 0.8)),
    td.Dirichlet: td.Dirichlet(torch.tensor([[2.0, 3.0, 1.5], [0.3, 0.5, 0.4]], dtype=DTYPE)),
    td.Exponential: td.Exponential(t(1.0, 5.0)),
    td.FisherSnedecor: td.FisherSnedecor(t(3.0, 4.0), t(9.0, 12.0)),
    td.Gamma: td.Gamma(t(2.0, 0.5), t(1.0, 2.0)),
    td.Gumbel: td.Gumbel(t(0.0, 1.0), t(1.0, 2.0)),
    td.HalfCauchy: td.HalfCauchy(t(1.0, 2.0)),
    td.HalfNormal: td.HalfNormal(t(1.0, 3.0)),
    td.Independent: td.Independent(td.LogNormal(t(0.0, 1.0), t(1.0, 0.5)), 1),
    td.InverseGamma: td.InverseGamma(t(3.0, 5.0), t(1.0, 2.0)),
    td.Kumaraswamy: td.Kumaraswamy(t(2.0, 3.0), t(1.5, 2.5)),
    td.Laplace: td.Laplace(t(0.0, 1.0), t(1.0, 2.0)),
    td.LKJCholesky: td.LKJCholesky(3, t(1.5).squeeze()),
    td.LogisticNormal: td.LogisticNormal(t(0.0, 1.0), t(1.0, 2.0)),
    td.LogNormal: td.LogNormal(t(0.0, 1.0), t(1.0, 0.5)),
    td.LowRankMultivariateNormal: td.LowRankMultivariateNormal(t(0.0, 1.0), torch.ones(2, 1, dtype=DTYPE), t(1.0, 2.0)),
    td.MixtureSameFamily: td.MixtureSameFamily(
        td.Categorical(t(0.3, 0.7)), td.Independent(td.Gamma(2 * torch.eye(2, dtype=DTYPE) + 1, t(1.0, 2.0)), 1)
    ),
    td.MultivariateNormal: td.MultivariateNormal(t(0.0, 1.0), torch.tensor([[2.0, 0.9], [0.9, 1.0]], dtype=DTYPE)),
    td.Normal: td.Normal(t(0.0, 1.0), t(1.0, 2.0)),
    td.Pareto: td.Pareto(t(0.5, 1.0), t(3.0, 5.0)),
    td.RelaxedBernoulli: td.RelaxedBernoulli(t(0.7).squeeze(), t(0.3, 0.6)),
    td.RelaxedOneHotCategorical: td.RelaxedOneHotCategorical(t(0.7).squeeze(), t(0.3, 0.6, 0.1)),
    td.StudentT: td.StudentT(t(3.0, 5.0), t(0.0, 1.0), t(1.0, 2.0)),
    td.TransformedDistribution: td.TransformedDistribution(td.Uniform(t(0.0, 0.0), t(1.0, 2.0)), [td.AffineTransform(2.0, -3.0)]),
    td.Uniform: td.Uniform(t(-1.0, 5.0), t(1.0, 5.5)),
    td.VonMises: td.VonMises(t(3.0, 0.0, 1.0), t(4.0, 0.5, 50.0)),
    td.Weibull: td.Weibull(t(1.0, 2.0), t(1.5, 2.5)),
    td.Wishart: td.Wishart(t(5.0).squeeze(), torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=DTYPE)),
}
if hasattr(td, "GeneralizedPareto"):  # since torch 2.7
    pairs = ((0.0, 1.0), (1.0, 2.0), (0.1, -0.5))
    CONTINUOUS[td.GeneralizedPareto] = td.GeneralizedPareto(*(t(*pair).float() for pair in pairs))  # torch's takes float32 only
FURTHER = {
    "MixtureOfNumbers": td.MixtureSameFamily(td.Categorical(t(0.3, 0.7)), td.Gamma(t(2.0, 3.0), t(1.0, 2.0))),
    "MixtureOfNormals": td.MixtureSameFamily(td.Categorical(t(0.3, 0.7)), td.Normal(t(-1.0, 1.0), t(0.5, 1.0))),
    "Exponentiated": td.TransformedDistribution(td.Normal(t(0.0, 1.0), t(1.0, 2.0)), [td.ExpTransform()]),
    "Affine": td.TransformedDistribution(td.Beta(t(2.0, 3.0), t(2.0, 2.0)), [td.ExpTransform(), td.AffineTransform(-1.0, 2.0)]),
    "Logistic": td.TransformedDistribution(td.Uniform(t(0.0, 0.0), t(1.0, 1.0)), [td.SigmoidTransform().inv, td.AffineTransform(1.0, 2.0)]),
    "Composed": td.TransformedDistribution(td.Normal(t(0.0, 0.0), t(1.0, 1.0)), [COMPOSED]),
    "Inverse": td.TransformedDistribution(td.Uniform(t(0.2, 0.2), t(0.8, 0.8)), [COMPOSED.inv]),
    "Checked": Checked(t(9.0, 9.0), t(1.0, 1.0)),
    "NormalByPrecision": td.MultivariateNormal(t(0.0, 0.0), precision_matrix=torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=DTYPE)),
    "ByLogits": td.MixtureSameFamily(td.Categorical(logits=t(0.3, -0.7)), td.Independent(td.Normal(torch.eye(2, dtype=DTYPE), 1.0), 1)),
}
ALL = {**{cls.__name__: some for cls, some in CONTINUOUS.items()}, **FURTHER}
BOTH = pytest.mark.parametrize("distribution", ALL.values(), ids=ALL)
DISCRETE = {
    td.Bernoulli: td.Bernoulli(t(0.3)),
    td.Binomial: td.Binomial(5, t(0.3)),
    td.Categorical: td.Categorical(t(0.3, 0.7)),
    td.Geometric: td.Geometric(t(0.3)),
    td.Multinomial: td.Multinomial(5, t(0.3, 0.7)),
    td.NegativeBinomial: td.NegativeBinomial(5, t(0.3)),
    td.OneHotCategorical: td.OneHotCategorical(t(0.3, 0.7)),
    td.OneHotCategoricalStraightThrough: td.OneHotCategoricalStraightThrough(t(0.3, 0.7)),
    td.Poisson: td.Poisson(t(3.0)),
}
COMPOSED_DISCRETE = (
    td.Independent(td.Poisson(t(2.0, 3.0)), 1),
    td.MixtureSameFamily(td.Categorical(t(0.3, 0.7)), td.Poisson(t(1.0, 2.0))),
    td.TransformedDistribution(td.Poisson(t(2.0)), [td.AffineTransform(0.0, 2.0)]),
)
ABSTRACT = {td.Distribution, td.ExponentialFamily}
HEAVY = (td.Cauchy,)  # without a mean
UNSAVED = {"Checked", "ContinuousBernoulli", "GeneralizedPareto", "LKJCholesky", "LogisticNormal", "RelaxedBernoulli"}
UNSAVED |= {"RelaxedOneHotCategorical", "TransformedDistribution", "Wishart"}
DRAWN = [  # one of each support, and those that are made of others
    *(td.Beta, td.Cauchy, td.Dirichlet, td.Gamma, td.HalfNormal, td.Independent, td.LKJCholesky, td.LowRankMultivariateNormal),
    *(td.MixtureSameFamily, td.Pareto, td.RelaxedOneHotCategorical, td.TransformedDistribution, td.Uniform, td.VonMises, td.Wishart),
]
DRAWS, REFERENCE = 1000, 50_000


def test_all_classes_of_torch_are_listed():
    found = {cls for cls in vars(td).values() if inspect.isclass(cls) and issubclass(cls, td.Distribution)}
    assert found == {*CONTINUOUS, *DISCRETE, *ABSTRACT}


@pytest.mark.parametrize("distribution", [*DISCRETE.values(), *COMPOSED_DISCRETE], ids=lambda some: type(some).__name__)
def test_a_discrete_distribution_has_energies_at_its_values_alone(distribution):
    if isinstance(distribution, td.Multinomial | td.TransformedDistribution):
        refused(LiftError, r"transforms discrete numbers|A support of discrete numbers is boolean", ce.as_energy, distribution)
        return
    energy, x = ce.as_energy(distribution), distribution.sample((6,)).to(DTYPE)
    assert energy.has_gradient is not isinstance(distribution, td.Categorical)
    torch.testing.assert_close(energy(x), -distribution.log_prob(x).reshape(6, -1).sum(1))
    assert (energy(x + 0.5) == math.inf).all() and not energy.with_gradient(x + 0.5)[1].any()
    for check in energy_checks(energy, x.unique(dim=0) if energy.event_shape else torch.arange(3.0, dtype=DTYPE)):
        if check.name in ("copy", "pickle", "save", "randomness") and not isinstance(distribution, td.OneHotCategoricalStraightThrough):
            check()


def inside_points(distribution: td.Distribution, count: int = 6) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if isinstance(distribution, td.Wishart):  # whose own draws warn
            return distribution.mean + torch.eye(2, dtype=DTYPE) * torch.rand(count, 1, 1, dtype=DTYPE)
        return distribution.sample((count,))


@BOTH
def test_energy_and_gradient_are_those_of_log_prob_inside_and_infinity_and_zero_outside(distribution):
    energy, inside = ce.as_energy(distribution), inside_points(distribution)
    point = inside.clone().requires_grad_()
    expected = -distribution.log_prob(point).reshape(len(point), -1).sum(1)
    energies, gradients = energy.with_gradient(inside)
    torch.testing.assert_close(energies, expected.detach())
    slope = torch.autograd.grad(expected.sum(), point)[0] if expected.requires_grad else torch.zeros_like(point)  # flat: uniform
    torch.testing.assert_close(gradients, slope)
    for scale in (0.1, 1.0, 10.0):
        moved = inside + scale * torch.randn(inside.shape, generator=torch.Generator().manual_seed(0), dtype=inside.dtype)
        energies, gradients = energy.with_gradient(moved)
        outside = energies == math.inf
        assert not energies.isnan().any() and gradients.isfinite().all() and (gradients[outside] == 0).all()
        if isinstance(distribution, (td.Gamma, td.LogNormal, td.Weibull, td.Kumaraswamy, td.Beta)):
            assert torch.equal(~outside, distribution.support.check(moved).all(1))
    inside.view(len(inside), -1)[1, 0] = math.nan
    assert energy(inside).isnan().tolist() == [False, True, False, False, False, False]


@BOTH
def test_copies_pickles_and_files_are_the_same_energy_in_any_dtype(distribution):
    energy, points = ce.as_energy(distribution), inside_points(distribution)
    checked = {"copy": True, "pickle": True, "save": type(distribution).__name__ not in UNSAVED, "dtypes": points.dtype == DTYPE}
    for check in energy_checks(energy, points):
        if checked.get(check.name):
            check()
    assert not list(energy.parameters())


@BOTH
def test_a_mixture_has_the_gradient_of_the_other_branch_outside_the_support(distribution):
    energy = ce.as_energy(distribution)
    if not (energy(outside := torch.full((2, *energy.event_shape), -3.0, dtype=inside_points(distribution).dtype)) == math.inf).all():
        return
    wide = ce.as_energy(td.Normal(torch.zeros(energy.event_shape, dtype=outside.dtype), 3.0))
    energies, gradients = (energy | wide).with_gradient(outside)
    torch.testing.assert_close(energies, wide(outside))
    torch.testing.assert_close(gradients, wide.with_gradient(outside)[1])
    if not is_full(energy.support):  # on a simplex, or for matrices, the mixture has no support
        refused(ExpressionError, "neither support includes the other", (energy | wide).sample, 5, steps=3, seed=0)


@pytest.mark.parametrize("name", ["Beta", "Chi2", "Gamma", "Kumaraswamy", "Uniform"])
def test_a_boundary_without_density_has_gradient_zero(name):
    energy = ce.as_energy(ALL[name])
    edge = t(0.0, 1.0).expand(1, 2)
    energies, gradients = energy.with_gradient(edge)
    assert energies != math.inf or (gradients == 0).all()
    wide = ce.as_energy(td.Normal(torch.zeros_like(edge[0]), 1.0))
    assert not energies > -math.inf or (energy | wide).with_gradient(edge)[1].isfinite().all()


def test_components_of_a_mixture_may_have_different_supports():
    energy = ce.as_energy(td.MixtureSameFamily(td.Categorical(t(0.25, 0.75)), td.Uniform(t(0.0, 2.0), t(1.0, 3.0))))
    torch.testing.assert_close(energy(t(0.5, 1.5, 2.5)), t(-math.log(0.25), math.inf, -math.log(0.75)))
    pareto = ce.as_energy(td.MixtureSameFamily(td.Categorical(t(0.5, 0.5)), td.Pareto(t(1.0, 3.0), t(1.0, 1.0))))
    torch.testing.assert_close(pareto(t(2.0)), -t(0.5 * 1.0 / 4.0).log())


class Moved(td.AffineTransform):
    """A transform whose shift is a network's."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)
        self.network = nn.Linear(2, 2)

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.network.bias


WAYS_OUT = r"lift a module .*\.detach\(\)"
test_learnable_tensors_and_unknown_supports_are_refused_with_the_ways_out = refusals(
    (lambda: td.Normal(nn.Parameter(torch.zeros(2)), 1.0), WAYS_OUT),
    (lambda: td.Normal(torch.zeros(2), nn.Parameter(torch.zeros(2)).exp()), WAYS_OUT),
    (lambda: td.Normal(torch.zeros(2, requires_grad=True), 1.0), WAYS_OUT),
    (lambda: td.MixtureSameFamily(td.Categorical(logits=nn.Parameter(torch.zeros(2))), td.Normal(torch.zeros(2), 1.0)), WAYS_OUT),
    (lambda: td.TransformedDistribution(td.Normal(0.0, 1.0), [td.AffineTransform(nn.Parameter(torch.zeros(2)), 1.0)]), WAYS_OUT),
    (lambda: td.TransformedDistribution(td.Normal(torch.zeros(2), 1.0), [Moved()]), WAYS_OUT),
    (lambda: td.RelaxedBernoulli(torch.tensor(1.0), nn.Parameter(torch.tensor([0.5]))), WAYS_OUT),
    (lambda: td.TransformedDistribution(td.Normal(torch.zeros(2), 1.0), [td.CatTransform([td.ExpTransform()])]), "not fit its points"),
    call=lambda make: ce.as_energy(make()),
    error=LiftError,
)


def test_the_original_distribution_stays_as_it_is():
    distribution = td.LogNormal(t(0.0, 1.0), t(1.0, 1.0), validate_args=True)  # torch.compile switches the default off
    ce.as_energy(distribution).float()
    refused(ValueError, "within the support", distribution.log_prob, t(-1.0, -1.0))
    assert distribution.loc.dtype == DTYPE


def test_options_are_those_of_a_callable():
    law, decoder = td.Normal(torch.zeros(2), 1.0), nn.Linear(2, 3)
    energy = ce.as_energy(law, decoder=decoder, name="prior", event_shape=(2,))
    assert energy.decoder is decoder is energy.config()["decoder"] and str(energy) == "prior"
    refused(ShapeError, r"shape \(2,\)", ce.as_energy, law, event_shape=(3,))
    for obj in (law, lambda x: x.sum(1)):
        refused(OptionError, "decodr", ce.as_energy, obj, decodr=decoder)


@pytest.mark.full
@pytest.mark.parametrize("distribution", [CONTINUOUS[kind] for kind in DRAWN], ids=lambda some: type(some).__name__)
def test_default_draws_have_the_quantiles_and_moments_of_the_distribution(distribution):
    drawn = ce.as_energy(distribution).sample(DRAWS, seed=1)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Wishart warns of singular matrices
        torch.manual_seed(0)
        if isinstance(distribution, td.LKJCholesky):  # torch draws its third row from another density
            drawn = (drawn @ drawn.mT)[:, [1, 2, 2], [0, 0, 1]]
            # Each correlation has a closed form.
            reference = 2 * td.Beta(t(2.0, 2.0, 2.0), t(2.0, 2.0, 2.0)).sample((REFERENCE,)) - 1
        else:
            reference = distribution.sample((REFERENCE,))
    drawn, reference = drawn.flatten(1), reference.flatten(1)
    for share in (0.1, 0.5, 0.9):
        below = (drawn < reference.quantile(share, 0)).double().mean(0)
        assert ((below - share).abs() < 4 * math.sqrt(share * (1 - share) * (1 / DRAWS + 1 / REFERENCE))).all(), (share, below)
    if not isinstance(distribution, HEAVY):
        errors = reference.std(0) * math.sqrt(1 / DRAWS + 1 / REFERENCE)
        assert ((drawn.mean(0) - reference.mean(0)).abs() < 4 * errors).all(), (drawn.mean(0), reference.mean(0))
