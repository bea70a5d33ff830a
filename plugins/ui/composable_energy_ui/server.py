"""The server of the playground: one page, and the orders of its users as streams of JSON lines."""

from __future__ import annotations

import ipaddress
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from io import BufferedReader, BytesIO, RawIOBase
from socket import socket
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, OptionError
from composable_energy.options import printable
from composable_energy.registry import names
from composable_energy_cli.names import DEFAULT_FAMILY, Names
from composable_energy_ui.orders import LIMITS, Limits, Order, find_names, read_order
from composable_energy_ui.worker import Event, Worker, error_event

_SCRIPTS = ("page.js", "stage.js", "parts.js", "charts.js", "completion.js")
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/{name}": (name, "text/javascript; charset=utf-8") for name in _SCRIPTS},
}
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
_LARGEST = 100_000  # bytes of a request


class Playground:
    """The playground: a server and its worker. A context manager that serves in a thread, for tests and notebooks.

    The worker is a new process of Python, so a script creates a playground under `if __name__ == "__main__"`.

    Args:
        port: The port; 0 takes a free one.
        family: The family of the names in the tab of pictures, or a folder of saved energies; None for the default.
        value_range: The values of black and white.
        limits: What one order may ask for.

    Example:
        >>> from composable_energy_ui import Playground  # doctest: +SKIP
        >>> with Playground() as playground:  # doctest: +SKIP
        ...     print(playground.address)
        http://127.0.0.1:40123
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        family: str | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        limits: Limits = LIMITS,
    ) -> None:
        Names(family)  # an unknown family is reported before anything starts
        self.host, self.family, self.limits, self.local = host, family, limits, is_local(host)
        self._server = _Server((host, port), partial(_Handler, self))
        try:
            self.worker = Worker(value_range, limits)
        except BaseException:
            self._server.server_close()
            raise

    @property
    def address(self) -> str:
        return f"http://{self.host if self.local else '127.0.0.1'}:{self._server.server_port}"

    def run(self) -> None:
        """Serves until an exception, such as `KeyboardInterrupt`, and ends the worker."""
        try:
            self._server.serve_forever()
        finally:
            self.close()

    def close(self) -> None:
        """Closes the port and ends the worker."""
        self._server.server_close()
        self.worker.close()

    def __enter__(self) -> Playground:
        self._thread = threading.Thread(target=self.run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()


def is_local(host: str) -> bool:
    """Returns whether only this computer reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # users who connect at the same moment


