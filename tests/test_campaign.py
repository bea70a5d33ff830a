"""A short part of the reliability campaign, with seeds of its own; `make campaign` runs all of it."""

import json
import subprocess
import sys

import pytest

from tests.campaign.faults import POSSIBLE
from tests.campaign.runner import Counts, merge, save_counts

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not POSSIBLE, reason="forks, and reads the names of open files")]

TRIALS = {
    "files": 60,
    "pictures": 60,
    "kills in save": 15,
    "kills in sampling": 8,
    "kills in training": 4,
    "full disk": 15,
    "clocks": 8,
    "low memory": 8,
    "races": 4,
    "ranks": 3,
    "numerics": 12,
    "surroundings": 8,
    "parser": 3,
    "command line": 30,
    "playground: requests": 60,
}


def campaign(tmp_path, *options):
    command = [sys.executable, "-m", "tests.campaign", "--seed", "20", "--minutes", "20", "--out", str(tmp_path), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=550)


@pytest.mark.parametrize("area", TRIALS)
def test_an_area_has_no_defect(tmp_path, area):
    done = campaign(tmp_path, "--areas", area, "--trials", str(TRIALS[area]))
    assert done.returncode == 0, done.stdout + done.stderr
    (counts,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert counts["trials"] == sum(counts["outcomes"].values()) == TRIALS[area]


def test_a_campaign_continues_and_its_counts_add_up(tmp_path):
    for _ in range(2):
        assert campaign(tmp_path, "--areas", "command line", "--trials", "20").returncode == 0
    done = campaign(tmp_path, "--report")
    assert done.returncode == 0 and "| command line | 40 |" in done.stdout


@pytest.mark.parametrize("defect", ["no sync of a folder", "escapes are printed"])
def test_a_planted_defect_is_found(tmp_path, defect):
    done = campaign(tmp_path, "--defects", defect)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| {defect} |" in done.stdout and "missed" not in done.stdout


def test_counts_that_are_negative_are_added_up(tmp_path):
    for seed, gained in ((1, -7), (2, 3)):
        save_counts(tmp_path, Counts("leaks", seed, 1, outcomes={"KiB gained": gained}))
    assert merge(tmp_path)["leaks"].outcomes == {"KiB gained": -4}
