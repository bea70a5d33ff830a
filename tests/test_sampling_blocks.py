"""Steps that are taken in blocks give the results of single steps: a callback, which may change the energy, makes them single."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import SamplingDiverged
from composable_energy.sampling import Trace


def hole(radius: float) -> ce.Energy:
    """Returns a normal density whose energy is NaN far from the origin, where few chains arrive."""
    return ce.as_energy(lambda x: torch.where(x.norm(dim=1) > radius, torch.nan, x.square().sum(1) / 2), event_shape=(2,))


def failing(x: Tensor) -> Tensor:
    """Returns energies, and raises where a point is far from the origin."""
    if bool((x.norm(dim=1) > 2.5).any()):
        raise RuntimeError("the factorisation failed")
    return x.square().sum(1) / 2


def draw(energy: ce.Energy, *, single: bool, **options: object) -> tuple[Tensor, Trace]:
    return energy.sample((24, 2), seed=3, trace=True, warn=False, callback=(lambda *_: None) if single else None, **options)


def assert_same(energy: ce.Energy, **options: object) -> Trace | None:
    """Compares the results of blocks with those of single steps, or their errors; returns the trace."""
    try:
        expected, single = draw(energy, single=True, **options)
    except SamplingDiverged as error:
        with pytest.raises(SamplingDiverged) as other:
            draw(energy, single=False, **options)
        assert (other.value.step, str(other.value)) == (error.step, str(error))
        assert error.step > 3 and torch.equal(other.value.samples, error.samples)
        assert torch.equal(other.value.diverged, error.diverged)
        return None
    points, trace = draw(energy, single=False, **options)
    assert torch.equal(points, expected)
    assert torch.allclose(trace.energies, single.energies, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(trace.diverged_at, single.diverged_at)
    assert (trace.errors, trace.first_error) == (single.errors, single.first_error)
    assert trace.scalars == single.scalars
    return trace


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(
    radius=st.floats(2.6, 3.5),
    batch_size=st.sampled_from((24, 7, 3)),
    steps=st.integers(1, 150),
)
def test_chains_that_diverge(radius: float, batch_size: int, steps: int) -> None:
    start = torch.randn(24, 2, generator=torch.Generator().manual_seed(0)).clamp(-1.5, 1.5)
    assert_same(hole(radius), sampler="langevin", step_size=0.3, steps=steps, init=start, on_divergence="keep", batch_size=batch_size)


@pytest.mark.slow
def test_some_chains_diverge_within_a_block() -> None:
    start = torch.zeros(24, 2)
    trace = assert_same(hole(2.8), sampler="langevin", step_size=0.3, steps=150, init=start, on_divergence="keep")
    assert trace is not None and 0 < int(trace.diverged.sum()) < 24
    assert len(trace.diverged_at.unique()) > 3


@pytest.mark.parametrize("batch_size", [24, 5])
def test_the_step_of_an_error_is_the_same(batch_size: int) -> None:
    options = {"sampler": "langevin", "step_size": 0.3, "steps": 200, "init": torch.zeros(24, 2), "batch_size": batch_size}
    assert assert_same(hole(2.5), **options) is None


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["langevin", "mala"])
def test_points_where_the_energy_raises_are_counted_once(sampler: str) -> None:
    energy = ce.as_energy(failing, event_shape=(2,))
    trace = assert_same(energy, sampler=sampler, step_size=0.5, steps=120, init=torch.zeros(24, 2), on_divergence="keep")
    assert trace is not None and trace.errors > 3


def test_an_exception_in_a_block_is_that_of_its_step() -> None:
    calls = 0

    def broken(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 43:  # once, after the checks at the start: the call must not go on as if nothing had happened
            raise TypeError("not a number")
        return x.square().sum(1)

    with pytest.raises(TypeError, match="not a number") as error:
        ce.as_energy(broken).sample((4, 2), sampler="langevin", step_size=0.1, steps=1000, seed=0)
    notes = getattr(error.value, "__notes__", ["langevin was at step 40, Python 3.10 has no notes"])
    assert any("langevin was at step 40," in note for note in notes)


def test_a_callback_may_change_the_energy_at_each_step() -> None:
    center = torch.zeros(1)

    def follow(step: int, state: object, info: object) -> None:
        center.fill_(step)

    energy = ce.as_energy(lambda x: (x[:, 0] - center).square() / 2, event_shape=(1,))
    points = energy.sample(500, sampler="langevin", step_size=1.0, steps=50, seed=0, callback=follow)
    assert abs(points.mean().item() - 47) < 0.3  # m' = (m + c) / 2, where c is the step before the last
