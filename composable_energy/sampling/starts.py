"""Start points of chains: the caller's or the sampler's, moved to where the pilot chains of a tuned sampler arrived."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.energy import Energy
from composable_energy.noise import Noise
from composable_energy.sampling.ids import tensor_of
from composable_energy.sampling.sampler import Sampler

__all__ = ["PilotResult", "Starts"]


@dataclass(frozen=True)
class PilotResult:
    """Where pilot chains arrived.

    Args:
        points: Their last points of finite energy, with shape $(m, *)$.
        level: An energy above theirs: a chain that starts above it is in a tail. None if chains have conditions of their own, whose
            energies do not compare.
    """

    points: Tensor
    level: float | None


@dataclass(frozen=True)
class Starts:
    """The start points of chains, which depend on the chain, not on the other chains of a batch.

    Args:
        sampler: The sampler, which proposes start points if the caller gives none.
        zeros: Zeros with the shape of one point.
        init: The caller's start points, one for each chain; None lets the sampler choose.
        pilots: Where pilot chains arrived; None leaves all start points as they are.

    Attributes:
        relocated: The chains that the sampler could not bring from `init` to the bulk of the density.
    """

    sampler: Sampler
    zeros: Tensor
    init: Tensor | None = None
    pilots: PilotResult | None = None
    relocated: set[int] = field(default_factory=set, init=False)

    def points(self, ids: Sequence[int], energy: Energy, noise: Noise) -> Tensor:
        """Returns the start points, with shape $(B, *)$.

        Without `init` they are those of the sampler, or where pilot chains arrived. The sampler moves points in a tail; a chain that it
        cannot bring to the bulk starts where a pilot chain arrived.

        Args:
            ids: The chains.
            energy: Their energy.
            noise: Their noise at step 0.
        """
        if self.init is not None:
            x = self._rows_of(self.init, ids)
        elif self.pilots is None or self.pilots.level is None or not self.sampler.starts_at_pilots:
            x = self.sampler.start(self.zeros.expand(len(ids), *self.zeros.shape).contiguous(), noise.child("start"))
        else:
            x = self._points_of_pilots(self.pilots, noise.chains)
        if self.pilots is None:
            return x
        x, arrived = self.sampler.approach(energy, x, noise.child("approach"), self.pilots.level)
        if arrived.all() or self.pilots.level is None:
            return x
        self.relocated.update(tensor_of(noise.chains)[~arrived.cpu()].tolist())
        return torch.where(unsqueeze_to(arrived, x), x, self._points_of_pilots(self.pilots, noise.chains))

    def _rows_of(self, init: Tensor, ids: Sequence[int]) -> Tensor:
        if isinstance(ids, range) and ids.step == 1:
            return init[ids.start : ids.stop].clone()
        return init[tensor_of(ids)]

    def _points_of_pilots(self, pilots: PilotResult, chains: Sequence[int]) -> Tensor:
        return pilots.points[tensor_of(chains) % len(pilots.points)]
