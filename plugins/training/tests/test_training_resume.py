"""Replay and resuming: no chain is lost, slots have their probabilities, and other settings or data are refused by name and by value."""

import math
import random
from functools import wraps
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import composable_energy_training as training
from composable_energy.errors import FileFormatError, OptionError, ShapeError
from composable_energy.sampling.noise import Noise
from composable_energy_image.data import Pictures, Preparation
from composable_energy_mcmc import Langevin
from composable_energy_training.augmentation import hue_matrix, luma
from plugins.training.tests.run_helpers import DATA, StopAt, fit_until_stopped, network, same
from tests.refusals import refusals, refused

SHAPE = torch.Size([3])
bad: Any = "gaussian"
CHAINS = {"steps": 2, "options": {"step_size": 0.1, "temperature": 0.01}, "buffer": 64}


def context(batch_size, rows=None, seed=0):
    return training.RankContext(batch_size, rows or range(batch_size), SHAPE, torch.device("cpu"), torch.float32, seed)


def numbered(like, noise):
    """Returns starts that are the numbers of their chains."""
    return torch.tensor(noise.chains, dtype=like.dtype).view(-1, 1).expand_as(like).clone()


def rows_of(batch_size, step, rows=None):
    return Noise(5, rows or range(batch_size), step)


def test_what_is_written_is_drawn_again_and_nothing_else_changes():
    buffer = training.ReplayBuffer(40, context(4), numbered, fresh=0.0)
    expected = buffer.state()["slots"].clone()
    assert expected[:, 0].unique().numel() == 40
    for step in range(100):
        slots, x = buffer.draw(rows_of(4, step))
        assert torch.equal(x, expected[slots]) and slots.unique().numel() == 4
        expected[slots] = x + 1000
        buffer.write(slots, x + 1000)
        assert torch.equal(buffer.state()["slots"], expected)


