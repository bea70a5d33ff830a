"""Bad input to diffusion energies: error messages; models that are saved, copied and bound."""

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import ExpressionError, LiftError, OptionError, ShapeError
from composable_energy_diffusion import SCHEDULES, Cosine, DiffusionEnergy, DiscreteVP, LinearVP, RectifiedFlow, noise_of, schedule_of


def unit(x, t):
    return x


def labelled(x, t, y):
    return x


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("vpp", r"must be one of .*, got 'vpp'\. .*vp"),
        ({"name": "vp", "beta": 1}, r"vp takes beta_min, beta_max, time_scale, got beta"),
        ({"name": "ve", "sigma_min": 3, "sigma_max": 2}, "sigma_min must be below sigma_max"),
        ({"name": "vp-discrete", "betas": "lineer"}, r"one of linear, scaled-linear, cosine, got 'lineer'"),
        ({"name": "vp-discrete", "betas": [0.1, 1.0]}, "no signal at the last step.*leave that step out"),
    ],
    ids=str,
)
def test_schedules_that_do_not_exist(schedule, message):
    with pytest.raises(OptionError, match=message):
        DiffusionEnergy(unit, schedule)


def test_models_and_parametrisations_that_do_not_fit():
    with pytest.raises(OptionError, match=r"parametrisation must be one of .*'epsilon'.*got 'eps'"):
        DiffusionEnergy(unit, "vp", "eps")
    with pytest.raises(OptionError, match="edm is that of the schedule edm, got the schedule vp"):
        DiffusionEnergy(unit, "vp", "edm")
    for wrong in (3, nn.Linear):
        with pytest.raises(LiftError, match="model must be a module or function of points and times"):
            DiffusionEnergy(wrong)
    with pytest.raises(ExpressionError, match="takes no label"):
        DiffusionEnergy(labelled, unconditional={"label": 3})


def test_outputs_of_other_shapes_are_refused():
    x, sigma = torch.zeros(3, 4, 2, 2), torch.ones(3)
    with pytest.raises(ShapeError, match=r"\(3, 4\) for points of shape \(3, 4, 2, 2\)"):
        noise_of(torch.zeros(3, 4), x, sigma, "epsilon", LinearVP())
    E = DiffusionEnergy(lambda x, t: torch.cat([x, x], 1), "vp")
    with pytest.raises(ShapeError, match="the second half of its channels is a variance"):
        E.with_gradient(x, sigma=1.0)
    with pytest.raises(ShapeError, match=r"gave a dict; return the tensor alone"):
        DiffusionEnergy(lambda x, t: {"sample": x}, "vp").with_gradient(x, sigma=1.0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_outside_of_the_schedule_are_refused(name):
    E = DiffusionEnergy(unit, name)
    low, high = E.sigma_range
    for sigma in (low, high):
        assert E.with_gradient(torch.ones(2, 1), sigma=sigma)[1].isfinite().all()
    for sigma in (low / 2, 2 * high, 0.0):
        with pytest.raises(OptionError, match=f"of its schedule {name}"):
            E.with_gradient(torch.ones(2, 1), sigma=sigma)


def test_what_needs_a_value_is_refused():
    E = DiffusionEnergy(labelled, "vp", unconditional={"y": 0}, name="model", event_shape=(1,))
    concept = E.concept(y=1)
    for refused in (
        lambda: concept.sample(3, sampler="hmc", seed=0),
        lambda: E.given(y=1).sample(3, sampler="mala", seed=0),
        lambda: (E.concept(y=2) & ~concept).sample(3, sampler="ode", seed=0),
        lambda: (concept | E.concept(y=2)).sample(3, sampler="sde", seed=0),
        lambda: E.at(1.0)(torch.zeros(2, 1)),
    ):
        with pytest.raises(ExpressionError, match=r"values|has a gradient and no value"):
            refused()
    with pytest.raises(ExpressionError, match=r"depends on sigma, which is not bound"):
        E.with_gradient(torch.zeros(2, 1))


def test_a_concept_needs_an_unconditional_model():
    E = DiffusionEnergy(labelled, "vp")
    with pytest.raises(ExpressionError, match=r"needs y: give the values of no concept, such as `unconditional=\{'y': 0\}`"):
        E.concept(y=1)
    with pytest.raises(ExpressionError, match="takes no z"):
        DiffusionEnergy(labelled, "vp", unconditional={"y": 0}).concept(z=1)


def test_schedules_come_back_from_their_config():
    for schedule in (LinearVP(0.2, 10), Cosine(time_scale=1000), DiscreteVP([0.1, 0.2, 0.3]), RectifiedFlow(True)):
        assert schedule_of(schedule.config()) == schedule
    assert schedule_of("ve") is not None and {cls().name for cls in SCHEDULES.values()} == set(SCHEDULES)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x, t):
        return self.weight * x


def test_an_energy_is_rebuilt_and_saved_with_its_schedule(tmp_path):
    with ce.register("encoder", "test-denoiser", Denoiser):
        net = ce.get("encoder", "test-denoiser")
        schedule = {"name": "vp", "beta_min": 0.2, "beta_max": 10}
        E = ce.get("energy", "diffusion", model=net, schedule=schedule, parametrisation="v", event_shape=(2,))
        assert E.rebuild(parametrisation="x0").parametrisation == "x0"
        E.save(tmp_path / "E")
        loaded = ce.load(tmp_path / "E")
    assert loaded.equals(E) and loaded.schedule == LinearVP(0.2, 10)
