"""Generators: checks, the number of evaluations, and the space of each term of an expression."""

import pickle
import warnings
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.distributions import Normal, Uniform

import composable_energy as ce
from composable_energy.errors import ExpressionError, ExtraNotInstalled, FileFormatError, OptionError, ShapeError
from composable_energy_image.testing import check_encoder
from composable_energy_latent import Generator, GeneratorError, LatentHeads, attribute, continuous, graded, latent, load_generator
from tests.refusals import refusals, refused

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

G = torch.Generator().manual_seed(0)
FIRST, SECOND = torch.randn(6, 4, generator=G), torch.randn(12, 6, generator=G)


RING = ce.as_energy(lambda z: 8 * (z.norm(dim=1) - 2).square(), event_shape=(4,), name="ring")


class Calls(list):
    def __deepcopy__(self, memo):
        return self


class Counted(nn.Module):
    """Counts its calls in a list that copies share."""

    def __init__(self, weights: torch.Tensor, calls: Calls, shape: tuple[int, ...] = (-1,)) -> None:
        super().__init__()
        self.weights, self.shape, self.calls = nn.Parameter(weights), shape, calls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(x))
        return torch.tanh(x.flatten(1) @ self.weights.T).unflatten(1, self.shape)


def counted(prior=4) -> tuple[ce.Energy, Calls, Calls]:
    mapping, synthesis = Calls(), Calls()
    base = latent(Counted(SECOND, synthesis, (3, 2, 2)), prior, mapping=Counted(FIRST, mapping))
    mapping.clear(), synthesis.clear()
    return base, mapping, synthesis


def brightness(images: torch.Tensor) -> torch.Tensor:
    return 5 * images.mean((1, 2, 3))


def test_one_gradient_evaluates_the_generator_once():
    base, mapping, synthesis = counted()
    on_x = [attribute(base, lambda x, i=i: brightness(x) - i, f"x{i}", on="x") for i in range(3)]
    on_w = [attribute(base, lambda w, i=i: w[:, i] * 3, f"w{i}", on="w") for i in range(3)]
    plain = ce.as_energy(lambda x: x.square().sum((1, 2, 3)), event_shape=(3, 2, 2), name="dark")
    E = ce.all_of(*on_x, *on_w, plain, continuous(base, brightness, "value", on="x", width=0.5)(0.2)) | ~(on_x[0] & on_w[0])
    z = torch.randn(7, 4, generator=G)
    for one in (E, E.train(), E.eval()):
        mapping.clear(), synthesis.clear()
        one.with_gradient(z)
        assert (mapping, synthesis) == ([7], [7])


def test_a_prior_is_never_pulled_back():
    base, _, synthesis = counted()
    (base & ce.as_energy(Normal(torch.zeros(4), 2.0), name="wide"))(torch.zeros(2, 4))
    assert not synthesis
    wrong, square = ce.as_energy(Normal(torch.zeros(5), 1.0), name="wrong"), latent(lambda z: z * 2, (3, 2, 2))
    refused(ShapeError, "neither a prior nor an energy of decoded points", lambda: base & wrong)
    refused(ExpressionError, "the shape of both", lambda: square & ce.as_energy(Normal(torch.zeros(3, 2, 2), 1.0)))


def test_attributes_agree_in_all_spaces():
    base, z = counted()[0], torch.randn(6, 4, generator=G)
    w, x = base.decoder.map(z), base.decoder(z)
    for on, points in (("z", z), ("w", w), ("x", x)):
        E = attribute(base, lambda p: p.flatten(1)[:, 0] * 2, "A", on=on)
        torch.testing.assert_close(E.evidence(z), -torch.nn.functional.logsigmoid(points.flatten(1)[:, 0] * 2))
    age = continuous(base, brightness, "age", on="x", width=0.3)
    expected = (brightness(x) - 0.4).square() / (2 * 0.3**2)
    found = age(0.4).evidence(z)
    torch.testing.assert_close(found - found[0], expected - expected[0], atol=1e-4, rtol=1e-4)


