"""A run that stops at a step, and the comparison of two runs."""

import torch

import composable_energy as ce

BOWL = ce.as_energy(torch.distributions.Normal(torch.zeros(3, dtype=torch.float64), 1.0))
FIELDS = ("energies", "acceptance", "points", "diverged_at")


class Stop(Exception):  # noqa: N818
    """Ends a run from outside."""


def stop_at(step):
    def callback(now, state, info):
        if now == step:
            raise Stop

    return callback


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
