"""The image energies: the conformance kit, weights of the papers, labels and numbers, and what they refuse."""

import math

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ContradictionError, DtypeError, ExpressionError, OptionError, ShapeError
from composable_energy.testing import Check, assert_close, energy_checks, parametrize_with_checks
from composable_energy_image.energy import number_features

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
    ("igebm-resnet32", {"channels": 0}, "channels must be a whole number"),
    ("igebm-resnet32", {"numbers": 2.0}, "numbers must be"),
    ("igebm-mnist", {"labels": 3, "numbers": 2}, "a label or on numbers"),
    ("igebm-resnet32", {"activation": "gelu"}, "activation must be one of 'leaky-relu', 'relu', 'swish'"),
    ("igebm-resnet32", {"dropout": 1.0}, "dropout must be a number from 0"),
    ("igebm-resnet32", {"depth": 3}, "takes"),
    ("igebm-mnist", {"size": "28"}, "size must be a whole number"),
    ("improved-cd", {"size": 8}, "size must be a whole number of at least 9"),
    ("improved-cd", {"setting": "lsun"}, "setting must be one of 'cifar10', 'celeba'"),
    ("improved-cd", {"width": 6}, "width must be a multiple of 4"),
    ("improved-cd", {"width": 36}, "multiples of 32"),
    ("jem", {"depth": 27}, "depth must be 10, 16, 22, 28"),
    ("energy-unet", {"size": 30}, "size must be a multiple of 4"),
    ("energy-unet", {"sigma_min": 2.0, "sigma_max": 1.0}, "0 < sigma_min < sigma_max"),
]


@pytest.mark.parametrize(("name", "options", "told"), BAD, ids=str)
def test_an_option_that_a_net_cannot_take_is_refused(name, options, told):
    with pytest.raises(OptionError, match=told):
        ce.get("energy", name, **options)


COUNTS = [  # derived layer by layer from the papers
    ("igebm-resnet32", {}, 5_315_841),
    ("igebm-resnet32", {"labels": 10}, 5_349_249),
    ("igebm-resnet32-large", {}, 18_591_105),
    ("igebm-resnet32-wider", {}, 41_930_049),
    ("igebm-resnet32-wider", {"width": 256}, 74_337_537),
    ("igebm-mnist", {}, 1_246_721),
    ("igebm-dsprites", {}, 951_617),
    ("igebm-dsprites", {"labels": 3}, 953_217),
    ("compositional-128", {}, 15_711_809),
    ("compositional-128", {"labels": 2}, 15_717_313),
    ("compositional-64", {"labels": 6}, 2_151_617),
    ("compositional-64", {"numbers": 2}, 2_166_977),
    ("improved-cd", {}, 6_564_196),
    ("improved-cd", {"labels": 10, "spectral_norm": False}, 6_635_876),
    ("improved-cd", {"multiscale": False, "attention": False}, 4_838_593),
    ("improved-cd", {"setting": "celeba"}, 27_643_780),
    ("jem", {}, 36_471_338),
    ("energy-unet", {}, 753_027),
    ("energy-unet", {"labels": 10}, 754_307),
]


@pytest.mark.full
@pytest.mark.parametrize(("name", "options", "count"), COUNTS, ids=lambda value: str(value) if not isinstance(value, int) else "")
def test_parameters_are_those_of_the_paper(name, options, count):
    with torch.device("meta"):
        energy = ce.get("energy", name, **options)
    assert sum(parameter.numel() for parameter in energy.parameters()) == count


CONDITIONAL = ("igebm-resnet32", "igebm-mnist", "compositional-64", "improved-cd", "energy-unet")


def conditional(name: str, **options: object) -> ce.Energy:
    torch.manual_seed(0)
    return ce.get("energy", name, **SMALL[name] | {"labels": 3} | options).eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", CONDITIONAL)
def test_at_the_start_all_labels_agree_with_the_energy_without_labels(name):
    energy, plain = conditional(name), conditional(name, labels=None)
    x = torch.rand(3, *plain.event_shape)  # pyright: ignore[reportOptionalIterable]
    expected = plain(x)
    for y in (0, 2, torch.tensor([0, 1, 2]), torch.eye(3), torch.tensor([[0.2, 0.3, -4.0]])):
        assert_close(energy(x, y=y), expected, "with a label and without", network=energy)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_whole_labels_are_one_hot_vectors_and_make_a_difference(name):
    energy = small(name, labels=3)
    x = torch.rand(1, *energy.event_shape).expand(3, -1, -1, -1)  # pyright: ignore[reportOptionalIterable]
    each = energy(x, y=torch.tensor([0, 1, 2]))
    assert_close(energy(x, y=torch.eye(3)), each, "one-hot vectors and numbers", network=energy)
    assert_close(torch.cat([energy.given(y=label)(x[:1]) for label in range(3)]), each, "alone and in a batch", network=energy)
    assert len(each.unique()) == 3


