"""The replay buffer: no chain is lost or doubled, slots and fresh starts come with their probabilities, processes change nothing."""

import math
from typing import Any

import pytest
import torch

from composable_energy.errors import FileFormatError, OptionError, ShapeError
from composable_energy.noise import Noise
from composable_energy.training import Place, ReplayBuffer

SHAPE = torch.Size([3])
bad: Any = "gaussian"


def place(batch_size, rows=None, seed=0):
    return Place(batch_size, rows or range(batch_size), SHAPE, torch.device("cpu"), torch.float32, seed)


def numbered(like, noise):
    """A start that tells which chain it is."""
    return torch.tensor(noise.chains, dtype=like.dtype).view(-1, 1).expand_as(like).clone()


def rows_of(batch_size, step, rows=None):
    return Noise(5, rows or range(batch_size), step)


def test_a_sampler_that_does_not_move_leaves_all_chains():
    buffer = ReplayBuffer(103, place(10), numbered, fresh=0.0)
    before = buffer.state()["slots"].clone()
    assert before[:, 0].unique().numel() == 103
    for step in range(200):
        slots, x = buffer.draw(rows_of(10, step))
        assert slots.unique().numel() == 10
        buffer.write(slots, x)
    assert torch.equal(buffer.state()["slots"], before)


def test_what_is_written_is_drawn_again_and_nothing_else_changes():
    buffer = ReplayBuffer(40, place(4), numbered, fresh=0.0)
    expected = buffer.state()["slots"].clone()
    for step in range(100):
        slots, x = buffer.draw(rows_of(4, step))
        assert torch.equal(x, expected[slots])
        expected[slots] = x + 1000
        buffer.write(slots, x + 1000)
        assert torch.equal(buffer.state()["slots"], expected)


def test_each_slot_of_a_lane_is_drawn_as_often():
    buffer, steps = ReplayBuffer(17, place(5), numbered, fresh=0.0), 6000
    counts = torch.zeros(17)
    for step in range(steps):
        counts[buffer.draw(rows_of(5, step))[0]] += 1
    lanes = [range(i * 17 // 5, (i + 1) * 17 // 5) for i in range(5)]
    assert sorted(slot for lane in lanes for slot in lane) == list(range(17))
    chi_square = 0.0
    for lane in lanes:
        assert counts[list(lane)].sum() == steps
        expected = steps / len(lane)
        chi_square += float(((counts[list(lane)] - expected) ** 2 / expected).sum())
    degrees = 17 - 5
    assert abs(chi_square - degrees) < 4 * math.sqrt(2 * degrees)


def test_the_share_of_fresh_starts():
    rows, steps, share = 8, 500, 0.2
    buffer = ReplayBuffer(80, place(8), "normal", fresh=share)
    buffer.write(torch.arange(80), torch.full((80, 3), 100.0))
    new = sum(int((buffer.draw(rows_of(8, step))[1][:, 0] != 100).sum()) for step in range(steps))
    error = math.sqrt(rows * steps * share * (1 - share))
    assert abs(new - rows * steps * share) < 4 * error


@pytest.mark.parametrize(("start", "mean", "variance", "fourth"), [("uniform", 0.5, 1 / 12, 1 / 80), ("normal", 0.0, 1.0, 3.0)])
def test_starts_have_the_distribution_that_they_say(start, mean, variance, fourth):
    slots = ReplayBuffer(20_000, place(10), start).state()["slots"].double()
    n = slots.numel()
    assert abs(slots.mean() - mean) < 4 * math.sqrt(variance / n)
    assert abs((slots - mean).square().mean() - variance) < 4 * math.sqrt((fourth - variance**2) / n)
    assert start == "normal" or (slots.min() >= 0 and slots.max() <= 1)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_draw_and_keep_what_one_does(processes):
    batch, capacity = 12, 61

    def run(rows):
        buffer = ReplayBuffer(capacity, place(batch, rows), "uniform", fresh=0.3, augment=lambda x, noise: x + noise.normal(x))
        drawn = []
        for step in range(20):
            for part in (range(rows.start, rows.start + 1), range(rows.start + 1, rows.stop)):  # gradients accumulated over two parts
                slots, x = buffer.draw(rows_of(batch, step, part))
                buffer.write(slots, x * 2)
                drawn.append((step, part, slots, x))
        return buffer.state()["slots"], drawn

    whole, _ = run(range(batch))
    shares = [run(range(k * batch // processes, (k + 1) * batch // processes))[0] for k in range(processes)]
    assert torch.equal(torch.cat(shares), whole)


def test_a_restored_buffer_goes_on_with_the_same_bits():
    settings: dict[str, Any] = {"fresh": 0.3}
    first = ReplayBuffer(50, place(6), "uniform", **settings)
    for step in range(5):
        slots, x = first.draw(rows_of(6, step))
        first.write(slots, x + 1)
    kept = {name: value.clone() for name, value in first.state().items()}
    halves = [ReplayBuffer(50, place(6, rows, seed=9), "uniform", **settings) for rows in (range(2), range(2, 6))]
    for half in halves:
        half.restore(kept)
        slots, x = half.draw(rows_of(6, 5, half.place.rows))
        half.write(slots, x + 1)
    slots, x = first.draw(rows_of(6, 5))
    first.write(slots, x + 1)
    assert torch.equal(torch.cat([half.state()["slots"] for half in halves]), first.state()["slots"])


def test_the_nearest_is_found_among_the_others_of_a_lane():
    buffer = ReplayBuffer(50, place(5), "normal", fresh=0.0)
    slots, x = buffer.draw(rows_of(5, 3))
    chains = buffer.state()["slots"]
    nearest = buffer.nearest(x, slots, rows_of(5, 3))
    for row in range(5):
        lane = [slot for slot in range(10 * row, 10 * row + 10) if slot != slots[row]]
        distances = (chains[lane] - x[row]).square().sum(1)
        assert torch.equal(nearest[row], chains[lane][distances.argmin()])
    among = {tuple(buffer.nearest(x, slots, rows_of(5, step), among=2)[0].tolist()) for step in range(40)}
    assert 2 < len(among) < 10  # among which is drawn anew at each step


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReplayBuffer(7, place(8), "uniform"), "capacity is 7, the batch size 8"),
        (lambda: ReplayBuffer(8, place(8), "uniform", fresh=1.5), "fresh is a probability, got 1.5"),
        (lambda: ReplayBuffer(8, place(8), bad), "got 'gaussian'"),
        (lambda: ReplayBuffer(80, place(8, range(4)), "uniform").draw(rows_of(8, 0)), "rows 0 to 3, got those from 0 to 7"),
        (
            lambda: ReplayBuffer(15, place(8), "uniform").nearest(torch.zeros(8, 3), torch.arange(8), rows_of(8, 0)),
            "two slots for each row",
        ),
    ],
)
def test_bad_settings_are_told(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def test_a_start_of_another_shape_is_told():
    with pytest.raises(ShapeError, match=r"\(8, 3\), got \(8, 1\)"):
        ReplayBuffer(8, place(8), lambda like, noise: like[:, :1])


@pytest.mark.parametrize(("state", "got"), [({}, "none"), ({"slots": torch.zeros(9, 3)}, r"\(9, 3\)")])
def test_another_buffers_slots_are_refused(state, got):
    with pytest.raises(FileFormatError, match=got):
        ReplayBuffer(8, place(8), "uniform").restore(state)