class _Request(RawIOBase):
    """What a connection sends until a time; later reads raise `TimeoutError`, also where it goes on byte by byte."""

    def __init__(self, connection: socket, end: float) -> None:
        self.connection, self.end = connection, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.connection.settimeout(max(self.end - time.monotonic(), 1e-3))
        return self.connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, playground: Playground, *args: Any) -> None:
        self.playground = playground
        super().__init__(*args)

    def setup(self) -> None:
        super().setup()
        self.rfile = BufferedReader(_Request(self.connection, time.monotonic() + self.playground.limits.patience))

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        if not self._same_site():
            self.send_error(403, "This request is from another site.")
        elif parts.path in _PAGE:
            name, kind = _PAGE[parts.path]
            self._answer((files("composable_energy_ui") / "page" / name).read_bytes(), kind)
        elif parts.path == "/api/names":
            self._json(self._names, query.get("family"))
        elif parts.path == "/api/points":
            self._points(query.get("job", ""))
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if not self._same_site():
            return self.send_error(403, "This request is from another site.")
        if self.headers.get_content_type() != "application/json":  # what another site cannot send without being asked
            return self.send_error(415, "The playground takes JSON.")
        if not re.fullmatch("[0-9]{1,12}", length) or int(length) > _LARGEST:
            return self.send_error(413, f"A request says its length, which is at most {_LARGEST} bytes.")
        try:
            fields = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            return self.send_error(400, "The request is no JSON.")
        except OSError:  # the user sends nothing more
            return None
        actions = {"/api/check": self._check, "/api/conditions": self._conditions, "/api/cancel": self._cancel}
        if not isinstance(fields, dict) or self.path not in ("/api/sample", *actions):
            return self.send_error(404)
        return self._sample(fields) if self.path == "/api/sample" else self._json(actions[self.path], fields)

    def log_message(self, format: str, *args: Any) -> None:
        """Stays silent about requests that are answered."""
        if args and str(args[-2:][0]).startswith("5"):
            sys.stderr.write(printable(f"composable-energy ui: {format % args}") + "\n")

    def _names(self, asked: str | None) -> Event:
        """Returns the names for completion: members of a family first, then all other energies."""
        family, limits = asked or self.playground.family or DEFAULT_FAMILY, asdict(self.playground.limits)
        known = find_names(asked, self.playground.family)
        entries = [entry for entry in ce.installed() if entry.name != family and entry.state in ("", "trained")]
        others = [name for entry in entries for name in (entry.name, *(f"{entry.name}/{member}" for member in entry.members))]
        return {"kind": "ok", "family": family, "members": known.members, "others": others, "samplers": names("sampler"), "limits": limits}

    def _check(self, fields: Event) -> Event:
        order = self._order(fields)
        return {"kind": "ok", "terms": list(order.terms), "text": order.text, "names": order.names}

    def _conditions(self, fields: Event) -> Event:
        """Returns the conditions of an expression, of plug-ins and folders only: nothing is downloaded while a user types."""
        order = self._order(fields)
        return {"kind": "busy"} if order.is_remote else self.playground.worker.conditions(order)

    def _cancel(self, fields: Event) -> Event:
        return {"kind": "ok", "found": self.playground.worker.cancel(str(fields.get("job")))}

    def _order(self, fields: Event) -> Order:
        return read_order(fields, self.playground.family, self.playground.local, self.playground.limits)

    def _sample(self, fields: Event) -> None:
        """Streams what happens to an order; a user who closes the page cancels it."""
        try:
            order = self._order(fields)
        except ComposableEnergyError as error:
            return self._json(error_event, error)
        self._head("application/x-ndjson")
        try:
            with closing(self.playground.worker.events(order)) as events:
                for event in events:
                    self._line(event)
        except ComposableEnergyError as error:
            self._line(error_event(error))
        except OSError:  # the page is closed
            return None

    def _line(self, event: Event | None) -> None:
        self.wfile.write(b"\n" if event is None else json.dumps(event).encode() + b"\n")
        self.wfile.flush()

    def _points(self, job: str) -> None:
        file = BytesIO()
        try:
            np.save(file, self.playground.worker.kept(job).points)
        except OptionError as error:
            return self.send_error(404, str(error))
        return self._answer(file.getvalue(), "application/octet-stream", {"Content-Disposition": 'attachment; filename="samples.npy"'})

    def _json(self, make: Callable[[Any], Event], asked: Any) -> None:
        try:
            answer = make(asked)
        except ComposableEnergyError as error:
            answer = error_event(error)
        self._answer(json.dumps(answer).encode(), "application/json")

    def _answer(self, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the page is closed
            self._head(kind, {"Content-Length": str(len(body)), **(headers or {})})
            self.wfile.write(body)

    def _head(self, kind: str, headers: dict[str, str] | None = None) -> None:
        self.connection.settimeout(self.playground.limits.patience)
        self.send_response(200)
        security = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        for name, value in {"Content-Type": kind, **security, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def _same_site(self) -> bool:
        """Returns whether the request is for this server and from its own page. Another site could let its name point to this computer, and
        read what it asks for. It may link to the page, and nothing else."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        own = self.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin") or self.path == "/"
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return own and (is_local(name) or not self.playground.local) and (origin is None or urlsplit(origin).netloc == host)
        except ValueError:  # it is no address
            return False
