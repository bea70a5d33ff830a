"""Rows of benchmarks: what was measured is kept, a row that fails is one line, and an unknown row is an error."""

import re
import subprocess
import sys
import time

import pytest

from benchmarks import gpu, multimodal
from benchmarks.harness import ROOT, read_json, run_benchmark, write_json


def test_a_row_that_fails_is_one_line_and_the_others_run(tmp_path, capsys):
    out = tmp_path / "gpu.json"

    def fail():
        raise AssertionError("numbers\ndiffer")

    assert gpu.run({"parity, step": fail, "parity, noise": lambda: {"found": "holds"}}, out, {"hardware": "one"}) == 1
    rows = {row["row"]: row for row in read_json(out)["rows"]}
    assert rows["parity, step"]["error"] == "AssertionError: numbers differ" and rows["parity, noise"]["found"] == "holds"
    assert len(capsys.readouterr().out.splitlines()) == 2
    gpu.run({"parity, step": lambda: {"found": "holds"}}, out, {"hardware": "one"})
    assert [row.get("found") for row in read_json(out)["rows"]] == ["holds", "holds"]
    gpu.run({"parity, step": lambda: {"found": "holds"}}, out, {"hardware": "another"})
    assert [row["row"] for row in read_json(out)["rows"]] == ["parity, step"], "rows of different hardware are not mixed"


def test_one_work_that_fails_leaves_the_others():
    row = gpu.measured({"copy": lambda: None, "triton": lambda: 1 / 0}, gpu.TINY)
    assert row["copy_microseconds"] >= 0 and row["triton_error"] == "ZeroDivisionError: division by zero"


@pytest.mark.full
def test_a_run_on_the_cpu_that_is_killed_leaves_its_rows(tmp_path):
    pytest.importorskip("triton", reason="Triton runs on Linux")
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--only", "parity", "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    for _ in range(600):
        if out.exists():
            break
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert read_json(out)["rows"][0]["found"] == "holds"


def test_a_text_that_no_row_has_is_an_error_with_the_names(capsys):
    with pytest.raises(SystemExit) as stop:
        run_benchmark(None, multimodal.PATH, multimodal.run, ["--only", "four"], seeds=1, only=[])
    assert stop.value.code == 2 and "hmc; chees; annealed; tempering; smc" in capsys.readouterr().err


def test_a_file_of_results_is_whole_or_the_earlier_one(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"rows": [1, 2]})
    with pytest.raises(TypeError):
        write_json(path, {"rows": object()})
    assert read_json(path) == {"rows": [1, 2]} and list(tmp_path.iterdir()) == [path]


def test_the_environment_of_the_other_libraries_names_each_once():
    lines = (ROOT / "benchmarks" / "requirements-peers.txt").read_text(encoding="utf-8").splitlines()
    pinned = [re.fullmatch(r"([a-z][\w-]*)==[\d.]+", line)[1] for line in lines if not line.startswith("#")]
    assert len(pinned) == len(set(pinned)) and {"blackjax", "ebmkit", "jax", "numpyro", "thrml", "torchebm"} <= set(pinned)
