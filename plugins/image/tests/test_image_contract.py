"""The image energies: the kit, weights of the papers, labels and numbers, spectral norms, and what they refuse."""

import pickle
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import DtypeError, ExpressionError, OptionError, ShapeError
from composable_energy.testing import Check, assert_close, energy_checks, parametrize_with_checks
from tests.refusals import refusals, refused

SMALL = {
    "igebm-resnet32": {"width": 4, "size": 8},
    "igebm-resnet32-large": {"width": 4, "size": 8, "labels": 3},
    "igebm-resnet32-wider": {"width": 4, "size": 8},
    "igebm-mnist": {"width": 4, "size": 11},
    "igebm-dsprites": {"width": 4, "size": 16, "labels": 2},
    "compositional-128": {"width": 4, "size": 32, "labels": 2},
    "compositional-64": {"width": 4, "size": 16},
    "improved-cd": {"width": 4, "size": 9, "labels": 2},
    "jem": {"depth": 10, "width": 1, "size": 8, "labels": 3},
    "energy-unet": {"width": 4, "size": 8, "labels": 2},
}


QUICK = ("igebm-resnet32", "igebm-dsprites", "compositional-64, numbers", "improved-cd", "jem.of", "energy-unet")


def small(name: str, **options: object) -> ce.Energy:
    """A small energy whose weights are all away from where they start, some of which is zero."""
    torch.manual_seed(0)
    energy = ce.get("energy", name, **SMALL[name] | options)
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return energy.eval()


def images(energy: ce.Energy, count: int = 3) -> torch.Tensor:
    assert energy.event_shape is not None
    return torch.rand(count, *energy.event_shape, generator=torch.Generator().manual_seed(1))


@cache
def subjects() -> dict[str, ce.Energy]:
    found = {}
    for name in SMALL:
        energy = small(name)
        found[name] = energy.given(y=1) if energy.required_conditions else energy
    found["improved-cd, celeba"] = small("improved-cd", setting="celeba", size=65, labels=None, spectral_norm=False)
    found["igebm-dsprites, vector"] = small("igebm-dsprites").given(y=torch.tensor([[0.3, -1.2]]))
    found["compositional-64, numbers"] = small("compositional-64", numbers=2).given(y=torch.tensor([[0.3, -0.2]]))
    found["jem.of"] = small("jem").of(1)  # pyright: ignore[reportCallIssue]
    return found


def checks_of(quick: bool) -> list[Check]:
    found = {name: energy for name, energy in subjects().items() if (name in QUICK) == quick}
    return [Check(f"{name}: {check.name}", check.function) for name, one in found.items() for check in energy_checks(one, images(one))]


@pytest.mark.slow
@parametrize_with_checks(checks_of(quick=True))
def test_energies_keep_what_energies_keep(check: Check) -> None:
    check()


@pytest.mark.full
@parametrize_with_checks(checks_of(quick=False))
def test_the_other_energies_keep_it_too(check: Check) -> None:
    check()


@pytest.mark.slow
def test_recommended_samplers_are_the_steps_of_the_papers():
    """JEM's are u' = u - dE/du + .01 xi with u = 2 x - 1, so that dE/du = dE/dx / 2 and dx = du / 2."""
    steps = {"igebm-resnet32": (10, 0.005), "igebm-dsprites": (500, 0.005), "compositional-128": (100, 0.005), "improved-cd": (100, 0.001)}
    steps["jem"] = (1 / 4, 0.01 / 2)
    for name, (step, noise) in steps.items():
        recommended = small(name).recommended
        assert recommended is not None and recommended.sampler == "langevin"
        options = recommended.options
        assert options["step_size"] / 2 == step and options["clamp"] == (None if name == "jem" else (0, 1))
        assert options.get("max_gradient") == (0.01 if name == "igebm-resnet32" else None)
        assert (options["step_size"] * options["temperature"]) ** 0.5 == pytest.approx(noise)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("name", ["igebm-dsprites", "energy-unet"])
def test_an_energy_compiles_to_one_graph(name):
    energy = small(name).given(y=1)
    x = images(energy)
    torch.testing.assert_close(torch.compile(energy, backend="eager", fullgraph=True)(x), energy(x))


