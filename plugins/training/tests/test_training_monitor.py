"""The monitor and the callbacks: runs that go astray on purpose, and what is told of them."""

import csv
import math
import re

import pytest
import torch
from PIL import Image
from torch import nn

import composable_energy as ce
from composable_energy.errors import ExtraNotInstalled, OptionError, SamplingDiverged, TrainingDiverged
from composable_energy_training import (
    Callback,
    ContrastiveDivergence,
    CSVLog,
    Loss,
    Monitor,
    Objective,
    Optimizer,
    SampleSheet,
    TensorBoard,
    Trainer,
)
from composable_energy_training.monitor import Watch

DATA = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
SOON = {"window": 3, "limit": 3}


class Scripted(Objective):
    """A quadratic loss that tells what a script says of each step, and counts its steps as state."""

    def __init__(self, script, fail=None):
        self.script, self.fail = script, fail or (lambda step, seed: None)

    def begin(self, model, place):
        self.count = torch.zeros(1)

    def loss(self, model, batch):
        self.count += 1
        value = sum(parameter.square().sum() for parameter in model.parameters()) + 0 * batch.noise.normal(batch.x).sum()
        what = self.fail(batch.step, batch.noise.seed)
        if what is not None:
            value = value * what if isinstance(what, float) else _raise(what)
        return Loss(value, {name: torch.tensor(float(tell(batch.step, batch.noise.seed))) for name, tell in self.script.items()})

    def state(self):
        return {"count": self.count}

    def restore(self, state):
        self.count.copy_(state["count"])


def _raise(error):
    raise error


class Noted(Callback):
    def __init__(self):
        self.steps, self.rates, self.events = [], [], []

    def on_step(self, trainer, scalars):
        self.steps.append((trainer.attempt, trainer.step))
        self.rates.append(trainer.rate)

    def on_event(self, trainer, event):
        self.events.append(event)


def table(folder):
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def network():
    torch.manual_seed(1)
    return nn.Linear(3, 3)


def trainer(objective, monitor, **options):
    options = {"steps": 20, "batch_size": 8, "checkpoint_every": 5, "optimizer": Optimizer(rate=0.01), **options}
    return Trainer(network(), objective, DATA, monitor=monitor, **options)


@pytest.mark.parametrize(
    ("scalars", "sign"),
    [
        ({"gap": 0.6}, "gap"),
        ({"gap": -0.6}, "gap"),
        ({"gap": -0.4}, None),
        ({"gap": 0.4}, None),
        ({"magnitude": 10.5, "gap": 0.0}, "magnitude"),
        ({"magnitude": 1000.0}, None),
        ({"loss": -2e8}, "loss"),
        ({"acceptance": 0.001}, "acceptance"),
        ({"acceptance": 0.5, "gap": 0.1, "magnitude": 1.0, "loss": 3.0, "diverged": 0.0}, None),
        ({"diverged": 0.3}, "diverged"),
    ],
)
def test_signs_have_the_thresholds_of_the_papers(scalars, sign):
    watch = Watch(Monitor(window=4))
    events = [watch.see(step, scalars, True) for step in range(1, 5)]
    assert events[:3] == [None] * 3  # no mean is judged before its window is full
    assert (events[3] is None) if sign is None else (events[3].sign == sign and events[3].action == "rollback")


def test_means_run_over_their_window():
    """A single high value among low ones is below the threshold as a mean: 0.1 + (4 - 0.1) / 10 < 0.5."""
    watch = Watch(Monitor(window=10))
    for step in range(1, 30):
        assert watch.see(step, {"gap": 0.1}, True) is None
    assert watch.see(30, {"gap": 4.0}, True) is None and watch.means["gap"] == pytest.approx(0.49)
    assert watch.see(31, {"gap": 4.0}, True).sign == "gap"


def test_what_a_watch_saw_is_plain_data():
    watch = Watch(Monitor(window=2, gap=1.0))
    for step in range(1, 6):
        watch.see(step, {"gap": step / 3}, step != 4)
    again = Watch.of(watch.monitor, watch.told())
    assert again == watch and again.events and again.skipped == 1


