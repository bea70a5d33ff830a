"""Files of structures: angles against a calculation by hand, ends and gaps of chains, and bad files."""

import gzip
import math
import sys

import pytest
import torch

from composable_energy.errors import ExtraNotInstalled, FileFormatError, OptionError
from composable_energy_molecules import context_of, place_atom, read_side_chains, wrap
from tests.refusals import refused

gemmi = pytest.importorskip("gemmi", reason="the extra molecules")

F64 = torch.float64
PATHS = {"SER": ["OG"], "LEU": ["CG", "CD1"], "LYS": ["CG", "CD", "CE", "NZ"], "ALA": []}


def atom(serial, name, residue, chain, number, position, alternative=" ", element=None):
    x, y, z = (float(value) for value in position)
    place = f"{chain}{number:4d}    {x:8.3f}{y:8.3f}{z:8.3f}"
    return f"ATOM  {serial:5d} {name:^4s}{alternative}{residue:3s} {place}  1.00  0.00          {element or name[0]:>2s}"


def peptide(sequence, backbone, chi, chain="A", first=1):
    """Returns lines of a chain that is built by its dihedrals: phi and psi of each residue, omega 180, and the chi angles."""
    points = [torch.tensor(point, dtype=F64) for point in ([0.0, 0.0, 0.0], [1.46, 0.0, 0.0], [2.0, 1.42, 0.0])]
    turn = lambda degrees: torch.tensor(math.radians(degrees), dtype=F64)
    for i in range(1, len(sequence)):
        for length, angle, degrees in ((1.33, 2.03, backbone[i - 1][1]), (1.46, 2.12, 180.0), (1.52, 1.94, backbone[i][0])):
            points.append(place_atom(*points[-3:], length, angle, turn(degrees)))
    lines = []
    for i, name in enumerate(sequence):
        n, ca, c = points[3 * i : 3 * i + 3]
        side = [n, ca, place_atom(c, n, ca, 1.53, 1.92, turn(122.5))]
        for degrees in chi[i]:
            side.append(place_atom(*side[-3:], 1.52, 1.95, turn(degrees)))
        placed = zip(["N", "CA", "CB", *PATHS[name]], side, strict=True)
        lines += [atom(len(lines) + k, *found) for k, found in enumerate([(n, name, chain, first + i, p) for n, p in placed])]
        lines.append(atom(len(lines), "C", name, chain, first + i, c))
    return lines


SEQUENCE = ["LEU", "LYS", "SER", "ALA"]
BACKBONE = [(0.0, 140.0), (-60.0, -40.0), (-120.0, 130.0), (-70.0, 0.0)]
CHI = [(-65.0, 175.0), (-170.0, 65.0, 178.0, -60.0), (62.0,), ()]


def write(path, lines):
    path.write_text("\n".join([*lines, "END"]) + "\n")
    return path


@pytest.fixture
def chain(tmp_path):
    return write(tmp_path / "chain.pdb", peptide(SEQUENCE, BACKBONE, CHI))


@pytest.mark.parametrize("form", ["pdb", "cif", "gz"])
def test_angles_are_those_that_the_chain_was_built_with(chain, tmp_path, form):
    if form == "cif":
        gemmi.read_structure(str(chain)).make_mmcif_document().write_file(str(tmp_path / "chain.cif"))
        chain = tmp_path / "chain.cif"
    if form == "gz":
        (tmp_path / "chain.pdb.gz").write_bytes(gzip.compress(chain.read_bytes()))
        chain = tmp_path / "chain.pdb.gz"
    found = read_side_chains(chain)
    expected = torch.zeros(4, 4)
    for row, degrees in zip(expected, CHI, strict=True):
        row[: len(degrees)] = torch.deg2rad(torch.tensor(degrees))
    error = math.radians(0.2)  # positions have three digits
    assert wrap(found.chi - expected).abs().max() < error
    backbone = torch.deg2rad(torch.tensor(BACKBONE))
    assert wrap(found.context[1:, 0] - backbone[1:, 0]).abs().max() < error
    assert wrap(found.context[:-1, 1] - backbone[:-1, 1]).abs().max() < error
    assert bool(found.context[0, 0].isnan()) and bool(found.context[-1, 1].isnan())
    assert torch.equal(found.context[:, 2:], context_of(SEQUENCE, 0.0, 0.0, [None, *SEQUENCE[:-1]], [*SEQUENCE[1:], None])[:, 2:])
    assert found.places == ("A/LEU 1", "A/LYS 2", "A/SER 3", "A/ALA 4") and found.complete().names == ["LEU", "LYS", "SER"]


