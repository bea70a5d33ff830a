"""The worker: one process that draws, and the queue in front of it.

Cancelling ends the process, which stops any computation at once, tuning and operations of torch included; the next order starts a new one.
"""

from __future__ import annotations

import multiprocessing
import secrets
import sys
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from composable_energy.errors import ComposableEnergyError, OptionError
from composable_energy.options import printable
from composable_energy_ui.orders import Limits, Order

Event = dict[str, Any]
_KEPT = 16
_TICK = 0.1


@dataclass(frozen=True)
class Kept:
    """The points of an earlier order, and the orders that led to them."""

    orders: tuple[Order, ...]
    points: np.ndarray


@dataclass(eq=False)
class _Job:
    orders: tuple[Order, ...]
    start: np.ndarray | None = None
    samples: bool = True
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    cancelled: threading.Event = field(default_factory=threading.Event)


class Worker:
    """Draws one order after another in a process of its own."""

    def __init__(self, value_range: tuple[float, float], limits: Limits) -> None:
        self.value_range, self.limits = value_range, limits
        self._turn = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._jobs: dict[str, _Job] = {}
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._process: Any = None
        self._pipe: Any = None
        self.start()

    def start(self) -> None:
        """Starts the process, if there is none."""
        if self._process is None or not self._process.is_alive():
            context = multiprocessing.get_context("spawn")
            self._pipe, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(other, self.value_range), daemon=True, name="composable-energy-ui")
            self._process.start()
            other.close()

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def cancel(self, name: str) -> bool:
        """Stops an order, waiting or running; returns whether there is one of that name."""
        job = self._jobs.get(name)
        if job is not None:
            job.cancelled.set()
        return job is not None

    def kept(self, name: str) -> Kept:
        """Returns the points of an earlier order."""
        try:
            return self._kept[name]
        except KeyError:
            raise OptionError("The playground does not keep this image any more; draw it again.") from None

    def events(self, order: Order) -> Generator[Event | None, None, None]:
        """Yields what happens to an order, and None now and then; to close the iterator cancels the order."""
        orders, start = (order,), None
        if order.edit is not None:
            kept = self.kept(order.edit.job)
            if order.edit.index >= len(kept.points):
                raise OptionError(f"There are {len(kept.points)} images, got index {order.edit.index}.")
            orders, start = (*kept.orders, order), kept.points[order.edit.index]
        with self._queued(_Job(orders, start), self.limits.waiting + 1) as job:
            if job is None:
                raise OptionError(f"{self.limits.waiting} orders wait already; try again later.")
            yield {"kind": "queued", "job": job.name, "ahead": self._ahead(job)}
            yield from self._wait(job)
            if not job.cancelled.is_set():
                yield from self._run(job)
            if job.cancelled.is_set():
                yield {"kind": "cancelled"}

    def conditions(self, order: Order) -> Event:
        """Returns the event `conditions` of an order, or an `error`; `busy` if the process works on something else."""
        with self._queued(_Job((order,), samples=False), 1) as job:
            if job is None:
                return {"kind": "busy"}
            found = [event for event in self._run(job) if event and event["kind"] != "started"]
            return found[0]

    @contextmanager
    def _queued(self, job: _Job, room: int) -> Iterator[_Job | None]:
        """A context in which a job is in the queue, unless the queue has `room` jobs already; then it yields None."""
        with self._turn:
            full = len(self._waiting) >= room
            if not full:
                self._waiting.append(job)
                self._jobs[job.name] = job
        if full:
            yield None
            return
        try:
            yield job
        finally:
            with self._turn:
                self._waiting.remove(job)
                del self._jobs[job.name]
                self._turn.notify_all()

    def _ahead(self, job: _Job) -> int:
        """Returns how many orders of samples are before a job."""
        return sum(other.samples for other in list(self._waiting)[: self._waiting.index(job)])

    def _wait(self, job: _Job) -> Iterator[Event | None]:
        """Waits for the turn of a job."""
        ahead = -1
        while not job.cancelled.is_set():
            with self._turn:
                now = self._waiting.index(job)
                if now and now == ahead:
                    self._turn.wait(_TICK)
            if not now:
                return
            yield {"kind": "queued", "job": job.name, "ahead": self._ahead(job)} if now != ahead else None
            ahead = now

    def _run(self, job: _Job) -> Iterator[Event | None]:
        """Sends a job to the process and yields its events; ends the process if the job does not come to its end."""
        self.start()
        done, end = False, time.monotonic() + self.limits.seconds
        try:
            self._pipe.send((job.orders, job.start, job.samples))
            yield {"kind": "started"}
            while not done and not job.cancelled.is_set():
                if time.monotonic() > end:
                    yield {"kind": "error", "message": f"The order took longer than {self.limits.seconds:g} s and was stopped."}
                    return
                if not self._pipe.poll(_TICK):
                    yield None
                    continue
                event = self._pipe.recv()
                done = event["kind"] == "done"
                if event["kind"] == "points":
                    self._kept[job.name] = Kept(job.orders, event["points"])
                    while len(self._kept) > _KEPT:
                        self._kept.popitem(last=False)
                elif not done:
                    yield event
        except (EOFError, OSError):
            self._process.join(1)
            yield {"kind": "error", "message": f"The process that draws ended unexpectedly, with exit code {self._process.exitcode}."}
        finally:
            if not done:
                self.close()
                self.start()


def error_event(error: BaseException) -> Event:
    """Returns an error as the page shows it, with its place in the expression where it has one."""
    text = str(error) if isinstance(error, ComposableEnergyError) else f"{type(error).__name__}: {error}"
    place: Any = getattr(error, "place", None)
    return {"kind": "error", "message": text} | ({} if place is None else {"start": place.start, "end": place.end})


def _serve(pipe: Connection, value_range: tuple[float, float]) -> None:
    """Carries out the jobs that arrive, until the other end closes."""
    try:
        import torch

        from composable_energy_ui.drawing import draw, report_conditions

        torch.set_num_threads(1)  # small networks are fastest with one, and the page stays quick
        while True:
            orders, start, samples = pipe.recv()
            if samples:
                _carry_out(pipe, lambda orders=orders, start=start: draw(orders, start, value_range, pipe.send))
            else:
                _carry_out(pipe, lambda orders=orders: report_conditions(orders[-1], pipe.send))
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        return


def _carry_out(pipe: Connection, work: Callable[[], object]) -> None:
    try:
        work()
    except BrokenPipeError:  # the server has ended
        raise
    except Exception as error:  # plug-ins raise anything; the page shows it
        if not isinstance(error, ComposableEnergyError):
            sys.stderr.write(printable(traceback.format_exc()))
        # The expression that failed has its weights written out, so a place in it is not one in the text that was typed.
        pipe.send({"kind": "error", "message": str(error_event(error)["message"])})
    pipe.send({"kind": "done"})
