"""Energies and runs for tests of sampling: broken off and kept, good and bad."""

import warnings
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import composable_energy as ce
from composable_energy.sampling import Trace
from tests.refusals import refused

F64 = torch.float64


class Bowl(ce.Energy):
    """A unit Gaussian; at a noise level, with the noise added. Elementwise, so chunks change no bit."""

    def forward(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        return x.square().reshape(len(x), -1).sum(1) / (2 * (1 + sigma**2))


class Network(ce.Energy):
    def __init__(self, dtype: torch.dtype = F64) -> None:
        super().__init__()
        self.event_shape = torch.Size([12])
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)).to(dtype)
        for parameter in self.net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype) / 3

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1) + x.square().sum(1) / 2


class Decoder(nn.Module):
    seen: ClassVar[list[int]] = []  # of all copies: sampling decodes with one

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.Dropout(0.5))

    def forward(self, z: Tensor) -> Tensor:
        self.seen.append(len(z))
        return self.net(z).view(-1, 3, 2, 2)


BOWL = ce.as_energy(torch.distributions.Normal(torch.zeros(3, dtype=torch.float64), 1.0))
FIELDS = ("energies", "acceptance", "points", "diverged_at")


class Stop(Exception):  # noqa: N818
    """Ends a run from outside."""


def broken_off(energy, shape, at, file, **call):
    """Draws with a checkpoint, until it is ended from outside at a step."""

    def end(step, state, info):
        if step == at:
            raise Stop

    refused(Stop, None, energy.sample, shape, observers=[ce.sampling.Stop(end), ce.sampling.Checkpoint(file)], **call)


def kept(energy, shape, file, **call):
    """Draws with a checkpoint."""
    return energy.sample(shape, observers=[ce.sampling.Checkpoint(file)], **call)


def same(one, other):
    points, trace = one
    again, retold = other
    assert torch.equal(points, again)
    for name in FIELDS:
        a, b = getattr(trace, name), getattr(retold, name)
        if a is None:
            assert b is None
            continue
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=name)
    assert trace.scalars == retold.scalars and trace.point_steps == retold.point_steps and trace.steps == retold.steps


def gaussian(*sd: float) -> ce.Energy:
    return ce.as_energy(Independent(Normal(torch.zeros(len(sd), dtype=F64), torch.tensor(sd, dtype=F64)), 1))


def run(energy: ce.Energy, shape, sampler, steps: int, **options) -> Trace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ce.SamplingWarning)
        return energy.sample(shape, sampler=sampler, steps=steps, **{"seed": 0, "trace": True, **options})[1]


def kinds(trace: Trace, burn_in: int | None = None) -> set[str]:
    return {warning.kind for warning in trace.warnings(burn_in)}
