"""Options of `sample`: the sampler, what the energy recommends, and errors for what does not fit."""

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import DtypeError, ExpressionError, OptionError, ShapeError, UngroundedError
from composable_energy.sampling import Info, Sampler, State, Traits, energy_and_gradient, sample
from composable_energy_mcmc import HMC, Annealed, ChEES, Langevin
from tests.sampling_energies import F64, Bowl, Decoder


class Still(Sampler):
    """Not a dataclass; stays where it is."""

    traits = Traits(steps=2)

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def init(self, energy, x, noise):
        return State(x * self.scale, *energy_and_gradient(energy, x))

    def step(self, energy, state, noise):
        return state, Info()


def named(monkeypatch, **samplers):
    import composable_energy.registry as registry

    monkeypatch.setattr(registry, "get", lambda kind, name: samplers[name])


def test_a_sampler_is_a_name_a_class_or_an_instance(monkeypatch):
    named(monkeypatch, langevin=Langevin)
    draws = [
        Bowl().sample((3, 2), sampler="langevin", step_size=0.3, steps=3, seed=0),
        Bowl().sample((3, 2), sampler=Langevin, step_size=0.3, steps=3, seed=0),
        Bowl().sample((3, 2), sampler=Langevin(0.3), steps=3, seed=0),
        Bowl().sample((3, 2), sampler=Langevin(0.1), step_size=0.3, steps=3, seed=0),
    ]
    assert all(torch.equal(draw, draws[0]) for draw in draws)
    x = torch.ones(3, 2)
    assert torch.equal(Bowl().sample((3, 2), sampler=Still, scale=2.0, init=x), 2 * x)
    assert torch.equal(Bowl().sample((3, 2), sampler=Still(3.0), init=x), 3 * x)


@pytest.mark.slow
def test_a_sampler_of_noise_levels_is_not_recommended_at_a_level():
    energy = Bowl()
    energy.recommended = ce.Recommendation("annealed", {"levels": 5})
    with pytest.raises(OptionError, match=r"recommends annealed\(levels=5\), which sets sigma itself, and here that is bound"):
        (energy & energy).at(0.1).sample((2, 2))
    assert (energy & energy).at(0.1).sample((2, 2), sampler="hmc", steps=2).shape == (2, 2)
    assert (energy.at(0.1) & energy).sample((2, 2)).shape == (2, 2)
    plain = ce.as_energy(lambda x: x.square().sum(1))
    plain.recommended = energy.recommended
    assert plain.sample((2, 2)).shape == (2, 2)


