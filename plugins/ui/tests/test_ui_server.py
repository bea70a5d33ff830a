"""The server: streams of events, cancelling, the queue, limits, odd and slow requests, and those from elsewhere."""

import contextlib
import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import quote, urlsplit

import numpy as np
import pytest

import composable_energy as ce
from composable_energy.errors import FileFormatError
from composable_energy_cli import main
from composable_energy_ui import Limits, Playground
from tests.refusals import refused

pytestmark = pytest.mark.full

ORDER = {"expression": "ring & ~right", "family": "plane", "n": 8, "steps": 20, "sampler": "mala"}
LONG = {**ORDER, "sampler": "langevin", "n": 64, "steps": 2000, "expression": "spots & moons & ring & near & stripes"}


@pytest.fixture(scope="module")
def playground():
    with Playground() as playground:
        yield playground


def ask(playground, method, path, body=None, **headers):
    connection = http.client.HTTPConnection(urlsplit(playground.address).netloc, timeout=120)
    text = None if body is None else json.dumps(body)
    sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, text, sent)
    return connection.getresponse()


def read(playground, path, body):
    return json.loads(ask(playground, "POST", path, body).read())


def events(playground, body):
    """Yields the events of an order as they arrive."""
    for line in iter(ask(playground, "POST", "/api/sample", body).readline, b""):
        if line.strip():
            yield json.loads(line)


def test_an_order_is_streamed_to_its_error_or_result_and_its_points_are_kept(playground):
    *_, last = events(playground, {**ORDER, "expression": "right & ~right"})
    assert last["kind"] == "error" and "No point fulfils" in last["message"]
    found = list(events(playground, ORDER))
    kinds = [event["kind"] for event in found]
    assert kinds[:2] == ["queued", "started"] and kinds[-1] == "result" and {"conditions", "density", "tuning", "progress"} <= set(kinds)
    answer = ask(playground, "GET", f"/api/points?job={found[0]['job']}")
    assert np.allclose(np.load(io.BytesIO(answer.read())), found[-1]["points"], atol=1e-3)


def test_what_the_page_asks_while_a_user_types(playground):
    assert read(playground, "/api/check", {**ORDER, "weights": [2]})["text"] == "2 * ring & ~right"
    error = read(playground, "/api/check", {**ORDER, "expression": "ring & & right"})
    assert (error["kind"], error["start"]) == ("error", 7)
    answer = json.loads(ask(playground, "GET", "/api/names?family=plane").read())
    assert "ring" in answer["members"] and "faces/male" in answer["others"] and "plane/ring" not in answer["others"]
    page = ask(playground, "GET", "/")
    assert b"<textarea" in page.read() and "default-src 'none'" in page.headers["Content-Security-Policy"]
    for path in ("page.js", "stage.js", "parts.js", "charts.js", "completion.js", "style.css", "icon.svg"):
        assert "://" not in ask(playground, "GET", f"/{path}").read().decode().replace("http://www.w3.org/2000/svg", "")


def test_conditions_are_found_while_the_process_is_idle(playground):
    needed = read(playground, "/api/conditions", {"expression": "generated-rotamers"})
    assert needed == {"kind": "conditions", "conditions": [{"name": "context", "required": True}]}
    assert read(playground, "/api/conditions", ORDER) == {"kind": "conditions", "conditions": []}
    assert read(playground, "/api/conditions", {**ORDER, "expression": "rimg"})["kind"] == "error"
    assert read(playground, "/api/conditions", {"expression": "'hf:owner/name'"}) == {"kind": "busy"}  # nothing is downloaded
    running = events(playground, LONG)
    job = next(running)["job"]
    assert read(playground, "/api/conditions", ORDER) == {"kind": "busy"}
    assert read(playground, "/api/cancel", {"job": job})["found"] and list(running)[-1]["kind"] == "cancelled"


def test_a_second_order_waits_and_cancelling_stops_both_kinds(playground):
    first, second = events(playground, LONG), events(playground, LONG)
    job = next(first)["job"]
    assert next(first)["kind"] == "started"
    waiting = next(second)
    assert waiting["ahead"] == 1 and read(playground, "/api/cancel", {"job": waiting["job"]})["found"]
    assert list(second)[-1]["kind"] == "cancelled"
    assert read(playground, "/api/cancel", {"job": job})["found"] and list(first)[-1]["kind"] == "cancelled"
    assert not read(playground, "/api/cancel", {"job": job})["found"]
    assert [event["kind"] for event in events(playground, ORDER)][-1] == "result"


def test_an_edit_starts_from_a_kept_point(playground):
    job = next(found := events(playground, ORDER))["job"]
    list(found)
    edit = {"job": job, "index": 2, "strength": 0.5}
    *_, result = events(playground, {**ORDER, "expression": "ring", "sampler": "langevin", "edit": edit})
    assert result["kind"] == "result" and "start = points[2]" in result["python"]
    *_, gone = events(playground, {**ORDER, "edit": {**edit, "job": "none"}})
    assert gone["kind"] == "error" and "draw it again" in gone["message"]
    *_, beyond = events(playground, {**ORDER, "edit": {**edit, "index": 99}})
    assert "There are 8 images" in beyond["message"]


