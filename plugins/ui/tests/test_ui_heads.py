"""Requests whose head is odd, and users who send or read too slowly."""

import json
import socket
import time
from urllib.parse import urlsplit

import pytest

from composable_energy_ui import Limits, Playground


@pytest.fixture(scope="module")
def playground():
    with Playground(limits=Limits(patience=1.0)) as playground:
        yield playground


def connect(playground):
    place = urlsplit(playground.address)
    return socket.create_connection((place.hostname, place.port), timeout=30)


def answer(connection):
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("Host: [\r\n", 403),
        ("Host: elsewhere.org\r\n", 403),
        ("Host: {host}\r\nOrigin: http://[\r\n", 403),
        ("Host: {host}\r\nContent-Type: application/json\r\nContent-Length: -5\r\n", 413),
        ("Host: {host}\r\nContent-Type: application/json\r\nContent-Length: many\r\n", 413),
        ("Host: {host}\r\nContent-Type: application/json\r\nContent-Length: 100001\r\n", 413),
        ("Host: {host}\r\nContent-Type: application/json\r\nContent-Length: 0\r\n", 400),
        ("Host: {host}\r\nContent-Type: ;;;\r\nContent-Length: 2\r\n", 415),
    ],
)
def test_an_odd_head_gets_an_answer_and_no_traceback(playground, capfd, lines, status):
    with connect(playground) as connection:
        head = "POST /api/check HTTP/1.1\r\n" + lines.format(host=urlsplit(playground.address).netloc) + "\r\n"
        connection.sendall(head.encode())
        assert answer(connection).split(b"\r\n")[0].split()[1] == str(status).encode()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "sent", [b"", b"POST /api/check HT", b"POST /api/check HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"]
)
def test_who_sends_no_more_is_disconnected(playground, sent):
    with connect(playground) as connection:
        connection.sendall(sent.replace(b"{host}", urlsplit(playground.address).netloc.encode()))
        began = time.monotonic()
        answer(connection)
        assert time.monotonic() - began < 20


def test_who_sends_less_than_announced_is_disconnected_and_others_are_served(playground):
    netloc = urlsplit(playground.address).netloc
    head = f"POST /api/check HTTP/1.0\r\nHost: {netloc}\r\nContent-Type: application/json\r\nContent-Length: "
    body = json.dumps({"expression": "ring", "family": "plane"})
    with connect(playground) as slow, connect(playground) as other:
        slow.sendall(f"{head}99\r\n\r\n{{".encode())
        other.sendall(f"{head}{len(body)}\r\n\r\n{body}".encode())
        assert answer(other).split()[1] == b"200"
        assert answer(slow) == b""