@pytest.mark.slow
def test_the_rate_is_lowered_until_the_limit(tmp_path):
    noted = Noted()
    with pytest.raises(TrainingDiverged, match=r"step 12 after 3 actions: the mean gap over the last 3 steps is 2") as caught:
        trainer(Scripted({"gap": lambda step, seed: 2}), Monitor("lower", **SOON), out=tmp_path, callbacks=[noted]).fit()
    assert noted.steps == [(0, step) for step in range(1, 13)]
    assert noted.rates == pytest.approx([0.01 * 0.5 ** ((step - 1) // 3) for step in range(1, 13)])
    assert [event.step for event in noted.events] == [3, 6, 9, 12] and [event.action for event in noted.events][-1] == "stop"
    assert caught.value.step == 12 and caught.value.checkpoint.name == "step-00000010.safetensors" and caught.value.checkpoint.exists()
    assert str(caught.value.checkpoint) in str(caught.value)


def test_a_run_goes_back_with_other_random_numbers(tmp_path):
    """With the seed of the first attempt the gap opens at step 8; with any other it stays shut."""
    first, noted = [], Noted()

    def gap(step, seed):
        first.append(seed)
        return 2 * (step >= 8 and seed == first[0])

    going = trainer(Scripted({"gap": gap}), Monitor(**SOON), out=tmp_path, callbacks=[noted])
    report = going.fit()
    assert [event.sign for event in report.events] == ["gap"] and report.steps == 20
    back = noted.steps.index((1, 6))
    assert noted.steps == [(0, step) for step in range(1, back + 1)] + [(1, step) for step in range(6, 21)]
    assert noted.rates[back - 1 : back + 1] == pytest.approx([0.01, 0.005])
    assert going.objective.count == 20  # the state went back as well


def test_a_run_without_a_folder_goes_back_too():
    noted, first = Noted(), []

    def gap(step, seed):
        first.append(seed)
        return 2 * (step >= 8 and seed == first[0])

    assert trainer(Scripted({"gap": gap}), Monitor(**SOON), callbacks=[noted]).fit().steps == 20
    assert (1, 6) in noted.steps


def test_a_checkpoint_that_leads_astray_again_is_left_behind(tmp_path):
    """Two attempts from step 10 fail, so the third begins at step 5."""
    noted, seeds = Noted(), []

    def gap(step, seed):
        seeds.extend([seed] if seed not in seeds else [])
        return 2 * (step >= 11 and seeds.index(seed) < 2)

    trainer(Scripted({"gap": gap}), Monitor(**SOON), out=tmp_path, callbacks=[noted]).fit()
    attempts = {attempt: [step for a, step in noted.steps if a == attempt] for attempt in (0, 1, 2)}
    assert attempts[1][0] == 11 and attempts[2][0] == 6 and attempts[2][-1] == 20


@pytest.mark.parametrize("what", [math.nan, math.inf, SamplingDiverged("chains")])
def test_what_is_not_finite_never_reaches_the_weights(what):
    noted = Noted()
    model = network()
    before = model.weight.detach().clone()
    bad = Scripted({}, lambda step, seed: what if step <= 4 else None)
    report = Trainer(model, bad, DATA, steps=4, batch_size=8, monitor=Monitor(nonfinite=5), callbacks=[noted]).fit()
    assert report.skipped == 4 and torch.equal(model.weight, before) and report.events == ()
    report = Trainer(model, bad, DATA, steps=6, batch_size=8, monitor=None).fit()
    assert report.skipped == 4 and model.weight.isfinite().all() and not torch.equal(model.weight, before)


def test_too_many_in_a_row_are_a_sign():
    with pytest.raises(TrainingDiverged, match="not finite 3 times in a row"):
        trainer(Scripted({}, lambda step, seed: math.nan if step > 5 else None), Monitor("stop", nonfinite=3)).fit()


def test_a_run_that_is_killed_around_its_rollback_ends_with_the_same_bits(tmp_path):
    class Stop(Exception):  # noqa: N818
        pass

    class StopAt(Callback):
        def __init__(self, count):
            self.left = count

        def on_step(self, trainer, scalars):
            self.left -= 1
            if not self.left:
                raise Stop

    def objective():
        first = []

        class Straying(Scripted):
            def begin(self, model, place):
                super().begin(model, place)
                first.append(ce.sampling.Noise(place.seed, range(8)).child("objective").seed)

        return Straying({"gap": lambda step, seed: 2 * (step >= 8 and seed == first[0])})

    def run(folder, callbacks=()):
        trainer(objective(), Monitor(**SOON), out=folder, callbacks=[CSVLog(2), *callbacks], ema=0.9).fit()
        return (folder / "checkpoints" / "step-00000020.safetensors").read_bytes(), [{**row, "seconds": ""} for row in table(folder)]

    whole = run(tmp_path / "whole")
    for count in (7, 9, 11, 14, 19):
        with pytest.raises(Stop):
            run(tmp_path / str(count), [StopAt(count)])
        assert run(tmp_path / str(count)) == whole
    assert [row["step"] for row in whole[1] if row["event"]] == ["8"]


@pytest.mark.parametrize(
    "options",
    [{"action": "wait"}, {"gap": -1}, {"acceptance": 2.0}, {"window": 0}, {"factor": 1.0}, {"limit": -1}, {"nonfinite": 0}],
)
def test_bad_monitors(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        Monitor(**options)


# Callbacks ----------------------------------------------------------------------------------------------------------------------------


def test_a_table_has_a_row_for_every_so_many_steps(tmp_path):
    trainer(Scripted({"gap": lambda step, seed: step / 100}), Monitor(), out=tmp_path, callbacks=[CSVLog(4)], steps=10).fit()
    rows = table(tmp_path)
    assert [row["step"] for row in rows] == ["4", "8", "10"]
    assert [float(row["gap"]) for row in rows] == pytest.approx([0.04, 0.08, 0.1])
    assert list(rows[0]) == ["attempt", "step", "seconds", "rate", "loss", "gradient", "gap", "event"]


def test_a_table_of_others_is_left_alone(tmp_path):
    (tmp_path / "log.csv").write_text("time,value\n1,2\n")
    with pytest.raises(ValueError, match="no table of a run"):
        trainer(Scripted({}), None, out=tmp_path, callbacks=[CSVLog()]).fit()
    assert (tmp_path / "log.csv").read_text() == "time,value\n1,2\n"


@pytest.mark.parametrize("callback", [CSVLog(), SampleSheet()])
def test_files_need_a_folder(callback):
    with pytest.raises(OptionError, match="`out`"):
        trainer(Scripted({}), None, callbacks=[callback]).fit()


def test_numbers_of_callbacks_are_positive():
    for make in (CSVLog, TensorBoard, SampleSheet):
        with pytest.raises(OptionError, match="1 or more"):
            make(0)


def test_tensorboard_gets_curves(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(Scripted({"gap": lambda step, seed: step / 100}), Monitor(), out=tmp_path, callbacks=[TensorBoard(5)]).fit()
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert [point.step for point in curves.Scalars("gap")] == [5, 10, 15, 20]
    assert [point.value for point in curves.Scalars("gap")] == pytest.approx([0.05, 0.1, 0.15, 0.2])


def test_tensorboard_that_is_not_there_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ExtraNotInstalled, match=re.escape("composable-energy[tensorboard]")):
        trainer(Scripted({}), None, out=tmp_path, callbacks=[TensorBoard()]).fit()


class Darkness(ce.Energy):
    """Prefers pictures of one gray, which is learnt."""

    def __init__(self):
        super().__init__()
        self.gray = nn.Parameter(torch.tensor(0.2))

    def forward(self, x):
        return 20 * (x - self.gray).square().flatten(1).sum(1)


PICTURES = torch.full((16, 1, 4, 4), 0.8)


def test_a_sheet_shows_the_chains(tmp_path):
    objective = ContrastiveDivergence(steps=2, options={"step_size": 0.01}, buffer=32, l2=0.0)
    sheet = SampleSheet(5, 16)
    training = Trainer(Darkness(), objective, PICTURES, steps=10, batch_size=8, out=tmp_path, callbacks=[sheet], monitor=None)
    training.fit()
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-00000005.png", "step-00000010.png"]
    with Image.open(tmp_path / "samples" / "step-00000010.png") as found:
        assert found.size == (4 * 6 - 2, 4 * 6 - 2)
        corner = found.getpixel((0, 0))[0] / 255
    chain = objective.state()["slots"][0, 0, 0, 0].clamp(0, 1).item()
    assert corner == pytest.approx(chain, abs=1 / 255)


def test_a_sheet_shows_draws_from_the_averaged_energy(tmp_path):
    """With a rate of nothing the energy stays at .2, and its cold draws are that gray."""
    options = {"sampler": "langevin", "steps": 50, "step_size": 0.02, "temperature": 0.0}
    sheet = SampleSheet(10, 4, chains=False, **options)
    training = {"optimizer": Optimizer(rate=1e-9), "monitor": None, "ema": 0.9}
    objective = ContrastiveDivergence(steps=1, options={"step_size": 0.01}, buffer=8, l2=0.0)
    Trainer(Darkness(), objective, PICTURES, steps=10, batch_size=8, out=tmp_path, callbacks=[sheet], **training).fit()
    with Image.open(tmp_path / "samples" / "step-00000010.png") as found:
        assert found.getpixel((1, 1))[0] / 255 == pytest.approx(0.2, abs=1 / 255)


@pytest.mark.parametrize(
    ("sheet", "data", "told"),
    [
        (SampleSheet(chains=True), PICTURES, "keeps no chains"),
        (SampleSheet(), PICTURES, "draws from an energy"),
        (SampleSheet(of=lambda model: ce.as_energy(lambda x: x.square().sum(1))), DATA, "are no pictures"),
    ],
)
def test_a_sheet_says_at_the_beginning_that_it_has_nothing_to_show(sheet, data, told, tmp_path):
    with pytest.raises(OptionError, match=told):
        Trainer(network(), Scripted({}), data, steps=3, batch_size=8, out=tmp_path, callbacks=[sheet]).fit()


def test_the_bar_shows_loss_gap_and_rate(capsys):
    trainer(Scripted({"gap": lambda step, seed: 0.25}), None, progress=True).fit()
    shown = capsys.readouterr().err
    assert "20/20" in shown and "gap=0.25" in shown and "rate=0.01" in shown and "loss=" in shown


def test_a_monitor_that_sees_nothing_changes_nothing(tmp_path):
    weights = []
    for monitor in (Monitor(**SOON), None):
        going = trainer(Scripted({"gap": lambda step, seed: 0.1}), monitor)
        assert going.fit().events == ()
        weights.append(torch.cat([tensor.flatten() for tensor in going.model.state_dict().values()]))
    assert torch.equal(*weights)