def test_an_order_that_takes_too_long_is_stopped_and_few_may_wait():
    with Playground(limits=Limits(seconds=3.0, waiting=1)) as playground:
        orders = [events(playground, LONG) for _ in range(2)]
        _, waiting = [next(order)["job"] for order in orders]
        (refused,) = events(playground, LONG)
        assert "wait already" in refused["message"]
        stopped = list(orders[0])[-1]
        assert stopped["kind"] == "error" and "longer than 3 s" in stopped["message"]
        read(playground, "/api/cancel", {"job": waiting})
        assert list(orders[1])[-1]["kind"] == "cancelled"


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/", None, {"Host": "elsewhere.org"}, 403),
        ("POST", "/api/sample", ORDER, {"Origin": "http://elsewhere.org"}, 403),
        *(("GET", path, None, {"Sec_Fetch_Site": "cross-site"}, 403) for path in ("/api/names", "/api/points?job=x", "/page.js", "/?x")),
        ("GET", "/api/names", None, {"Sec_Fetch_Site": "same-site"}, 403),
        ("GET", "/", None, {"Sec_Fetch_Site": "cross-site"}, 200),  # a link
        ("GET", "/api/names", None, {"Sec_Fetch_Site": "same-origin"}, 200),
        ("POST", "/api/sample", ORDER, {"Content_Type": "text/plain"}, 415),
        ("POST", "/api/check", {"expression": "a" * 200_000}, {}, 413),
        ("POST", "/api/other", {}, {}, 404),
        ("GET", "/../server.py", None, {}, 404),
        ("GET", "/api/points?job=none", None, {}, 404),
    ],
)
def test_requests_from_elsewhere_and_malformed_ones_are_refused(playground, method, path, body, headers, status):
    assert ask(playground, method, path, body, **headers).status == status


@pytest.mark.parametrize("path", ["/api/names", "/api/check", "/api/sample"])
@pytest.mark.parametrize("form", ["absolute", "relative", "home", "bare"])
def test_a_request_names_a_family_and_never_a_folder(playground, monkeypatch, tmp_path, path, form):
    (energy := ce.load("plane/ring")).save(tmp_path / "saved" / "mine")
    energy.save(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    family = {"absolute": str(tmp_path / "saved"), "relative": "./saved", "home": "~/saved", "bare": "saved"}[form]
    if path == "/api/names":
        answer = json.loads(ask(playground, "GET", f"{path}?family={quote(family)}").read())
    else:
        answer = json.loads(ask(playground, "POST", path, {**ORDER, "family": family, "expression": "mine"}).read())
    assert answer["kind"] == "error" and "No plug-in offers the family" in answer["message"]


def test_the_command_refuses_what_it_cannot_serve_and_warns_where_others_reach_it(playground, monkeypatch, capsys, tmp_path):
    for arguments in (["--port", str(urlsplit(playground.address).port)], ["--in", "./nowhere"], ["--port", "99999"]):
        assert main(["ui", "--no-browser", *arguments]) == 2
    assert "--port 0" in capsys.readouterr().err
    refused(FileFormatError, "no folder", Playground, family=str(tmp_path / "nowhere"))
    monkeypatch.setattr(Playground, "run", Playground.close)
    assert main(["ui", "--no-browser", "--port", "0", "--host", "0.0.0.0"]) == 0
    shown = capsys.readouterr()
    assert "without a password" in shown.err and "http://127.0.0.1:" in shown.out
    assert main(["ui", "--no-browser", "--port", "0"]) == 0 and capsys.readouterr().err == ""


def test_ctrl_c_ends_the_server_and_its_worker():
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's background jobs ignore it
    program = f"{heard}; import sys; from composable_energy_cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "ui", "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split("at ")[1].split()[0]
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130 and process.stderr is not None and "Traceback" not in process.stderr.read()
        finally:
            process.kill()
    refused(ConnectionRefusedError, None, http.client.HTTPConnection(urlsplit(address).netloc).request, "GET", "/")


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
        ("Host: elsewhere.org\r\n", 403),
        ("Host: {host}\r\nOrigin: http://[\r\n", 403),
        ("Host: {host}\r\nContent-Type: application/json\r\nContent-Length: -5\r\n", 413),
        ("Host: {host}\r\nContent-Type: application/json\r\nContent-Length: 100001\r\n", 413),
        ("Host: {host}\r\nContent-Type: application/json\r\nContent-Length: 0\r\n", 400),
        ("Host: {host}\r\nContent-Type: ;;;\r\nContent-Length: 2\r\n", 415),
    ],
)
def test_an_odd_head_gets_an_answer_and_no_traceback(playground, capfd, lines, status):
    with connect(playground) as connection:
        connection.sendall(("POST /api/check HTTP/1.1\r\n" + lines.format(host=urlsplit(playground.address).netloc) + "\r\n").encode())
        assert answer(connection).split(b"\r\n")[0].split()[1] == str(status).encode()
    assert "Traceback" not in capfd.readouterr().err


def test_who_sends_no_more_is_disconnected_and_others_are_served():
    with Playground(limits=Limits(patience=1.0)) as playground, contextlib.ExitStack() as held:
        head = f"POST /api/check HTTP/1.0\r\nHost: {urlsplit(playground.address).netloc}\r\nContent-Type: application/json\r\n"
        slow = [held.enter_context(connect(playground)) for _ in range(4)]
        for connection, sent in zip(slow, ("", "POST /api/check HT", head, f"{head}Content-Length: 99\r\n\r\n{{"), strict=True):
            connection.sendall(sent.encode())
        body = json.dumps({"expression": "ring", "family": "plane"})
        other = held.enter_context(connect(playground))
        other.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert answer(other).split()[1] == b"200"
        with contextlib.suppress(OSError):  # byte by byte, until the server closes the connection
            for _ in range(20):
                slow[3].sendall(b" ")
                time.sleep(0.3)
            pytest.fail("the server waits as long as a byte comes now and then")
        assert [answer(connection) for connection in slow[:3]] == [b""] * 3
