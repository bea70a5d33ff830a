"""The conformance kit on all image energies, and the options that they refuse."""

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.testing import Check, energy_checks, parametrize_with_checks

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


@pytest.mark.slow
@parametrize_with_checks(
    [
        Check(f"{name}: {check.name}", check.function)
        for name, energy in subjects().items()
        for check in energy_checks(energy, images(energy))
    ]
)
def test_energies_keep_what_energies_keep(check: Check) -> None:
    check()


@pytest.mark.full
def test_an_energy_starts_from_the_global_seed_alone():
    for name, options in SMALL.items():
        first, second = ((torch.manual_seed(5), ce.get("energy", name, **options))[1].state_dict() for _ in range(2))
        assert all(torch.equal(first[key], second[key]) for key in first), name


@pytest.mark.slow
def test_recommended_samplers_are_the_steps_of_the_papers():
    for name, step, noise in (
        ("igebm-resnet32", 10, 0.005),
        ("igebm-dsprites", 500, 0.005),
        ("compositional-128", 100, 0.005),
        ("improved-cd", 100, 0.001),
    ):
        recommended = small(name).recommended
        assert recommended is not None and recommended.sampler == "langevin"
        options = recommended.options
        assert options["step_size"] / 2 == step and options["clamp"] == (0, 1)
        assert options["max_gradient"] == (0.01 if name == "igebm-resnet32" else None)
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
    ("igebm-resnet32", {"size": 0}, "size must be a multiple of 8"),
    ("igebm-resnet32", {"channels": 0}, "channels must be a whole number"),
    ("igebm-resnet32", {"channels": 2.5}, "channels must be a whole number"),
    ("igebm-resnet32", {"width": 0}, "width must be"),
    ("igebm-resnet32", {"labels": 0}, "labels must be"),
    ("igebm-resnet32", {"numbers": 2.0}, "numbers must be"),
    ("igebm-mnist", {"labels": 3, "numbers": 2}, "a label or on numbers"),
    ("igebm-resnet32", {"activation": "gelu"}, "activation must be one of 'leaky-relu', 'relu', 'swish'"),
    ("igebm-resnet32", {"dropout": 1.0}, "dropout must be a number from 0"),
    ("igebm-resnet32", {"depth": 3}, "takes"),
    ("igebm-mnist", {"size": "28"}, "size must be a whole number"),
    ("compositional-128", {"size": 48}, "size must be a multiple of 32"),
    ("compositional-64", {"size": 24}, "size must be a multiple of 16"),
    ("improved-cd", {"size": 8}, "size must be a whole number of at least 9"),
    ("improved-cd", {"setting": "celeba", "size": 64}, "size must be a whole number of at least 65"),
    ("improved-cd", {"setting": "lsun"}, "setting must be one of cifar10, celeba"),
    ("improved-cd", {"width": 6}, "width must be a multiple of 4"),
    ("improved-cd", {"width": 36}, "multiples of 32"),
    ("jem", {"depth": 27}, "depth must be 10, 16, 22, 28"),
    ("jem", {"labels": 1}, "labels must be a whole number of at least 2"),
    ("energy-unet", {"size": 30}, "size must be a multiple of 4"),
    ("energy-unet", {"sigma_min": 2.0, "sigma_max": 1.0}, "0 < sigma_min < sigma_max"),
    ("energy-unet", {"blocks": 0}, "blocks must be"),
]


@pytest.mark.parametrize(("name", "options", "told"), BAD, ids=str)
def test_an_option_that_a_net_cannot_take_is_refused(name, options, told):
    with pytest.raises(OptionError, match=told):
        ce.get("energy", name, **options)
