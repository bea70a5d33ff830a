"""SIGTERM during a training: the step in progress ends, a checkpoint is written, and the process exits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

__all__ = ["Termination"]


class Termination:
    """Whether SIGTERM has arrived. The signal sets a flag, so that a step is never left half done.

    Attributes:
        requested: Whether the process was asked to end.
    """

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def watch(self, enabled: bool = True) -> Iterator[None]:
        """A context in which SIGTERM sets `requested`, and ends the process on exit; restores the handler.

        A handler of the program stays in place. Outside of the main thread nothing is watched, since Python allows handlers there only.

        Args:
            enabled: Whether to watch.
        """
        self.requested = False
        own = enabled and threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        if own:
            signal.signal(signal.SIGTERM, self._handle)
        try:
            yield
            if self.requested:
                self.exit()
        finally:
            if own:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def exit(self) -> NoReturn:
        """Ends the process with the status of a process that SIGTERM ended.

        Raises:
            SystemExit: Always.
        """
        raise SystemExit(128 + signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
