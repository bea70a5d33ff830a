"""A short part of the reliability campaign, with seeds of its own; `make campaign` runs all of it."""

import contextlib
import json

import pytest

from tests.campaign.__main__ import main
from tests.campaign.faults import POSSIBLE
from tests.processes import ended, needs_forkserver, start

pytestmark = [
    pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning"),
    pytest.mark.full,
    needs_forkserver,
    pytest.mark.skipif(not POSSIBLE, reason="forks, and reads the names of open files"),
]

TRIALS = {
    "kills in save": 8,
    "kills in sampling": 5,
    "kills in training": 3,
    "full disk": 8,
    "clocks": 5,
    "races": 5,  # which are of all kinds
    "numerics": 10,
    "command line": 15,
}


def _print(place, words):
    with (place / "printed").open("w") as file, contextlib.redirect_stdout(file):
        code = main(words)
    if code:
        raise SystemExit(code)


def campaign(folder, *options):
    """Runs a campaign in a forked process, which has the imports already; returns its exit code and what it printed."""
    words = ["--seed", "20", "--minutes", "4", "--out", str(folder), *options]
    (code,) = ended([start("campaign", _print, folder, words, parent=True)])
    return code, (folder / "printed").read_text()


@pytest.mark.parametrize("area", TRIALS)
def test_an_area_has_no_defect(tmp_path, area):
    code, printed = campaign(tmp_path, "--areas", area, "--trials", str(TRIALS[area]))
    assert code == 0, printed
    (counts,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert counts["trials"] == sum(counts["outcomes"].values()) == TRIALS[area]


def test_a_campaign_continues_and_its_counts_add_up(tmp_path):
    for _ in range(2):
        assert campaign(tmp_path, "--areas", "command line", "--trials", "5")[0] == 0
    code, printed = campaign(tmp_path, "--report")
    assert code == 0 and "| command line | 10 |" in printed