def test_heads_are_saved_with_an_expression(tmp_path):
    heads = ce.get("encoder", "latent-heads", inputs=4, outputs=2)
    base = ce.as_energy(Normal(torch.zeros(4), 1.0), name="prior")
    E = attribute(base, heads, "a", columns=0) & ~attribute(base, heads, "b", columns=1)
    E.save(tmp_path / "E")
    z = torch.randn(3, 4, generator=G)
    torch.testing.assert_close(ce.load(tmp_path / "E")(z), E(z))


LATER = latent(lambda z: torch.where(z > 3, torch.nan, z), 2)
test_bad_generators_are_refused_when_they_are_made_and_later = refusals(
    (lambda: latent(lambda z: [z], 4), "returned a list"),
    (lambda: latent(lambda z: z / 0 * 0, 4), "NaN or infinite values for 2 of 2"),
    (lambda: latent(lambda z: z + torch.rand(1), 4), "random numbers of its own"),
    (lambda: latent(lambda z: z - z.mean(0), 4), "depends on the other points"),
    (lambda: latent(lambda z: z @ torch.zeros(7, 2), 4), "failed for latent points of shape"),
    (lambda: latent(nn.Linear, 4), "make an instance"),
    (lambda: LATER.decoder(torch.tensor([[0.0, 0.0], [4.0, 0.0], [1.0, 1.0]])), "NaN or infinite values for 1 of 3"),
    error=GeneratorError,
)

PLAIN = latent(nn.Linear(4, 3), 4)
COLUMN = lambda z: z[:, 0]
test_wrong_arguments_are_refused = refusals(
    (lambda: latent(Generator(nn.Identity(), (2,)), 2, mapping=nn.Identity()), OptionError, "has its own mapping"),
    (lambda: PLAIN.decoder(torch.zeros(2, 5)), ShapeError, r"\(B, 4\), got \(2, 5\)"),
    (lambda: attribute(PLAIN, COLUMN, "a")(torch.zeros(2, 5)), ShapeError, r"\(B, 4\)"),
    (lambda: latent(Generator(nn.Linear(4, 3), (4,)), 3), GeneratorError, r"shape \(4\), the prior has \(3\)"),
    *((lambda p=p: latent(nn.Linear(4, 3), p), OptionError, "A prior is") for p in ("normal", -1, (4, 0))),
    (lambda: attribute(PLAIN, COLUMN, "a", on="y"), OptionError, "on must be one of"),  # pyright: ignore[reportArgumentType]
    (lambda: attribute(ce.as_energy(Normal(torch.zeros(4), 1.0)), COLUMN, "a", on="x"), OptionError, "whose decoder is a Generator"),
    (lambda: continuous(PLAIN, COLUMN, "a", width=1e-4), OptionError, "width must be between"),
    *((lambda s=s: Generator(nn.Identity(), s), OptionError, "latent_shape must be a whole number") for s in ("4", 4.0, (-4,))),
    (lambda: continuous(PLAIN, 3, "a"), OptionError, "must be a module or a function, got 3"),  # type: ignore[arg-type]
    (lambda: continuous(3, COLUMN, "a"), OptionError, "base must be a Energy, got 3"),  # type: ignore[arg-type]
    (lambda: graded(ce.ClassifierEnergy(LatentHeads(4, 3), 2, PLAIN)), OptionError, "two labels"),
)


@pytest.mark.parametrize("prior", [Uniform(-torch.ones(4), torch.ones(4)), RING])
def test_any_prior_is_a_base_whose_points_are_shown_decoded(prior):
    base, _, _ = counted(prior)
    right = attribute(base, lambda z: 3 * z[:, 0], "right")
    assert (~right).sample(3, seed=0, sampler="langevin", step_size=1e-3, steps=2).shape == (3, 3, 2, 2)
    x = torch.rand(5, 4, generator=G)
    torch.testing.assert_close((~right)(x), base(x) - torch.log1p(-torch.sigmoid(3 * x[:, 0])))


Z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 12), nn.Unflatten(1, (3, 2, 2))).eval()


