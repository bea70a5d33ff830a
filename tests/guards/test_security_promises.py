"""Each promise of SECURITY.md has a test; what no path, number or type of a file may be is refused with a typed error."""

import builtins
import contextlib
import inspect
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.distributions import Normal, constraints

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, FileFormatError, OptionError
from composable_energy_cli import main
from composable_energy_cli.parsing import parse
from composable_energy_image.data import arrays, open_pictures
from composable_energy_latent import load_generator
from composable_energy_training import open_recipe
from tests.campaign.faults import POSSIBLE
from tests.refusals import refusals, refused
from tests.saving_energies import edit

ROOT = Path(__file__).parents[2]
PROMISES = {
    "Files run no code": "test_mutated_files_run_no_code_name_no_paths_change_nothing_and_end",
    "Files name no paths": "test_mutated_files_run_no_code_name_no_paths_change_nothing_and_end",
    "Files change nothing": "test_reading_changes_no_file",
    "Files end": "test_mutated_files_run_no_code_name_no_paths_change_nothing_and_end",
    "Generators need trust": "test_a_generator_needs_trust",
    "Expressions are data": "test_expressions_and_arguments_run_no_code",
    "Texts are escaped": "test_commands_print_no_control_characters",
    "Other sites get nothing": "plugins/ui/tests/test_ui_server.py::test_requests_from_elsewhere_and_malformed_ones_are_refused",
}
forks = pytest.mark.skipif(not POSSIBLE, reason="forks")


def test_every_promise_has_a_test():
    assert re.findall(r"^- \*\*(.+?)\.\*\*", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), flags=re.MULTILINE) == list(PROMISES)
    for promise in PROMISES.values():
        path, _, name = promise.rpartition("::")
        assert f"\ndef {name}(" in (ROOT / path if path else Path(__file__)).read_text(encoding="utf-8")


@forks
@pytest.mark.full
def test_mutated_files_run_no_code_name_no_paths_change_nothing_and_end():
    """A short part of `python -m tests.campaign --areas hostile`."""
    from tests.hostile import run

    counts = run(400, seed=3)
    assert counts.trials == 400 and not counts.defects, counts.examples
    assert {outcome.partition(":")[0] for outcome in counts.outcomes} == {"folder", "recommendation", "recipe", "picture"}
    assert sum(count for outcome, count in counts.outcomes.items() if outcome.endswith((": used", ": read"))) >= 8


def _opens_paths(patch):
    """Lets a file give a plug-in a path."""
    patch.setattr("composable_energy.files.values.stored_options", lambda builder: dict.fromkeys(inspect.signature(builder).parameters))


def _unpickles(patch):
    loaded = np.load
    patch.setattr(arrays.np, "load", lambda *args, **_: loaded(*args, allow_pickle=True))


def _hangs(patch):
    patch.setattr("composable_energy_image.data.folders.read_picture", lambda path: time.sleep(4))


def _writes(patch):
    read = lambda path, *_, **__: (Path(path).parent.parent.parent / "left").write_text("x")
    patch.setattr("composable_energy.files.expressions.read_record", read)


@forks
@pytest.mark.full
@pytest.mark.parametrize("plant, kind", [*((plant, "code or access") for plant in (_opens_paths, _unpickles, _writes)), (_hangs, "hang")])
def test_a_broken_promise_is_found(monkeypatch, plant, kind):
    from tests import hostile

    if plant is _hangs:
        monkeypatch.setattr(hostile, "LIMIT", 1.0)
    Image.init()
    with monkeypatch.context() as patch:
        plant(patch)
        counts = hostile.run(600, seed=5, until=lambda counts: bool(counts.defects))
    assert kind in counts.defects, counts.examples


