r"""The energy of a transition, learned from random motion by noise-contrastive estimation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from composable_energy import Energy, Recommendation
from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_integer

_WAVES = 4
_WIDE = (1.0, 3.0)  # how much wider than the moves the contrastive noise is, in turns


def features(states: Tensor, angles: Sequence[int], scale: Tensor, waves: int = 0) -> Tensor:
    r"""Returns states in units of their spread, angles as cosine and sine, and waves that show thin walls, with shape $(B, n)$."""
    cyclic = torch.zeros(states.shape[1], dtype=torch.bool)
    cyclic[list(angles)] = True
    phases = states[:, cyclic]
    scaled = states[:, ~cyclic] / scale[~cyclic]
    found = [scaled, phases.cos(), phases.sin()]
    for power in range(waves):
        waving = 2**power * torch.cat([1.8 * scaled, 2 * phases], 1)
        found += [waving.cos(), waving.sin()]
    return torch.cat(found, 1)


class GaussianStep(nn.Module):
    r"""A Gaussian of the change of a state of $d$ numbers, `size`, some angles: $s' - s \sim N(\mu(s), L L^\top(s))$, by a network."""

    def __init__(self, size: int, angles: Sequence[int] = (), hidden: int = 64) -> None:
        super().__init__()
        self.size, self.angles = size, tuple(angles)
        self.network = _network(size + len(self.angles), hidden, size + size * (size + 1) // 2)
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("unit", torch.ones(size))
        self.register_buffer("_rows", torch.tril_indices(size, size), persistent=False)

    scale: Tensor
    unit: Tensor
    _rows: Tensor

    def moments(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean of the change, with shape $(B, d)$, and its factor $L$, with shape $(B, d, d)$."""
        out = self.network(features(states, self.angles, self.scale))
        factor = states.new_zeros(len(states), self.size, self.size)
        factor[:, self._rows[0], self._rows[1]] = out[:, self.size :]
        factor = factor.tril(-1) + torch.diag_embed(factor.diagonal(dim1=1, dim2=2).clamp(-6, 2).exp())
        return self.unit * out[:, : self.size], self.unit[:, None] * factor

    def whiten(self, states: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Returns $L^{-1} (s' - s - \\mu)$, with shape $(B, d)$, and $\\log \\det L$, with shape $(B,)$."""
        mean, factor = self.moments(states)
        white = torch.linalg.solve_triangular(factor, (ends - states - mean).unsqueeze(-1), upper=False).squeeze(-1)
        return white, factor.diagonal(dim1=1, dim2=2).log().sum(1)

    def draw(self, states: Tensor, generator: torch.Generator, width: float = 1.0) -> Tensor:
        """Returns draws of the next states, with shape $(B, d)$."""
        mean, factor = self.moments(states)
        noise = torch.randn(states.shape, generator=generator, dtype=states.dtype).to(states)
        return states + mean + width * (factor @ noise.unsqueeze(-1)).squeeze(-1)


class TransitionEnergy(Energy):
    r"""The energy of two states in succession, $E(s, s') = -\log q(s' \mid s) - f(s, s')$, with shape $(B, 2, d)$ of points.

    $q$ is a mixture of Gaussians of one network, as wide as the moves and three times as wide. $f$ is the logarithm of the odds that a
    pair is a move and not a draw of $q$, by noise-contrastive estimation. A third of the draws start at states whose numbers come from
    different visited ones, so that $f$ also shows where motion never is, such as inside of walls. Where visited states are evenly
    spread, $e^{-E}$ is the conditional density $p(s' \mid s)$ up to a constant, and elsewhere 0. The same data give a Gaussian backwards
    in time; searches for trajectories draw moves from both.

    Args:
        size: $d$, the numbers of a state.
        angles: The axes of states that are angles.
        kept: The number of visited states that the energy keeps; searches look for goals among them.

    References:
        Noise-contrastive estimation (Gutmann & Hyvärinen, 2010), https://proceedings.mlr.press/v9/gutmann10a.html
        Model based planning with energy based models (Du, Lin & Mordatch, 2019), https://arxiv.org/abs/1909.06878
    """

    visited: Tensor

    comes_trained = False

    def __init__(self, size: int, angles: Sequence[int] = (), hidden: int = 64, kept: int = 4096) -> None:
        super().__init__()
        self.size, self.angles = check_integer("size", size), tuple(angles)
        self.hidden, self.kept = check_integer("hidden", hidden), check_integer("kept", kept)
        if any(not 0 <= axis < size for axis in self.angles):
            raise OptionError(f"angles are axes of a state from 0 to {size - 1}, got {self.angles}.")
        self.ahead, self.behind = GaussianStep(size, angles), GaussianStep(size, angles)
        self.odds = _network(2 * (size + len(self.angles)) + 4 * _WAVES * size + 2 * size, hidden, 1)
        self.register_buffer("visited", torch.zeros(self.kept, size))
        self.event_shape, self.recommended = (2, size), Recommendation("trajectories", precedence=3)

    def config(self) -> dict[str, Any]:
        return {"size": self.size, "angles": self.angles, "hidden": self.hidden, "kept": self.kept}

    def forward(self, x: Tensor) -> Tensor:
        white, log_det = self.ahead.whiten(x[:, 0], x[:, 1])
        size, square = white.shape[1], white.square().sum(1) / 2
        parts = [-square / width**2 - size * math.log(width) for width in _WIDE]
        log_mixture = torch.stack(parts).logsumexp(0) - math.log(len(parts)) - size / 2 * math.log(2 * math.pi)  # of contrastive noises
        return log_det - log_mixture - self.odds(self._inputs(x[:, 0], x[:, 1], white)).squeeze(1)

    def _inputs(self, states: Tensor, ends: Tensor, white: Tensor) -> Tensor:
        change = ((ends - states) / self.ahead.unit).clamp(-20, 20)
        middle = states + (ends - states) / 2  # shows corners that a move would cut
        shown = [features(x, self.angles, self.ahead.scale, _WAVES) for x in (middle, ends)]
        return torch.cat([*shown, change, white.clamp(-10, 10)], 1)

    def propose(self, states: Tensor, generator: torch.Generator, *, backwards: bool = False, width: float = 1.0) -> Tensor:
        """Returns draws of the states after, or before, given ones, with shape $(B, d)$, `width` times as far from the mean."""
        return (self.behind if backwards else self.ahead).draw(states, generator, width)

    def fit(self, pairs: Tensor, *, steps: int = 8000, batch: int = 512, seed: int = 0, rate: float = 6e-3) -> TransitionEnergy:
        """Trains on pairs of states in succession, with shape $(n, 2, d)$, and returns itself.

        The Gaussians are trained first, by likelihood, then the odds by noise-contrastive estimation.

        Args:
            steps: The number of steps for the odds; the Gaussians take an eighth of them.
            rate: The first learning rate; it falls to zero.
        """
        if not isinstance(pairs, Tensor) or pairs.ndim != 3 or pairs.shape[1:] != self.event_shape or not bool(pairs.isfinite().all()):
            got = f"{tuple(pairs.shape)}" if isinstance(pairs, Tensor) else type(pairs).__name__
            raise ShapeError(f"Pairs are a tensor of finite numbers of shape (n, 2, {self.size}), got {got}.")
        generator = torch.Generator().manual_seed(seed)
        pairs = pairs.to(self.visited)
        scale, unit = pairs[:, 0].std(0), pairs.diff(dim=1)[:, 0].std(0)
        if len(pairs) < 2 or not bool((scale * unit > 0).all()):
            raise OptionError("Pairs are at least two, and all numbers of states and their changes vary: leave out constant numbers.")
        self.visited.copy_(pairs[torch.randint(len(pairs), (self.kept,), generator=generator), 0])
        for step in (self.ahead, self.behind):
            step.scale.copy_(scale)
            step.unit.copy_(unit)

        def likelihood(rows: Tensor) -> Tensor:
            whitened = self.ahead.whiten(rows[:, 0], rows[:, 1]), self.behind.whiten(rows[:, 1], rows[:, 0])
            ahead, behind = ((white.square().sum(1) / 2 + log_det).mean() for white, log_det in whitened)
            return ahead + behind

        _descend(likelihood, [*self.ahead.parameters(), *self.behind.parameters()], pairs, max(1, steps // 8), batch, rate, generator)
        inputs = self._contrast(pairs, generator)

        def contrast(rows: Tensor) -> Tensor:
            return softplus(-self.odds(rows[:, 0])).mean() + softplus(self.odds(rows[:, 1])).mean()

        _descend(contrast, list(self.odds.parameters()), inputs, steps, batch, rate, generator)
        return self.eval()

    @torch.no_grad()
    def _contrast(self, pairs: Tensor, generator: torch.Generator) -> Tensor:
        """Returns the inputs of the odds for moves and for draws of $q$, a third of them from other states, with shape $(n, 2, m)$."""
        states = pairs[:, 0].clone()
        mixed = states[len(_WIDE) :: len(_WIDE) + 1]
        for axis in range(self.size):  # states anywhere in the range of random motion, also inside of walls
            mixed[:, axis] = pairs[torch.randint(len(pairs), (len(mixed),), generator=generator), 0, axis]
        drawn = torch.empty_like(states)
        for at, width in enumerate((*_WIDE, 1.0)):
            rows = slice(at, None, len(_WIDE) + 1)
            drawn[rows] = self.ahead.draw(states[rows], generator, width)
        both = ((pairs[:, 0], pairs[:, 1]), (states, drawn))
        return torch.stack([self._inputs(begins, ends, self.ahead.whiten(begins, ends)[0]) for begins, ends in both], 1)


def _descend(loss: Any, parameters: list[nn.Parameter], pairs: Tensor, steps: int, batch: int, rate: float, generator: Any) -> None:
    optimizer = torch.optim.Adam(parameters, rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = pairs[torch.randint(len(pairs), (batch,), generator=generator)]
        optimizer.zero_grad()
        loss(rows).backward()
        optimizer.step()
        schedule.step()


def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    layers = [nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))
