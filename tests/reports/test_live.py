"""The live report serves one page to this machine alone, and that page follows the run."""

import json
import socket
import struct
import threading

import pytest
from asking import ask
from recorded import recorded
from waiting import wait_until

from reports import live
from system.errors import CheckpointError


@pytest.fixture
def served(tmp_path):
    """The port of a live report on a run in `tmp_path`."""
    recorded(tmp_path)
    with live.server_of([str(tmp_path)]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_the_page_is_the_report_and_may_fetch_nothing_but_its_state(served):
    answer, content = ask(served)
    assert answer.status == 200
    assert "<h2>Results</h2>" in content
    _, state = ask(served, "/state")
    assert f'!= "{state}"' in content
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert answer.headers["Cache-Control"] == "no-store"


def test_the_state_and_the_page_change_with_the_run(served, tmp_path):
    _, before = ask(served, "/state")
    assert ask(served, "/state")[1] == before
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write(json.dumps({"step": 7777, "tokens": 9, "sample": "newest sample"}) + "\n")
    _, content = ask(served)
    assert ask(served, "/state")[1] != before
    assert "newest sample" in content


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1:1"},
        {"Host": "127.0.0.1.evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1"},
    ],
)
def test_another_host_or_origin_is_refused(served, headers):
    answer, content = ask(served, **headers)
    assert answer.status == 403
    assert "<" not in content


def test_the_own_host_and_origin_are_served(served):
    own = f"localhost:{served}"
    assert ask(served, Host=own, Origin=f"http://{own}")[0].status == 200


@pytest.mark.parametrize(
    "path",
    ["/history.jsonl", "/../../etc/passwd", "/%2e%2e/x", "//etc/passwd", "/?x", "/state/", "*"],
)
def test_nothing_but_the_report_is_served(served, path):
    assert ask(served, path)[0].status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_sent(served, method):
    assert ask(served, method=method)[0].status == 501


def test_a_run_that_is_being_moved_is_said_and_the_server_stays(served, tmp_path):
    (tmp_path / "history.jsonl").rename(tmp_path / "elsewhere")
    answer, content = ask(served)
    assert answer.status == 503
    assert "no history of a run" in content
    (tmp_path / "elsewhere").rename(tmp_path / "history.jsonl")
    assert ask(served)[0].status == 200


def test_a_browser_that_leaves_in_the_middle_is_no_news(served, capsys):
    request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{served}\r\n\r\n".encode()
    before = {*threading.enumerate()}
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", served)) as connection:
            connection.sendall(request)
            at_once = struct.pack("ii", 1, 0)  # it lingers for no seconds
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    assert ask(served)[0].status == 200
    wait_until(lambda: before.issuperset(threading.enumerate()))
    assert capsys.readouterr().err == ""


def test_no_run_is_an_error_at_once(tmp_path):
    with pytest.raises(CheckpointError, match="no history of a run"):
        live.server_of([str(tmp_path)])