BAD = [
    ("igebm-resnet32", {"size": 28}, "size must be a multiple of 8"),
    ("igebm-mnist", {"labels": 3, "numbers": 2}, "a label or on numbers"),
    ("igebm-resnet32", {"activation": "gelu"}, "activation must be one of 'leaky-relu', 'relu', 'swish'"),
    ("igebm-resnet32", {"depth": 3}, "takes"),
    ("improved-cd", {"size": 8}, "size must be a whole number of at least 9"),
    ("improved-cd", {"setting": "lsun"}, "setting must be one of 'cifar10', 'celeba'"),
    ("improved-cd", {"width": 6}, "width must be a multiple of 4"),
    ("improved-cd", {"width": 36}, "multiples of 32"),
    ("jem", {"depth": 27}, "depth must be 10, 16, 22, 28"),
    ("energy-unet", {"size": 30}, "size must be a multiple of 4"),
    ("energy-unet", {"levels": 20_000}, "size must be a multiple of 9"),
    ("code-base", {"name": 3}, "name must be a str"),
    ("energy-unet", {"sigma_min": 2.0, "sigma_max": 1.0}, "0 < sigma_min < sigma_max"),
]


@pytest.mark.parametrize(("name", "options", "told"), BAD, ids=str)
def test_an_option_that_a_net_cannot_take_is_refused(name, options, told):
    refused(OptionError, told, ce.get, "energy", name, **options)


COUNTS = [  # derived layer by layer from the papers
    ("igebm-resnet32", {}, 5_315_841),
    ("igebm-resnet32", {"labels": 10}, 5_349_249),
    ("igebm-resnet32-large", {}, 18_591_105),
    ("igebm-resnet32-wider", {}, 41_930_049),
    ("igebm-mnist", {}, 1_246_721),
    ("igebm-dsprites", {}, 951_617),
    ("compositional-128", {}, 15_711_809),
    ("compositional-64", {"labels": 6}, 2_151_617),
    ("compositional-64", {"numbers": 2}, 2_166_977),
    ("improved-cd", {}, 6_564_196),
    ("improved-cd", {"multiscale": False, "attention": False}, 4_838_593),
    ("improved-cd", {"setting": "celeba"}, 27_643_780),
    ("jem", {}, 36_471_338),
    ("energy-unet", {}, 753_027),
]


@pytest.mark.full
@pytest.mark.parametrize(("name", "options", "count"), COUNTS, ids=lambda value: str(value) if not isinstance(value, int) else "")
def test_parameters_are_those_of_the_paper(name, options, count):
    plain = {"spectral_norm": False} if name in NETS else {}  # it has no parameters, and takes seconds to settle
    with torch.device("meta"):
        energy = ce.get("energy", name, **plain | options)
    assert sum(parameter.numel() for parameter in energy.parameters()) == count


CONDITIONAL = ("igebm-resnet32", "igebm-mnist", "compositional-64", "improved-cd", "energy-unet")


def conditional(name: str, **options: object) -> ce.Energy:
    torch.manual_seed(0)
    return ce.get("energy", name, **SMALL[name] | {"labels": 3} | options).eval()


@pytest.mark.parametrize("name", CONDITIONAL)
def test_whole_labels_are_one_hot_vectors_and_make_a_difference(name):
    energy = small(name, labels=3)
    x = torch.rand(1, *energy.event_shape).expand(3, -1, -1, -1)  # pyright: ignore[reportOptionalIterable]
    each = energy(x, y=torch.tensor([0, 1, 2]))
    assert_close(energy(x, y=torch.eye(3)), each, "one-hot vectors and numbers", network=energy)
    assert_close(torch.cat([energy.given(y=label)(x[:1]) for label in range(3)]), each, "alone and in a batch", network=energy)
    assert len(each.unique()) == 3


NUMBERS = {"labels": None, "numbers": 2}


test_conditions_that_make_no_sense_are_reported = refusals(
    ({}, 3, OptionError, "labels from 0 to 2"),
    ({}, 1.0, DtypeError, "integer dtype"),
    ({}, torch.zeros(2, 4), ShapeError, r"vectors of shape \(B, 3\), got \(2, 4\)"),
    ({}, torch.tensor([0, 1, 2]), ShapeError, "3 rows"),
    ({}, "cat", OptionError, "number or a tensor"),
    (NUMBERS, torch.zeros(2, 3), ShapeError, r"2 numbers for each image, with shape \(B, 2\), got \(2, 3\)"),
    (NUMBERS, torch.zeros(2), ShapeError, "y.unsqueeze"),
    (NUMBERS, torch.zeros(2, 2, dtype=torch.bool), DtypeError, "real numbers, got torch.bool"),
    (NUMBERS, torch.zeros(3, 2), ShapeError, "3 rows"),
    call=lambda options, y: conditional("igebm-resnet32", **options)(torch.rand(2, 3, 8, 8), y=y),
)


def test_a_conditional_energy_says_what_it_depends_on():
    assert conditional("igebm-resnet32").required_conditions == {"y"} and conditional("igebm-resnet32", labels=None).conditions == set()
    assert conditional("energy-unet").conditions == {"y", "sigma"} and conditional("energy-unet").required_conditions == {"y"}
    refused(ExpressionError, r"given\(y=...\)", conditional("igebm-resnet32"), torch.rand(2, 3, 8, 8))


