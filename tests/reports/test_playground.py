"""The playground writes what `generate` writes, colours it, and answers this machine alone."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html import unescape
from itertools import pairwise
from pathlib import Path
from socket import create_server

import psutil
import pytest
import torch
from asking import ask
from tiny_model import SIZES

from generation.options import OPTIONS
from generation.settings import RULES, Settings
from reports import html, playground
from reports.shelf import Shelf
from storage import checkpoint, run_folder
from storage.checkpoint import build_model
from system.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Gradio's use of pandas 3
ROOT = Path(playground.__file__).parent.parent
RUN_ID = "a" * 32
SIZE = {**SIZES, "seq_len": 32}
NASTY = "<script>alert(1)</script>\x1b[31m \u202eevil\u2066 </pre>&lt;"


def save(path, step: int) -> None:
    torch.manual_seed(step)
    model = build_model(SIZE, 50257)
    torch.nn.init.normal_(model.input_embedding.embedding.weight)
    weights = dict(model.state_dict())
    state = {"config": SIZE, "model_state_dict": weights, "step": step, "run_id": RUN_ID}
    checkpoint.save(path, state)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run's folder with two checkpoints."""
    folder = tmp_path_factory.mktemp("a run, 雪 <b>")
    run_folder.claim(folder, RUN_ID)
    for step in (2, 10):
        save(checkpoint.step_path(folder, step), step)
    return folder


def shelf_of(*places) -> Shelf:
    return Shelf(places, {}, precision="float32", device=torch.device("cpu"))


@pytest.fixture(scope="module")
def shelf(folder) -> Shelf:
    return shelf_of(folder)


def answers(work, shelf, said: str, *, second: str = "none", **changed) -> list[str]:
    """All that the page shows one after the other."""
    first = shelf.names()[0]
    controls = {name: playground.control(name).value for name in playground.SHOWN} | changed
    made = partial(work, shelf)
    return list(playground.answer(made, said, first, second, *controls.values()))


def shown(page: str) -> list[str]:
    """The texts in it, as a browser shows them."""
    parts = re.findall("(?s)<pre>(.*?)</pre>", page)
    return [unescape(re.sub("<[^>]*>", "", part)) for part in parts]


def test_every_setting_has_a_control_whose_ends_it_allows(shelf):
    assert {*RULES, "stop"} == {*playground.SHOWN}
    for name in playground.SHOWN:
        control = playground.control(name)
        assert OPTIONS[name].remark.startswith(control.info.split(";")[0])
        assert playground.value_of(name, control.value) == OPTIONS[name].default
        for end in [getattr(control, end, None) for end in ("minimum", "maximum")]:
            Settings(**{name: playground.value_of(name, end)})


def test_texts_stream_and_are_those_of_generate(shelf, monkeypatch):
    monkeypatch.setattr(playground, "SECONDS", 0)
    few = {"max_new_tokens": 12, "num_samples": 3, "top_k": 50, "min_p": 0.01, "seed": "5"}
    stages = answers(playground.write, shelf, "Once upon", **few)
    _, writer = shelf.writer(shelf.names()[0])
    settings = {"temperature": 0.8, "top_k": 50, "min_p": 0.01, "seed": 5, "num_samples": 3}
    texts = writer.generate("Once upon", 12, **settings)
    assert shown(stages[-2]) == texts
    assert len(stages) >= 12
    for earlier, later in pairwise(stages[:-1]):
        for some, more in zip(shown(earlier), shown(later), strict=True):
            assert more.startswith(some)
    assert stages[-1].count('role="button"') == 3 * (12 + 1)  # nothing precedes the first token
    assert "temperature 0.8, top-k 50, min-p 0.01, seed 5, 36 tokens" in stages[-1]


def test_beams_and_stop_strings_work(shelf):
    *_, last = answers(playground.write, shelf, "a", num_beams=3, max_new_tokens=4)
    _, writer = shelf.writer(shelf.names()[0])
    assert "3 beams" in last
    whole = writer.generate("a", 8, temperature=0)
    *_, last = answers(playground.write, shelf, "a", temperature=0, stop=whole[-4:-2])
    assert "greedy" in last


def test_a_click_finds_the_probability_and_the_five_likeliest(shelf):
    *_, last = answers(playground.score, shelf, "A dog.")
    _, writer = shelf.writer(shelf.names()[0])
    ids = [50256, *writer.tokenizer.encode("A dog.")]
    with torch.no_grad():
        shares = writer.model(torch.tensor([ids]))[0].softmax(-1)
    titles = [unescape(title).splitlines() for title in re.findall('title="(.*?)"', last)]
    for place, lines in enumerate(titles):
        tops = shares[place].topk(5)
        expected = [shares[place, ids[place + 1]], *tops.values]
        assert [float(line.split("%")[0]) for line in lines] == pytest.approx(
            [100 * share.item() for share in expected],
            abs=0.1,  # one digit is shown
        )
    nats = -shares[range(len(ids) - 1), ids[1:]].log()
    assert f"{len(nats)} tokens, loss {nats.mean():.3f}" in last
    assert f"{nats.sum() / 6 / 0.693147:.3f} bits a byte" in last