def test_an_angle_by_hand_and_none_with_missing_atoms_atoms_in_line_or_far_ones(tmp_path):
    lines = [line for line in peptide(SEQUENCE, BACKBONE, CHI) if not (" CE " in line and "LYS" in line)]
    found = read_side_chains(write(tmp_path / "missing.pdb", lines))
    assert found.chi[1].isnan().tolist() == [False, False, True, True] and found.complete().names == ["LEU", "SER"]
    # Seen from CA to CB, N is above and OG to the right, a quarter turn clockwise; then N, CA and CB are in line, and N is too far.
    for n, expected in (((0, 1, 0), math.pi / 2), ((0, 0, -1), math.nan), ((0, 3, 0), math.nan)):
        places = {"N": n, "CA": (0, 0, 0), "CB": (0, 0, 1.5), "OG": (-1.4, 0, 1.5), "C": (1, 1, 1)}
        lines = [atom(i, name, "SER", "A", 7, position) for i, (name, position) in enumerate(places.items())]
        assert float(read_side_chains(write(tmp_path / "one.pdb", lines)).chi[0, 0]) == pytest.approx(expected, nan_ok=True)


def test_gaps_and_other_chains_end_a_backbone(tmp_path):
    gap = [line for line in peptide(SEQUENCE, BACKBONE, CHI) if "LYS" not in line]
    other = peptide(["SER", "ALA"], [(0.0, 100.0), (-60.0, 0.0)], [(60.0,), ()], chain="B")
    found = read_side_chains(write(tmp_path / "gap.pdb", gap + other))
    assert found.places == ("A/LEU 1", "A/SER 3", "A/ALA 4", "B/SER 1", "B/ALA 2")
    assert found.context[:, 0].isnan().tolist() == [True, True, False, True, False]
    assert found.context[:, 3].tolist() == [0.0, 0.0, 1.0, 0.0, 1.0]
    assert read_side_chains(tmp_path / "gap.pdb", chains=["B"]).places == ("B/SER 1", "B/ALA 2")
    refused(OptionError, "has the chains A, B, and not C", read_side_chains, tmp_path / "gap.pdb", chains=["B", "C"])


@pytest.mark.parametrize("after", [1, 2])
def test_of_alternative_positions_the_first_counts(tmp_path, after):
    lines = peptide(SEQUENCE, BACKBONE, CHI)
    (og,) = [line for line in lines if " OG " in line]
    moved = og[:16] + "B" + og[17:30] + f"{9.0:8.3f}" + og[38:]
    lines[lines.index(og)] = og[:16] + "A" + og[17:]
    lines.insert(lines.index(og[:16] + "A" + og[17:]) + after, moved)
    assert float(read_side_chains(write(tmp_path / "two.pdb", lines)).chi[2, 0]) == pytest.approx(math.radians(62), abs=0.004)


def test_bad_files_say_what_is_wrong(chain, tmp_path, monkeypatch):
    (tmp_path / "text.pdb").write_text("no structure\n")
    (tmp_path / "broken.cif").write_text("loop_ _atom_site.id 1 2 'x")
    write(tmp_path / "water.pdb", [atom(1, "O", "HOH", "A", 1, (0, 0, 0))])
    told = {"none.pdb": "is no file", "text.pdb": "has no atoms", "broken.cif": "cannot be read", "water.pdb": "no amino acids"}
    for name, message in told.items():
        refused(FileFormatError, message, read_side_chains, tmp_path / name)
    refused(OptionError, "has 1 models", read_side_chains, chain, model=1)
    monkeypatch.setitem(sys.modules, "gemmi", None)
    refused(ExtraNotInstalled, r"composable-energy\[molecules\]", read_side_chains, chain)


@pytest.mark.full
def test_a_structure_that_unpacks_to_too_much_is_refused(tmp_path):
    bomb, short = gzip.compress(b"REMARK\n" * 2**22) * 40, gzip.compress(b"REMARK")[:-4]
    for content, message in ((bomb, "unpacks to more than 1,073,741,824 bytes"), (short, "cannot be decompressed")):
        (tmp_path / "a.pdb.gz").write_bytes(content)
        refused(FileFormatError, message, read_side_chains, tmp_path / "a.pdb.gz")