@pytest.mark.full
def test_each_slot_of_a_lane_is_drawn_as_often():
    buffer, steps, counts = training.ReplayBuffer(17, context(5), numbered, fresh=0.0), 6000, torch.zeros(17)
    for step in range(steps):
        counts[buffer.draw(rows_of(5, step))[0]] += 1
    lanes = [range(i * 17 // 5, (i + 1) * 17 // 5) for i in range(5)]
    assert sorted(slot for lane in lanes for slot in lane) == list(range(17))
    chi_square = 0.0
    for lane in lanes:
        assert counts[list(lane)].sum() == steps
        expected = steps / len(lane)
        chi_square += float(((counts[list(lane)] - expected) ** 2 / expected).sum())
    assert abs(chi_square - 12) < 4 * math.sqrt(2 * 12)  # the slots minus the lanes


def test_the_share_of_fresh_starts():
    rows, steps, share = 200, 20, 0.2
    buffer = training.ReplayBuffer(2000, context(rows), "normal", fresh=share)
    buffer.write(torch.arange(2000), torch.full((2000, 3), 100.0))
    new = sum(int((buffer.draw(rows_of(rows, step))[1][:, 0] != 100).sum()) for step in range(steps))
    assert abs(new - rows * steps * share) < 4 * math.sqrt(rows * steps * share * (1 - share))


@pytest.mark.parametrize(("start", "mean", "variance", "fourth"), [("uniform", 0.5, 1 / 12, 1 / 80), ("normal", 0.0, 1.0, 3.0)])
def test_starts_have_the_distribution_that_they_say(start, mean, variance, fourth):
    slots = training.ReplayBuffer(20_000, context(10), start).state()["slots"].double()
    n = slots.numel()
    assert abs(slots.mean() - mean) < 4 * math.sqrt(variance / n)
    assert abs((slots - mean).square().mean() - variance) < 4 * math.sqrt((fourth - variance**2) / n)
    assert start == "normal" or (slots.min() >= 0 and slots.max() <= 1)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_draw_and_keep_what_one_does(processes):
    batch, capacity = 12, 61

    def run(rows):
        buffer = training.ReplayBuffer(capacity, context(batch, rows), "uniform", fresh=0.3, augment=lambda x, noise: x + noise.normal(x))
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


def test_the_nearest_is_found_among_the_others_of_a_lane():
    buffer = training.ReplayBuffer(50, context(5), "normal", fresh=0.0)
    slots, x = buffer.draw(rows_of(5, 3))
    chains, nearest = buffer.state()["slots"], buffer.nearest(x, slots, rows_of(5, 3))
    for row in range(5):
        lane = [slot for slot in range(10 * row, 10 * row + 10) if slot != slots[row]]
        assert torch.equal(nearest[row], chains[lane][(chains[lane] - x[row]).square().sum(1).argmin()])
    among = {tuple(buffer.nearest(x, slots, rows_of(5, step), among=2)[0].tolist()) for step in range(40)}
    assert 2 < len(among) < 10  # among which is drawn anew at each step


buffer_of = training.ReplayBuffer
LARGE = buffer_of(15, context(8), "uniform")

test_bad_settings_states_and_shapes_are_reported = refusals(
    (lambda: buffer_of(7, context(8), "uniform"), OptionError, "capacity is 7, batch size 8"),
    (lambda: buffer_of(8, context(8), "uniform", fresh=1.5), OptionError, "fresh is a probability and must be in .*, got 1.5"),
    (lambda: buffer_of(8, context(8), bad), OptionError, "got 'gaussian'"),
    (lambda: buffer_of(80, context(8, range(4)), "uniform").draw(rows_of(8, 0)), OptionError, "rows 0 to 3, got those from 0 to 7"),
    (lambda: LARGE.nearest(torch.zeros(8, 3), torch.arange(8), rows_of(8, 0)), OptionError, "two slots a row"),
    (lambda: LARGE.restore({}), FileFormatError, "none"),
    (lambda: LARGE.restore({"slots": torch.zeros(9, 3)}), FileFormatError, r"\(9, 3\)"),
    (lambda: buffer_of(8, context(8), lambda like, noise: like[:, :1]), ShapeError, r"\(8, 3\), got \(8, 1\)"),
    (lambda: training.Augmentation(crop=(0.0, 1.0)), OptionError, "0 < smallest"),
    (lambda: training.Augmentation(jitter=2), OptionError, "jitter must be in"),
    (lambda: training.Augmentation(blur=-1), OptionError, "at least 0 pixels"),
    (lambda: training.Augmentation(box=(1, 0)), OptionError, "lowest"),
    (lambda: training.Augmentation()(torch.zeros(2, 3), rows_of(2, 0)), ShapeError, r"\(B, C, H, W\), got \(2, 3\)"),
)

OFF: dict[str, Any] = {"crop": None, "flip": False, "jitter": 0.0, "blur": 0.0}


def ramps(rows, size=16):
    """Smooth pictures, a ramp of each channel along x, y and both."""
    ramp = torch.linspace(0.2, 0.8, size)
    planes = [ramp.expand(size, size), ramp.view(-1, 1).expand(size, size), (ramp + ramp.view(-1, 1)) / 2]
    return torch.stack(planes).expand(rows, 3, size, size).contiguous()


def test_half_of_the_pictures_are_mirrored_and_without_any_part_none_change():
    x, rows = ramps(400), 400
    assert torch.equal(training.Augmentation(**OFF)(x, rows_of(rows, 0)), x)
    out = training.Augmentation(**{**OFF, "flip": True})(x, rows_of(rows, 0))
    same, mirrored = (out - x).flatten(1).abs().amax(1) < 1e-5, (out - x.flip(3)).flatten(1).abs().amax(1) < 1e-5
    assert bool((same ^ mirrored).all()) and abs(int(mirrored.sum()) - rows / 2) < 4 * math.sqrt(rows / 4)


def test_a_crop_has_the_requested_area():
    """Inside a ramp the slope of a crop is the slope of the whole times the side of the crop."""
    rows, x = 400, ramps(400, 32)
    out = training.Augmentation(**{**OFF, "crop": (0.25, 0.25)})(x, rows_of(rows, 0))
    inner, slope = out[..., 4:-4, 4:-4], (x[0, 0, 0, 1] - x[0, 0, 0, 0]).item()
    width, height = inner[:, 0].diff(dim=2).mean((1, 2)) / slope, inner[:, 1].diff(dim=1).mean((1, 2)) / slope
    torch.testing.assert_close(width * height, torch.full((rows,), 0.25), rtol=1e-3, atol=0)
    assert (width / height).min() > 0.74 and (width / height).max() < 1.34 and out.min() >= 0.19 and out.max() <= 0.81


def test_hue_and_saturation_keep_the_luma_and_colors_stay_in_the_box():
    x = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    rotated = torch.einsum("bij,bjhw->bihw", hue_matrix(torch.linspace(-1, 1, 5), torch.linspace(0, 2, 5)), x)
    torch.testing.assert_close(luma(rotated), luma(x), rtol=0, atol=2e-3)  # the usual digits of YIQ: rows of I and Q sum to zero to .001
    torch.testing.assert_close(rotated[0], luma(x)[0].expand(3, 4, 4), rtol=0, atol=2e-3)  # saturation 0
    out = training.Augmentation(**{**OFF, "jitter": 1.0, "box": (-1.0, 1.0)})(2 * x - 1, rows_of(5, 0))
    assert out.min() >= -1 and out.max() <= 1 and not torch.equal(out, 2 * x - 1)


def test_a_blur_keeps_the_mean_and_spreads_a_dot_by_its_variance():
    dot = torch.zeros(200, 1, 25, 25)
    dot[:, :, 12, 12] = 1.0
    out = training.Augmentation(**{**OFF, "blur": 1.5})(dot, rows_of(200, 0))[:, 0]
    torch.testing.assert_close(out.sum((1, 2)), torch.ones(200))
    spread = (out.sum(1) * (torch.arange(25.0) - 12).square()).sum(1).clamp_min(0).sqrt()
    assert spread.max() <= 1.5 and spread.min() < 0.1
    assert abs(spread.mean() - 0.75) < 4 * 1.5 / math.sqrt(12 * 200) + 0.05  # a narrow blur on whole pixels has no effect


def test_each_picture_is_augmented_by_its_own_noise():
    x, augment = ramps(7), training.Augmentation()
    whole = augment(x, rows_of(7, 2))
    torch.testing.assert_close(augment(x[3:], rows_of(7, 2, range(3, 7))), whole[3:], rtol=0, atol=1e-6)
    assert whole.flatten(1).unique(dim=0).shape[0] == 7 and not torch.equal(whole, augment(x, rows_of(7, 3)))


class Fit(training.Objective):
    """Mean squared error, with settings of several kinds: a number, a function, an object, another objective."""

    def __init__(self, penalty=1.0, start=None, part=None):
        self.penalty, self.start, self.part = penalty, start, part

    def loss(self, model, batch):
        return training.Loss((model(batch.x) - batch.x).square().mean() * self.penalty)


def trainer(out, objective=None, model=None, data=DATA, steps=12, callbacks=(), ema=None):
    callbacks, optimizer = [training.Checkpoints(out, every=4), *callbacks], training.Optimizer(ema=ema)
    model = network() if model is None else model
    return training.Trainer(model, objective or Fit(), data, steps=steps, batch_size=8, optimizer=optimizer, callbacks=callbacks)


def chained(**options):
    torch.manual_seed(0)
    return trainer(None, training.ContrastiveDivergence(**CHAINS), training.MLPEnergy(3, width=8), **options)


class Scaled:
    """A start with a number in an attribute."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, like, noise):
        return self.scale * noise.normal(like)


def shifted(by):
    return lambda like, noise: noise.normal(like) + by


def divergence(step_size):
    return training.ContrastiveDivergence(steps=2, sampler=Langevin(step_size), options={"temperature": 0.01}, buffer=64)


FORTH = lambda x, noise: noise.normal(x)
BACK = lambda x, noise: -noise.normal(x)


def of(part):
    return Fit(part=part)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (divergence(0.1), divergence(0.3), r"objective\.part\.sampler\.step_size was 0\.1, is 0\.3"),
        (training.DenoisingScoreMatching(0.1, 1.0), training.DenoisingScoreMatching(0.2, 1.0), r"objective\.part\.sigma_min was 0\.1"),
        (training.Augmentation(blur=1.0), training.Augmentation(blur=2.0), r"objective\.part\.blur was 1\.0, is 2\.0"),
        (shifted(1.0), shifted(2.0), r"objective\.part\.by was 1\.0, is 2\.0"),
        (FORTH, BACK, r"objective\.part\.source was"),
        (Scaled(1.0), Scaled(0.5), r"objective\.part\.scale was 1\.0, is 0\.5"),
        (torch.zeros(2), torch.ones(2), r"objective\.part was .*\[0\.0, 0\.0\].*\[1\.0, 1\.0\]"),
        (torch.zeros(99), torch.ones(99), r"objective\.part was 'float32 \(99,\) with digest"),
        (np.zeros(3), np.ones(3), r"objective\.part was"),
        (training.AttributeHeads({"a": 2}, 0.1, 1), training.AttributeHeads({"a": 3}, 0.1, 1), r"part\.variables\.a was 2, is 3"),
        ({1, 2}, {1, 3}, r"objective\.part was \[1, 2\], is \[1, 3\]"),
        (wraps(network())(shifted(1.0)), wraps(network())(shifted(2.0)), r"objective\.part\.by was 1\.0, is 2\.0"),  # as torch.compile does
        (of([of(of(None))]), of([of(1)]), r"objective\.part\.part was"),
        (nn.Dropout(0.1), nn.Dropout(0.2), r"objective\.part\.modules\.root\.p was 0\.1, is 0\.2"),
    ],
)
def test_other_settings_of_the_objective_are_refused(tmp_path, before, after, message):
    trainer(tmp_path, of(before), steps=4).fit()
    refused(OptionError, message, trainer(tmp_path, of(after)).fit)
    assert trainer(tmp_path, of(before)).fit().steps == 12


def test_another_class_and_a_changed_attribute_of_the_objective_are_refused(tmp_path):
    class Other(Fit):
        pass

    run = trainer(tmp_path, Fit(penalty=1.0), steps=4)
    run.fit()
    refused(OptionError, r"objective\.class was 'Fit', is '.*Other'", trainer(tmp_path, Other()).fit)
    run.objective.penalty = 0.0
    refused(OptionError, r"objective\.penalty was 1\.0, is 0\.0", run.fit)


def test_networks_of_an_objective_count_by_value_but_the_model_itself_does_not(tmp_path):
    """The trained weights are in the checkpoint, so the model may have any weights when the run resumes."""
    critic, model = network(), network()
    trainer(tmp_path, of([critic, model]), model, steps=4).fit()
    other = nn.Linear(3, 3)
    assert trainer(tmp_path, of([network(), other]), other, steps=8).fit().steps == 8
    with torch.no_grad():
        critic.weight[0, 0] += 1
    refused(OptionError, r"objective\.part was", trainer(tmp_path, of([critic, model]), model).fit)


def test_other_settings_of_the_model_and_of_the_preparation_are_refused(tmp_path):
    steep, flat = (nn.Sequential(network(), nn.LeakyReLU(slope)) for slope in (0.1, 0.3))
    trainer(tmp_path / "model", model=steep, steps=4).fit()
    refused(OptionError, r"model\.1\.negative_slope was 0\.1, is 0\.3", trainer(tmp_path / "model", model=flat).fit)
    images, model = torch.rand(16, 1, 4, 4), nn.Conv2d(1, 1, 3, padding=1)
    trainer(tmp_path / "data", None, model, training.Prepared(images, Preparation(flip=True)), steps=4).fit()
    with pytest.raises(OptionError, match=r"preparation\.flip was True, is False"):
        trainer(tmp_path / "data", None, model, training.Prepared(images, Preparation(flip=False)), steps=4).fit()


def test_the_state_of_an_objective_is_not_a_setting(tmp_path):
    """The same objective may be used in a second trainer of the run, as in a notebook."""
    objective = training.ContrastiveDivergence(**CHAINS)
    trainer(tmp_path, objective, training.MLPEnergy(3), steps=4).fit()
    assert trainer(tmp_path, objective, training.MLPEnergy(3), steps=8).fit().steps == 8


MONITORS = pytest.mark.parametrize("monitor", [training.Monitor(action) for action in (None, "rollback", "stop")], ids=repr)


@MONITORS
def test_without_a_folder_the_same_trainer_resumes(monitor):
    """With and without a monitor: a second call resumes from the last checkpoint, here that of step 8."""
    whole = trainer(None, callbacks=[monitor], ema=0.9)
    whole.fit()
    run = trainer(None, callbacks=[monitor, StopAt(10)], ema=0.9)
    fit_until_stopped(run)
    run.callbacks = ()
    assert run.fit().steps == 12
    same(whole.model, run.model)
    run.fit()
    same(whole.model, run.model)


@MONITORS
def test_without_a_folder_a_run_and_its_chains_may_be_extended(monitor):
    whole, run = chained(callbacks=[monitor]), chained(callbacks=[monitor], steps=8)
    whole.fit()
    run.fit()
    run.steps = 12
    assert run.fit().steps == 12
    same(whole.model, run.model)
    torch.testing.assert_close(run.objective.state()["slots"], whole.objective.state()["slots"], rtol=0, atol=0)


def test_without_a_monitor_chains_are_not_copied_and_an_interrupted_run_with_chains_is_refused():
    """A buffer is most of the memory of a training; without a copy of it the chains are ahead of the last checkpoint."""
    run = chained(callbacks=[training.Monitor(None), StopAt(10)])
    fit_until_stopped(run)
    run.callbacks = ()
    refused(OptionError, r"interrupted, and the state of ContrastiveDivergence, .* of step 8\. Add `Checkpoints", run.fit)
    run = chained(callbacks=[StopAt(10)])
    fit_until_stopped(run)
    run.callbacks = ()
    assert run.fit().steps == 12


def changed(data):
    data = data.clone()
    data[17, 1] += 0.25
    return data


def pictures(data):
    return Pictures.from_tensors((data[:, :, None, None] % 1).expand(-1, -1, 4, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: data, "a value has changed"),
        (lambda data: (DATA, {"kind": data[:, 1]}), "a value has changed"),
        (pictures, "a value has changed"),
        (lambda data: DataLoader(TensorDataset(data), batch_size=7), "differ now"),
        (lambda data: [data[:20], data[20:]], "differ now"),
    ],
    ids=["tensor", "labels", "pictures", "loader", "list"],
)
def test_data_with_one_other_number_are_refused(tmp_path, make, message):
    model = nn.Conv2d(3, 3, 1) if make is pictures else network()
    fit_until_stopped(trainer(tmp_path, model=model, data=make(DATA), callbacks=[StopAt(9)]))
    refused(OptionError, f"trained on other data.*{message}", trainer(tmp_path, model=model, data=make(changed(DATA))).fit)
    assert trainer(tmp_path, model=model, data=make(DATA)).fit().steps == 12


def test_points_that_are_computed_again_may_differ_by_rounding(tmp_path):
    """The codes of a network do so on another device, or with another number of threads."""
    trainer(tmp_path, steps=4).fit()
    assert trainer(tmp_path, data=DATA * (1 + 1e-6)).fit().steps == 12


class Augmented(Dataset):
    """Points with noise from a source of random numbers."""

    def __init__(self, draw):
        self.draw = draw

    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        return DATA[index] + 0.1 * self.draw()


def shuffled(draw):
    return DataLoader(Augmented(draw), batch_size=7, shuffle=True)


def test_a_loader_that_draws_from_torch_has_the_same_bits(tmp_path):
    """Its items are keyed by epoch and number, so they do not depend on other draws of training."""
    whole = trainer(tmp_path / "whole", data=shuffled(lambda: torch.rand(())))
    whole.fit()
    fit_until_stopped(trainer(tmp_path / "cut", data=shuffled(lambda: torch.rand(())), callbacks=[StopAt(10)]))
    again = trainer(tmp_path / "cut", data=shuffled(lambda: torch.rand(())))
    again.fit()
    same(whole.model, again.model)


@pytest.mark.parametrize("draw", [lambda: float(np.random.rand()), random.random], ids=["numpy", "random"])
def test_a_loader_that_draws_from_elsewhere_is_refused(tmp_path, draw):
    fit_until_stopped(trainer(tmp_path, data=shuffled(draw), callbacks=[StopAt(10)]))
    with pytest.raises(OptionError, match=r"drawn at random .* Draw from torch's global generator, or key the draws by epoch and index"):
        trainer(tmp_path, data=shuffled(draw)).fit()
