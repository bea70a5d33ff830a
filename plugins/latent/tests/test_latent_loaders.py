"""Generators in files: TorchScript, `torch.export` and ONNX are read when trusted, checkpoints are refused."""

import pickle
import warnings
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import ExtraNotInstalled, FileFormatError
from composable_energy_image.testing import check_encoder
from composable_energy_latent import attribute, latent, load_generator

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

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
        with pytest.raises(FileFormatError, match=r"pickle|is no TorchScript"):
            load_generator(path, trust=True)


def test_onnx_needs_its_extra(tmp_path):
    (tmp_path / "g.onnx").write_bytes(b"no model")
    missing = find_spec("onnx2torch") is None
    error, says = (ExtraNotInstalled, r"composable-energy\[onnx\]") if missing else (FileFormatError, "damaged")
    with pytest.raises(error, match=says):
        load_generator(tmp_path / "g.onnx", trust=True)


def test_an_onnx_generator_has_the_values_and_gradients_of_the_graph(tmp_path):
    pytest.importorskip("onnx2torch")
    onnx = pytest.importorskip("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    weights = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    constants = [
        onnx.numpy_helper.from_array(array, name) for name, array in (("W", weights.numpy()), ("s", torch.tensor([-1, 3, 2, 2]).numpy()))
    ]
    nodes = [
        helper.make_node("MatMul", ["z", "W"], ["y"]),
        helper.make_node("Tanh", ["y"], ["t"]),
        helper.make_node("Reshape", ["t", "s"], ["x"]),
    ]
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
        base = ce.as_energy(torch.distributions.Normal(torch.zeros(4), 1.0), decoder=ce.get("encoder", "mine"), name="prior")
        base.save(tmp_path / "E")
        again = ce.load(tmp_path / "E")
    assert again.sample(2, seed=0, steps=2).shape == (2, 3, 2, 2)
    torch.testing.assert_close(again.decoder(Z), network()(Z))
