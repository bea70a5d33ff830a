"""Processes that a test may kill, with a limit on the time to wait for them; and code that runs in a process of its own. Those that may be
killed are forked off a server that has one thread. A fork of the test's own process, which has threads of torch and of pytest-xdist, may
inherit a lock that nobody opens any more, and stand still."""

import functools
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm

LIMIT = 300.0  # seconds, many times what the longest takes on a busy machine
# With what torch and the samplers import late, in the first step: once and not in each process.
PRELOADED = ["pytest", "safetensors.torch", "torch._dynamo", "composable_energy_training.trainer", "composable_energy_mcmc"]
needs_forkserver = pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs a server of forks")


def start(name: str, call: Callable[..., Any], /, *args: Any, parent: bool = False, **options: Any) -> BaseProcess:
    """Starts a process with a function of a module; returns when it has imported all and begins the call, whose error makes it end with 1.
    One that starts processes of multiprocessing itself is a `parent`: it does not end with this one."""
    context = _context()
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_begin, args=(there, call, args, options), name=name, daemon=not parent)
    process.start()
    there.close()
    with here:
        if not here.poll(LIMIT):  # the other end is closed when the call begins, or when the process dies before
            _stop([process], f"{name} did not begin within {LIMIT:.0f} s")
    return process


def ended(processes: Iterable[BaseProcess]) -> list[int | None]:
    """Waits for all and returns their exit codes, minus the signal's number for one that was killed; fails if one stands still."""
    processes, until = list(processes), time.monotonic() + LIMIT
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    if late := [process.name for process in processes if process.exitcode is None]:
        _stop(processes, f"{', '.join(late)} did not end within {LIMIT:.0f} s")
    return [process.exitcode for process in processes]


def run_code(code: str, folder: Path | None = None, **variables: str | None) -> subprocess.CompletedProcess[str]:
    """Runs code in a new process, with warnings as errors and what is importable here; a variable that is None is removed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}
    known = {name: value for name, value in environment.items() if value is not None}
    return subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=folder, env=known, capture_output=True, text=True, timeout=LIMIT)


def _stop(processes: list[BaseProcess], message: str) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join(10)
    pytest.fail(message)


@functools.cache
def _context() -> BaseContext:
    from multiprocessing import forkserver  # not on all systems

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # else numpy's BLAS starts threads when it is imported
        forkserver.ensure_running()
    return context


def _begin(there: Connection, call: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> None:
    code = 1
    try:
        warnings.simplefilter("error")  # as in the suite
        torch.set_num_threads(1)
        tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed process leaves behind
        there.close()
        call(*args, **options)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # at once: a group of processes that lost one may stand still when it is taken down