@pytest.fixture(params=["script", "frozen", "export"])
def file(request, tmp_path):
    path, kind, module = tmp_path / "generator.pt", request.param, network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if kind == "export":
            batch = torch.export.Dim("batch", min=1)
            torch.export.save(torch.export.export(module, (Z[:2],), dynamic_shapes=({0: batch},)), path.with_suffix(".pt2"))
            return path.with_suffix(".pt2")
        script = torch.jit.script(module)
        (torch.jit.freeze(script) if kind == "frozen" else script).save(path)
    return path


@pytest.mark.parametrize("file", ["script"], indirect=True)
def test_a_generator_passes_the_checks_of_encoders(file):
    check_encoder(lambda: ce.get("encoder", "generator", path=file, trust=True), Z)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec:FutureWarning")  # of torch, where it copies a program
def test_a_generator_in_a_file_works_as_any_other(file):
    base = latent(load_generator(file, trust=True), 4)
    torch.testing.assert_close(base.decoder(Z), network()(Z))
    bright = attribute(base, lambda x: 4 * x.mean((1, 2, 3)), "bright", on="x")
    _, gradient = bright.with_gradient(Z)
    expected = Z.clone().requires_grad_()
    energy = expected.square().sum() / 2 - torch.nn.functional.logsigmoid(4 * network()(expected).mean((1, 2, 3))).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(energy, expected)[0])
    assert (bright & ~bright | bright).sample(3, seed=0, steps=2).shape == (3, 3, 2, 2)


class Evil:
    def __reduce__(self):
        return pytest.fail, ("the file has run code",)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "g.pt"
    torch.save(network(), path)
    checkpoint = path.read_bytes()
    for content in (checkpoint, checkpoint[:300], b"no generator", pickle.dumps(Evil())):
        path.write_bytes(content)
        refused(FileFormatError, r"pickle|is no TorchScript", load_generator, path, trust=True)
    refused(OptionError, "'3' is no path", load_generator, 3)


def test_onnx_needs_its_extra(tmp_path):
    (tmp_path / "g.onnx").write_bytes(b"no model")
    error, says = (ExtraNotInstalled, r"composable-energy\[onnx\]") if find_spec("onnx2torch") is None else (FileFormatError, "damaged")
    refused(error, says, load_generator, tmp_path / "g.onnx", trust=True)


def test_an_onnx_generator_has_the_values_and_gradients_of_the_graph(tmp_path):
    pytest.importorskip("onnx2torch")
    onnx = pytest.importorskip("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    weights = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    arrays = {"W": weights.numpy(), "s": torch.tensor([-1, 3, 2, 2]).numpy()}
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    nodes = [helper.make_node(*node) for node in (("MatMul", ["z", "W"], ["y"]), ("Tanh", ["y"], ["t"]), ("Reshape", ["t", "s"], ["x"]))]
    ends = [helper.make_tensor_value_info("z", floats, ["B", 4])], [helper.make_tensor_value_info("x", floats, ["B", 3, 2, 2])]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends, constants), opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "g.onnx")
    base = latent(load_generator(tmp_path / "g.onnx", trust=True), 4)
    torch.testing.assert_close(base.decoder(Z), torch.tanh(Z @ weights).view(5, 3, 2, 2))
    assert attribute(base, lambda x: x.mean((1, 2, 3)), "a", on="x").with_gradient(Z)[1].shape == (5, 4)


@pytest.mark.slow
def test_an_expression_over_a_file_can_be_saved(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network()).save(tmp_path / "g.pt")
    with ce.register("encoder", "mine", lambda: load_generator(tmp_path / "g.pt", trust=True)):
        ce.as_energy(torch.distributions.Normal(torch.zeros(4), 1.0), decoder=ce.get("encoder", "mine"), name="prior").save(tmp_path / "E")
        again = ce.load(tmp_path / "E")
    assert again.sample(2, seed=0, steps=2).shape == (2, 3, 2, 2)
    torch.testing.assert_close(again.decoder(Z), network()(Z))