def test_reading_changes_no_file(tmp_path, monkeypatch):
    energy = ce.as_energy(Normal(torch.zeros(2), 1.0), name="n")
    energy.save(tmp_path / "given" / "E")
    Image.new("RGB", (4, 4)).save(tmp_path / "given" / "1.png")
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert ce.load(tmp_path / "given" / "E").equals(energy) and ce.load(tmp_path / "given")["E"].equals(energy)
    open_pictures(tmp_path / "given", cache=None)
    refused(ComposableEnergyError, None, ce.load, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_generator_needs_trust(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "g.pt")
    (tmp_path / "g.onnx").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was read"))
        for read in (load_generator, lambda path: ce.get("encoder", "generator", path=path)):
            for path in (tmp_path / "g.pt", tmp_path / "g.onnx"):
                refused(OptionError, r"can run any code.*trust=True.*load_state_dict", read, path)
    assert load_generator(tmp_path / "g.pt", trust=True)(torch.zeros(1, 2)).shape == (1, 2)


@pytest.mark.parametrize("text", ["__import__('os').system('x')", "(lambda: 0)()", "[x for x in ()]", "f'{x}'", "$(x)"])
def test_expressions_and_arguments_run_no_code(monkeypatch, text, capsys):
    for name in ("eval", "exec", "compile", "__import__"):
        real = getattr(builtins, name)

        def forbidden(source, *args, real=real, name=name, **more):
            if "composable_energy" in sys._getframe(1).f_code.co_filename and text in str(source):
                pytest.fail(f"{name} was called with the text")
            return real(source, *args, **more)

        monkeypatch.setattr(builtins, name, forbidden)
    with contextlib.suppress(ComposableEnergyError):
        parse(text)
    assert main(["sample", text, "-n", "1", "-o", "x.npy"]) == 2
    refused(SystemExit, None, main, ["sample", "plane/ring", "--given", f"x={text}"])
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["\x1b[2J", "a\x1b]0;x\x07", "./\x9b2J", "ring & \x08\x08"])
def test_commands_print_no_control_characters(tmp_path, text, capsys):
    train = ["train", "--recipe", text, "--data", text, "--out", text]
    for words in (["sample", text, "-o", str(tmp_path / "x.npy")], ["explain", text, text], train):
        with contextlib.suppress(SystemExit):
            assert main(words) == 2
        shown = capsys.readouterr()
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown.out + shown.err)


X = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))


def normal(mean: float = 0.0) -> ce.Energy:
    return ce.as_energy(Normal(torch.full((2,), mean), 1.0), name=f"at{mean:g}")


def rewrite(folder: Path, change: Any = lambda header: None, tensors: Any = lambda value: value) -> Path:
    """Changes the header and each tensor of a saved energy, with a right digest."""
    return edit(folder, change, lambda found: {name: tensors(value) for name, value in found.items()})


WAYS = {
    "load": ce.load,
    "save": lambda path: normal().save(path),
    "checkpoint": lambda path: normal().sample(2, steps=2, seed=0, observers=[ce.sampling.Checkpoint(path)]),
}


@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_path_has_a_typed_error(way):
    for path in (3, b"x", "~nosuchuser/x", "a\0b", "\ud800", *([] if way == "checkpoint" else [None])):
        refused(ComposableEnergyError, None, WAYS[way], path)


def recommending(folder: Path, sampler: str, **options: Any) -> Path:
    energy = normal()
    energy.recommended = ce.Recommendation("chees")
    energy.save(folder)
    threads = options.pop("threads", None)

    def change(config):
        config["nodes"][-1]["recommended"] = {"sampler": sampler, "options": options, "threads": threads}

    return rewrite(folder, change)


test_a_recommendation_of_a_file_is_checked_when_it_is_loaded = refusals(
    *[("chees", {"threads": threads}, None) for threads in (10**9, 0, True, "2", [1])],
    *[("annealed", {"levels": levels}, None) for levels in (10**9, True, [40], 1e9)],
    ("annealed", {"levels": 10_000, "corrector_steps": 10_000}, None),
    ("annealed", {"corrector": {"$tuple": ["/etc/passwd"]}}, None),
    ("smc", {"moves": 10_000, "leapfrogs": 10_000, "levels": 10_000}, None),
    ("smc", {"schedule": [0.0, 1.0]}, None),
    ("feynman-kac", {"gaussians": [1]}, None),
    ("inner-descent", {"start_image": [1.0]}, None),
    ("langevin", {"step_size": 1e300}, None),
    ("langevin", {"metric": "/etc/passwd"}, None),
    ("lace", {"mean": 3, "scale": 1.0}, None),
    ("ode", {"rho": 1e-300}, None),
    (["chees"], {}, None),
    call=lambda tmp_path, sampler, options: ce.load(recommending(tmp_path / "E", sampler, **options)),
    fixture="tmp_path",
    error=FileFormatError,
)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("chees", {"threads": 2, "max_leapfrogs": 64, "tuning_steps": 320, "metric": "diagonal"}),
        ("annealed", {"levels": 1000, "corrector_steps": 10, "corrector": "mala"}),
        ("langevin", {"step_size": 0.01, "clamp": {"$tuple": [0.0, 1.0]}}),
        ("of-another-package", {"scale": 2.0}),
    ],
    ids=str,
)
def test_usual_recommendations_are_loaded(tmp_path, sampler, options):
    recommended = ce.load(recommending(tmp_path / "E", sampler, **options)).recommended
    assert recommended is not None and recommended.sampler == sampler and recommended.threads == options.get("threads")


