"""Identity of random expressions: copies and saved files are the same energy, and a change of one number is another."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as td
from torch import nn

import composable_energy as ce
from composable_energy.energies.identity import Origin, inherit_token
from composable_energy.errors import ExpressionError
from tests.identity_energies import Noisy, Ring, Tilt, bowl, check_same, filled, loaded

pytestmark = pytest.mark.usefixtures("identity_registry")


class Scaled(nn.Module):
    """A module that is lifted."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x):
        return self.scale * x.square().sum(1)


def pull(x):
    return -x


SAVED = ("normal", "mixture", "ring", "noisy", "event", "labels", "density", "interval")


LEAVES = (*SAVED, "tilt", "module", "score", "function")


@dataclass
class Builder:
    """Builds an expression; all of its objects are of one origin, so that values alone tell them apart."""

    def __post_init__(self) -> None:
        with inherit_token(Origin("test")):
            self.base = Noisy(0.5)

    def __call__(self, tree) -> ce.Energy:
        with inherit_token(Origin("test")):
            return self.built(tree)

    def head(self, number: float) -> nn.Module:
        return filled(ce.get("encoder", "linear", in_features=2, out_features=4), number)

    def built(self, tree) -> ce.Energy:
        name, number, *inner = tree
        terms = [self.built(term) for term in inner]
        match name:
            case "normal":
                return ce.as_energy(td.Normal(torch.tensor([number, 0.0]), 1.0))
            case "mixture":
                parts = td.MultivariateNormal(torch.tensor([[0.0, number], [1.0, 2.0]]), torch.eye(2))
                return ce.as_energy(td.MixtureSameFamily(td.Categorical(torch.tensor([0.3, 0.7])), parts))
            case "ring":
                return Ring(number)
            case "noisy":
                return Noisy(number)
            case "tilt":
                return Tilt(number)
            case "module":
                return ce.as_energy(Scaled(number))
            case "function":
                return number * ce.as_energy(bowl)
            case "score":
                return number * ce.ScoreEnergy(pull)
            case "event":
                return ce.ClassifierEnergy(self.head(number), 1, self.base)
            case "labels":
                return ce.ClassifierEnergy(self.head(number), base=self.base).given(y=torch.tensor([0, 1, 2, 3, 0]))
            case "density":
                return ce.GaussianHead(self.head(0.1), self.base, dims=2)((number, 0.5))
            case "interval":
                return ce.GaussianHead(self.head(0.1), self.base, dims=2).near((number, 0.5), 3.0)
            case "and":
                return terms[0] & terms[1]
            case "or":
                return terms[0] | number * terms[1]
            case "any":
                return ce.any_of(*terms, weights=[1.0, number])
            case "weighted":
                return torch.tensor(number) * terms[0]
            case "cooled":
                return terms[0] / nn.Parameter(torch.tensor(number))
            case "sharpened":
                return terms[0].sharpened(number)
            case "contrast":
                return ce.negate(terms[0], "contrast", offset=number)
            case "power":
                return ce.negate(terms[0], "power", weight=number)
            case "minus":
                return terms[0] - number * terms[1]
            case "relative":
                return terms[0].relative_to(self.base) if not terms[0].bases else terms[0].sharpened(number)
            case _:
                raise AssertionError(name)


NUMBERS = st.integers(1, 40).map(lambda k: k / 16)


def trees(leaves):
    unary = ("weighted", "cooled", "sharpened", "contrast", "power", "relative")
    return st.recursive(
        st.tuples(st.sampled_from(leaves), NUMBERS),
        lambda inner: st.one_of(
            st.tuples(st.sampled_from(("and", "or", "any", "minus")), NUMBERS, inner, inner),
            st.tuples(st.sampled_from(unary), NUMBERS, inner),
        ),
        max_leaves=5,
    )


def places(tree, path=()):
    """Yields where the numbers of a tree that it uses are."""
    if tree[0] not in ("and", "labels", "relative"):
        yield path
    for i, term in enumerate(tree[2:]):
        yield from places(term, (*path, i))


def changed(tree, path):
    name, number, *inner = tree
    if not path:
        return (name, number + 1 / 64, *inner)
    return (name, number, *(changed(term, path[1:]) if i == path[0] else term for i, term in enumerate(inner)))


def build(tree) -> ce.Energy | None:
    """None for trees that the algebra refuses, such as a mixture of scores."""
    try:
        return Builder()(tree)
    except ExpressionError:
        return None


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda energy: pickle.loads(pickle.dumps(energy)),
    "there and back in double": lambda energy: copy.deepcopy(energy).double().float(),
    "to a device": lambda energy: copy.deepcopy(energy).to("cpu"),
    "twin": lambda energy: getattr(ce.sampling, "twin", copy.deepcopy)(energy),
}


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(trees(LEAVES), st.sampled_from(sorted(WAYS)))
def test_a_copy_is_the_same_energy(tree, way):
    energy = build(tree)
    if energy is not None:
        check_same(energy, WAYS[way](energy), way)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(trees(SAVED))
def test_what_is_saved_and_loaded_is_the_same_energy(tree):
    with (
        ce.register("energy", "ring", Ring),
        ce.register("energy", "noisy", Noisy),
        ce.register("encoder", "linear", nn.Linear),
    ):
        energy = build(tree)
        if energy is not None:
            check_same(energy, loaded(energy), "saved")


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(trees(LEAVES), st.data())
def test_a_change_of_one_number_is_another_energy(tree, data):
    energy = build(tree)
    if energy is None:
        return
    assert energy.equals(build(tree))
    path = data.draw(st.sampled_from(list(places(tree)) or [None]))
    if path is not None:
        assert not energy.equals(build(changed(tree, path)))
