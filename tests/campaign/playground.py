"""The playground: requests of any kind, and 50 users at once who read slowly, leave, cancel, or send too much."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from composable_energy_ui import Limits, Playground
from tests.campaign.trial import Area, Outcome, Trial, check

ORDER = {"expression": "ring & ~right", "family": "plane", "n": 2, "steps": 2, "sampler": "mala"}
LONG = {**ORDER, "sampler": "langevin", "n": 64, "steps": 2000, "expression": "spots & moons & ring & near & stripes"}
_ODD: list[Any] = [
    *(None, True, 0, -1, 1, 65, 2**31, 2**70, -(10**400), 10**400, 0.0, 0.5, float("nan"), float("inf"), 1e-320),
    *("", "x", "male", "ring", "right & ~right", "\x1b[2J", "\ud800", "\x00", "../..", "/dev/zero", "~", "(" * 400, "a" * 501, "é" * 90),
    *([], [1], [2.0] * 300, ["x"], [[]], [None], {}, {"job": "x", "index": 0}, {"job": [1], "index": 0}, {"job": {}, "index": "x"}),
    {"job": "x", "index": -1, "strength": float("nan")},
]
_FIELDS = ["expression", "family", "weights", "temperature", "sharpen", "sampler", "steps", "n", "seed", "edit", "\x1b[2J", "job"]
_PATHS = ["/api/sample", "/api/check", "/api/cancel", "/api/names", "/api/points", "/", "/page.js", "/../server.py", "//", "/%00", "*"]
_QUERIES = ["", "", "?job=none", "?family=plane", "?family=/etc", "?family=%1b[2J", "?family=%00", "?job=%F0%9F", "?" + "a=1&" * 400]
_LINES = [
    *("Host: elsewhere.org", "Host: [::1", "Host: localhost:x", "Origin: http://[", "Origin: null", "Origin: http://elsewhere.org"),
    *(
        "Content-Length: -1",
        "Content-Length: 1e3",
        "Content-Length: 999999999999999999999",
        "Content-Length: 99999",
        "Content-Length: 200000",
        "Content-Length: x",
    ),
    *(
        "Content-Type: text/plain",
        "Content-Type: ;;;",
        "Transfer-Encoding: chunked",
        "Expect: 100-continue",
        "X: " + "a" * 70_000,
        "X",
        ":",
    ),
]


def serve(limits: Limits) -> tuple[str, io.StringIO]:
    """Serves until this process ends; returns the host with the port, and what the server writes to stderr."""
    sys.stderr = told = io.StringIO()
    return urlsplit(Playground(limits=limits).__enter__().address).netloc, told


def connect(host: str) -> socket.socket:
    """Returns a connection with a small buffer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(120)
    name, _, port = host.partition(":")
    connection.connect((name, int(port)))
    return connection