NUMBERS = {"labels": None, "numbers": 2}


@pytest.mark.parametrize(
    ("options", "y", "error", "told"),
    [
        ({}, 3, OptionError, "labels from 0 to 2"),
        ({}, 1.0, DtypeError, "integer dtype"),
        ({}, torch.zeros(2, 4), ShapeError, r"vectors of shape \(B, 3\), got \(2, 4\)"),
        ({}, torch.tensor([0, 1, 2]), ShapeError, "3 rows"),
        ({}, "cat", OptionError, "number or a tensor"),
        (NUMBERS, torch.zeros(2, 3), ShapeError, r"2 numbers for each image, with shape \(B, 2\), got \(2, 3\)"),
        (NUMBERS, torch.zeros(2), ShapeError, "y.unsqueeze"),
        (NUMBERS, torch.zeros(2, 2, dtype=torch.bool), DtypeError, "real numbers, got torch.bool"),
        (NUMBERS, torch.zeros(3, 2), ShapeError, "3 rows"),
    ],
    ids=str,
)
def test_conditions_that_make_no_sense_are_reported(options, y, error, told):
    with pytest.raises(error, match=told):
        conditional("igebm-resnet32", **options)(torch.rand(2, 3, 8, 8), y=y)


def test_a_conditional_energy_says_what_it_depends_on():
    assert conditional("igebm-resnet32").required_conditions == {"y"}
    assert conditional("igebm-resnet32", labels=None).conditions == set()
    assert conditional("energy-unet").conditions == {"y", "sigma"} and conditional("energy-unet").required_conditions == {"y"}
    with pytest.raises(ExpressionError, match=r"given\(y=...\)"):
        conditional("igebm-resnet32")(torch.rand(2, 3, 8, 8))


def test_the_network_sees_numbers_and_waves_of_them():
    numbers = torch.tensor([[0.25, -0.5]])
    told = number_features(numbers, 2, torch.zeros(1))
    angles = [math.pi / 2 * wave * v for wave in (1, 2, 4) for v in (0.25, -0.5)]
    expected = [0.25, -0.5, *map(math.sin, angles), *map(math.cos, angles)]
    torch.testing.assert_close(told, torch.tensor([expected]))


def test_an_energy_is_reported_labels_or_numbers():
    with pytest.raises(OptionError, match="labels=3, numbers=2"):
        conditional("energy-unet", numbers=2)
    with pytest.raises(OptionError, match="numbers must be a whole number"):
        conditional("igebm-resnet32", labels=None, numbers=0)


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


def test_an_event_and_its_complement_are_everything(jem, x):
    event = jem.of(1)
    torch.testing.assert_close((event | ~event)(x), jem(x))
    torch.testing.assert_close(event.evidence(x).neg().exp() + (~event).evidence(x).neg().exp(), torch.ones(5))
    torch.testing.assert_close((jem.of(1) | jem.of(2))(x), jem.of([1, 2])(x))
    torch.testing.assert_close((~jem.of([0, 3]))(x), jem.of([1, 2])(x))
    with pytest.raises(ContradictionError):
        (jem.of(1) & jem.of(2))(x)


def test_an_expression_of_events_evaluates_the_net_once(jem, x):
    calls = []
    jem.net.module.register_forward_hook(lambda *_: calls.append(1))
    (jem.of(0) | ~jem.of([1, 2])).with_gradient(x)
    assert len(calls) == 1


def test_the_recommended_steps_are_those_of_the_paper_in_its_units(jem):
    """u' = u - dE/du + .01 xi with u = 2 x - 1, so that dE/du = dE/dx / 2 and dx = du / 2."""
    options = jem.recommended.options
    assert options["step_size"] / 2 == 1.0 / 4 and options["clamp"] is None
    assert (options["step_size"] * options["temperature"]) ** 0.5 == pytest.approx(0.01 / 2)
