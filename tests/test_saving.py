"""Saving and loading of energies by name: shared bases, trained families, recommendations, other processes."""

import copy
import inspect
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import PluginNotFound
from tests.saving_energies import WEIGHT, Attributes, Picture, Prior, X, normal, people, there_and_back, together
from tests.third_party import install

pytestmark = pytest.mark.usefixtures("saving_registry")


def test_the_base_of_a_loaded_energy_is_that_of_the_sessions_own(tmp_path):
    male, old = people("male", "old")
    loaded = there_and_back(male & ~old, tmp_path)
    assert loaded.terms[0].bases[0].energy is not male.bases[0].energy
    assert (loaded & male)(X).equal(((male & ~old) & male)(X))  # one base, counted once


def test_a_trained_family_is_not_written_into_the_session(tmp_path):
    male, old = together("male", "old")
    expression = copy.deepcopy(male & ~old)
    with torch.no_grad():
        expression.terms[0].bases[0].energy.net.weight += 1.0
    before = male(X)
    loaded = there_and_back(expression, tmp_path)
    assert torch.equal(male(X), before)
    first, second = loaded.terms
    assert first.bases[0].energy is second.bases[0].energy is not male.bases[0].energy
    assert len(loaded.bases) == 1
    there_and_back(loaded, tmp_path)  # and again


def test_two_generations_of_one_family_stay_two(tmp_path):
    (male,) = people("male", latent=False)
    trained = copy.deepcopy(male)
    with torch.no_grad():
        trained.bases[0].energy.net.weight += 1.0
    loaded = there_and_back(male & trained, tmp_path)
    assert len(loaded.bases) == 2


def test_a_leaf_used_twice_is_one_object_again(tmp_path):
    (male,), bowl = people("male", latent=False), normal()
    mixed = ce.any_of(male & bowl, bowl, weights=[1.0, 2.0])
    loaded = there_and_back(mixed, tmp_path)
    assert loaded.terms[0].terms[1] is loaded.terms[1]
    levels = torch.rand(9)
    loaded = there_and_back(male.given(sigma=levels) & bowl & (2 * male).given(sigma=levels), tmp_path)
    assert len(loaded.bases) == 1


def test_a_learnable_weight_is_learnable_again(tmp_path):
    (WEIGHT * normal()).save(tmp_path / "saved")
    weight = ce.load(tmp_path / "saved").weight  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(weight, nn.Parameter) and weight.requires_grad


def test_modes_come_back(tmp_path):
    (male,) = people("male")
    for mode in (True, False):
        male.logits.train(mode)
        loaded = there_and_back(male, tmp_path)
        assert loaded.logits.training is mode
        assert loaded.base.training is False
    male.logits.eval()


def test_a_recommendation_of_ones_own_comes_back(tmp_path):
    male, old = people("male", "old")
    expression = male & old
    expression.recommended = ce.Recommendation("hmc", {"leapfrogs": 7}, threads=1)
    assert there_and_back(expression, tmp_path).recommended == expression.recommended
    male.recommended = old.recommended = ce.Recommendation("annealed")
    assert there_and_back(male & old, tmp_path).recommended == ce.Recommendation("annealed")


class TestSavedApart:
    """What is saved in two folders and equal counts as one when both are loaded."""

    def trained(self) -> tuple[ce.Energy, ce.Energy]:
        base, heads = ce.get_energy("prior", latent=True), ce.get_encoder("heads")
        return tuple(ce.ClassifierEnergy(heads, 1, base, columns=i, name=f"a{i}") for i in (0, 1))

    @pytest.fixture(autouse=True)
    def entries(self, saving_registry):
        with ce.register("energy", "prior", Prior), ce.register("encoder", "heads", lambda: nn.Linear(2, 2).eval()):
            yield

    def test_the_base_is_counted_once_and_events_are_exact(self, tmp_path):
        pair = self.trained()
        for energy, name in zip(pair, "ab", strict=True):
            energy.save(tmp_path / name)
        again = [ce.load(tmp_path / name) for name in "ab"]
        assert len((again[0] & again[1]).bases) == len((again[0] & pair[1]).bases) == 1
        for before, after in ((pair[0] & ~pair[1], again[0] & ~again[1]), (pair[0] | pair[1], again[0] | again[1])):
            assert torch.equal(after(X), before(X))
        assert again[0] is not ce.load(tmp_path / "a") and ce.load(tmp_path / "a")(X).equal(again[0](X))

    def test_one_that_was_trained_since_stays_apart(self, tmp_path):
        first, _ = self.trained()
        first.save(tmp_path / "a")
        loaded = ce.load(tmp_path / "a")
        with torch.no_grad():
            next(loaded.bases[0].energy.parameters()).add_(1)
        again = ce.load(tmp_path / "a")
        assert len((again & loaded).bases) == 2 and torch.equal(again(X), first(X))

    def test_a_recommendation_of_a_named_energy_comes_back(self, tmp_path):
        energy = ce.get_energy("prior", latent=False)
        for name, recommended in (("a", ce.Recommendation("langevin", {"step_size": 0.5, "clamp": (0, 1)}, 1)), ("b", None)):
            energy.recommended = recommended
            energy.save(tmp_path / name)
        assert ce.load(tmp_path / "a").recommended == ce.Recommendation("langevin", {"step_size": 0.5, "clamp": (0, 1)}, 1)
        assert ce.load(tmp_path / "b").recommended is None


