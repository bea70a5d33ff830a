"""The families of real pictures: what is shared, draws that are read as what was asked for, and files of expressions over them."""

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import PluginNotFound
from composable_energy.testing import check_energy
from composable_energy_pictures import WEIGHTS, Clothes, Letters

FAMILIES = {"fashion": (Clothes(), 28), "type": (Letters(), 64)}


@pytest.mark.parametrize("name", FAMILIES)
def test_all_members_are_those_of_the_file_and_share_base_heads_and_decoder(name):
    family, size = FAMILIES[name]
    base, *events = map(family.load, (None, *family.members()))
    assert {str(term) for term in ce.load(WEIGHTS / name).terms} == {"base", *family.members()}
    assert [str(event) for event in events] == list(family.members()) and str(base) == name
    assert all(event.base is base and event.logits is events[0].logits and event.decoder is base.decoder for event in events)
    assert base.decoder(torch.zeros(2, 64)).shape == (2, 1, size, size)
    with pytest.raises(PluginNotFound, match=family.members()[0]):
        family.load("striped")


def test_members_by_name_have_one_base_and_come_back_from_a_file(tmp_path):
    energy = ce.load("fashion/dress") & ~ce.load("fashion/wide") & ce.load("fashion")
    energy.save(tmp_path)
    codes = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    assert len(energy.bases) == 1 and energy(codes).dtype == torch.float32
    assert torch.equal(ce.load(tmp_path)(codes), energy(codes))
    assert not torch.equal(energy(codes), (ce.load("fashion/dress") & ce.load("fashion/wide"))(codes))


@pytest.mark.slow
@pytest.mark.parametrize(("text", "least"), [("fashion/trousers", 0.9), ("type/letter=o", 0.8)])
def test_pictures_are_read_as_what_was_asked_for(text, least):
    energy, other = ce.load(text), ce.load(text.partition("/")[0])
    for asked, low, high in ((energy, least, 1), (other, 0, 0.5)):
        pictures = asked.sample(16, seed=0)
        assert pictures.min() >= 0 and pictures.max() <= 1
        read = (-energy.evidence(energy.decoder.encode(pictures))).exp()
        assert low <= read.mean() <= high


@pytest.mark.full
@pytest.mark.parametrize("name", ["fashion", "fashion/dress", "type", "type/bold", "type/letter=a"])
def test_energies_of_pictures_keep_the_contract(name):
    check_energy(ce.get("energy", name), torch.randn(5, 64, generator=torch.Generator().manual_seed(3)))
