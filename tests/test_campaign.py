"""Faults at each system call that writes; and a short part of the reliability campaign, of which `make campaign` runs all."""

import contextlib
import errno
import json
import random

import pytest

from tests.campaign.__main__ import main
from tests.campaign.crashes import WORKS
from tests.campaign.faults import KILLED, POSSIBLE, Faults, in_child
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
    (code,) = ended([start("campaign", _print, folder, ["--seed", "20", "--minutes", "4", "--out", str(folder), *options], parent=True)])
    return code, (folder / "printed").read_text()


@pytest.mark.parametrize("area", TRIALS)
def test_an_area_has_no_defect(tmp_path, area):
    code, printed = campaign(tmp_path, "--areas", area, "--trials", str(TRIALS[area]))
    assert code == 0, printed
    (counts,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert counts["trials"] == sum(counts["outcomes"].values()) == TRIALS[area]


CASES = [(*case, fault) for case in (("save", 0, 3), ("save", 1, 3), ("sampling", 0, 20)) for fault in (None, errno.ENOSPC)]


@pytest.mark.parametrize(("name", "seed", "least", "fault"), [*CASES, ("training", 0, 15, None)])
def test_a_fault_at_any_system_call_spoils_nothing(tmp_path, name, seed, least, fault):
    """A folder has the old or the new energy, or a run ends with the same bits, and no file is left behind; one seed saves over a save."""
    found, at, done = set(), 0, False
    while not done:
        place = tmp_path / str(at)
        place.mkdir()
        work = WORKS[name](random.Random(seed), place)
        code, text = in_child(work.run, Faults(at, place, fault))
        assert code == 0 or (code == KILLED if fault is None else text.startswith("composable_energy.errors.StorageError")), text
        found.add(work.check())
        done = code == 0 and (fault is None or int(text) <= at)
        at += 1
    assert len(found) == 2 and at > least


def test_a_campaign_continues_and_its_counts_add_up(tmp_path):
    for _ in range(2):
        assert campaign(tmp_path, "--areas", "command line", "--trials", "5")[0] == 0
    code, printed = campaign(tmp_path, "--report")
    assert code == 0 and "| command line | 10 |" in printed