def test_before_training_the_u_net_is_the_energy_of_normal_pixels():
    energy, x = ce.get("energy", "energy-unet", size=8, width=8, channels=1, data_std=0.3).eval(), torch.rand(4, 1, 8, 8)
    for sigma in (0.01, 0.5, 10.0):
        expected = ((x - 0.5).square() / (2 * (0.3**2 + sigma**2))).flatten(1).sum(1)
        assert_close(energy.at(sigma)(x), expected, "a normal's", network=energy)
    assert_close(energy(x), energy.at(0.01)(x), "without a level and at the lowest", network=energy)


@pytest.fixture
def jem():
    torch.manual_seed(0)
    energy = ce.get("energy", "jem", depth=10, width=1, size=8, labels=4).eval()
    with torch.no_grad():
        energy.net.module.head.weight.mul_(10)  # so that labels differ  # pyright: ignore
    return energy


@pytest.fixture
def x():
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_energy_of_a_label_is_its_logit(jem, x):
    logits = jem.logits(x)
    for label in range(4):
        torch.testing.assert_close(jem.of(label)(x), -logits[:, label])
        torch.testing.assert_close(jem.of(label).evidence(x), -logits.log_softmax(1)[:, label])
        torch.testing.assert_close(jem.of().given(y=label)(x), -logits[:, label])
    y = torch.tensor([0, 1, 2, 3, 0])
    torch.testing.assert_close(jem.of().given(y=y)(x), -logits.gather(1, y[:, None]).squeeze(1))


NETS = {
    "igebm-resnet32": {"width": 16, "size": 16},
    "igebm-resnet32-large": {"width": 8, "size": 16, "labels": 3},
    "igebm-resnet32-wider": {"width": 8, "size": 8},
    "igebm-mnist": {"width": 16},
    "igebm-dsprites": {"width": 16, "size": 32},
    "compositional-128": {"width": 8, "size": 32},
    "compositional-64": {"width": 8, "size": 16},
    "improved-cd": {"width": 8, "size": 16},
}


def normalized(energy: nn.Module) -> list[Any]:
    return [module for module in energy.modules() if hasattr(module, "parametrizations")]


def spectral_norms(energy: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([torch.linalg.matrix_norm(layer.weight.double().flatten(1), 2) for layer in normalized(energy)])


def trained(name: str, steps: int) -> ce.Energy:
    """Steps of a loss that keeps pulling, with the optimizer of the papers at ten times their rate."""
    torch.manual_seed(0)
    energy = ce.get("energy", name, **NETS[name])
    optimizer = torch.optim.Adam(energy.parameters(), lr=3e-3, betas=(0.0, 0.999))
    y = {"y": 1} if energy.required_conditions else {}
    for _ in range(steps):
        x = torch.rand(4, *energy.event_shape)  # pyright: ignore[reportOptionalIterable]
        loss = (energy(x, **y) - energy(x.pow(3), **y)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return energy.eval()


@pytest.mark.full
@pytest.mark.parametrize("name", NETS)
def test_spectral_norms_are_at_most_one_after_steps_that_pull(name):
    norms = spectral_norms(trained(name, 20))
    assert float(norms.max()) <= 1 + 1e-3
    assert float(norms.max()) >= 1 - 1e-3  # they are bounded because they are normalized, not because they are small


@pytest.mark.slow
def test_evaluation_moves_nothing_and_training_does():
    energy = trained("igebm-resnet32", 2)
    x = torch.rand(2, 3, 16, 16)
    before = {key: value.clone() for key, value in energy.state_dict().items()}
    assert torch.equal(energy(x), energy(x))
    assert torch.equal(energy.train().eval()(x), energy(x))  # settled vectors stay as they are
    assert all(torch.equal(value, before[key]) for key, value in energy.state_dict().items())
    energy.train()(x)
    moved = [key for key, value in energy.state_dict().items() if not torch.equal(value, before[key])]
    assert moved and all(key.endswith(("_u", "_v")) for key in moved)


def test_a_pickled_energy_can_be_trained_on():
    energy = trained("igebm-mnist", 1)
    state = torch.get_rng_state()
    again = pickle.loads(pickle.dumps(energy))
    assert torch.equal(torch.get_rng_state(), state) and len(normalized(again)) == len(normalized(energy))
    x = torch.rand(2, 1, 28, 28)
    for each in (energy, again):
        each.zero_grad()
        each.train()(x).sum().backward()
    for mine, other in zip(energy.parameters(), again.parameters(), strict=True):
        assert mine.grad is not None and other.grad is not None and torch.equal(mine.grad, other.grad)
