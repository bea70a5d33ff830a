"""Energies that fail in many ways, and random arguments on the command line."""

import contextlib
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError
from composable_energy_cli import main
from tests.campaign.runner import Area, Defect, check, typed
from tests.factories import quadratic as bowl

_WORDS = [
    *("sample", "explain", "energies", "plugins", "recipes", "train", "render", "new-plugin"),
    *["-n", "-o", "--seed", "--steps", "--json", "--sampler", "--option", "--given", "--in", "--range"],
    *["1", "-1", "1e9", "99999999999999999999", "nan", "x.png", "x.npy", "/dev/null/x.png", "a=b", "step_size=nan"],
    *("\x1b[2J", "", "male", "~", "&", "faces/none", "./nowhere", "chees", "nobody", "\udcff", "\u00e9" * 300),
    *("--recipe", "--data", "--out", "--set", "--size", "--kind", "odd.toml", "cd-small", "tetris", "."),
    *("\x9b2J", "o\x1b[2Jut", "\u202e"),
]
_SHOWN = [
    ["recipes"],
    ["recipes", "odd.toml"],
    ["recipes", "odd.toml", "--json"],
    ["render", "tetris", "-n", "1", "--size", "8", "-o", "o\x1b[2Jut"],
    ["train", "--recipe", "odd.toml", "--data", "\x1b[2J", "--out", "o\x1b[2Jut"],
    ["train", "--recipe", "odd.toml", "--data", ".", "--out", "o\x1b[2Jut", "--set", "a\x1b[2J=1"],
    ["new-plugin", "odd", "--directory", "o\x1b[2Jut"],
    ["render", "tetris", "-n", "1", "-o", "f\x1b[2Jile"],
    ["train", "--recipe", "odd.toml", "--data", ".", "--out", "f\x1b[2Jile"],
]


class Mine(Exception):  # noqa: N818
    """An error that an energy of a trial raises on purpose."""


def raising(error: BaseException) -> Callable[[Tensor], Tensor]:
    def energy(x: Tensor) -> Tensor:
        raise error

    return energy


def _in_place(x: Tensor) -> Tensor:
    x.data.mul_(2)
    return bowl(x)


FAILING: dict[str, Callable[[Tensor], Any]] = {
    "nan": lambda x: bowl(x) * torch.nan,
    "nan beyond 1": lambda x: torch.where(x[:, 0] > 1, torch.nan, bowl(x)),
    "inf": lambda x: bowl(x) + torch.inf,
    "inf beyond 0": lambda x: torch.where(x[:, 0] > 0, torch.inf, bowl(x)),
    "minus inf": lambda x: bowl(x) - torch.inf,
    "minus inf beyond 1": lambda x: torch.where(x[:, 0] > 1, -torch.inf, bowl(x)),
    "no lower bound": lambda x: -bowl(x),
    "steep": lambda x: 1e30 * bowl(x),
    "flat": lambda x: 0 * bowl(x),
    "tiny": lambda x: 1e-30 * bowl(x),
    "offset": lambda x: bowl(x) + 1e30,
    "log of a negative number": lambda x: x[:, 0].log() + bowl(x),
    "root": lambda x: x[:, 0].sqrt() + bowl(x),
    "division by zero": lambda x: 1 / (x[:, 0] - x[:, 0]),
    "exp": lambda x: x.exp().exp().sum(1),
    "pole": lambda x: -1 / x.norm(dim=1),
    "step": lambda x: (x[:, 0] > 0).to(x.dtype),
    "rounded": lambda x: x.round().square().sum(1),
    "norm at its corner": lambda x: (x - x.detach()).norm(dim=1) + bowl(x),
    "detached": lambda x: bowl(x.detach()),
    "item": lambda x: torch.tensor([float(row.square().sum()) for row in x]),
    "one number": lambda x: bowl(x).sum(),
    "a column": lambda x: bowl(x)[:, None],
    "a row too few": lambda x: bowl(x)[:-1],
    "a matrix": lambda x: x,
    "a float": lambda x: 3.0,
    "None": lambda x: None,
    "a list": lambda x: bowl(x).tolist(),
    "a tuple": lambda x: (bowl(x), bowl(x)),
    "text": lambda x: "energy",
    "integers": lambda x: bowl(x).long(),
    "booleans": lambda x: bowl(x) > 1,
    "complex numbers": lambda x: bowl(x).to(torch.complex64),
    "double precision": lambda x: bowl(x).double(),
    "half precision": lambda x: bowl(x).half(),
    "a sparse tensor": lambda x: bowl(x).to_sparse(),
    "meta": lambda x: bowl(x.to("meta")),
    "noise": lambda x: bowl(x) + torch.randn(len(x)),
    "in place": _in_place,
    "mean of the batch": lambda x: bowl(x) + bowl(x).mean(),
    "ValueError": raising(ValueError("mine")),
    "MemoryError": raising(MemoryError("mine")),
    "Mine": raising(Mine("mine")),
    "Cholesky": lambda x: torch.linalg.cholesky(-torch.eye(2)).sum() * bowl(x),
}
SAMPLERS: list[tuple[str, dict[str, Any]]] = [
    ("langevin", {"step_size": 0.1}),
    ("mala", {"step_size": 0.3}),
    ("underdamped", {"step_size": 0.1}),
    ("hmc", {"step_size": 0.2}),
    ("smc", {}),
    ("chees", {}),
]
_OWN = (Mine, ValueError, MemoryError, TypeError, torch.linalg.LinAlgError)


