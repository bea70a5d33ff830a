"""Energies by name for the tests of the parser."""

from __future__ import annotations

import torch

import composable_energy as ce


def toys() -> dict[str, ce.Energy]:
    """A base, events over it that share a head, and an energy of its own."""
    base = ce.as_energy(torch.distributions.Normal(torch.zeros(2, dtype=torch.float64), 1.0), name="base")

    def head(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 0], x[:, 1], x.sum(1) / 2], 1)

    def smile(x: torch.Tensor) -> torch.Tensor:
        return 3 * x[:, :1]

    return {
        "base": base,
        "hair=red": ce.ClassifierEnergy(head, 0, base, name="hair=red"),
        "hair=black": ce.ClassifierEnergy(head, 1, base, name="hair=black"),
        "toys/smiling": ce.ClassifierEnergy(smile, 1, base, name="toys/smiling"),
        "bowl": ce.as_energy(lambda x: x.square().sum(1), name="bowl"),
        "ring_2": ce.as_energy(lambda x: (x.norm(dim=1) - 1).square(), name="ring_2"),
    }


TOYS = toys()
