"""Running moments equal those of all points, with offsets, merges, saved states and diverged chains."""

import io
import math

import pytest
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import OptionError, ShapeError
from composable_energy.sampling import RunningMoments, State, Trace
from composable_energy_mcmc import MALA, Langevin

F64 = torch.float64
BOWL = ce.as_energy(lambda x: x.square().reshape(len(x), -1).sum(1) / 2, name="bowl")
HOLE = ce.as_energy(lambda x: torch.where(x[:, 0] > 2, torch.nan, x.square().sum(1) / 2), name="hole")


def record(moments: RunningMoments, *batches: Tensor) -> RunningMoments:
    """Shows it points, as the driver does."""
    for step, x in enumerate(batches, 1):
        moments.add(step, State(x, x.flatten(1).sum(1), torch.zeros_like(x)))
    return moments


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def draw(moments: RunningMoments, energy=BOWL, shape=(7, 3), steps: int = 20, **options) -> Trace:
    options = {"sampler": MALA(0.5), "seed": 0, "trace": 1, **options}
    return energy.sample(shape, steps=steps, observers=[moments], **options)[1]


@pytest.mark.slow
@pytest.mark.parametrize("event", [(3,), (2, 4, 4), ()])
def test_they_are_those_of_all_points(event):
    moments = RunningMoments()
    points = draw(moments, shape=(7, *event), dtype=F64).points
    assert moments.count == 140
    torch.testing.assert_close(moments.mean, points.flatten(0, 1).mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moments.variance, points.flatten(0, 1).var(0), rtol=1e-12, atol=1e-12)


def test_and_of_the_energies():
    moments = RunningMoments()
    energies = draw(moments, dtype=F64).energies
    assert math.isclose(moments.energy_mean, energies.mean()) and math.isclose(moments.energy_variance, energies.var())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_digits_are_lost_far_from_zero(dtype):
    """A mean of 100,000 standard deviations: sums of squares in float32 would have no digit left."""
    points = (normal(300, 50, 2) + 1e5).to(dtype)
    moments = record(RunningMoments(), *points)
    exact = points.double().flatten(0, 1)
    torch.testing.assert_close(moments.mean, exact.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(moments.variance, exact.var(0), rtol=1e-9, atol=1e-9)


def test_which_steps_count():
    moments = RunningMoments(burn_in=4, every=3)
    trace = draw(moments, trace=3, burn_in=4, dtype=F64)
    assert moments.count == trace.points.flatten(0, 1).shape[0] == 5 * 7
    torch.testing.assert_close(moments.mean, trace.points.mean((0, 1)))


def test_two_ranks_joined_are_one():
    whole, first, second = (RunningMoments() for _ in range(3))
    options = {"sampler": Langevin(0.3), "dtype": F64}
    draw(whole, shape=(9, 3), **options)
    draw(first, shape=(4, 3), **options)
    draw(second, shape=(5, 3), first_chain=4, **options)
    both = first.merge(second)
    assert both.count == whole.count == 180 and (first.count, second.count) == (80, 100)
    for name in ("mean", "variance", "energy_mean", "energy_variance"):
        torch.testing.assert_close(getattr(both, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
    for empty in (RunningMoments().merge(first), first.merge(RunningMoments())):
        assert torch.equal(empty.mean, first.mean) and empty.count == 80
    record(both, normal(9, 3))
    assert both.count == 189 and first.count == 80  # a new one


def test_saved_they_go_on():
    whole, half, rest = (RunningMoments(burn_in=2, every=2) for _ in range(3))
    draw(whole)
    trace = draw(half, steps=10)
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    rest.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    BOWL.sample((7, 3), resume=trace, steps=10, observers=[rest])
    assert rest.count == whole.count == 7 * 9
    torch.testing.assert_close(rest.mean, whole.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rest.variance, whole.variance, rtol=1e-12, atol=1e-12)


def test_memory_does_not_grow():
    def size(moments: RunningMoments) -> int:
        return sum(value.numel() for value in moments.state_dict().values() if isinstance(value, Tensor))

    assert [size(record(RunningMoments(), *normal(steps, 40, 12))) for steps in (1, 2, 50)] == [2 * 12 + 2] * 3
    assert size(record(RunningMoments(), normal(100_000, 12))) == 26


@pytest.mark.slow
def test_chains_that_diverge_count_until_then():
    moments = RunningMoments()
    trace = draw(moments, HOLE, (40, 2), 60, sampler=Langevin(0.1), dtype=F64, on_divergence="keep", batch_size=7)
    bad = trace.diverged
    assert 0 < bad.sum() < 40
    end = torch.where(trace.diverged_at < 0, 60, trace.diverged_at - 1)
    counted = torch.arange(1, 61)[:, None] <= end
    assert moments.count == counted.sum()
    torch.testing.assert_close(moments.mean, trace.points[counted].mean(0))
    torch.testing.assert_close(moments.variance, trace.points[counted].var(0))


def test_what_does_not_go():
    moments = record(RunningMoments(), normal(4, 3))
    with pytest.raises(ShapeError, match=r"of shape \(3,\), got \(2,\)"):
        record(moments, normal(4, 2))
    with pytest.raises(ShapeError, match=r"do not go with those of points of shape \(2,\)"):
        moments.merge(record(RunningMoments(), normal(4, 2)))
    with pytest.raises(OptionError, match="No point was counted yet: take more than burn_in=9"):
        _ = RunningMoments(burn_in=9).mean
    for wrong in ({"every": 0}, {"burn_in": -1}, {"every": 1.5}):
        with pytest.raises(OptionError):
            RunningMoments(**wrong)
    assert repr(RunningMoments()) == "RunningMoments(0 points)" and repr(moments) == "RunningMoments(4 points of shape (3,))"