def request(chance: random.Random, host: str) -> bytes:
    """Returns the bytes of a request: mostly an order with odd fields, sometimes with odd lines of its head, sometimes cut."""
    fields: Any = dict(ORDER) if chance.random() < 0.8 else {}
    for _ in range(chance.choice([0, 1, 1, 2, 3])):
        fields[chance.choice(_FIELDS)] = chance.choice(_ODD)
    body = json.dumps(chance.choice([fields] * 12 + [[fields], 3, None])).encode()
    if chance.random() < 0.1:
        body = chance.choice([b"[" * 90_000, b'{"a":' * 15_000, b"\xff" * 100, b"1" * 5000, b"", body[: len(body) // 2]])
    lines = {"Host": f"Host: {host}", "Content-Type": "Content-Type: application/json", "Content-Length": f"Content-Length: {len(body)}"}
    if chance.random() < 0.3:
        line = chance.choice(_LINES)
        lines[line.partition(":")[0]] = line
    method = chance.choice(["POST"] * 8 + ["GET", "GET", "HEAD", "PUT", "\x1b[2J"])
    usual = method == "POST" and chance.random() < 0.9
    path = chance.choice(_PATHS[:2]) if usual else chance.choice(_PATHS) + chance.choice(_QUERIES)
    version = chance.choice(["HTTP/1.1"] * 20 + ["HTTP/9.9", "\x1b]0;x\x07", "HTTP/1.0", ""])
    head = "\r\n".join([f"{method} {path} {version}", *lines.values(), "", ""]).encode("utf-8", "replace")
    return head + body


def prepare_requests(folder: Path) -> Trial:
    host, told = serve(Limits(patience=2.0, seconds=30.0))

    def trial(chance: random.Random, place: Path) -> str:
        told.seek(0), told.truncate()
        sent = request(chance, host)
        with connect(host) as connection:
            with contextlib.suppress(OSError):  # the server may have answered and closed the connection
                connection.sendall(sent)
                if chance.random() < 0.3:
                    connection.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while data := connection.recv(65536):
                    answer += data
        written = told.getvalue()
        check("Traceback" not in written and "Exception" not in written, "untyped error", f"{sent[:300]!r}: {written[-400:]}")
        check("\x1b" not in written and b"\x1b" not in answer, "terminal escape", sent[:300])
        status = answer[9:12].decode() if answer.startswith(b"HTTP/") else "no status"
        check(not status.startswith("5") or status in ("501", "505"), "untyped error", f"{sent[:300]!r}: {answer[:200]!r}")
        usual = sent.startswith((b"POST /api/sample HTTP/1.1\r\n", b"POST /api/check HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n"))
        if usual and b"elsewhere.org" in sent:
            check(status == "403", "other site", sent[:300])
        if usual and sent.startswith(b"POST") and b"Content-Length: 200000" in sent:
            check(status == "413", "too large", sent[:300])
        last = answer.strip().rpartition(b"\n")[2]
        kind = json.loads(last).get("kind", "names") if status == "200" and last.startswith(b"{") else ""
        return f"{status} {kind}".strip()

    return trial


def _open(host: str, body: Any, path: str = "/api/sample") -> socket.socket:
    text = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    connection = connect(host)
    connection.sendall(head.encode() + text)
    return connection


def _events(host: str, body: Any) -> Iterator[dict[str, Any]]:
    connection = http.client.HTTPConnection(host, timeout=120)
    with contextlib.closing(connection):
        connection.request("POST", "/api/sample", json.dumps(body), {"Content-Type": "application/json"})
        for line in connection.getresponse():
            if line.strip():
                yield json.loads(line)


def _reads(host: str, pause: float = 0.0) -> str:
    kind = ""
    for event in _events(host, ORDER):
        kind = event["kind"]
        time.sleep(pause)
    return kind


def _cancels(host: str) -> str:
    kind = ""
    for event in _events(host, LONG):
        if "job" in event:
            with contextlib.closing(_open(host, {"job": event["job"]}, "/api/cancel")) as connection:
                connection.recv(65536)
        kind = event["kind"]
    return kind


def _leaves(host: str) -> str:
    next(_events(host, LONG), None)
    return "left"


def _floods(host: str) -> str:
    with contextlib.closing(_open(host, {"expression": "a" * 200_000})) as connection, contextlib.suppress(ConnectionError):
        return connection.recv(65536)[9:12].decode()
    return "413"


USERS: dict[str, Callable[[str], str]] = {
    "reads": _reads,
    "reads slowly": lambda host: _reads(host, 0.1),
    "cancels": _cancels,
    "leaves": _leaves,
    "floods": _floods,
}
_ENDS = {"reads": {"result", "error"}, "reads slowly": {"result", "error"}, "cancels": {"cancelled", "error", "result"}}


def prepare_users(folder: Path) -> Trial:
    host, told = serve(Limits(patience=2.0, seconds=30.0))

    def trial(chance: random.Random, place: Path) -> Outcome:
        told.seek(0), told.truncate()
        who = chance.choices(list(USERS), [10, 4, 1, 1, 4], k=chance.choice([6, 47]))
        found: list[tuple[str, str]] = []
        deaf = [_open(host, LONG)]  # they read nothing, and stay
        silent = [connect(host) for _ in range(2)]  # they send nothing, and stay

        def use(name: str) -> None:
            try:
                found.append((name, USERS[name](host)))
            except BaseException as error:
                found.append((name, f"{type(error).__name__}: {error}"))

        threads = [threading.Thread(target=use, args=(name,), daemon=True) for name in who]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(150)
        check(len(found) == len(who), "hang", f"{len(who) - len(found)} of {len(who)} users got no answer")
        ends = {**_ENDS, "leaves": {"left"}, "floods": {"413"}}
        check(all(end in ends[name] for name, end in found), "untyped error", [one for one in found if one[1] not in ends[one[0]]][:3])
        check(_reads(host) == "result", "hang", "no order is carried out after the storm")
        written = told.getvalue()
        check("Traceback" not in written, "untyped error", written[-400:])
        for connection in [*deaf, *silent]:
            connection.close()
        return dict(Counter(f"{name}: {end}" for name, end in found))

    return trial


REQUESTS = Area("playground: requests", prepare_requests, 120)
USERS_AT_ONCE = Area("playground: users", prepare_users, 400)
