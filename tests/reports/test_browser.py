"""The report in a real browser: curves are drawn, samples slide, rows sort, nothing is fetched."""

import json
import threading
from pathlib import Path

import pytest
from recorded import recorded

from reports import html, live, runs


@pytest.fixture(scope="module")
def report_path(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    recorded(folder / "a", seed=1, worse=0.3)
    recorded(folder / "b", seed=2, worse=0.6)
    recorded(folder / "c", embedding_dim=16)
    html.write(folder / "report.html", runs.load_all([folder / name for name in "abc"]))
    return folder / "report.html"


@pytest.fixture
def page(window, report_path):
    """The report, which must ask for nothing else."""
    requests = []
    window.on("request", lambda request: requests.append(request.url))
    window.goto(report_path.as_uri())
    window.locator(".bk-Figure").last.wait_for()
    yield window
    assert requests == [report_path.as_uri()]


def test_curves_are_drawn_and_the_page_is_as_wide_as_the_window(page):
    assert page.locator(".bk-Figure").count() == 4
    widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1]
    curves = page.evaluate(
        "Bokeh.documents[0].roots()[0].children[0].renderers"
        ".filter(one => one.glyph.type == 'MultiLine').map(one => one.data_source.data.run)"
    )
    assert curves == [["c", "a, b"]] * 2  # training and validation


def test_the_slider_shows_one_sample_after_the_other_with_the_keyboard(page):
    slider = page.get_by_label("sample of c, from the first to the last")
    samples = slider.locator("xpath=ancestor::section").locator("figure:not([hidden])")
    assert samples.count() == 1
    assert samples.inner_text().startswith("step 400")
    slider.focus()
    page.keyboard.press("Home")
    assert samples.inner_text().startswith("step 0")
    page.keyboard.press("ArrowRight")
    assert samples.inner_text().startswith("step 100")


def test_a_heading_sorts_the_rows_with_the_keyboard(page):
    names = page.locator("tbody").first.locator("tr td:first-child")
    assert names.all_inner_texts() == ["c", "a, b"]
    page.get_by_role("button", name="run").focus()
    page.keyboard.press("Enter")
    assert names.all_inner_texts() == ["a, b", "c"]
    page.keyboard.press("Enter")
    assert names.all_inner_texts() == ["c", "a, b"]


def test_the_page_is_accessible(page, violations):
    for summary in page.locator("summary").all():
        summary.press("Enter")
    assert violations(page) == {}


def test_the_live_page_follows_the_run(window, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "SECONDS", 1)
    recorded(tmp_path)
    with live.server_of([str(tmp_path)]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        window.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        window.locator(".bk-Figure").last.wait_for()  # its policy lets the curves be drawn
        with (tmp_path / "history.jsonl").open("a") as file:
            file.write(json.dumps({"step": 7777, "tokens": 99_999, "sample": "the newest"}) + "\n")
        window.get_by_text("the newest").wait_for()
        assert window.get_by_text("the newest").is_visible()
        window.goto("about:blank")
        server.shutdown()
        thread.join()
