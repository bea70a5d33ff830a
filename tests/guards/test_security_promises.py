"""Each promise of SECURITY.md has a test, here or where it says, and each is in SECURITY.md."""

import builtins
import contextlib
import inspect
import re
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.distributions import Normal

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, OptionError
from composable_energy_cli import main
from composable_energy_cli.parsing import parse
from composable_energy_image.data import arrays, open_pictures
from composable_energy_latent import load_generator
from tests.campaign.faults import POSSIBLE

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
    promised = re.findall(r"^- \*\*(.+?)\.\*\*", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert promised == list(PROMISES)
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
    kinds = {outcome.partition(":")[0] for outcome in counts.outcomes}
    assert kinds == {"folder", "recommendation", "recipe", "picture"}
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
    read = lambda path, *_: (Path(path).parent.parent.parent / "left").write_text("x")
    patch.setattr("composable_energy.files.expressions.read_record", read)


@forks
@pytest.mark.full
@pytest.mark.parametrize(
    ("plant", "kind"), [*((plant, "code or access") for plant in (_opens_paths, _unpickles, _writes)), (_hangs, "hang")]
)
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
    with pytest.raises(ComposableEnergyError):
        ce.load(tmp_path)
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
                with pytest.raises(OptionError, match=r"can run any code.*trust=True.*load_state_dict"):
                    read(path)
    assert load_generator(tmp_path / "g.pt", trust=True)(torch.zeros(1, 2)).shape == (1, 2)


@pytest.mark.parametrize("text", ["__import__('os').system('x')", "(lambda: 0)()", "[x for x in ()]", "f'{x}'", "$(x)"])
def test_expressions_and_arguments_run_no_code(monkeypatch, text, capsys):
    for name in ("eval", "exec", "compile", "__import__"):
        real = getattr(builtins, name)

        def forbidden(source, *args, real=real, name=name, **more):
            caller = sys._getframe(1).f_code.co_filename
            if "composable_energy" in caller and text in str(source):
                pytest.fail(f"{name} was called with the text")
            return real(source, *args, **more)

        monkeypatch.setattr(builtins, name, forbidden)
    with contextlib.suppress(ComposableEnergyError):
        parse(text)
    assert main(["sample", text, "-n", "1", "-o", "x.npy"]) == 2
    with pytest.raises(SystemExit):
        main(["sample", "plane/ring", "--given", f"x={text}"])
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["\x1b[2J", "a\x1b]0;x\x07", "./\x9b2J", "ring & \x08\x08"])
def test_commands_print_no_control_characters(tmp_path, text, capsys):
    train = ["train", "--recipe", text, "--data", text, "--out", text]
    for words in (["sample", text, "-o", str(tmp_path / "x.npy")], ["explain", text, text], train):
        with contextlib.suppress(SystemExit):
            assert main(words) == 2
        shown = capsys.readouterr()
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown.out + shown.err)
