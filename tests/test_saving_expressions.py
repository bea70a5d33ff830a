"""Saving and loading of expressions of every kind: values and shared tensors are kept."""

import copy
import json

import pytest
import torch
from torch import distributions as td
from torch import nn

import composable_energy as ce
from composable_energy.files import ENERGY_FILE, VERSION, read_record
from tests.saving_energies import WEIGHT, Attributes, Mean, Picture, Tempered, X, edit, normal, people, there_and_back, together

pytestmark = pytest.mark.usefixtures("saving_registry")

EXPRESSIONS = {
    "leaf": lambda m, o, r: m,
    "and not": lambda m, o, r: m & ~o,
    "or": lambda m, o, r: m | ~r,
    "nested": lambda m, o, r: (m & o) | (~m & r),
    "implies": lambda m, o, r: m >> o,
    "mixture": lambda m, o, r: ce.any_of(m, normal(), weights=[0.3, 0.7]),
    "calibrated": lambda m, o, r: ce.Disjunction(m, o, log_z=[0.25, -1.5]),
    "sharpened": lambda m, o, r: m.sharpened(2.5) & o.sharpened(torch.tensor(0.7)),
    "weighted": lambda m, o, r: 3 * normal() & WEIGHT * normal(1.0) & torch.tensor(0.2) * normal(2.0) & normal() / WEIGHT,
    "cooled": lambda m, o, r: (m & o) / 0.7,
    "minus": lambda m, o, r: (m & o) - r,
    "relative": lambda m, o, r: normal(1.0).relative_to(normal()) & normal(2.0).relative_to(normal(3.0)),
    "contrast": lambda m, o, r: ce.negate(normal(1.0).relative_to(normal()), offset=0.5),
    "power": lambda m, o, r: normal() & ce.negate(m, "power", weight=0.02),
    "learnable negation": lambda m, o, r: m & ce.negate(o, weight=WEIGHT),
    "at": lambda m, o, r: (m & ~o).at(0.3),
    "given rows": lambda m, o, r: m.given(sigma=torch.linspace(0, 1, 9)) & o.at(0.2),
    "given label": lambda m, o, r: people("place")[0].given(y=2) & m,
    "given labels": lambda m, o, r: people("place")[0].given(y=torch.tensor([0, 1, 2] * 3)) & m,
    "base": lambda m, o, r: m.bases[0].energy & m,
    "base by name": lambda m, o, r: ce.get("energy", "people") & m,
    "event by hand": lambda m, o, r: ce.ClassifierEnergy(m.logits, {0, 2}, m.base, columns=slice(0, 3), name="mine") & ~o,
    "density": lambda m, o, r: ce.GaussianHead(m.logits, m.base, dims=2, columns=slice(0, 4), name="where")((0.1, 0.2)) & o,
    "interval": lambda m, o, r: ~ce.GaussianHead(m.logits, m.base, dims=3, name="where").near((0.1, 0.2, 0.3), 0.7) & o,
    "wrapped": lambda m, o, r: Tempered(normal(), 2.0) & Tempered(m, 3.0),
    "wrapped by name": lambda m, o, r: ce.get("energy", "tempered", inner=m & o, scale=torch.tensor(0.5)),
    "pulled back": lambda m, o, r: m & ce.get("energy", "picture", target=[1.0, 2.0]),
    "pulled back encoder": lambda m, o, r: Picture([0.0, 1.0]).pull_back(ce.get("encoder", "linear", in_features=2, out_features=2)),
    "event over an encoder": lambda m, o, r: ce.ClassifierEnergy(ce.get("encoder", "linear", in_features=2, out_features=4), 3, normal()),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_comes_back_after_training_and_in_another_dtype(name, tmp_path):
    there_and_back(EXPRESSIONS[name](*people("male", "old", "hair=red")), tmp_path)
    energy = EXPRESSIONS[name](*together("male", "old", "hair=red"))
    with torch.no_grad():
        for parameter in {*energy.parameters()} - {WEIGHT}:
            parameter += 0.125
    there_and_back(energy, tmp_path)
    there_and_back(copy.deepcopy(energy).double(), tmp_path, X.double())


@pytest.mark.parametrize("name", ["nested", "weighted", "event by hand"])
def test_each_tensor_is_written_once(name, tmp_path):
    energy = EXPRESSIONS[name](*people("male", "old", "hair=red"))
    energy.save(tmp_path / "saved")
    tensors = sum(p.numel() for p in {*energy.parameters(), *energy.buffers()})
    header = 4 * len(json.dumps(read_record(tmp_path / "saved" / ENERGY_FILE, "energy", VERSION)[0])) // 3
    assert (tmp_path / "saved" / ENERGY_FILE).stat().st_size < 4 * (tensors + 64) + 8 + 140 * 24 + header


DISTRIBUTIONS = [
    td.Normal(torch.zeros(2), 1.0),
    td.MultivariateNormal(torch.zeros(2), torch.tensor([[2.0, 0.3], [0.3, 1.0]])),
    td.MultivariateNormal(torch.zeros(2), precision_matrix=torch.tensor([[2.0, 0.3], [0.3, 1.0]])),
    td.LowRankMultivariateNormal(torch.zeros(2), torch.randn(2, 1), torch.ones(2)),
    td.MixtureSameFamily(td.Categorical(torch.tensor([0.1, 0.2, 0.3])), td.Independent(td.Normal(torch.randn(3, 2), 1.0), 1)),
    td.MixtureSameFamily(td.Categorical(logits=torch.randn(3)), td.MultivariateNormal(torch.randn(3, 2), torch.eye(2))),
    *(cls(torch.randn(2), torch.rand(2) + 0.1) for cls in (td.Cauchy, td.Gumbel, td.Laplace, td.LogNormal, td.VonMises)),
    *(cls(torch.rand(2) + 0.1, torch.rand(2) + 0.1) for cls in (td.Beta, td.Gamma, td.InverseGamma, td.Weibull, td.FisherSnedecor)),
    *(cls(torch.rand(2) + 0.1) for cls in (td.Chi2, td.Exponential, td.HalfNormal, td.HalfCauchy, td.Dirichlet)),
    td.Pareto(torch.full((2,), 0.1), torch.rand(2) + 0.1),
    td.StudentT(torch.tensor([3.0, 4.0]), torch.randn(2), torch.rand(2) + 0.1),
    td.Uniform(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 0.5])),
]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda d: type(d).__name__)
def test_a_distribution_comes_back(distribution, tmp_path):
    x = X if not isinstance(distribution, td.Dirichlet) else X.softmax(1)
    energy = ce.as_energy(distribution, name="mine").double()
    there_and_back(energy, tmp_path, x.double())
    there_and_back(energy, tmp_path, x.double().sigmoid())