def sample_odd_energies(chance: random.Random, place: Path) -> str:
    name = chance.choice(list(FAILING))
    sampler, options = chance.choices(SAMPLERS, [6, 6, 6, 6, 1, 1])[0]  # the last two tune themselves, which takes long
    policy = chance.choice(["raise", "keep"])
    energy: ce.Energy = ce.as_energy(FAILING[name], name="odd", event_shape=(2,))
    match chance.randrange(5):
        case 0:
            energy = energy & ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
        case 1:
            energy = 0.5 * energy
        case 2:
            energy = energy | ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
    before = torch.get_rng_state(), torch.is_grad_enabled(), torch.get_default_dtype()
    request = {"sampler": sampler, "steps": chance.randrange(1, 8), "seed": 0, "on_divergence": policy, **options}
    if sampler == "smc":
        del request["steps"]
    found, error = typed(lambda: energy.sample((6, 2), allow_improper=True, **request), _OWN)
    check(torch.equal(before[0], torch.get_rng_state()) or name == "noise", "surroundings changed", "the random state")
    check(before[1:] == (torch.is_grad_enabled(), torch.get_default_dtype()), "surroundings changed", "gradients or dtype")
    if error:
        return error
    check(bool(found.isfinite().all()), "silent wrong answer", f"{name} by {sampler} returned points that are not finite")
    check(found.shape == (6, 2), "silent wrong answer", f"shape {tuple(found.shape)}")
    return "finite points"


NUMERICS = Area("numerics", lambda folder: sample_odd_energies)


def call_commands(chance: random.Random, place: Path) -> str:
    if chance.random() < 0.2:
        arguments = list(chance.choice(_SHOWN))
    else:
        arguments = [chance.choice(_WORDS[:8]), *(chance.choice(_WORDS) for _ in range(chance.randrange(6)))]
    (place / "f\x1b[2Jile").touch()
    (place / "odd.toml").write_text('extends = "cd-small"\nabout = "odd \x9b2J \u202e"  # \x9b2J\n')
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(place):
            code = main(arguments)
    except SystemExit as error:
        code = error.code
    except ComposableEnergyError as error:
        raise Defect(f"untyped error: {arguments}: {type(error).__name__} was not shown") from error
    except Exception as error:
        raise Defect(f"untyped error: {arguments}: {type(error).__name__}: {str(error)[:200]}") from error
    printed = out.getvalue() + err.getvalue()
    check(not any(odd in printed for odd in ("\x1b", "\x9b", "\u202e")), "terminal escape", arguments)
    return f"exit code {code}"


COMMANDS = Area("command line", lambda folder: call_commands)
