"""The base of the experiments: tables, pictures, files of results, and the list of all experiments."""

import functools
import importlib

import pytest
import torch

from benchmarks.harness import read_options
from benchmarks.papers.experiment import Paper, arrange_grid, arrange_rows, print_table
from benchmarks.papers.run_all import NEEDS, STAGES, main, module_of
from tests.refusals import refused


def test_pictures_stand_side_by_side():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 2, 2)
    sheet = arrange_grid(images, 3)
    assert sheet.shape == (3, 4, 6)
    assert sheet[0, 0].tolist() == [0, 0, 1, 1, 2, 2] and sheet[2, 3].tolist() == [3, 3, 4, 4, 5, 5]


def test_rows_of_pictures_have_gaps():
    sheet = arrange_rows([torch.zeros(3, 3, 8, 8), torch.full((2, 3, 8, 8), 0.5)], scale=2, gap=2)
    assert sheet.shape == (3, 2 * 18, 2 * 28)
    assert sheet[0, 0, 0] == 0 and sheet[0, 20, 0] == 0.5 and sheet[0, 20, 40] == 1  # the second row has no third picture


def test_figures_and_tables(capsys, tmp_path):
    print_table("Title", [{"row": "a", "value": 0.98765}, {"row": "b", "more": [0.5, 2.0]}])
    lines = ["Title", "row  value  more", "---  -----  ----------", "a    .988", "b           .500 2.000"]
    assert capsys.readouterr().out.splitlines()[1:] == lines
    paper = Paper("some-paper", tmp_path)
    paper.write("some", {"a": (0.1234567, {"b": 1}), "pictures": {"drawn": torch.rand(3, 4, 6)}}, samples=7)
    text = (paper.results / "some.json").read_text()
    assert paper.results == tmp_path / "benchmarks" / "results" / "some-paper" and '"samples": 7' in text
    assert text.partition('"a"')[2].split() == [":", "[", "0.12346,", "{", '"b":', "1", "}", "]", "}"]
    assert (paper.pictures / "drawn.png").stat().st_size > 50


@pytest.mark.parametrize(("paper", "name"), [(paper, name) for paper in STAGES for stage in STAGES[paper] for name in stage])
def test_every_experiment_is_a_module_with_help(paper, name, capsys, monkeypatch):
    module = importlib.import_module(module_of(paper, name))
    assert f"python -m {module.__name__}" in (module.__doc__ or "")


@pytest.mark.parametrize(("name", "needed"), NEEDS.items())
def test_a_needed_experiment_stands_before_those_that_need_it(name, needed):
    """Otherwise the threads that wait for it could be all that there are."""
    (stage,) = (stage for stages in STAGES.values() for stage in stages if name in stage)
    assert needed in stage[: stage.index(name)]


def test_a_paper_must_be_known(capsys):
    refused(SystemExit, None, main, ["some_paper"])
    assert "invalid choice: 'some_paper'" in capsys.readouterr().err


def test_options_have_the_types_of_their_defaults(capsys):
    read = functools.partial(read_options, "About\n\nmore", None, seeds=(0, 1), rows=("a", "b"), only=(), steps=5, fast=False)
    assert vars(read([])) == {"seeds": (0, 1), "rows": ("a", "b"), "only": (), "steps": 5, "fast": False}
    found = read(["--seeds", "3", "--rows", "b", "--only", "some", "text", "--steps", "7", "--fast"])
    assert vars(found) == {"seeds": [3], "rows": ["b"], "only": ["some", "text"], "steps": 7, "fast": True}
    refused(SystemExit, None, read, ["--rows", "c"])
    assert "invalid choice: 'c'" in capsys.readouterr().err
