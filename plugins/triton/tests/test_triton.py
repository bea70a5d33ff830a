"""The Triton plug-in without a GPU: run by the interpreter in a process of its own, compiled for GPUs, and its refusals."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import composable_energy as ce
from composable_energy.testing import SkipCheck
from composable_energy_triton import TritonKernel
from composable_energy_triton.testing import check_kernel, kernel_checks
from tests.recorded_kernel import Recorded

triton = pytest.importorskip("triton", reason="Triton runs on Linux")
HERE = Path(__file__).parent


@pytest.mark.full
def test_the_kernel_agrees_with_the_reference_under_the_interpreter():
    """Triton settles when it is imported whether it interprets, so the tests of `interpreted.py` have a process of their own."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", str(HERE / "interpreted.py")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV_"))}
    environment |= {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=HERE.parents[2], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout


def _compiled(capability, dtype, rows, quads, gradient, momentum, types=None):
    """The kernel as it is compiled for a GPU, which need not be there."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from composable_energy_triton.step import langevin

    names, given = langevin.arg_names, types or {}
    constants = {"GRADIENT": gradient, "MOMENTUM": momentum, "READ": True, "NOISE": True, "BOX": True, "ROWS": rows, "QUADS": quads}
    types = dict.fromkeys(names, "i32") | dict.fromkeys(("drift", "scale", "keep", "move", "low", "high"), "fp32")
    types |= {name: f"*{dtype}" for name in names if name.endswith("_ptr")} | dict.fromkeys(constants, "constexpr")
    types |= given
    constants |= {name: 1 for name, kind in given.items() if kind == "constexpr"}
    aligned = [(names.index(name),) for name in names if name.endswith("_ptr") or (name in ("rows", "size") and name not in given)]
    divisible = {place: [["tt.divisibility", 16]] for place in aligned}
    source = ASTSource(langevin, types, {(names.index(name),): value for name, value in constants.items()}, divisible)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


@pytest.mark.full
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "rows", "quads", "gradient", "momentum"),
    [("fp32", 1, 256, True, False), ("bf16", 1, 256, True, True), ("fp16", 256, 1, True, False), ("fp32", 16, 16, False, False)],
)
def test_it_compiles_for_gpus(capability, dtype, rows, quads, gradient, momentum, tmp_path, monkeypatch):
    """Down to machine code, where numbers of large events are read and written 16 bytes at a time and nothing spills out of registers."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = _compiled(capability, dtype, rows, quads, gradient, momentum)
    assert compiled.asm["cubin"]
    for access in ("ld.global.v4.b32", "st.global.v4.b32"):
        assert quads == 1 or access in compiled.asm["ptx"]  # four numbers of a chain in half precision have 8 bytes
    assert ".local" not in compiled.asm["ptx"]


def test_it_says_where_it_runs(monkeypatch):
    kernel = ce.get("kernel", "triton")
    assert isinstance(kernel, TritonKernel)
    ready, reason = kernel.available()
    assert ready == torch.cuda.is_available() and (ready or reason == "torch finds no GPU")
    assert "not on cpu" in kernel.refusal(torch.zeros(1)) and "not float64" in kernel.refusal(torch.zeros(1, dtype=torch.float64))
    monkeypatch.setattr(triton, "__version__", "3.2.0")
    assert TritonKernel().available() == (False, "Triton 3.2.0 is too old: 3.3 is the oldest that is tested")
    monkeypatch.setattr("composable_energy_triton.kernel.find_spec", lambda name: None)
    assert TritonKernel().available() == (False, "Triton is not installed: `pip install composable-energy[triton]`")


@pytest.mark.full
@pytest.mark.parametrize(("rows", "size"), [("constexpr", "i32"), ("i32", "constexpr"), ("i64", "i64")])
def test_it_compiles_for_one_chain_one_number_and_more_than_an_int32_holds(rows, size, tmp_path, monkeypatch):
    """Triton makes a constant of a number that is one, and an int64 of a large one."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert _compiled(90, "fp32", 16, 16, True, True, {"rows": rows, "size": size}).asm["cubin"]


@pytest.mark.slow
def test_the_kit_passes_the_reference_and_catches_what_is_wrong():
    class Wrong(Recorded):
        def __init__(self, **changed):
            super().__init__()
            self.changed = changed

        def langevin_step(self, x, gradient, momentum, numbers, noise, stream, out, out_momentum):
            numbers = numbers._replace(**{k: v for k, v in self.changed.items() if k in numbers._fields})
            if self.changed.get("chain"):
                noise = noise.for_chains(range(len(x)))
            if self.changed.get("spill"):
                out.as_strided((1,), (1,), out.storage_offset() + out.numel()).fill_(0.0)
            if self.changed.get("greedy"):
                x.add_(1.0)
            if self.changed.get("hide"):
                x = x.nan_to_num(0.0)
            super().langevin_step(x, gradient, momentum, numbers, noise, stream, out, out_momentum)

    shapes = [(3, 2), (5,), (2, 7)]
    check_kernel(Recorded(), shapes=shapes)
    for faults, caught in (
        ({"drift": 0.0}, {"step"}),
        ({"low": None}, {"step"}),
        ({"scale": 2**0.5}, {"noise"}),
        ({"move": 0.0}, {"momentum"}),
        ({"chain": True}, {"noise"}),
        ({"spill": True}, {"bounds"}),
        ({"greedy": True}, {"inputs", "chains"}),
        ({"hide": True}, {"nan"}),
    ):
        failed = set()
        for check in kernel_checks(Wrong(**faults), shapes=shapes):
            try:
                check()
            except AssertionError:
                failed.add(check.name)
            except SkipCheck:
                continue
        assert caught <= failed, faults
