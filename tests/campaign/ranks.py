"""Two processes that share a sampling, one of which is stopped, killed or paused at any time."""

from __future__ import annotations

import os
import random
import signal
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from composable_energy.errors import ProcessLost
from tests.campaign.crashes import CALL, names_in
from tests.campaign.trial import Area, Trial, check
from tests.checkpoint_runs import BOWL

_TIMEOUT = 3.0  # seconds that a process waits for the other one
_JOINING = 60.0
_CALL = {**CALL, "steps": 12}


def _draw(place: Path, rank: int) -> torch.Tensor:
    """Draws as one of two processes; a file says that it has begun."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{place}/store", rank=rank, world_size=2, timeout=timedelta(seconds=_JOINING)
    )
    distributed.barrier()
    distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=_TIMEOUT), None)
    (place / f"begun-{rank}").touch()
    return BOWL.sample((5, 3), ranks="gather", checkpoint=place / "run" / "c", checkpoint_every=0, **_CALL)


def _start(place: Path, rank: int, wanted: torch.Tensor) -> int:
    child = os.fork()
    if child:
        return child
    answer = "error: it ended without an answer"
    try:
        answer = "draws" if torch.equal(_draw(place, rank), wanted) else "other draws"
    except ProcessLost:
        answer = "ProcessLost"
    except BaseException as error:
        answer = f"error: {type(error).__name__}: {error}"
    finally:
        (place / f"answer-{rank}").write_text(answer)
        os._exit(0)


def _wait(place: Path, child: int, rank: int) -> str:
    """Returns the answer of a process, which must come within its time limit and some seconds for a busy machine."""
    end = time.monotonic() + _TIMEOUT + 20
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        check(time.monotonic() < end, "hang", f"a process waits longer than its limit of {_TIMEOUT:g} s")
        time.sleep(0.005)
    path = place / f"answer-{rank}"
    return path.read_text() if path.exists() else "killed"


def prepare(folder: Path) -> Trial:
    wanted = BOWL.sample((5, 3), **_CALL)

    def trial(chance: random.Random, place: Path) -> str:
        how, victim = chance.choice(["stop", "kill", "kill", "pause"]), chance.randrange(2)
        children = [_start(place, rank, wanted) for rank in range(2)]
        try:
            while not all((place / f"begun-{rank}").exists() or (place / f"answer-{rank}").exists() for rank in range(2)):
                time.sleep(0.001)
            time.sleep(chance.choice([0.0, 0.02, 0.1]) * chance.random())
            os.kill(children[victim], signal.SIGKILL if how == "kill" else signal.SIGSTOP)
            if how == "pause":
                time.sleep(0.2)
                os.kill(children[victim], signal.SIGCONT)
            answer = _wait(place, children[1 - victim], 1 - victim)
        finally:
            for child in children:
                try:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                except (ProcessLookupError, ChildProcessError):
                    pass
        check(answer in ("draws", "ProcessLost"), "silent wrong answer" if answer == "other draws" else "untyped error", answer)
        again = BOWL.sample((5, 3), checkpoint=place / "run" / "c", checkpoint_every=0, **_CALL)
        check(torch.equal(again, wanted), "silent wrong answer", "one process goes on with other draws")
        check(names_in(place / "run") == ["c"], "left behind", names_in(place / "run"))
        return f"{how}: {answer}"

    return trial


AREA = Area("ranks", prepare, 180)
