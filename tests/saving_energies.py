"""Energies and a family that can be saved, registered by name."""

from pathlib import Path

import pytest
import torch
from torch import distributions as td
from torch import nn

import composable_energy as ce
from composable_energy.algebra import Node, to_common_space, value_of
from composable_energy.files import ENERGY_FILE, VERSION, read_record, write_record

X = torch.randn(9, 2, generator=torch.Generator().manual_seed(3))


class Prior(ce.Energy):
    """A base with weights, which knows noise."""

    def __init__(self, latent: bool) -> None:
        super().__init__()
        self.net = nn.Linear(2, 4)
        if latent:
            self.decoder = nn.Linear(2, 2)
        self.event_shape = torch.Size([2])
        self.eval()

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float = 0.1) -> torch.Tensor:
        return self.net(x).square().sum(1) + x.square().sum(1) / 2 + sigma


class Attributes(ce.EnergyFamily):
    """Events and a density over one base."""

    def __init__(self, seed: int = 0, latent: bool = True) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.base, self.heads, self.place = Prior(latent), nn.Linear(2, 6).eval(), nn.Linear(2, 4).eval()

    def members(self):
        return ("male", "old", "hair=red", "hair=grey", "place")

    def load(self, member):
        if member is None:
            return self.base
        if member == "place":
            return ce.ClassifierEnergy(self.place, None, self.base, name="place")
        if "=" in member:
            return ce.ClassifierEnergy(self.heads, ("hair=red", "hair=grey").index(member), self.base, columns=slice(2, 6), name=member)
        return ce.ClassifierEnergy(self.heads, 1, self.base, columns=("male", "old").index(member), name=member)


class Tempered(ce.Energy):
    """A wrapper of one's own, with another energy inside."""

    def __init__(self, inner: ce.Energy, scale: torch.Tensor | float) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.as_tensor(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.scale

    def config(self):
        return {"inner": self.inner, "scale": self.scale.detach()}


class Mean(Node):
    """A node of one's own, with a learnable power."""

    sums = True

    def __init__(self, *terms: ce.Energy, power: torch.Tensor | float = 1.0) -> None:
        super().__init__(*to_common_space(terms))
        self.power = power

    @property
    def grounded(self) -> bool:
        return all(term.grounded for term in self.terms)

    def forward_evidence(self, x: torch.Tensor, **conditions) -> torch.Tensor:
        return self.power * sum(value_of(term, x, conditions) for term in self.terms) / len(self.terms)

    def config(self):
        return {"power": self.power}


class Picture(ce.Energy):
    """An energy of decoded points."""

    def __init__(self, target: list | None = None) -> None:
        super().__init__()
        self.event_shape = torch.Size([2])
        self.register_buffer("target", torch.tensor(target or [0.0, 0.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.target).square().sum(1)

    def config(self):
        return {"target": self.target.tolist()}


@pytest.fixture
def saving_registry(site):
    """Registers the energies that are loaded by name."""
    with (
        ce.register("energy", "people", Attributes),
        ce.register("energy", "tempered", Tempered),
        ce.register("energy", "picture", Picture),
        ce.register("energy", "mean", Mean),
        ce.register("encoder", "linear", nn.Linear),
    ):
        yield


def reloaded(energy: ce.Energy, folder: Path, x: torch.Tensor = X) -> ce.Energy:
    ce.save(energy, folder / "saved")
    loaded = ce.load(folder / "saved")
    assert repr(loaded) == repr(energy) and str(loaded) == str(energy)
    assert torch.equal(loaded(x), energy(x)) and torch.equal(loaded.evidence(x), energy.evidence(x))
    assert [len(loaded.bases), loaded.grounded, loaded.conditions] == [len(energy.bases), energy.grounded, energy.conditions]
    return loaded


def people(*members: str, **options) -> list[ce.Energy]:
    return [ce.get("energy", f"people/{member}", **options) for member in members]


def together(*members: str) -> list[ce.Energy]:
    """Returns members over one base object, as training creates them."""
    first, *others = people(*members)
    return [first, *(other.rebuild(base=first.base, logits=first.logits) for other in others)]


def normal(mean: float = 0.0) -> ce.Energy:
    return ce.as_energy(td.Normal(torch.full((2,), mean), 1.0))


WEIGHT = nn.Parameter(torch.tensor(0.3))


def expressions() -> list[ce.Energy]:
    """Returns three expressions with shared parts, a mixture and a noise level for each point."""
    male, old, red = people("male", "old", "hair=red")
    mixture = td.MixtureSameFamily(td.Categorical(torch.tensor([0.1, 0.2])), td.MultivariateNormal(torch.ones(2, 2), torch.eye(2)))
    return [(male & ~old) | (red & 0.3 * normal()), ce.any_of(normal(), ce.as_energy(mixture), weights=[0.2, 3.0]), male.at(torch.rand(9))]


def nodes(header, kind):
    """Returns the nodes of a class in the header of a saved energy; `built` are the objects of plug-ins."""
    return [node for node in header["nodes"] if node["class"] == kind]


def edit(folder, change=lambda header: None, tensors=None):
    """Changes the header and the tensors of a saved energy, with a right digest."""
    header, saved = read_record(folder / ENERGY_FILE, "energy", VERSION)
    change(header)
    write_record(folder / ENERGY_FILE, "energy", VERSION, header, saved if tensors is None else tensors(saved))
    return folder