@pytest.mark.slow
def test_without_a_sampler_it_is_what_the_energy_recommends(monkeypatch):
    named(monkeypatch, langevin=Langevin, chees=ChEES, hmc=HMC, annealed=Annealed)
    trace = Bowl().sample((3, 2), steps=1, trace=True)[1]
    assert isinstance(trace.sampler, ChEES) and trace.sampler.step_size is not None
    needs = ce.as_energy(lambda x, sigma: x.square().sum(1) / (1 + 2 * sigma**2))
    assert isinstance(needs.sample((3, 2), trace=True)[1].sampler, Annealed)
    a, b, c = Bowl(), Bowl(), Bowl()
    a.recommended = ce.Recommendation("langevin", {"step_size": 0.2}, threads=3)
    threads = []
    x, trace = (a & b).sample(
        (3, 2), steps=2, seed=0, trace=True, observers=[ce.sampling.Stop(lambda *_: threads.append(torch.get_num_threads()))]
    )
    assert trace.sampler == Langevin(0.2) and threads == [3, 3] and torch.get_num_threads() == 1
    (a & b).sample(
        (3, 2), sampler=Langevin(0.1), steps=1, seed=0, observers=[ce.sampling.Stop(lambda *_: threads.append(torch.get_num_threads()))]
    )
    assert threads[-1] == 3  # they are a matter of the networks, whatever the sampler
    assert torch.equal(x, (a & b).sample((3, 2), sampler=Langevin(0.2), steps=2, seed=0))
    assert (a & b).sample((3, 2), steps=1, step_size=0.1, trace=True)[1].sampler == Langevin(0.1)
    c.name, c.recommended = "c", ce.Recommendation("hmc", {"leapfrogs": 2})
    with pytest.raises(
        OptionError, match=r"different settings: .*Bowl recommends langevin\(step_size=0.2\); c recommends .*hmc\(leapfrogs=2\)"
    ):
        (a & b & c).sample((3, 2))
    assert (a & b & c).sample((3, 2), sampler=Langevin(0.1), steps=1).shape == (3, 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"stepsize": 0.1, "step_size": 0.1},
            OptionError,
            "no option stepsize; it takes step_size, temperature, clamp, metric, max_gradient, max_bias. Did you mean step_size",
        ),
        ({"step_size": 0.1, "zzz": 2}, OptionError, r"no option zzz; it takes step_size, .*, max_bias\."),
        ({"sampler": Langevin(temperature=0.0)}, OptionError, "At temperature 0 there is no bias to tune a step size for"),
        ({"sampler": Still, "speed": 2}, OptionError, "Still has no option speed; it takes scale"),
        ({"sampler": Still(), "scale": 2}, OptionError, "Still is an instance with its options; give scale to its constructor"),
        ({"sampler": 3}, OptionError, "A sampler is a name, a subclass of Sampler or an instance of one, got 3"),
        ({"sampler": dict}, OptionError, "A sampler is a name"),
        ({"steps": 0}, OptionError, "steps must be a whole number of at least 1, got 0"),
        ({"steps": True}, OptionError, "steps must be a whole number of at least 1, got True"),
        ({"batch_size": 0}, OptionError, "batch_size must be a whole number of at least 1"),
        ({"burn_in": -1}, OptionError, "burn_in must be a whole number of at least 0"),
        ({"trace": 0}, OptionError, "trace must be a whole number of at least 1"),
        ({"first_chain": -1}, OptionError, "first_chain must be a whole number of at least 0"),
        ({"first_chain": 2**32 - 1}, OptionError, r"ids of chains stay below 2\^32"),
        ({"shape": 0}, ShapeError, "positive number of points .* got 0"),
        ({"shape": (0, 2)}, ShapeError, r"all positive, got \(0, 2\)"),
        ({"shape": ()}, ShapeError, "positive number of points"),
        ({"shape": True}, ShapeError, "positive number of points"),
        ({"shape": 3}, ShapeError, r"Bowl does not say the shape of its points: ask for \(n, \*shape\), got 3"),
        ({"init": torch.zeros(3, 3)}, ShapeError, r"init has points of shape \(3,\)"),
        ({"init": torch.zeros(4, 2)}, ShapeError, r"init must have the shape \(3, 2\) of the points, got \(4, 2\)"),
        ({"init": torch.zeros(3, 2, dtype=torch.int64)}, DtypeError, "init must be a floating tensor, got torch.int64"),
        ({"init": torch.zeros(3, 2), "dtype": F64}, DtypeError, "init is torch.float32, requested is torch.float64"),
    ],
)
def test_what_does_not_fit_is_reported(options, error, message):
    options = {"shape": (3, 2), "sampler": Langevin, **options}
    if options["sampler"] is Langevin and "needs" not in message and "step_size" not in options:
        options["step_size"] = 0.1
    with pytest.raises(error, match=message):
        Bowl().sample(options.pop("shape"), **options)


@pytest.mark.slow
def test_densities_that_are_none_are_reported():
    bowl, tilt = Bowl(), ce.as_energy(lambda x: x.square().sum(1))
    with pytest.raises(UngroundedError, match=r"nothing grounds ~Bowl.* `&`.*relative_to.*allow_improper=True"):
        (2 * ~bowl).sample((3, 2), sampler=Langevin(0.1))
    with pytest.raises(UngroundedError, match="has no lower bound"):
        (bowl - tilt).sample((3, 2), sampler=Langevin(0.1))
    assert (~bowl).sample((3, 2), sampler=Langevin(0.1), steps=3, allow_improper=True).shape == (3, 2)
    needs = ce.as_energy(lambda x, sigma, y: x.square().sum(1))
    with pytest.raises(
        ExpressionError, match=r"depends on sigma, y, which is not bound: bind .*\.at\(sigma\).* or the annealed .*given\(y="
    ):
        needs.sample((3, 2), sampler=Langevin(0.1))
    with pytest.raises(ExpressionError, match="depends on y"):
        needs.sample((3, 2), sampler=Annealed())
    with pytest.raises(ShapeError, match="latent points; set its `event_shape`"):
        ce.as_energy(lambda image: image.flatten(1).sum(1)).pull_back(Decoder()).sample(3, sampler=Langevin(0.1))


def test_an_error_inside_a_chunk_names_the_energy():
    energy = ce.as_energy(lambda x, c: c.square().sum(1), name="flat").given(c=torch.zeros(4, 2))
    with pytest.raises(ExpressionError, match=r"^flat.given\(c=.*has no gradient"):
        energy.sample((4, 2), sampler=Langevin(0.1), batch_size=3)


def test_other_objects_are_lifted_or_refused():
    drawn = sample(lambda x: x.square().sum(1) / 2, (3, 2), sampler=Langevin(0.1), steps=2, seed=0)
    assert torch.equal(drawn, Bowl().sample((3, 2), sampler=Langevin(0.1), steps=2, seed=0))
    with pytest.raises(TypeError, match="An energy is a callable"):
        sample(3, (3, 2))
