"""Angles: dihedrals by hand, atoms that are placed by them, periods, and side chains as data."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from composable_energy.errors import OptionError, ShapeError
from composable_energy_molecules import SideChains, angle_mask, angle_periods, context_of, dihedral, place_atom, recovered, wrap

F64 = torch.float64
ANGLES = st.floats(-10, 10)


@pytest.mark.parametrize(
    ("last", "degrees"), [((1, 1, 0), 0), ((0, 1, -1), 90), ((0, 3, 1), -90), ((1, 2, -1), 45), ((-1, 1, -1e-9), 180), ((-1, 0, 1), -135)]
)
def test_a_dihedral_is_the_turn_seen_along_the_middle_bond(last, degrees):
    """The bond goes from the origin along y, with x to the right and z towards the feet: clockwise turns x to -z."""
    a, b, c, d = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], last], dtype=F64)
    assert math.degrees(dihedral(a, b, c, d)) == pytest.approx(degrees, abs=1e-6)


@given(ANGLES, st.floats(0.3, 2.8), st.floats(0.5, 3.0))
@settings(max_examples=25, deadline=None)
def test_a_placed_atom_has_the_distance_the_angle_and_the_dihedral(turn, angle, length):
    a, b, c = torch.tensor([[0.3, -1.0, 0.2], [0.0, 0.1, 0.0], [1.1, 0.4, 0.9]], dtype=F64)
    d = place_atom(a, b, c, length, angle, torch.tensor(turn, dtype=F64))
    assert float((d - c).norm()) == pytest.approx(length)
    cosine = torch.dot(b - c, d - c) / ((b - c).norm() * (d - c).norm())
    assert float(cosine) == pytest.approx(math.cos(angle), abs=1e-9)
    assert abs(wrap(dihedral(a, b, c, d) - turn)) < 1e-6


@given(ANGLES, ANGLES, st.integers(-3, 3), st.sampled_from([math.pi, 2 * math.pi]))
@settings(max_examples=25, deadline=None)
def test_recovery_knows_no_period(one, other, turns, period):
    angles = torch.tensor([[one, other]], dtype=F64)
    periods = torch.full_like(angles, period)
    assert bool(recovered(angles + turns * period, angles, periods).all())
    assert not bool(recovered(angles + turns * period + 0.36, angles, periods).any())  # 20.6 degrees
    with pytest.raises(ShapeError, match="one shape"):
        recovered(angles, angles[:, :1], periods)


def test_a_context_names_the_amino_acid_with_its_angles_and_the_groups_of_its_neighbours():
    context = context_of(["PHE", "GLU", "LYS", "ALA"], -1.0, 2.0)
    assert (angle_periods(context) / math.pi).round().tolist() == [[2, 1, 2, 2], [2, 2, 1, 2], [2, 2, 2, 2], [2, 2, 2, 2]]
    assert angle_mask(context).sum(1).tolist() == [2, 3, 4, 0]
    context = context_of(["SER", "TRP"], [-1.0, 2.0], 0.5, before=None, after=["LEU", "HOH"])
    assert context[:, 2:].tolist() == [[15.0, 0.0, 3.0], [17.0, 0.0, 0.0]]
    with pytest.raises(OptionError, match="'XXX' is none of the 20"):
        context_of("XXX", 0.0, 0.0)
    with pytest.raises(ShapeError, match="one or 3 rows"):
        context_of(["SER", "TRP"], [1.0, 2.0, 3.0], 0.0)


def test_side_chains_keep_complete_residues():
    context = context_of(["SER", "GLY", "LEU"], -1.0, 2.0)
    chi = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [1.0, math.nan, 0, 0]])
    data = SideChains(chi, context, ("A/SER 1", "A/GLY 2", "A/LEU 3"))
    assert (data.complete().names, data.complete().places) == (["SER"], ("A/SER 1",))
    with pytest.raises(OptionError, match="None of 2"):
        data[1:].complete()
    with pytest.raises(ShapeError, match="N places or none"):
        SideChains(chi, context, ("A/SER 1",))
