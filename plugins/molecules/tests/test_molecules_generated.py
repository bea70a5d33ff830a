"""Generated side chains: a normalised density, draws that follow it, and samplers on the torus that find it."""

import math

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import OptionError, ShapeError
from composable_energy.testing import check_energy
from composable_energy_molecules import GeneratedRotamers, angle_mask, context_of, generate

F64 = torch.float64
TWO_PI = 2 * math.pi


def grid(points):
    angles = (torch.arange(points, dtype=F64) + 0.5) * TWO_PI / points - math.pi
    pairs = torch.stack(torch.meshgrid(angles, angles, indexing="ij"), -1).reshape(-1, 2)
    return torch.cat([pairs, torch.zeros_like(pairs)], 1)


@pytest.mark.parametrize(("residue", "phi", "psi"), [("SER", -1.1, -0.8), ("LEU", -2.1, 2.4), ("PHE", math.nan, 1.0)])
def test_the_density_integrates_to_one(residue, phi, psi):
    """The other two angles are uniform."""
    energy = GeneratedRotamers().double().given(context=context_of(residue, phi, psi, "GLY", "LEU").double())
    mass = (-energy(grid(72))).exp().sum() * (TWO_PI / 72) ** 2 * TWO_PI**2
    assert float(mass) == pytest.approx(1, abs=1e-5)
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
    exact, rows = GeneratedRotamers(), 20_000
    context = context_of(residue, -1.1, -0.8, "ASP", "SER")
    draws = exact.draw(context.expand(rows, 5), torch.Generator().manual_seed(1))
    assert bool(((draws >= -math.pi) & (draws < math.pi)).all())
    assert not bool(draws[:, ~angle_mask(context)[0]].any())
    # the share of a rotamer among points that are closest to it differs from its weight: compare with the expected shares of the density
    log_weights = exact.rotamer_log_probs(context)[0]
    found = torch.bincount(exact.rotamer_of(draws, context.expand(rows, 5)), minlength=len(log_weights))
    overlap = 0.004 * rows if residue == "ARG" else 0  # components of broad wells overlap
    assert within(found, log_weights.exp()) < 4 + overlap / (rows**0.5)


@pytest.mark.full
def test_samplers_on_the_torus_have_the_shares_of_rotamers():
    exact, chains = GeneratedRotamers(), 200
    context = context_of("LEU", -1.1, -0.8, "GLY", "LEU")
    draws = exact.given(context=context).sample(chains, steps=160, seed=0)
    weights = exact.rotamer_log_probs(context)[0].exp()
    assert within(torch.bincount(exact.rotamer_of(draws, context.expand(chains, 5)), minlength=len(weights)), weights) < 4


@pytest.mark.slow
def test_the_energy_keeps_the_contract():
    context = context_of("PHE", -1.1, -0.8, "GLY", "LEU")
    x = GeneratedRotamers().draw(context.expand(5, 5), torch.Generator().manual_seed(0)) + 0.05
    check_energy(lambda: GeneratedRotamers().given(context=context), x)


def test_the_context_changes_the_rotamers():
    exact = GeneratedRotamers()
    rows = torch.cat([context_of("LEU", phi, -0.8, side, "GLY") for phi, side in ((-1.1, "GLY"), (-2.1, "GLY"), (-1.1, "TRP"))])
    assert torch.equal(generate(200, 3).chi, (one := generate(200, 3)).chi) and len(one.complete()) == 200
    weights = exact.rotamer_log_probs(rows).exp()
    assert (weights[0] - weights[1]).abs().max() > 0.05 and (weights[0] - weights[2]).abs().max() > 0.05
    x = generate(3, residues=("LEU",)).chi
    each = torch.stack([exact.given(context=row[None])(point[None])[0] for row, point in zip(rows, x, strict=True)])
    torch.testing.assert_close(exact.given(context=rows)(x), each)


def test_what_cannot_be_generated_is_refused():
    with pytest.raises(OptionError, match=r"Rotamers of TRP cannot be generated; those of SER"):
        GeneratedRotamers()(torch.zeros(1, 4), context=context_of("TRP", 0.0, 0.0))
    with pytest.raises(OptionError, match="got TRP"):
        generate(5, residues=("TRP",))
    with pytest.raises(ShapeError, match="need a context of shape"):
        GeneratedRotamers()(torch.zeros(1, 4), context=torch.zeros(1, 4))
    with pytest.raises(OptionError, match="indices below 20"):
        GeneratedRotamers()(torch.zeros(1, 4), context=torch.tensor([[0.0, 0.0, 20.0, 0.0, 0.0]]))
