"""SIGTERM or Ctrl-C during a training: the step in progress ends, a checkpoint is written, and the process exits."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn


class Termination:
    """Whether SIGTERM or Ctrl-C has arrived. The signal sets a flag, so that a step is never left half done."""

    def __init__(self) -> None:
        self.requested: int | None = None

    @contextmanager
    def watch(self, enabled: bool = True) -> Iterator[None]:
        """A context in which a signal sets `requested`, and ends the run on exit; restores the handlers. A second Ctrl-C ends it at once.

        A handler of the program stays in place. Outside of the main thread nothing is watched, since Python allows handlers there only.
        """
        self.requested, own = None, dict[int, Any]()
        if enabled and threading.current_thread() is threading.main_thread():
            defaults = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
            own = {number: default for number, default in defaults.items() if signal.getsignal(number) == default}
        try:
            for number in own:
                signal.signal(number, self._handle)
            yield
            if self.requested:
                self.exit("at the end")
        finally:
            for number, default in own.items():
                signal.signal(number, default)

    def exit(self, when: str) -> NoReturn:
        """Ends the run: by KeyboardInterrupt after Ctrl-C, else by SystemExit with the status of a process that SIGTERM ended."""
        if self.requested == signal.SIGINT:
            raise KeyboardInterrupt(f"Training was interrupted {when}.")
        raise SystemExit(128 + signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = number