def test_two_models_stand_side_by_side(folder, shelf):
    other = str(checkpoint.step_path(folder, 2))
    *_, last = answers(playground.write, shelf, "a", second=shelf.names()[-1], seed="1")
    assert re.findall("<h2>(.*?)</h2>", last) == [
        re.sub("[<>]", lambda tag: {"<": "&lt;", ">": "&gt;"}[tag[0]], f"{path}, step {step}")
        for path, step in ((checkpoint.step_path(folder, 10), 10), (other, 2))
    ]


def test_a_newer_checkpoint_is_picked_up(folder):
    shelf = shelf_of(folder)
    path = checkpoint.step_path(folder, 20)
    save(path, 20)
    *_, last = answers(playground.score, shelf, "a")
    assert "step 20</h2>" in last
    save(path.with_name(checkpoint.FINAL_NAME), 12)
    assert "step 12</h2>" in answers(playground.score, shelf, "a")[-1]
    assert len(shelf.names()) == 5
    for name in (path.name, checkpoint.FINAL_NAME):
        (folder / name).unlink()
    assert "step 10</h2>" in answers(playground.score, shelf, "a")[-1]


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"said": "a" * 1_000_000}, "too long (1,000,000 characters): at most 20,000"),
        ({"second": "../../etc/passwd"}, "no such model (../../etc/passwd)"),
        ({"second": "/etc/passwd"}, "no such model"),
        ({"seed": "one"}, "seed=&#x27;one&#x27; is not a whole number"),
        ({"top_p": 7}, "sampling: top_p=7.0 is not a number in (0, 1]"),
        ({"temperature": float("nan")}, "sampling: temperature=nan is not"),
    ],
)
def test_what_cannot_be_is_one_line(shelf, changed, line):
    said = {"said": "a", **changed}.pop("said")
    rest = {name: value for name, value in changed.items() if name != "said"}
    (only,) = answers(playground.write, shelf, said, **rest)
    assert f"error: {line}" in only
    assert "<article" not in only


def test_nothing_to_score_is_said(shelf):
    assert "error: nothing to score" in answers(playground.score, shelf, "")[-1]


def test_markup_escapes_and_turned_writing_stay_text(shelf):
    for work in (playground.write, playground.score):
        for page in answers(work, shelf, NASTY, max_new_tokens=2):
            assert "<script" not in page
            assert not re.search("[\x1b\u202e\u2066]", page)
    assert answers(playground.write, shelf, "half \ud83d", max_new_tokens=1)


def test_a_folder_without_a_model_a_port_that_is_taken_and_no_gradio_are_one_line(
    tmp_path, shelf, monkeypatch
):
    with pytest.raises(CheckpointError, match="train one with python"):
        shelf_of(tmp_path)
    with create_server(("127.0.0.1", 0)) as taken:
        for port in (taken.getsockname()[1], 99999, -1):
            with pytest.raises(ConfigError, match=rf"\(port={port}.*choose"):
                playground.server_of(shelf, port)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match="pip install gradio"):
        playground.server_of(shelf)


@pytest.fixture(scope="module")
def port(shelf):
    async def made():  # where a loop runs, Gradio leaves none unclosed
        return playground.server_of(shelf)

    with ThreadPoolExecutor(1) as elsewhere:  # a browser may run a loop here
        server, socket = elsewhere.submit(asyncio.run, made()).result()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    yield socket.getsockname()[1]
    server.should_exit = True
    thread.join()
    socket.close()


def test_the_page_is_served_with_a_policy_and_says_nothing_of_others(port):
    answer, content = ask(port)
    assert answer.status == 200
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "googleapis" not in content
    assert ask(port, Host=f"localhost:{port}", Origin=f"http://localhost:{port}")[0].status == 200


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
@pytest.mark.parametrize("path", ["/", "/gradio_api/queue/data?session_hash=a", "/assets/x.js"])
def test_another_host_or_origin_is_refused(port, path, headers):
    answer, content = ask(port, path, **headers)
    assert answer.status == 403
    assert "<" not in content


@pytest.mark.parametrize(
    "path",
    [
        *(
            f"{start}{file}"
            for start in ("/file=", "/gradio_api/file=", "/file/", "/gradio_api/file/")
            for file in ("/etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd")
        ),
        "/../../etc/passwd",
        "//etc/passwd",
        "/assets/../../../../../../../../etc/passwd",
        "/assets/..%2f..%2findex.html",
        "/static/%2e%2e%2f%2e%2e/app.py",
        "/static/..%5c..%5capp.py",
        "/assets/%252e%252e/index.html",
        "/svelte/../../app.py",
        "/gradio_api/proxy=http://example.com/",
        "/gradio_api/info",
        "/gradio_api/upload",
        "/config",
        "/monitoring",
        "/docs",
    ],
)
def test_nothing_but_the_page_is_served(port, path):
    assert ask(port, path)[0].status == 404
    assert ask(port, path, "POST", "x")[0].status == 404