@pytest.mark.parametrize("energy", [normal(), nn.Parameter(torch.tensor(0.5)) * normal()], ids=["a distribution", "a weight"])
def test_parameters_of_a_type_without_arithmetic_are_refused(tmp_path, energy):
    for dtype in (torch.bool, torch.float8_e4m3fn, torch.complex64):
        energy.save(tmp_path / "E")
        with pytest.raises(FileFormatError, match=r"dtype|torch|truth values|floating"):
            ce.load(rewrite(tmp_path / "E", tensors=lambda value, dtype=dtype: value.to(dtype)))


NESTED = {"Weighted": 1.5 * (normal() | normal(1.0)), "Conjunction": normal() & normal(1.0), "Disjunction": normal() | normal(1.0)}


def deep(folder: Path, kind: str, levels: int) -> Path:
    NESTED[kind].save(folder)

    def nest(config):
        nodes, node = config["nodes"], config["nodes"][-1]
        while len(nodes) < levels + 1:
            rest = node["terms"][1:] if kind != "Weighted" else []
            nodes.append({**node, "terms": [{"$module": [len(nodes) - 1, ""]}, *rest]})
        config["root"] = {"$module": [len(nodes) - 1, ""]}

    return rewrite(folder, nest)


@pytest.mark.parametrize("kind", NESTED)
def test_an_expression_that_is_too_deep_to_be_used_is_refused(tmp_path, kind):
    refused(FileFormatError, "nested more than 100 times", ce.load, deep(tmp_path / "E", kind, 290))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
@pytest.mark.parametrize("kind", ["Weighted", "Disjunction"])
def test_an_expression_that_is_loaded_can_be_used(tmp_path, kind):
    energy = ce.load(deep(tmp_path / "E", kind, 95))
    assert energy(X).isfinite().all() and len(str(energy)) > 95 and repr(energy)
    energy.with_gradient(X)
    energy.sample((2, 2), sampler="langevin", step_size=1e-20, steps=1, seed=0)
    energy.save(tmp_path / "again")


def read_recipe(tmp_path, *lines):
    (tmp_path / "r.toml").write_text("\n".join(lines))
    open_recipe(tmp_path / "r.toml")


ABOUT, SMALL = 'about = "a"\nsource = "b"\nneeds = "c"\ncost = "d"', 'extends = "cd-small"'
test_recipes_that_are_deep_or_long_or_give_paths_or_names_of_another_type_have_a_typed_error = refusals(
    (ABOUT, "[model]", "name = " + "[" * 3000, None),
    (ABOUT, "[model]", "name = " + "{a=" * 3000 + "1" + "}" * 3000, None),
    (ABOUT, "[" + ".".join(["a"] * 3000) + "]", "x = 1", None),
    (ABOUT, ".".join(["model"] * 3000) + " = 1", None),
    (ABOUT, "[model]", "size = " + "1" * 5000, None),
    (ABOUT, "[optimizer]", "learning_rate = " + "1" * 400, None),
    (SMALL, "[model]", 'name = "faces"', 'folder = "/etc"', "folder"),
    (SMALL, "[model]", 'name = "diffusers"', 'location = "/etc"', "location"),
    *((SMALL, "[model]", f"name = {name}", "[sampling]", f"sampler = {name}", "names no model|is a text") for name in ("1.5", "[1]")),
    (SMALL, f"[model.{'.'.join('a' * 40_000)}]", "at most are read"),  # takes the square of its parts
    call=read_recipe,
    fixture="tmp_path",
    error=ComposableEnergyError,
)


@pytest.mark.parametrize("decoder", ["x", {"a": 1}], ids=str)
def test_a_decoder_that_is_no_module_is_refused(tmp_path, decoder):
    normal().save(tmp_path / "E")
    rewrite(tmp_path / "E", lambda config: config["nodes"][-1]["config"].update(decoder=decoder))
    refused(FileFormatError, "decoder must be a Module", ce.load, tmp_path / "E")


@pytest.mark.parametrize("value", ["x", [1.0], True], ids=str)
def test_numbers_of_nodes_are_numbers(tmp_path, value):
    """What a node writes into its text, or a support takes as a bound, is checked when it is built."""
    ce.negate(normal().relative_to(normal(1.0)), mode="contrast", offset=0.5).save(tmp_path / "E")
    rewrite(tmp_path / "E", lambda config: config["nodes"][-1]["config"].update(offset=value))
    refused(FileFormatError, "offset must be a number", ce.load, tmp_path / "E")
    normal().on(constraints.interval(-1.0, 1.0)).save(tmp_path / "S")
    if value is not True:
        with pytest.raises(FileFormatError):
            ce.load(rewrite(tmp_path / "S", lambda config: config["nodes"][-1]["config"]["support"]["$support"][1].__setitem__(0, value)))
