"""A run that stops at a step, and the comparison of two runs."""

import pytest
import torch

import composable_energy as ce

BOWL = ce.as_energy(torch.distributions.Normal(torch.zeros(3, dtype=torch.float64), 1.0))
FIELDS = ("energies", "acceptance", "points", "diverged_at")


class Stop(Exception):  # noqa: N818
    """Ends a run from outside."""


def broken_off(energy, shape, at, file, **call):
    """Draws with a checkpoint, until it is ended from outside at a step."""

    def end(step, state, info):
        if step == at:
            raise Stop

    with pytest.raises(Stop):
        energy.sample(shape, observers=[ce.sampling.Stop(end), ce.sampling.Checkpoint(file)], **call)


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
