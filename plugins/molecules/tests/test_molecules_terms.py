"""Events over angles and clashes between residues, alone and in expressions."""

import pytest
import torch

from composable_energy.errors import OptionError, ShapeError
from composable_energy.testing import check_energy
from composable_energy_molecules import ClashEnergy, Wells, arc, dihedral, side_chain_atoms
from tests.refusals import refusals

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")


def backbone(x=0.0):
    """N, CA and C of a residue with usual lengths, moved along x."""
    return torch.tensor([[-1.46 + x, 0.0, 0.0], [x, 0.0, 0.0], [0.55 + x, 1.42, 0.0]])


def points(degrees):
    return torch.cat([torch.deg2rad(torch.as_tensor(degrees, dtype=torch.float32))[:, None], torch.zeros(len(degrees), 3)], 1)


def test_an_angle_is_in_the_well_of_its_third_of_the_circle():
    well, x = Wells(1), points([10.0, 60.0, 110.0, 130.0, -170.0, -130.0, -110.0, -10.0])
    probabilities = torch.stack([(-well(name)(x)).exp() for name in ("gauche+", "trans", "gauche-")])
    assert probabilities.argmax(0).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert bool((probabilities.amax(0) > 0.9).all())
    torch.testing.assert_close(probabilities.sum(0), torch.ones(8))
    torch.testing.assert_close(well("trans", "gauche+")(x), (~well("gauche-"))(x))


def test_an_arc_holds_what_is_near_its_centre():
    event, x = arc(1, 175.0, 30.0), points([175.0, 150.0, -160.0, 140.0, -145.0, 0.0])
    assert ((-event(x)).exp() > 0.5).tolist() == [True, True, True, False, False, False]
    assert float((-event(points([145.0]))).exp()) == pytest.approx(0.5, abs=1e-3)  # on the border
    odds = torch.logit((-event(points([148.0]))).exp())
    assert float(odds) == pytest.approx(1, abs=0.06)  # a border of 3 degrees


test_events_and_clashes_say_what_they_need = refusals(
    (lambda: Wells(1, residue=2)("trans")(torch.zeros(3, 2, 4)), ShapeError, "residue 2 needs points"),
    (lambda: Wells(5), OptionError, "from 1 to 4"),
    (lambda: arc(1, 0.0, 190.0), OptionError, "half_width"),
    (lambda: ClashEnergy(["LEU"], backbone()[None]), OptionError, "two residues or more"),
    (lambda: ClashEnergy(["LEU", "LYS"], backbone()[None]), ShapeError, "finite numbers of shape"),
)


def test_atoms_have_the_dihedrals_of_the_angles():
    chi = torch.tensor([[1.0, -2.0, 3.0, 0.5], [-1.1, 3.1, 1.0, -2.0]], dtype=torch.float64)
    frame = backbone().double()
    atoms = side_chain_atoms("LYS", frame, chi)
    chain = torch.cat([frame[:2].expand(2, 2, 3), atoms], 1)
    found = torch.stack([dihedral(*chain[:, i : i + 4].unbind(1)) for i in range(4)], 1)
    torch.testing.assert_close(found, chi, atol=1e-6, rtol=0)
    bonds = (atoms[:, 1:] - atoms[:, :-1]).norm(dim=2)
    torch.testing.assert_close(bonds, torch.full_like(bonds, 1.52), atol=1e-6, rtol=0)
    assert float((atoms[0, 0] - frame[1]).norm()) == pytest.approx(1.53, abs=0.03)  # CB
    with pytest.raises(ShapeError, match="N, CA and C"):
        side_chain_atoms("LYS", frame[:2], chi)


def test_side_chains_that_point_at_each_other_clash_and_far_ones_do_not():
    near = ClashEnergy(["LYS", "LYS"], torch.stack([backbone(), backbone(6.0)]))
    far = ClashEnergy(["LYS", "LYS"], torch.stack([backbone(), backbone(40.0)]))
    x = torch.randn(200, 2, 4, generator=torch.Generator().manual_seed(0)) * 2
    assert not bool(far(x).any())
    energies = near(x)
    assert 0.1 < (energies > 0).float().mean() < 1
    worst = energies.argmax()
    atoms = [side_chain_atoms("LYS", frame, x[worst, i][None])[0] for i, frame in enumerate(near.backbones)]
    assert torch.cdist(*atoms).min() < 3.4 or torch.cdist(atoms[0], near.backbones[1]).min() < 3.4
    check_energy(lambda: ClashEnergy(["LEU", "PHE"], torch.stack([backbone(), backbone(4.0)])), x[:5])
