"""The report: everything in one file that needs no other; what runs contain stays text."""

import re
import sys
from html.parser import HTMLParser

import pytest
from recorded import COMPARISON, NASTY, recorded

import report
from generation.row import printable
from reports import html, runs
from system.errors import ConfigError


class Seen(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def two(tmp_path):
    recorded(tmp_path / "a <b>")
    recorded(tmp_path / "c", seed=2, embedding_dim=16)
    return [tmp_path / "a <b>", tmp_path / "c"]


def test_a_report_has_everything_and_all_of_it_is_text(two):
    content = html.page(runs.load_all(two))
    seen = Seen(content)
    shown = " ".join(seen.text.split())
    expected = " ".join(printable(NASTY).split())
    assert shown.count(expected) >= 2 * (5 + 1 + 1 + 1)  # samples, text, config, comparison
    body = content.rpartition("<body>")[2]  # what is before it is not ours alone
    assert not set(body) & set("\x1b\u202e")
    for heading in ("Results", "Curves", "a <b>", "Environment", "Config", "Ways of sampling"):
        assert heading in seen.text
    assert "4 to 7" in seen.text  # tokens of the longest documents
    assert "most in use1.00 GB" in seen.text
    assert f"Nearest to the held-out text: {COMPARISON['nearest'][0]}" in seen.text
    assert "embedding_dim" in seen.text
    assert "alert(1)</script>" not in content


def test_a_report_asks_nothing_of_the_network(two):
    content = html.page(runs.load_all(two))
    assert not re.search(r"<(link|img|iframe)|@import|<script[^>]+src", content)
    assert 'name="viewport" content="width=device-width' in content
    assert "color-scheme: light dark" in content


def test_lines_and_bars_are_text_too():
    parts = html.rows({NASTY: [NASTY, "b"]}) + html.bars([("1 to 2", 2), ("4 to 7", 1)])
    seen = Seen(html.document(NASTY, parts))
    assert seen.text.count(printable(NASTY)) == 4  # title and heading as well
    assert "alert" not in "".join(str(value) for _, value in seen.attributes)
    widths = [value for name, value in seen.attributes if name == "style"]
    assert widths == ["width:100.0%", "width:50.0%"]


def test_without_bokeh_there_is_a_picture_and_a_word_on_how_to_get_more(two, monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh.embed", None)
    content = html.page(runs.load_all(two))
    assert content.count("<svg") == 1
    assert "pip install bokeh" in content
    assert len(content) < 500_000


def test_a_run_without_a_report_has_a_page(tmp_path):
    path = recorded(tmp_path) / "history.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    assert "No report yet." in html.page([runs.load(path)])


def test_a_long_run_and_many_runs_stay_small(tmp_path):
    places = [recorded(tmp_path / f"{i}", num_reports=100, embedding_dim=i) for i in range(50)]
    many = [*runs.load_all(places)]
    recorded(tmp_path / "long", num_reports=20_000, evaluated=10)
    for found in (many, [runs.load(tmp_path / "long")]):
        assert len(html.page(found).encode()) < 6_000_000


def test_the_command_writes_the_page_or_prints_the_table(two, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    report.main([str(place) for place in two])
    out, err = capsys.readouterr()
    assert err == "written   report.html\n"
    assert (tmp_path / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    (tmp_path / "report.html").unlink()
    report.main(["--table", *map(str, two)])
    assert capsys.readouterr().out == out
    report.main(["--csv", *map(str, two)])
    assert capsys.readouterr().out.startswith("run,seeds,bits_per_byte,")
    with pytest.raises(ConfigError, match="no effect of --output"):
        report.main(["--table", "--output=report.html"])
    assert not (tmp_path / "report.html").exists()