def test_a_path_in_the_static_folder_stays_in_it(port):
    assert ask(port, "/static//etc/passwd")[0].status in (403, 404)
    assert ask(port, "/assets//etc/passwd")[0].status in (403, 404)


def test_a_request_without_an_end_is_refused(port):
    send = partial(ask, port, "/gradio_api/queue/join", "POST")
    assert send(b"x" * 8_000_001)[0].status == 413
    assert send(iter([b"x"]))[0].status == 413  # in chunks, of no length that is said


def call(port: int, number: int, *given) -> dict:
    """What a client of the page is answered in the end."""
    _, page = ask(port)
    config = json.loads(re.search(r"gradio_config = (\{.*?\});</script>", page)[1])
    work = next(one for one in config["dependencies"] if len(one["inputs"]) == len(given))
    what = {"data": given, "fn_index": work["id"], "session_hash": f"client{number}"}
    kind = {"Content-Type": "application/json"}
    answer, _ = ask(port, "/gradio_api/queue/join", "POST", json.dumps(what), **kind)
    assert answer.status == 200
    _, events = ask(port, f"/gradio_api/queue/data?session_hash=client{number}")
    messages = [json.loads(line[5:]) for line in events.splitlines() if line.startswith("data:")]
    return next(one for one in messages if one["msg"] == "process_completed")


def test_twenty_clients_at_once_are_all_answered_one_of_them_with_a_megabyte(port, shelf):
    first = shelf.names()[0]
    texts = [*(f"client {number}" for number in range(19)), "a" * 1_000_000]
    with ThreadPoolExecutor(20) as clients:
        found = list(clients.map(lambda n: call(port, n, texts[n], first, "none"), range(20)))
    assert all(one["success"] for one in found)
    assert "too long" in json.dumps(found[19])
    assert all(f"> {number}</span>" in json.dumps(found[number]) for number in range(19))


def write_in(window, port: int, num_tokens: int) -> None:
    """Opens the page, sets a seed and a length, and asks for a text."""
    window.goto(f"http://127.0.0.1:{port}/")
    window.get_by_role("button", name="Settings").click()
    window.get_by_label("number input for max new tokens").fill(str(num_tokens))
    window.get_by_role("textbox", name="seed").fill("7")
    window.get_by_label("prompt").fill(f"Once {NASTY}")
    window.get_by_role("button", name="Write", exact=True).click()


def test_the_command_is_polite_asks_nobody_and_ends_with_ctrl_c(folder, proxy):
    elsewhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), f"http://127.0.0.1:{proxy[0]}")
    command = [sys.executable, ROOT / "playground.py", "--device=cpu", "--precision=float32"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, text=True, env={**os.environ, **elsewhere}
    ) as process:
        said = process.stdout.readline()
        port = int(re.fullmatch(r"open      http://127\.0\.0\.1:(\d+)/ until Ctrl-C\n", said)[1])
        assert ask(port)[0].status == 200
        assert psutil.Process(process.pid).nice() > psutil.Process().nice()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert proxy[1] == []


def test_a_browser_shows_a_text_its_colours_and_what_else_was_likely(window, port, violations):
    write_in(window, port, 30)
    tokens = window.locator("article [title]")
    tokens.last.wait_for()
    assert "alert(1)</script>" in window.locator("article pre").inner_text()
    tokens.last.click()
    told = window.locator("article output").inner_text().splitlines()
    assert len(told) == 1 + 5
    tokens.first.focus()
    window.keyboard.press("Enter")
    assert window.locator("article output").inner_text().splitlines() != told
    widths = window.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1]
    assert violations(window) == {}
    window.get_by_role("tab", name="Score").click()
    window.get_by_label("text", exact=True).fill("A dog.")
    window.get_by_role("button", name="Score", exact=True).click()
    window.get_by_text("bits a byte").wait_for()
    assert violations(window) == {}


def test_a_browser_sees_a_text_grow_until_stop_and_the_next_one(window, port, monkeypatch):
    def slowly(value):  # so that the whole text would take minutes
        time.sleep(0.1)
        return html.text(value)

    monkeypatch.setattr(playground, "SECONDS", 0)
    monkeypatch.setattr(playground, "text", slowly)
    write_in(window, port, 1000)
    text = window.locator("article pre")
    text.wait_for()
    longer = "start => document.querySelector('article pre').innerText.length > start.length"
    window.wait_for_function(longer, arg=text.inner_text())
    window.get_by_role("button", name="Stop").click()
    window.get_by_label("number input for max new tokens").fill("3")
    done = window.get_by_text("seed 7, 3 tokens")
    for _ in range(200):  # a click counts once the stop has come back
        if done.is_visible():
            break
        window.get_by_role("button", name="Write", exact=True).click()
        window.wait_for_timeout(300)
    assert done.is_visible()
