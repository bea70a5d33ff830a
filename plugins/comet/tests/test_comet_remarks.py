"""Section 4 of the paper as tests: masks are a strict special case of energies, and energies verify what is hard to generate.

Unsupervised learning of compositional energy concepts (Du et al., 2021), https://arxiv.org/abs/2111.03042, remarks 1, 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy_comet.targets import joint_minimum

COMPONENTS, PIXELS = 3, 12


class Masked(ce.Energy):
    """A component as an energy: it has a color at the pixels of its mask, and does not mind the others."""

    mask: Tensor
    color: Tensor

    def __init__(self, mask: Tensor, color: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("color", color)
        self.event_shape = (PIXELS,)

    def forward(self, x: Tensor) -> Tensor:
        return (self.mask * (x - self.color).square()).sum(1)


class Clause(ce.Energy):
    """A clause of 3-SAT, as in the paper: $z = (1, -2, 3)$ is $x_1 \\lor \\lnot x_2 \\lor x_3$. The energy is 0 if it holds, else 1."""

    def __init__(self) -> None:
        super().__init__()
        self.evaluated = 0

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        self.evaluated += 1
        assigned, literals = x.round() > 0, z.round().long()
        holds = assigned.gather(1, literals.abs() - 1) == (literals > 0)
        return (~holds.any(1)).to(x)


def minimum(energy: ce.Energy, start: Tensor) -> Tensor:
    return energy.sample(len(start), init=start, sampler="descent", step_size=0.2, steps=100, warn=False, seed=0)


def formula(clause: Clause, clauses: Sequence[tuple[int, int, int]]) -> ce.Energy:
    return ce.all_of(*(clause.given(z=torch.tensor([literals], dtype=torch.float32)) for literals in clauses))


def assignments(variables: int) -> Tensor:
    return torch.tensor(list(product((0.0, 1.0), repeat=variables)))


def brute_force(clauses: Sequence[tuple[int, int, int]], x: Tensor) -> list[int]:
    """Returns the number of clauses that fail at each assignment, without energies."""
    rows = (x > 0).tolist()
    return [sum(not any(row[abs(one) - 1] == (one > 0) for one in clause) for clause in clauses) for row in rows]


def random_clauses(count: int, variables: int, seed: int) -> list[tuple[int, int, int]]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        signs = torch.randint(2, (3,), generator=generator) * 2 - 1
        first, second, third = ((torch.randperm(variables, generator=generator)[:3] + 1) * signs).tolist()
        found.append((first, second, third))
    return found


class TestMasksAreAStrictSpecialCase:
    """Remark 1."""

    def test_a_composition_of_masks_is_a_minimum_of_energies(self):
        generator = torch.Generator().manual_seed(0)
        owner = torch.randint(COMPONENTS, (PIXELS,), generator=generator)
        colors = torch.rand(COMPONENTS, PIXELS, generator=generator)
        masks = torch.stack([(owner == k).float() for k in range(COMPONENTS)])
        composed = (masks * colors).sum(0)
        parts = [Masked(mask, color) for mask, color in zip(masks, colors, strict=True)]
        start = torch.rand(4, PIXELS, generator=generator)
        torch.testing.assert_close(minimum(ce.all_of(*parts), start), composed.expand(4, -1))
        for k, part in enumerate(parts):  # a part alone determines its own pixels, and leaves the others
            torch.testing.assert_close(minimum(part, start), torch.where(masks[k] > 0, colors[k], start))

    def test_quadratic_energies_with_disjoint_weights_are_masks(self):
        generator = torch.Generator().manual_seed(1)
        targets = torch.rand(2, COMPONENTS, 3, 4, 4, generator=generator)
        masks = torch.nn.functional.one_hot(torch.randint(COMPONENTS, (2, 1, 4, 4), generator=generator), COMPONENTS)
        masks = masks.movedim(4, 1).float()
        torch.testing.assert_close(joint_minimum(targets, masks.log()), (masks * targets).sum(1))

    def test_the_minimum_of_a_pair_depends_on_both_where_a_mask_fixes_a_value(self):
        parts = [ce.as_energy(lambda x, place=place: (x - place).square().sum(1), name=f"at {place}") for place in (2.0, 3.0, 4.0)]
        pairs = {(i, j): minimum(parts[i] & parts[j], torch.zeros(1, 1)).item() for i, j in ((0, 1), (0, 2), (1, 2))}
        assert list(pairs.values()) == pytest.approx([2.5, 3.0, 3.5], abs=1e-4)
        for part in range(3):  # a mask of 1 would give both pairs of a component its value; so each mask is 0, and the picture too
            one, other = (value for pair, value in pairs.items() if part in pair)
            assert abs(one - other) > 0.4
        assert min(pairs.values()) > 2


class TestEnergiesVerifyWhatIsHardToGenerate:
    """Remarks 2 and 3."""

    @pytest.mark.parametrize("seed", range(4))
    def test_the_energy_counts_the_clauses_that_fail(self, seed):
        clauses, x = random_clauses(24, 6, seed), assignments(6)
        assert formula(Clause(), clauses)(x).tolist() == brute_force(clauses, x)

    def test_a_formula_is_satisfiable_if_and_only_if_its_minimum_is_0(self):
        x, every = assignments(3), [(a, b, c) for a in (1, -1) for b in (2, -2) for c in (3, -3)]
        assert formula(Clause(), every)(x).min() == 1  # no assignment satisfies all eight
        for left_out in range(8):
            energies = formula(Clause(), [one for i, one in enumerate(every) if i != left_out])(x)
            (solution,) = x[energies == 0]
            literals = [-place if value > 0 else place for place, value in enumerate(solution.tolist(), 1)]
            assert tuple(literals) == every[left_out]  # the only solution violates the clause that is missing

    def test_coordinates_are_rounded(self):
        energy = formula(Clause(), [(1, 2, 3)])
        assert energy(torch.tensor([[0.4, 0.2, 0.6], [0.4, 0.2, 0.3]])).tolist() == [0, 1]

    @pytest.mark.parametrize("count", [5, 10, 20])
    def test_an_evaluation_costs_one_of_each_clause_where_a_solution_costs_all_assignments(self, count):
        clause = Clause()
        energy = formula(clause, random_clauses(count, 8, 0))
        clause.evaluated = 0
        energy(assignments(8)[:1])
        assert clause.evaluated == count

    def test_the_minimum_of_a_composition_does_not_follow_from_those_of_its_parts(self):
        x = assignments(6)
        parts = [formula(Clause(), random_clauses(14, 6, seed)) for seed in range(3)]
        alone = [part(x) for part in parts]
        together = ce.all_of(*parts)(x)
        torch.testing.assert_close(together, torch.stack(alone).sum(0))
        assert all(energies.min() == 0 for energies in alone)  # each can be satisfied
        assert together.min() > 0  # all at once cannot
        best = torch.stack([x[energies.argmin()] for energies in alone]).unique(dim=0)
        assert len(best) > 1
        assert all(ce.all_of(*parts)(one[None]) > together.min() for one in best)
