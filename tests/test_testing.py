"""Test kit: energies, right samplers and every plug-in pass, and each check detects its defect with a message that names it, once."""

import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import dropout

import composable_energy as ce
from composable_energy import testing
from composable_energy.errors import OptionError
from composable_energy.sampling import Info, Noise, Sampler, State, energy_and_gradient
from composable_energy.testing.samplers import measure_deviations
from composable_energy_image.testing import check_encoder, check_world
from composable_energy_mcmc.metric import Metric
from composable_energy_molecules import GeneratedRotamers, context_of
from composable_energy_planning import Trajectories
from composable_energy_scenes import load_concepts
from composable_energy_training.testing import check_recipe
from tests import faulty_plugins as faulty
from tests.factories import LEAVES
from tests.faulty_plugins import SETTINGS, TEXTS
from tests.refusals import refusals, refused

POINTS = torch.tensor([[0.3, -1.2], [1.1, 0.4], [-0.7, 0.9], [2.0, 0.1]], dtype=torch.float64)
PLUGINS = Path(__file__).parent.parent / "plugins"
NO_MODEL = dict.fromkeys(("settings", "texts", "changes", "file", "folder"), "it is the frame of recipes, and names no model")
LATER = {"gradient": "later components take earlier attention as constant"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LEAVES))
def test_every_leaf_conforms(name):
    testing.check_energy(LEAVES[name], POINTS)