def test_loading_leaves_the_random_state(tmp_path):
    (Picture().pull_back(ce.get_encoder("linear", in_features=2, out_features=2))).save(tmp_path / "saved")
    before = torch.get_rng_state()
    ce.load(tmp_path / "saved")
    assert torch.equal(torch.get_rng_state(), before)


DISTRIBUTIONS = [
    td.Normal(torch.zeros(2), 1.0),
    td.Independent(td.Laplace(torch.zeros(2), torch.ones(2)), 1),
    td.MultivariateNormal(torch.zeros(2), torch.tensor([[2.0, 0.3], [0.3, 1.0]])),
    td.MultivariateNormal(torch.zeros(2), precision_matrix=torch.tensor([[2.0, 0.3], [0.3, 1.0]])),
    td.LowRankMultivariateNormal(torch.zeros(2), torch.randn(2, 1), torch.ones(2)),
    td.MixtureSameFamily(td.Categorical(torch.tensor([0.1, 0.2, 0.3])), td.Independent(td.Normal(torch.randn(3, 2), 1.0), 1)),
    td.MixtureSameFamily(td.Categorical(logits=torch.randn(3)), td.MultivariateNormal(torch.randn(3, 2), torch.eye(2))),
    *(cls(torch.randn(2), torch.rand(2) + 0.1) for cls in (td.Cauchy, td.Gumbel, td.Laplace, td.LogNormal, td.VonMises)),
    *(
        cls(torch.rand(2) + 0.1, torch.rand(2) + 0.1)
        for cls in (td.Beta, td.Gamma, td.InverseGamma, td.Kumaraswamy, td.Weibull, td.FisherSnedecor)
    ),
    *(cls(torch.rand(2) + 0.1) for cls in (td.Chi2, td.Exponential, td.HalfNormal, td.HalfCauchy, td.Dirichlet)),
    td.Pareto(torch.full((2,), 0.1), torch.rand(2) + 0.1),
    td.StudentT(torch.tensor([3.0, 4.0]), torch.randn(2), torch.rand(2) + 0.1),
    td.Uniform(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 0.5])),
]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda d: type(d).__name__)
def test_a_distribution_comes_back(distribution, tmp_path):
    x = X if not isinstance(distribution, td.Dirichlet) else X.softmax(1)
    for dtype in (torch.float32, torch.float64):
        energy = ce.as_energy(distribution, name="mine").to(dtype)
        there_and_back(energy, tmp_path, x.to(dtype))
        there_and_back(energy, tmp_path, x.to(dtype).sigmoid())


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.sampled_from(["male", "old", "hair=red", "normal"]),
        lambda inner: st.tuples(st.sampled_from("&|>~*"), inner, inner),
        max_leaves=6,
    )
)
def test_random_expressions_come_back(tree):
    import tempfile

    def built(node) -> ce.Energy:
        if isinstance(node, str):
            return normal() if node == "normal" else people(node)[0]
        operator, left, right = node[0], built(node[1]), built(node[2])
        return {
            "&": lambda: left & right,
            "|": lambda: left | right,
            ">": lambda: left >> right,
            "~": lambda: ~left,
            "*": lambda: 0.7 * right,
        }[operator]()

    with ce.register("energy", "people", Attributes), tempfile.TemporaryDirectory() as folder:
        energy = built(tree)
        there_and_back(energy | normal() if energy.unsatisfiable else energy, Path(folder))


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


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (lambda: ce.as_energy(lambda x: x.sum(1)), "is a bare function and cannot be saved: code is not data"),
        (lambda: ce.as_energy(nn.Linear(2, 1), name="net") & normal(), "net is a bare Linear"),
        (lambda: ce.ClassifierEnergy(nn.Linear(2, 3), 1, normal()), "ClassifierEnergy.logits is a Linear that no plug-in built"),
        (lambda: ce.ClassifierEnergy(lambda x: x, 1, normal()), "ClassifierEnergy.logits is a function"),
        (lambda: Picture().pull_back(nn.Linear(2, 2)), "decoder is a Linear that no plug-in built"),
        (lambda: Unlisted(), "has no `config"),
        (lambda: Nameless(), "no plug-in offers its class Nameless"),
        (lambda: ce.as_energy(td.RelaxedBernoulli(torch.tensor(1.0), torch.tensor([0.5]))), "A RelaxedBernoulli cannot be saved"),
        (
            lambda: ce.negate(normal(), "power", offset=float("inf")),
            "finite",
        ),
        (
            lambda: ce.get_energy("tempered", inner=normal(), scale=2.0).given() & Tempered(ce.as_energy(lambda x: x.sum(1)), 1.0),
            "bare function",
        ),
    ],
)
def test_what_cannot_be_saved_is_named_and_nothing_written(energy, message, tmp_path):
    with pytest.raises(ExpressionError, match=message):
        energy().save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == [] or not (tmp_path / "saved").exists()