def test_a_node_of_a_plugin_comes_back(tmp_path, saving_registry):
    male, red = people("male", "hair=red")
    power = nn.Parameter(torch.tensor(0.4))
    loaded = there_and_back(Mean(male & normal(), red, power=power) & ~red, tmp_path)
    assert type(loaded.terms[0]) is Mean and isinstance(loaded.terms[0].power, nn.Parameter)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"entry": "nowhere"}, ce.errors.PluginNotFound),
        ({"entry": "people"}, ce.errors.FileFormatError),
        ({"config": {"evil": 1}}, ce.errors.FileFormatError),
        ({"config": 3}, ce.errors.FileFormatError),
    ],
)
def test_a_malformed_node_of_a_plugin_is_refused(tmp_path, saving_registry, change, error):
    ce.save(Mean(normal(), normal(1.0)), tmp_path / "saved")
    edit(tmp_path / "saved", lambda header: header["nodes"][-1].update(change))
    with pytest.raises(error):
        ce.load(tmp_path / "saved")


def test_a_node_whose_config_lacks_a_tensor_is_refused(tmp_path, saving_registry):
    node = Mean(normal(), normal(1.0))
    node.register_buffer("shift", torch.zeros(2))
    with pytest.raises(ce.errors.ExpressionError, match=r"`config\(\)` lacks its tensor shift"):
        ce.save(node, tmp_path / "saved")


def test_an_unsatisfiable_expression_comes_back(tmp_path):
    with ce.register("energy", "people", Attributes):
        male, red = people("male", "hair=red")
        never = (male & ~male) & red
        ce.save(never, tmp_path / "never")
        loaded = ce.load(tmp_path / "never")
        assert loaded.unsatisfiable and repr(loaded) == repr(never)
        with pytest.raises(ce.errors.ContradictionError):
            loaded(X)
        there_and_back(never | red, tmp_path)