def keep(energies: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return energies


def change(energies: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    x.detach().numpy()[...] *= 2  # a write that torch does not count
    return energies


class Bowl(ce.Energy):
    """A bowl, and something that may be wrong with its energies."""

    def __init__(self, wrong: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = keep) -> None:
        super().__init__()
        self.wrong, self.scale = wrong, nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.wrong(x.square().sum(1) / 2, x)


class Turned(Bowl):
    def with_gradient(self, x):
        energies, gradient = super().with_gradient(x)
        return energies, -gradient


class Leaking(Bowl):
    """A score that depends on the other points."""

    has_value = False

    def with_gradient(self, x):
        return x.new_zeros(len(x)), x.detach() - x.detach().mean(0)


class Shared(Bowl):
    def __deepcopy__(self, memo: Any):
        return self


class Forgetful(Bowl):
    def __setstate__(self, state: Any):
        super().__setstate__({**state, "wrong": lambda e, x: e + 1})


class Unbalanced(Bowl):
    @property
    def bases(self):
        return (ce.energies.WeightedBase(LEAVES["distribution"]),)


def random(energies: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return energies + torch.rand(1, dtype=x.dtype)


BROKEN = {
    "scalar": (lambda: Bowl(lambda e, x: e.sum()), "shape"),
    "infinite": (lambda: Bowl(lambda e, x: e / 0), "shape"),
    "normalised": (lambda: Bowl(lambda e, x: e - e.mean()), "rows"),
    "ordered": (lambda: Bowl(lambda e, x: e + torch.arange(len(x)).to(x)), "rows"),
    "detached": (lambda: Bowl(lambda e, x: e + x.detach()[:, 0] ** 3), "gradient"),
    "turned": (Turned, "gradient"),
    "louder": (type("Louder", (Bowl,), {"with_gradient": lambda self, x: (x.square().sum(1), x.clone())}), "gradient"),
    "leaking": (Leaking, "rows"),
    "stubborn": (lambda: Bowl(lambda e, x: e.double()), "dtypes"),
    "changing": (lambda: Bowl(change), "input"),
    "random": (lambda: Bowl(random), "randomness"),
    "shared": (Shared, "copy"),
    "forgetful": (Forgetful, "copy"),
    "unbalanced": (Unbalanced, "evidence"),
}


def fails(check: testing.Check) -> bool:
    try:
        check()
    except AssertionError:
        return True
    except testing.SkipCheck:
        return False
    return False


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_energy_is_caught(name):
    build, failing = BROKEN[name]
    assert failing in {check.name for check in testing.energy_checks(build, POINTS) if fails(check)}
    refused(AssertionError, rf"later ones were not run:\n  {failing}: ", testing.check_energy, build(), POINTS)


def test_a_bowl_an_energy_without_value_and_one_of_rows_that_sum_to_1_conform():
    rows = ce.as_energy(torch.distributions.Dirichlet(torch.full_like(POINTS[0], 2.0)))
    for right, x in ((Bowl(), POINTS), (ce.ScoreEnergy(lambda x: 3 - x), POINTS), (rows, POINTS.softmax(1))):
        testing.check_energy(right, x)


def test_lambdas_are_excused_from_pickling_and_saving():
    for check in testing.energy_checks(ce.as_energy(lambda x: x.square().sum(1)), POINTS):
        refused(testing.SkipCheck, None, check) if check.name in ("pickle", "save") else check()


test_misuse_is_an_error = refusals(
    (lambda: testing.check_energy(LEAVES["noisy"].terms[0], POINTS), AssertionError, "sigma must be bound"),
    (lambda: testing.check_energy(LEAVES["ring"], POINTS[:1].expand(5, 2)), AssertionError, "three points"),
    (lambda: testing.check_energy(lambda: POINTS, POINTS), AssertionError, "Tensor is no Energy"),
)


def test_expected_failures_are_strict():
    names = ("rows", "randomness", "copy", "dtypes", "gradient", "pickle", "evidence", "algebra")
    testing.check_energy(Bowl(random), POINTS, expected_failures=dict.fromkeys(names, "it is random"))
    with pytest.raises(AssertionError, match=r"input: holds now; take it off expected_failures \(once\)"):
        testing.check_energy(Bowl(), POINTS, expected_failures={"input": "once"})
    refused(OptionError, "names inputs; .* are build, shape", testing.check_energy, Bowl(), POINTS, expected_failures={"inputs": "once"})


def test_expected_failures_in_pytest():
    checks = testing.energy_checks(lambda: Bowl(change), POINTS)
    mark = testing.parametrize_with_checks(checks, expected_failures={"input": "it is what it is for"})
    parameters: dict[str, Any] = {parameter.id: parameter for parameter in mark.args[1]}  # pyright: ignore[reportFunctionMemberAccess]
    assert [name for name, parameter in parameters.items() if parameter.marks] == ["input"]
    assert parameters["input"].marks[0].kwargs["strict"]
    refused(AssertionError, "changed in place", parameters["input"].values[0])
    refused(OptionError, None, testing.parametrize_with_checks, [], expected_failures={"input": "there is none"})


def energy(build: Callable[[], ce.Energy], cls: type[ce.Energy] = faulty.Bowl) -> None:
    with ce.register("energy", "planted", cls):
        testing.check_energy(build, POINTS.float())


def recipe(cls=faulty.Fit, texts=TEXTS, settings=SETTINGS) -> None:
    check_recipe(lambda: cls("fit", *texts, settings), faulty.number_file())


def encoder(cls=faulty.Encoder, *given) -> None:
    check_encoder(lambda: cls(*given), POINTS.float())


def world(cls=faulty.Squares, *given) -> None:
    check_world(lambda: cls(*given))


FORGETS, WITHOUT_SEED = faulty.ForgetsAnOption, {"data": SETTINGS["data"], "training": {"steps": 10, "device": "none"}}
# A faulty plug-in, the check that catches it, and words of its message.
FAULTS: dict[str, tuple[Callable[[], None], str, str]] = {
    "energy: config misses an option": (lambda: energy(lambda: FORGETS(4.0), FORGETS), "save", "other energies"),
    "energy: an option is misspelt": (lambda: energy(lambda: ce.load("planted", powr=4.0)), "build", "'planted' takes .*power"),
    "encoder: the batch is centred": (lambda: encoder(faulty.Encoder, lambda x: x - x.mean(0)), "rows", "alone and in a batch"),
    "encoder: dropout is never off": (lambda: encoder(faulty.Encoder, dropout), "randomness", "random numbers from torch"),
    "encoder: no gradient": (lambda: encoder(faulty.WithoutGradient), "gradient", "detached from the inputs"),
    "encoder: a tensor is not saved": (lambda: encoder(faulty.HidesATensor), "state", "parameter or buffer"),
    "encoder: an unused layer": (lambda: encoder(faulty.LeavesALayerOut), "weights", "no gradient reaches middle"),
    "recipe: no source": (lambda: recipe(texts=("A bowl", "", *TEXTS[2:])), "texts", "source is empty"),
    "recipe: no seed": (lambda: recipe(settings=WITHOUT_SEED), "settings", "no setting training.seed"),
    "recipe: another seed each time": (lambda: recipe(faulty.DrawsWithoutSeed), "repeat", "different weights: model.safetensors"),
    "recipe: any setting is accepted": (lambda: recipe(faulty.TakesAnySetting), "changes", "a setting that does not exist"),
    "world: noise in pictures": (lambda: world(faulty.NoisySquares), "seed", "depends on the batch, or on earlier calls"),
    "world: pictures of floats": (lambda: world(faulty.FloatSquares), "shape", "float64, expected uint8"),
    "world: an unnamed class": (lambda: world(faulty.ThreeTones), "labels", "from 0 to 2, its field names 2"),
    "world: an option is forgotten": (lambda: world(faulty.ForgetsItsSize, 8, 2), "options", "of that name"),
}


@pytest.mark.full
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught_and_named_once(name):
    fault, check, words = FAULTS[name]
    refused(AssertionError, rf"  {check}: .*{words}", fault)


@pytest.mark.full
def test_the_plug_ins_without_their_faults_pass():
    energy(lambda: faulty.Bowl(4.0))
    for check in (encoder, recipe, world):
        check()


COUNT = itertools.count()


@dataclass(frozen=True)
class Walk(Sampler):
    """Unadjusted Langevin, and places to break it."""

    step_size: float = 0.5
    factor: float = 1.0
    draw: Callable[[Noise, torch.Tensor], torch.Tensor] = lambda noise, x: noise.normal(x)

    def init(self, energy, x, noise):
        return State(x, *energy_and_gradient(energy, x))

    def step(self, energy, state, noise):
        x = state.x - self.step_size / 2 * state.grad + self.factor * self.step_size**0.5 * self.draw(noise, state.x)
        return State(x, *energy_and_gradient(energy, x)), Info()


class Doubling(Walk):
    def step(self, energy, state, noise):
        state, info = super().step(energy, state, noise)
        return State(state.x.double().float().double(), state.energy.float(), state.grad.float()), info


class Stale(Walk):
    """A point has the energy and the gradient of the point before."""

    def step(self, energy, state, noise):
        after, info = super().step(energy, state, noise)
        return State(after.x, state.energy, state.grad), info


class InPlace(Walk):
    def step(self, energy, state, noise):
        state.x.add_(1e-3)
        return super().step(energy, state, noise)


@pytest.mark.parametrize(
    ("sampler", "failing"),
    [
        (Walk(draw=lambda noise, x: torch.randn_like(x)), "seed"),
        (Walk(draw=lambda noise, x: replace(noise, seed=0).normal(x)), "seed"),
        (Doubling(), "seed"),
        (Walk(factor=1.1), "moments"),
        (InPlace(), "state"),
        (Stale(), "values"),
        (Doubling(), "values"),
        (Walk(draw=lambda noise, x: noise.at(1).normal(x)), "noise"),
        (Walk(draw=lambda noise, x: noise.for_chains(noise.chains[:1]).normal(x[:1]).expand_as(x)), "noise"),
        (Walk(draw=lambda noise, x: noise.normal(x) + next(COUNT)), "seed"),
        (Walk(draw=lambda noise, x: noise.normal(x) - noise.normal(x).mean(0)), "chunks"),
    ],
)
def test_a_broken_sampler_is_caught(sampler, failing):
    (check,) = (c for c in testing.sampler_checks(sampler, steps=20, variance=1 / (1 - 0.5 / 4)) if c.name == failing)
    refused(AssertionError, None, check)


@pytest.mark.slow
def test_a_sampler_conforms():
    testing.check_sampler(Walk, steps=20, bias=0.2)
    with ce.register("sampler", "walk", Walk):
        testing.check_sampler("walk", steps=20, variance=1 / (1 - 0.5 / 4))


def test_the_known_target_is_what_it_says():
    target, x = testing.Gaussian(torch.zeros(3, dtype=torch.float64), 2.0), torch.ones(2, 3, dtype=torch.float64)
    assert target(x).tolist() == [3 / 8, 3 / 8] and target.at(1.0)(x).tolist() == [0.3, 0.3]
    testing.check_energy(target, POINTS.repeat(1, 2)[:, :3])


def test_exact_draws_of_the_banana_are_white():
    target, n = testing.Banana(), 20_000
    x = target.exact(Noise(0, range(n)))
    errors, distance = measure_deviations(target.whitened(x))
    assert max(errors.values()) < 4.5 and distance < 2.47
    errors, distance = measure_deviations(target.whitened(x) * 1.1)
    assert errors["first variance"] > 10 and errors["second variance"] > 10 and errors["correlation"] < 4.5 and distance > 2.47
    assert all(measure_deviations(x * torch.nan)[0][name] == math.inf for name in errors)
    testing.check_energy(target, POINTS.repeat(1, 2)[:, :2])


def test_a_sampler_that_claims_to_be_exact_must_be():
    """Unadjusted steps tell no acceptance, so they are only if somebody insists."""
    checks = {exact: next(c for c in testing.sampler_checks(Walk(), exact=exact) if c.name == "exact") for exact in (None, False, True)}
    for exact in (None, False):
        refused(testing.SkipCheck, "not exact", checks[exact])
    refused(AssertionError, "exact draws do not stay exact", checks[True])


def points(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def members(x: torch.Tensor, *names: str) -> Callable[[], object]:
    return lambda: [testing.check_energy(name, x) for name in names]


def heads(name: str, **options: Any) -> Callable[[], None]:
    return lambda: check_encoder(lambda: ce.get("encoder", name, outputs=3, **options), points(5, 6))


def comet(name: str, options: Mapping[str, int] = MappingProxyType({}), **expected: Any) -> Callable[[], None]:
    x = points(4, 3, 16, 16).sigmoid()

    def build() -> torch.nn.Module:
        torch.manual_seed(0)  # the missing part of the gradient is small, and beyond the tolerance for this seed
        return ce.get("encoder", name, size=16, components=3, **options).encoder

    return lambda: check_encoder(build, x, **expected)


PHENYLALANINE = context_of("PHE", -1.1, -0.8, "GLY", "LEU")
HERE: Mapping[str, Mapping[str, Callable[[], object]]] = {
    "energy": {
        "effort": lambda: testing.check_energy(lambda: ce.load("effort", weight=2.0, order=2), points(4, 5, 2)),
        "faces": members(points(6, 64), "faces", "faces/male", "faces/hair=red"),
        "fashion": members(points(5, 64), "fashion", "fashion/dress"),
        "generated-faces": members(points(4, 64), "generated-faces"),
        "generated-rotamers": lambda: testing.check_energy(lambda: GeneratedRotamers().given(context=PHENYLALANINE), points(5, 4)),
        "mlp": lambda: testing.check_energy(lambda: ce.get("energy", "mlp", dim=3, width=8, layers=1, scale=2.0), points(5, 3)),
        "plane": members(points(4, 2), *(f"plane/{name}" for name in ce.installed()["plane"].members)),
        "reward": lambda: testing.check_energy(
            lambda: ce.reward(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0)), 1.5), points(4, 2)
        ),
        "scenes": members(points(6, 48), "scenes/color=red", "scenes/left"),
        "scenes, under conditions": lambda: [
            testing.check_energy(make(load_concepts()), points(6, 48))
            for make in (lambda c: c.of_color("red"), lambda c: c.of_position((0.2, -0.4)), lambda c: c.size(0.5))
        ],
        "transition": lambda: testing.check_energy(lambda: ce.load("transition", size=2, hidden=8), points(4, 2, 2)),
        "type": members(points(5, 64), "type", "type/bold", "type/letter=a"),
        "waypoint": lambda: testing.check_energy(lambda: ce.load("waypoint", target=[0.5, -0.5], time=3), points(4, 5, 2)),
    },
    "sampler": {
        "mixture": lambda: testing.check_sampler("mixture", exact=False),
        "trajectories": lambda: testing.check_sampler(Trajectories(step_size=0.5, metric=Metric(None, torch.Size([2]))), exact=True),
    },
    "encoder": {
        "code-heads": heads("code-heads", code=6),
        "comet": comet("comet", expected_failures=LATER),
        "comet-global": comet("comet-global"),
        "comet-window": comet("comet-window", {"window": 8, "seen": 16}, expected_failures=LATER),
        "latent-heads": heads("latent-heads", inputs=6),
    },
    "recipe": {
        row.name: lambda name=row.name: check_recipe(name, expected_failures=NO_MODEL if name == "energy" else None)
        for row in ce.plugins()
        if row.group == "composable_energy.recipes" and row.distribution == "composable-energy"
    },
    "world": {one: lambda one=one: check_world(one) for one in ("colored-sprites", "objects", "one-object", "room", "sprites", "tetris")},
}
KIT = ("check_energy", "energy_checks", "check_sampler", "sampler_checks", "check_encoder", "kernel_checks")
LONG = {"type": [pytest.mark.full, pytest.mark.no_cover]}  # its formulas compare labels of 26 letters very often
CASES = [pytest.param(kind, name, id=f"{kind} {name}", marks=LONG.get(name, ())) for kind, checks in HERE.items() for name in checks]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_plugin_of_the_library_conforms(kind, name):
    HERE[kind][name]()


@pytest.mark.parametrize("kind", ["energy", "sampler", "encoder", "kernel", "recipe", "world"])
def test_no_plugin_of_the_library_is_left_out(kind):
    """Those that are not checked here are named in a test of their package that calls the kit."""
    group = "composable_energy.energies" if kind == "energy" else f"composable_energy.{kind}s"
    here = {"code-conditional", *HERE.get(kind, {})}  # the first is built by another name in its package
    rows = [row for row in ce.plugins() if (row.group, row.distribution) == (group, "composable-energy") and row.name not in here]
    for row in rows:
        package, made = re.match(r"(\w+)[\w.]*:(\w+)", row.value).groups()
        (home,) = PLUGINS.glob(f"*/{package}")
        texts = [path.read_text(encoding="utf-8") for path in (home.parent / "tests").glob("*.py")]
        named = re.compile(rf"[\"'/]{row.name}[\"'/]|\b{made}\b|ce\.{row.name}\(")
        assert any(named.search(text) and any(f"{check}(" in text for check in KIT) for text in texts), row.name