class Unlisted(ce.Energy):
    def forward(self, x):
        return x.sum(1)


class Nameless(Unlisted):
    def config(self):
        return {}


def test_only_energies_are_saved(tmp_path):
    with pytest.raises(TypeError, match="as_energy"):
        ce.save(torch.zeros(2), tmp_path / "saved")  # pyright: ignore[reportArgumentType]


def test_a_save_replaces_a_save_and_nothing_else(tmp_path):
    normal().save(tmp_path / "a" / "b")
    normal(1.0).save(str(tmp_path / "a" / "b"))
    assert ce.load(str(tmp_path / "a" / "b"))(X).equal(normal(1.0)(X))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
    (tmp_path / "empty").mkdir()
    normal().save(tmp_path / "empty")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "a" / "b" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in ("mine", "a/b", "file"):
        with pytest.raises(FileFormatError, match="choose"):
            normal().save(tmp_path / place)
    assert (tmp_path / "mine" / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "model.safetensors"):
        (other / name).write_text('{"model_type": "something else"}')
    with pytest.raises(FileFormatError, match="something else"):
        normal().save(other)


def test_a_save_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    from composable_energy.saving import files

    normal().save(tmp_path / "saved")

    def full(path: Path, data: bytes) -> None:
        if path.name == "config.json":
            raise OSError("no space left on device")
        path.write_bytes(data)

    monkeypatch.setattr(files, "write_through", full)
    with pytest.raises(OSError, match="no space"):
        normal(1.0).save(tmp_path / "saved")
    assert ce.load(tmp_path / "saved")(X).equal(normal()(X))
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    normal().save(tmp_path / "saved")
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.suffix == ".new":
            raise PermissionError("denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(PermissionError):
        normal(1.0).save(tmp_path / "saved")
    assert ce.load(tmp_path / "saved")(X).equal(normal()(X))
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_tensors_that_cannot_be_written_are_told(tmp_path):
    male = people("male")[0]
    male.logits.register_buffer("odd", torch.eye(2).to_sparse())
    with pytest.raises(ExpressionError, match="cannot be written"):
        male.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_new_process_has_the_same_bits(site, tmp_path):
    header = "import composable_energy as ce\nimport torch\nfrom torch import nn\n"
    family = header + inspect.getsource(Prior) + inspect.getsource(Attributes)
    install(site, "acme-people", {"energies": {"humans": "third_party_people:Attributes"}}, {"third_party_people": family})
    ce.refresh()
    male, old, red = (ce.get_energy(f"humans/{name}") for name in ("male", "old", "hair=red"))
    with torch.no_grad():
        male.base.net.weight.mul_(1.5)
    expression = ((male & ~old) | (red & 0.5 * normal())).at(0.25)
    expression.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert {r["distribution"] for r in config["references"]} == {"acme-people"}
    torch.save(X, tmp_path / "x.pt")
    program = f"""
import torch, composable_energy as ce
energy = ce.load({str(tmp_path / "saved")!r})
print(energy(torch.load({str(tmp_path / "x.pt")!r})).view(torch.int32).tolist())
print(energy)
"""
    path = ":".join([str(site), *(part for part in sys.path if part)])
    done = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bits, text = done.stdout.splitlines()
    assert json.loads(bits) == expression(X).view(torch.int32).tolist()
    assert text == str(expression)


def test_an_unknown_plugin_names_who_wrote_it(site, tmp_path):
    source = "import composable_energy as ce\n\ndef bowl():\n    return ce.as_energy(lambda x: x.square().sum(1), name='bowl')\n"
    install(site, "acme-bowls", {"energies": {"bowl": "third_party_bowl:bowl"}}, {"third_party_bowl": source}, version="2.3")
    ce.refresh()
    (2 * ce.get_energy("bowl")).save(tmp_path / "saved")
    assert ce.load(tmp_path / "saved")(X).equal(2 * X.square().sum(1))
    import shutil

    shutil.rmtree(site / "acme_bowls-2.3.dist-info")
    ce.refresh()
    with pytest.raises(PluginNotFound, match=r"'bowl' cannot be built here. It is from acme-bowls 2.3; install that"):
        ce.load(tmp_path / "saved")
    with ce.register("energy", "bowl", normal):  # who registers the name says what to take
        assert ce.load(tmp_path / "saved")(X).equal((2 * normal())(X))
