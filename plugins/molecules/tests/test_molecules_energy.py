"""Side chains: angles, events over them, clashes; the network, its objective and predictions; a normalised density, and its draws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import composable_energy as ce
import composable_energy_molecules as molecules
from composable_energy.errors import OptionError, ShapeError
from composable_energy.sampling import Noise
from composable_energy.testing import check_energy
from composable_energy_molecules import ClashEnergy, Wells, arc, dihedral, side_chain_atoms
from composable_energy_training import Batch, Optimizer, Trainer
from tests.refusals import refusals, refused

ANGLES = st.floats(-10, 10)


def small():
    return molecules.SideChainEnergy(width=16)


def test_the_energy_has_the_periods_of_the_angles_and_ignores_those_that_are_not_there():
    energy, data = small().double(), molecules.generate(40)
    chi, context = data.chi.double(), data.context.double()
    before = energy(chi, context=context)
    generator = torch.Generator().manual_seed(0)
    turns = torch.randint(-2, 3, chi.shape, generator=generator) * molecules.angle_periods(context)
    other = torch.where(molecules.angle_mask(context), chi + turns, torch.randn(chi.shape, generator=generator, dtype=chi.dtype))
    torch.testing.assert_close(energy(other, context=context), before)
    assert bool(((energy(torch.where(molecules.angle_mask(context), chi + 1.0, chi), context=context) - before).abs() > 1e-6).all())
    end = torch.cat([context[:, :1] * math.nan, context[:, 1:]], 1)  # no angle at the end of a chain
    assert bool(energy(chi, context=end).isfinite().all()) and not torch.equal(energy(chi, context=end), before)


def test_residues_are_variables(tmp_path):
    one, data = small(), molecules.generate(6)
    chi, context = data.chi.view(3, 2, 4), data.context.view(3, 2, 5)
    torch.testing.assert_close(one.of_each(chi, context[:, 0])[:, 1], one(chi[:, 1], context=context[:, 0]))
    first, second = one.given(context=context[:1, 0]), one.given(context=context[:1, 1])
    clash = ClashEnergy({"a": "LEU", "b": "PHE"}, torch.stack([backbone(), backbone(4.0)]))
    event, point, plain = ~arc(1, 180.0, 40.0, first), {"a": chi[:, 0], "b": chi[:, 1]}, second.over("b") & clash
    both = first.over("a") & event.over("a") & plain
    torch.testing.assert_close(both(point), (first & event)(chi[:, 0]) + second(chi[:, 1]) + clash(point))
    plain.save(tmp_path)
    assert ce.load(tmp_path)(point).equal(plain(point))
    assert all((values.abs() <= math.pi).all() for values in both.sample(5, steps=5, seed=0, sampler="mala", step_size=0.1).values())


def test_the_energy_keeps_the_contract():
    check_energy(lambda: small().given(context=molecules.context_of("LYS", -1.1, -0.8)), molecules.generate(5, residues=("LYS",)).chi)


def test_a_library_is_a_density_and_draws_from_it():
    library = molecules.AngleLibrary(24).fit(molecules.generate(3000, residues=("LEU", "VAL")))
    context = molecules.context_of("LEU", 0.0, 0.0)
    centres = (torch.arange(24) + 0.5) * 2 * math.pi / 24 - math.pi
    pairs = torch.cartesian_prod(centres, centres)
    probabilities = library.log_prob(torch.cat([pairs, torch.zeros_like(pairs)], 1)[None], context)[0].exp() * (2 * math.pi / 24) ** 2
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-4)
    drawn = library.draw(context, torch.rand(1, 20_000, 4, generator=torch.Generator().manual_seed(0)))
    assert not bool(drawn[..., 2:].any())
    counts = torch.histc(drawn[0, :, 0], 24, -math.pi, math.pi)
    first = probabilities.view(24, 24).sum(1)
    assert ((counts - 20_000 * first) / (20_000 * first * (1 - first)).sqrt()).abs().max() < 4
    refused(OptionError, "complete side chains", library.fit, molecules.SideChains(torch.full((1, 4), math.nan), context))


@pytest.mark.full
def test_the_contrast_is_least_at_the_density_of_the_data():
    """The exact energy has a lower loss than the library, a shifted or a sharper density, and its log Z is 0."""
    data = molecules.generate(400, 5, residues=("LEU", "VAL"))
    library = molecules.AngleLibrary().fit(molecules.generate(3000, 6, residues=("LEU", "VAL")))
    exact = molecules.GeneratedRotamers()

    class Changed(molecules.SideChainEnergy):
        def __init__(self, weight, shift):
            super().__init__(width=8)
            self.weight, self.shift = weight, shift

        def of_each(self, chi, context):
            count = chi.shape[1]
            rows = context[:, None].expand(-1, count, -1).reshape(-1, 5)
            missing = (~molecules.angle_mask(context)).sum(1)[:, None] * math.log(2 * math.pi)
            return self.weight * (exact((chi + self.shift).view(-1, 4), context=rows).view(-1, count) - missing)

    @torch.no_grad()
    def loss(weight, shift):
        batch = Batch(data.chi, {"context": data.context}, Noise(0, range(len(data)), 1))
        return molecules.SideChainContrast(library, 64).loss(Changed(weight, shift), batch)

    best = loss(1.0, 0.0)
    assert abs(best.scalars["log_z"]) < 0.1
    for other in (loss(0.0, 0.0), loss(0.5, 0.0), loss(2.0, 0.0), loss(1.0, 0.15)):
        assert best.scalars["contrast"] < other.scalars["contrast"] and best.value < other.value


@pytest.mark.full
def test_training_finds_the_rotamers_of_the_generator():
    data, fresh = molecules.generate(4000, 1, residues=("VAL",)), molecules.generate(300, 2, residues=("VAL",))
    library, energy = molecules.AngleLibrary().fit(data), molecules.SideChainEnergy(width=48)
    objective, optimizer = molecules.SideChainContrast(library, 16), Optimizer(rate=5e-3, betas=(0.9, 0.99), decay=0.5)
    Trainer(energy, objective, (data.chi, {"context": data.context}), steps=250, batch_size=128, optimizer=optimizer).fit()
    log_p, log_z = molecules.log_probs(energy, fresh.chi, fresh.context, library, draws=512)
    exact = -molecules.GeneratedRotamers()(fresh.chi, context=fresh.context) + 3 * math.log(2 * math.pi)
    assert float((exact - log_p).mean()) < 0.2 < float((exact - library.log_prob(fresh.chi[:, None], fresh.context)[:, 0]).mean())
    assert log_z.abs().mean() < 0.3
    first, found = (molecules.predict(energy, fresh.context, library, candidates=64, steps=steps) for steps in (0, 20))
    assert bool((energy(found, context=fresh.context) <= energy(first, context=fresh.context)).all())
    share = molecules.recovered(found, fresh.chi, molecules.angle_periods(fresh.context))[:, 0].float().mean()
    weights = molecules.GeneratedRotamers().rotamer_log_probs(fresh.context).exp()
    assert share > weights.amax(1).mean() - 0.1  # of angles within 20 degrees: two standard deviations of a well
    assert not bool(found[:, 1:].any())


test_the_objective_says_what_it_needs = refusals(
    (small, "the label `context`"),
    (molecules.GeneratedRotamers, "trains a SideChainEnergy"),
    call=lambda build: molecules.SideChainContrast(molecules.AngleLibrary()).loss(
        build(), Batch(molecules.generate(4).chi, {}, Noise(0, range(4), 1))
    ),
    error=OptionError,
)


F64 = torch.float64
TWO_PI = 2 * math.pi


def grid(points):
    angles = (torch.arange(points, dtype=F64) + 0.5) * TWO_PI / points - math.pi
    pairs = torch.stack(torch.meshgrid(angles, angles, indexing="ij"), -1).reshape(-1, 2)
    return torch.cat([pairs, torch.zeros_like(pairs)], 1)


@pytest.mark.parametrize(("residue", "phi", "psi"), [("SER", -1.1, -0.8), ("LEU", -2.1, 2.4), ("PHE", math.nan, 1.0)])
def test_the_density_integrates_to_one(residue, phi, psi):
    """The other two angles are uniform."""
    energy = molecules.GeneratedRotamers().double().given(context=molecules.context_of(residue, phi, psi, "GLY", "LEU").double())
    assert float((-energy(grid(72))).exp().sum() * (TWO_PI / 72) ** 2 * TWO_PI**2) == pytest.approx(1, abs=1e-5)
    x = grid(1)
    assert float(energy.log_prob(x)) == pytest.approx(-float(energy(x))) and (energy & energy / 2).support is ce.supports.circle


def within(counts, probabilities):
    """Returns the largest distance of counts from their expectation in standard errors, with rare rotamers in one."""
    total = counts.sum()
    rare = probabilities * total < 5
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    shares = torch.cat([probabilities[~rare], probabilities[rare].sum()[None]])
    return ((counts - total * shares) / (total * shares * (1 - shares)).sqrt().clamp_min(1)).abs().max()


@pytest.mark.full
@pytest.mark.parametrize("residue", ["LEU", "ARG"])
def test_draws_have_the_shares_of_rotamers_of_the_density(residue):
    exact, rows = molecules.GeneratedRotamers(), 20_000
    context = molecules.context_of(residue, -1.1, -0.8, "ASP", "SER")
    draws = exact.draw(context.expand(rows, 5), torch.Generator().manual_seed(1))
    assert bool(((draws >= -math.pi) & (draws < math.pi)).all()) and not bool(draws[:, ~molecules.angle_mask(context)[0]].any())
    # the share of a rotamer among points that are closest to it differs from its weight: compare with the expected shares of the density
    log_weights = exact.rotamer_log_probs(context)[0]
    found = torch.bincount(exact.rotamer_of(draws, context.expand(rows, 5)), minlength=len(log_weights))
    overlap = 0.004 * rows if residue == "ARG" else 0  # components of broad wells overlap
    assert within(found, log_weights.exp()) < 4 + overlap / (rows**0.5)


@pytest.mark.full
def test_samplers_on_the_torus_have_the_shares_of_rotamers():
    exact, chains = molecules.GeneratedRotamers(), 200
    context = molecules.context_of("LEU", -1.1, -0.8, "GLY", "LEU")
    draws = exact.given(context=context).sample(chains, steps=80, seed=0)
    weights = exact.rotamer_log_probs(context)[0].exp()
    assert within(torch.bincount(exact.rotamer_of(draws, context.expand(chains, 5)), minlength=len(weights)), weights) < 4


def test_the_context_changes_the_rotamers():
    exact = molecules.GeneratedRotamers()
    rows = torch.cat([molecules.context_of("LEU", phi, -0.8, side, "GLY") for phi, side in ((-1.1, "GLY"), (-2.1, "GLY"), (-1.1, "TRP"))])
    assert torch.equal(molecules.generate(200, 3).chi, (one := molecules.generate(200, 3)).chi) and len(one.complete()) == 200
    weights = exact.rotamer_log_probs(rows).exp()
    assert (weights[0] - weights[1]).abs().max() > 0.05 and (weights[0] - weights[2]).abs().max() > 0.05
    x = molecules.generate(3, residues=("LEU",)).chi
    each = torch.stack([exact.given(context=row[None])(point[None])[0] for row, point in zip(rows, x, strict=True)])
    torch.testing.assert_close(exact.given(context=rows)(x), each)


EXACT, ONE = molecules.GeneratedRotamers(), torch.zeros(1, 4)
test_what_cannot_be_generated_is_refused = refusals(
    (lambda: EXACT(ONE, context=molecules.context_of("TRP", 0.0, 0.0)), OptionError, "Rotamers of TRP cannot be generated; those of SER"),
    (lambda: molecules.generate(5, residues=("TRP",)), OptionError, "got TRP"),
    (lambda: EXACT(ONE, context=ONE), ShapeError, "need a context of shape"),
    (lambda: EXACT(ONE, context=torch.tensor([[0.0, 0.0, 20.0, 0.0, 0.0]])), OptionError, "indices below 20"),
)


def test_a_dihedral_is_the_turn_seen_along_the_middle_bond():
    """The bond goes from the origin along y, with x to the right and z towards the feet: clockwise turns x to -z."""
    turns = {(1, 1, 0): 0, (0, 1, -1): 90, (0, 3, 1): -90, (1, 2, -1): 45, (-1, 1, -1e-9): 180, (-1, 0, 1): -135}
    a, b, c, *ends = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], *turns], dtype=F64)
    assert [math.degrees(molecules.dihedral(a, b, c, d)) for d in ends] == pytest.approx(list(turns.values()), abs=1e-6)


@given(ANGLES, st.floats(0.3, 2.8), st.floats(0.5, 3.0))
@settings(max_examples=25, deadline=None)
def test_a_placed_atom_has_the_distance_the_angle_and_the_dihedral(turn, angle, length):
    a, b, c = torch.tensor([[0.3, -1.0, 0.2], [0.0, 0.1, 0.0], [1.1, 0.4, 0.9]], dtype=F64)
    d = molecules.place_atom(a, b, c, length, angle, torch.tensor(turn, dtype=F64))
    assert float((d - c).norm()) == pytest.approx(length)
    assert float(torch.dot(b - c, d - c) / ((b - c).norm() * (d - c).norm())) == pytest.approx(math.cos(angle), abs=1e-9)
    assert abs(molecules.wrap(molecules.dihedral(a, b, c, d) - turn)) < 1e-6


@given(ANGLES, ANGLES, st.integers(-3, 3), st.sampled_from([math.pi, 2 * math.pi]))
@settings(max_examples=25, deadline=None)
def test_recovery_knows_no_period(one, other, turns, period):
    angles = torch.tensor([[one, other]], dtype=F64)
    periods = torch.full_like(angles, period)
    assert bool(molecules.recovered(angles + turns * period, angles, periods).all())
    assert not bool(molecules.recovered(angles + turns * period + 0.36, angles, periods).any())  # 20.6 degrees
    refused(ShapeError, "one shape", molecules.recovered, angles, angles[:, :1], periods)


def test_a_context_names_the_amino_acid_with_its_angles_and_the_groups_of_its_neighbours():
    context = molecules.context_of(["PHE", "GLU", "LYS", "ALA"], -1.0, 2.0)
    assert (molecules.angle_periods(context) / math.pi).round().tolist() == [[2, 1, 2, 2], [2, 2, 1, 2], [2, 2, 2, 2], [2, 2, 2, 2]]
    assert molecules.angle_mask(context).sum(1).tolist() == [2, 3, 4, 0]
    context = molecules.context_of(["SER", "TRP"], [-1.0, 2.0], 0.5, before=None, after=["LEU", "HOH"])
    assert context[:, 2:].tolist() == [[15.0, 0.0, 3.0], [17.0, 0.0, 0.0]]


def test_side_chains_keep_complete_residues():
    context = molecules.context_of(["SER", "GLY", "LEU"], -1.0, 2.0)
    chi = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [1.0, math.nan, 0, 0]])
    data = molecules.SideChains(chi, context, ("A/SER 1", "A/GLY 2", "A/LEU 3"))
    assert (data.complete().names, data.complete().places) == (["SER"], ("A/SER 1",))
    refused(OptionError, "None of 2", data[1:].complete)
    refused(ShapeError, "N places or none", molecules.SideChains, chi, context, ("A/SER 1",))


def backbone(x=0.0):
    """N, CA and C of a residue with usual lengths, moved along x."""
    return torch.tensor([[-1.46 + x, 0.0, 0.0], [x, 0.0, 0.0], [0.55 + x, 1.42, 0.0]])


def points(degrees):
    return torch.cat([torch.deg2rad(torch.as_tensor(degrees, dtype=torch.float32))[:, None], torch.zeros(len(degrees), 3)], 1)


def test_an_angle_is_in_the_well_of_its_third_of_the_circle():
    well, x = Wells(1), points([10.0, 60.0, 110.0, 130.0, -170.0, -130.0, -110.0, -10.0])
    probabilities = torch.stack([(-well(name)(x)).exp() for name in ("gauche+", "trans", "gauche-")])
    assert probabilities.argmax(0).tolist() == [0, 0, 0, 1, 1, 1, 2, 2] and bool((probabilities.amax(0) > 0.9).all())
    torch.testing.assert_close(probabilities.sum(0), torch.ones(8))
    torch.testing.assert_close(well("trans", "gauche+")(x), (~well("gauche-"))(x))


def test_an_arc_holds_what_is_near_its_centre():
    event, x = arc(1, 175.0, 30.0), points([175.0, 150.0, -160.0, 140.0, -145.0, 0.0])
    assert ((-event(x)).exp() > 0.5).tolist() == [True, True, True, False, False, False]
    assert float((-event(points([145.0]))).exp()) == pytest.approx(0.5, abs=1e-3)  # on the border
    assert float(torch.logit((-event(points([148.0]))).exp())) == pytest.approx(1, abs=0.06)  # a border of 3 degrees


test_events_and_clashes_say_what_they_need = refusals(
    (lambda: Wells(1)("trans")(torch.zeros(3, 2, 4)), ShapeError, "chi1 needs points"),
    (lambda: Wells(5), OptionError, "from 1 to 4"),
    (lambda: arc(1, 0.0, 190.0), OptionError, "half_width"),
    (lambda: side_chain_atoms("LYS", backbone()[:2], torch.zeros(2, 4)), ShapeError, "N, CA and C"),
    (lambda: molecules.context_of("XXX", 0.0, 0.0), OptionError, "'XXX' is none of the 20"),
    (lambda: molecules.context_of("LEU", -60.0, -45.0), OptionError, "in radians"),
    (lambda: molecules.context_of(["SER", "TRP"], [1.0, 2.0, 3.0], 0.0), ShapeError, "one or 3 rows"),
    (lambda: ClashEnergy({"a": "LEU"}, backbone()[None]), OptionError, "two residues or more"),
    (lambda: ClashEnergy(["LEU", "LYS"], backbone()[None]), OptionError, "residues must be a Mapping"),
    (lambda: molecules.angle_mask(torch.zeros(2, 4)), ShapeError, "A context has shape"),
    (lambda: ClashEnergy({"a": "LEU", "b": "LYS"}, backbone()[None]), ShapeError, "finite numbers of shape"),
)


def test_atoms_have_the_dihedrals_of_the_angles():
    chi = torch.tensor([[1.0, -2.0, 3.0, 0.5], [-1.1, 3.1, 1.0, -2.0]], dtype=torch.float64)
    frame = backbone().double()
    atoms = side_chain_atoms("LYS", frame, chi)
    chain = torch.cat([frame[:2].expand(2, 2, 3), atoms], 1)
    torch.testing.assert_close(torch.stack([dihedral(*chain[:, i : i + 4].unbind(1)) for i in range(4)], 1), chi, atol=1e-6, rtol=0)
    bonds = (atoms[:, 1:] - atoms[:, :-1]).norm(dim=2)
    torch.testing.assert_close(bonds, torch.full_like(bonds, 1.52), atol=1e-6, rtol=0)
    assert float((atoms[0, 0] - frame[1]).norm()) == pytest.approx(1.53, abs=0.03)  # CB


def test_side_chains_that_point_at_each_other_clash_and_far_ones_do_not():
    near, far = (ClashEnergy({"a": "LYS", "b": "LYS"}, torch.stack([backbone(), backbone(x)])) for x in (6.0, 40.0))
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)) * 2
    assert not bool(far(x).any())
    energies = near(x)
    assert 0.1 < (energies > 0).float().mean() < 1
    worst = energies.argmax()
    atoms = [side_chain_atoms("LYS", frame, x[worst].view(2, 4)[i][None])[0] for i, frame in enumerate(near.backbones)]
    assert torch.cdist(*atoms).min() < 3.4 or torch.cdist(atoms[0], near.backbones[1]).min() < 3.4
    check_energy(lambda: ClashEnergy({"a": "LEU", "b": "PHE"}, torch.stack([backbone(), backbone(4.0)])), x[:5])
